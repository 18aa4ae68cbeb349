//! A BPF file system of a test's own.

use std::path::PathBuf;
use std::process::Command;

/// The file system; gone when dropped.
pub struct BpfFilesystem {
    folder: tempfile::TempDir,
}

impl BpfFilesystem {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(folder.path()).status().unwrap();
        assert!(mounted.success());
        Self { folder }
    }

    /// A folder in it that is not there yet.
    pub fn pins(&self) -> PathBuf {
        self.folder.path().join("pins")
    }
}

impl Drop for BpfFilesystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.folder.path()).status();
    }
}
