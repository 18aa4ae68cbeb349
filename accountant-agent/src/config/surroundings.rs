//! What configuration is read from: environment, files, the kernel's host name. Behind a trait, so that the rules are
//! tested without any of them.

use std::io;
use std::path::Path;

/// What a process finds around itself.
pub trait Surroundings {
    /// A variable of the environment. Set but empty is set.
    fn variable(&self, name: &str) -> Option<String>;
    /// The text of a file.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// The kernel's host name.
    fn host_name(&self) -> Option<String>;
}

/// The real ones.
#[derive(Clone, Copy, Debug)]
pub struct Process;

impl Surroundings for Process {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn host_name(&self) -> Option<String> {
        nix::unistd::gethostname().ok()?.into_string().ok()
    }
}

#[cfg(test)]
pub(super) mod fake {
    use super::{Path, Surroundings, io};
    use std::collections::BTreeMap;

    /// Made up ones.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Fake {
        pub(crate) variables: BTreeMap<String, String>,
        pub(crate) files: BTreeMap<String, String>,
        pub(crate) host_name: Option<String>,
    }

    impl Fake {
        pub(crate) fn with(variables: &[(&str, &str)]) -> Self {
            Self::default().and(variables)
        }

        pub(crate) fn and(mut self, variables: &[(&str, &str)]) -> Self {
            self.variables.extend(variables.iter().map(|(k, v)| (k.to_string(), v.to_string())));
            self
        }

        pub(crate) fn file(mut self, path: &str, text: &str) -> Self {
            self.files.insert(path.into(), text.into());
            self
        }
    }

    impl Surroundings for Fake {
        fn variable(&self, name: &str) -> Option<String> {
            self.variables.get(name).cloned()
        }

        fn read(&self, path: &Path) -> io::Result<String> {
            let text = self.files.get(&*path.to_string_lossy()).cloned();
            text.ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn host_name(&self) -> Option<String> {
            self.host_name.clone()
        }
    }
}
