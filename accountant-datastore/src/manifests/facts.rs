//! Which entries of a folder count, and how much of it is read at all.
//!
//! A ConfigMap that Kubernetes mounts looks like this, and is replaced by renaming a new `..data` over the old:
//!
//! ```text
//! policies.yaml -> ..data/policies.yaml
//! ..data -> ..2026_08_01_09_00_00.123456789
//! ..2026_08_01_09_00_00.123456789/policies.yaml
//! ```
//!
//! So links are followed, and what begins with `..` is left out.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Largest file that is read.
pub const MAX_FILE_BYTES: usize = 64 << 20;
/// Most files and folders that are read.
pub(super) const MAX_ENTRIES: usize = 100_000;
/// Deepest folder that is read.
pub(super) const MAX_DEPTH: usize = 32;
/// Most errors that are kept of one file, and told of the folder.
pub(super) const MAX_ERRORS: usize = 100;

const SUFFIXES: [&str; 3] = [".yaml", ".yml", ".json"];

/// What is behind an entry, links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Folder,
    File,
    /// A device, a pipe, a socket.
    Other,
}

/// Whether an entry may count at all, by its name; what it is decides then.
pub(super) fn worth_a_look(name: &OsStr) -> bool {
    !name.as_bytes().starts_with(b"..")
}

/// Whether a file counts.
pub(super) fn is_manifest(name: &OsStr, target: Target) -> bool {
    target == Target::File && SUFFIXES.iter().any(|suffix| name.as_bytes().ends_with(suffix.as_bytes()))
}

/// Whether an entry that cannot be followed is missed: a file that would count.
pub(super) fn is_missed(name: &OsStr) -> bool {
    is_manifest(name, Target::File)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, target: Target, want: bool) {
        assert_eq!(worth_a_look(name.as_ref()) && is_manifest(name.as_ref(), target), want, "{name}");
    }

    #[test]
    fn files_count_by_name_and_kind() {
        check("a.yaml", Target::File, true);
        check("a.yml", Target::File, true);
        check("a.json", Target::File, true);
        check(".hidden.yaml", Target::File, true);
        check("a.yaml.bak", Target::File, false);
        check("yaml", Target::File, false);
        check("a.yaml", Target::Other, false);
        check("a.yaml", Target::Folder, false);
        check("..data", Target::File, false);
        check("..a.yaml", Target::File, false);
    }
}
