//! Why an object of a known kind gives no name.

/// Why an object cannot be used; it names the field.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A field that the kind needs.
    #[error("{field} is missing")]
    Missing {
        /// Where it should be.
        field: &'static str,
    },
    /// A field of the wrong type.
    #[error("{field} must not be {found}")]
    Type {
        /// Where it is.
        field: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// A name that Kubernetes would not take either.
    #[error("{field} has {length} bytes, which is more than a name may have")]
    TooLong {
        /// Where it is.
        field: &'static str,
        /// How long it is.
        length: usize,
    },
    /// A value that the kind does not know.
    #[error("{field} is {value:?}, which must be {wanted}")]
    Value {
        /// Where it is.
        field: &'static str,
        /// What it says, cut short.
        value: String,
        /// What it may be.
        wanted: &'static str,
    },
    /// The annotation under which Calico keeps an object's real labels.
    #[error("annotation projectcalico.org/metadata does not parse as JSON")]
    HiddenMetadata {
        /// Why not.
        source: serde_json::Error,
    },
    /// A selector that is none.
    #[error("{field} does not parse")]
    Selector {
        /// Where it is.
        field: &'static str,
        /// Why not.
        source: accountant_core::calico::selector::SelectorError,
    },
}

impl ConvertError {
    /// What the person who wrote the object can do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Missing { field: "metadata.namespace" } => {
                "add it, also where kubectl would take it from its context"
            }
            Self::Missing { .. } => "add it",
            Self::Type { .. } | Self::TooLong { .. } | Self::Value { .. } | Self::Selector { .. } => {
                "correct it"
            }
            Self::HiddenMetadata { .. } => "correct it, or state spec.tier",
        }
    }
}
