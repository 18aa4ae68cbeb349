//! Selectors: which labels an endpoint must have for a policy to apply to it.

use std::collections::BTreeMap;
use std::fmt;

/// An endpoint's labels.
pub type Labels = BTreeMap<String, String>;

/// The selectors that the lab needs, of the many that Calico has. Printed in Calico's canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// `all()`, and the empty `podSelector` of Kubernetes.
    All,
    /// `has(key)`.
    Has(String),
    /// `key == "value"`.
    Is(String, String),
    /// `key in {"one", "other"}`.
    In(String, Vec<String>),
}

impl Selector {
    /// Selects what has this label, whatever its value.
    pub fn has(key: &str) -> Self {
        Self::Has(key.to_string())
    }

    /// Selects what has this label with this value.
    pub fn is(key: &str, value: &str) -> Self {
        Self::Is(key.to_string(), value.to_string())
    }

    /// Selects what has this label with one of these values.
    pub fn one_of(key: &str, values: &[&str]) -> Self {
        Self::In(key.to_string(), values.iter().map(ToString::to_string).collect())
    }

    /// Whether something with these labels is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::All => true,
            Self::Has(key) => labels.contains_key(key),
            Self::Is(key, value) => labels.get(key) == Some(value),
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all()"),
            Self::Has(key) => write!(f, "has({key})"),
            Self::Is(key, value) => write!(f, "{key} == \"{value}\""),
            Self::In(key, values) => {
                let values: Vec<String> = values.iter().map(|value| format!("\"{value}\"")).collect();
                write!(f, "{key} in {{{}}}", values.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_match_as_they_read() {
        let labels: Labels = [("app".to_string(), "web".to_string())].into();
        for (selector, text, matches) in [
            (Selector::All, "all()", true),
            (Selector::has("app"), "has(app)", true),
            (Selector::has("tier"), "has(tier)", false),
            (Selector::is("app", "web"), "app == \"web\"", true),
            (Selector::is("app", "db"), "app == \"db\"", false),
            (Selector::one_of("app", &["db", "web"]), "app in {\"db\", \"web\"}", true),
        ] {
            assert_eq!(selector.to_string(), text);
            assert_eq!(selector.matches(&labels), matches, "{text}");
        }
    }
}
