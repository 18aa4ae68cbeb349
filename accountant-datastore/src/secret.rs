//! Texts that must not be printed: passwords, tokens, keys.

use std::fmt;

/// A secret. It shows as dots wherever it is printed; [`Secret::reveal`] is for those who send it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"***\"")
    }
}

/// A certificate or key in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pem {
    /// In a file, which is read again at every connection.
    File(Box<std::path::Path>),
    /// As text.
    Inline(Secret),
}

impl Pem {
    /// The text.
    pub(crate) fn read(&self) -> Result<String, PemError> {
        match self {
            Self::Inline(text) => Ok(text.reveal().to_string()),
            Self::File(file) => {
                std::fs::read_to_string(file).map_err(|source| PemError { file: file.clone(), source })
            }
        }
    }
}

/// A certificate or key that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {file:?}")]
pub struct PemError {
    file: Box<std::path::Path>,
    source: std::io::Error,
}
