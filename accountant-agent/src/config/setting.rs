//! Settings with where each came from, for `accountant check`.

use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag.
    Flag(&'static str),
    /// A variable of the environment.
    Variable(String),
    /// A file.
    File(PathBuf),
    /// The kernel.
    Kernel,
    /// It follows from other settings: which.
    Derived(&'static str),
    /// Nothing was given.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => f.write_str(flag),
            Self::Variable(name) => write!(f, "${name}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Kernel => f.write_str("the kernel's host name"),
            Self::Derived(from) => f.write_str(from),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub origin: Origin,
}

impl<T> Given<T> {
    /// A value of this origin.
    pub fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }
}

/// Addresses, separated by commas, without the users and passwords that some write into them.
pub(super) fn without_users(addresses: &str) -> String {
    let without = |address: &str| {
        let (scheme, rest) = match address.split_once("://") {
            Some((scheme, rest)) => (format!("{scheme}://"), rest),
            None => (String::new(), address),
        };
        let end = rest.find('/').unwrap_or(rest.len());
        let host = rest[..end].rfind('@').map_or(0, |at| at + 1);
        format!("{scheme}{}", &rest[host..])
    };
    addresses.split(',').map(without).collect::<Vec<_>>().join(",")
}

/// A setting as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Its name: a field of Calico's configuration, or a flag of ours.
    pub name: &'static str,
    /// The value, or dots for a secret.
    pub value: String,
    /// Where it came from.
    pub origin: String,
}

impl Setting {
    /// A setting that may be seen.
    pub fn shown(name: &'static str, given: &Given<String>) -> Self {
        Self { name, value: given.value.clone(), origin: given.origin.to_string() }
    }

    /// Addresses of which only users and passwords may not be seen.
    pub fn addresses(name: &'static str, given: &Given<String>) -> Self {
        Self { name, value: without_users(&given.value), origin: given.origin.to_string() }
    }

    /// A setting that may not.
    pub fn hidden(name: &'static str, given: &Given<String>) -> Self {
        let value = if given.value.is_empty() { "" } else { "***" };
        Self { name, value: value.into(), origin: given.origin.to_string() }
    }
}
