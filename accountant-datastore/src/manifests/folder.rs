//! Reads the folder: I/O alone.
//!
//! Goes through the folder and what is below it, in the order of names; each folder is watched before it is listed, so
//! that no change between two readings is missed. Links are followed, and no folder is entered twice, so there is
//! always an end.

use super::facts::{MAX_DEPTH, MAX_ENTRIES, MAX_FILE_BYTES, Target, is_manifest, is_missed, worth_a_look};
use super::memory::{Memory, Reading};
use crate::convert::Settings;
use crate::explain;
use nix::sys::inotify::{AddWatchFlags, Inotify};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What of a folder cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder of manifests is not there.
    #[error("cannot read the folder of manifests {folder:?}")]
    NoFolder {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A folder below it.
    #[error("cannot list {folder:?}")]
    List {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file or link.
    #[error("cannot read {file:?}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is more than is read.
    #[error(
        "cannot read all of {folder:?}: there are more than {MAX_ENTRIES} entries, or more than {MAX_DEPTH} levels"
    )]
    TooMuch {
        /// The folder.
        folder: PathBuf,
    },
    /// Changes of a folder will be seen late.
    #[error("cannot watch {folder:?}")]
    Watch {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl FolderError {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NoFolder { .. } => "create or mount it, or name another; it is tried again",
            Self::List { .. } | Self::Read { .. } => {
                "correct it, or let the agent read it; it is tried again"
            }
            Self::TooMuch { .. } => "name a folder that holds nothing but manifests",
            Self::Watch { .. } => {
                "raise fs.inotify.max_user_watches and max_user_instances; until then changes are found by reading all \
                 again from time to time"
            }
        }
    }

    fn text(&self) -> String {
        explain(self, self.advice())
    }
}

/// What a reading came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The folder itself could be listed.
    pub(super) listed: bool,
    /// Names changed.
    pub(super) changed: bool,
    /// Something could not be read, which may pass.
    pub(super) try_again: bool,
}

/// Reads all of it into the memory.
pub(super) fn read(
    folder: &Path,
    settings: &Settings,
    watch: io::Result<Arc<Inotify>>,
    memory: &mut Memory,
) -> Outcome {
    let mut reading = memory.reading();
    let watch = watch.map_err(|source| {
        reading.trouble(FolderError::Watch { folder: folder.into(), source }.text());
    });
    let mut walk =
        Walk { reading, settings, watch: watch.ok(), entered: BTreeSet::new(), entries: 0, try_again: false };
    let listed = walk.root(folder);
    let Walk { reading, try_again, .. } = walk;
    Outcome { listed, changed: reading.finish(), try_again }
}

struct Walk<'a> {
    reading: Reading<'a>,
    settings: &'a Settings,
    watch: Option<Arc<Inotify>>,
    /// Device and inode of each folder.
    entered: BTreeSet<(u64, u64)>,
    entries: usize,
    try_again: bool,
}

impl Walk<'_> {
    fn root(&mut self, folder: &Path) -> bool {
        let entered = folder.metadata().and_then(|metadata| self.folder(folder, &metadata, 0));
        let Err(source) = entered else { return true };
        self.fail_folder(folder, &FolderError::NoFolder { folder: folder.into(), source });
        false
    }

    /// Goes through a folder, unless it was entered before.
    fn folder(&mut self, folder: &Path, metadata: &Metadata, depth: usize) -> io::Result<()> {
        if !self.entered.insert((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        self.watch(folder);
        let mut names = Vec::new();
        for entry in folder.read_dir()? {
            self.entries += 1;
            if self.entries > MAX_ENTRIES || depth > MAX_DEPTH {
                self.fail_folder(folder, &FolderError::TooMuch { folder: folder.into() });
                return Ok(());
            }
            names.push(entry?.file_name());
        }
        names.sort();
        for name in names.into_iter().filter(|name| worth_a_look(name)) {
            self.entry(folder, name, depth);
        }
        Ok(())
    }

    fn entry(&mut self, folder: &Path, name: OsString, depth: usize) {
        let path = folder.join(&name);
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => match self.folder(&path, &metadata, depth + 1) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    self.fail_folder(&path, &FolderError::List { folder: path.clone(), source });
                }
                _ => {}
            },
            Ok(metadata) if is_manifest(&name, target(&metadata)) => self.file(&path),
            Ok(_) => tracing::debug!(path = %path.display(), "left out an entry that is no manifest"),
            Err(source) if is_missed(&name) => self.fail_file(&path, source),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => self.fail_folder(&path, &FolderError::List { folder: path.clone(), source }),
        }
    }

    fn file(&mut self, path: &Path) {
        match bytes_of(path) {
            Ok(bytes) => self.reading.file(path, &bytes, self.settings),
            Err(source) => self.fail_file(path, source),
        }
    }

    /// A file that is gone since it was listed is no error; a link that leads nowhere is one.
    fn fail_file(&mut self, path: &Path, source: io::Error) {
        if source.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() {
            return;
        }
        self.try_again = true;
        self.reading.unreadable_file(path, FolderError::Read { file: path.into(), source }.text());
    }

    fn fail_folder(&mut self, path: &Path, error: &FolderError) {
        self.try_again = true;
        self.reading.unreadable_folder(path, error.text());
    }

    /// Watching again what is watched already changes nothing.
    fn watch(&mut self, folder: &Path) {
        let Some(inotify) = &self.watch else { return };
        if let Err(errno) = inotify.add_watch(folder, changes()) {
            let source = errno.into();
            self.reading.trouble(FolderError::Watch { folder: folder.into(), source }.text());
        }
    }
}

/// What wakes us: whatever adds, ends, replaces or removes an entry. Not each write, which would find half a file.
fn changes() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR
}

fn target(metadata: &Metadata) -> Target {
    match metadata.is_file() {
        true => Target::File,
        false if metadata.is_dir() => Target::Folder,
        false => Target::Other,
    }
}

/// A file's bytes; of one that is too large, enough for it to be refused.
fn bytes_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
