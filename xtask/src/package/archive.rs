//! Files in a tar archive, the same bytes for the same files: nothing has an owner but root, or a time but the epoch.

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// A file in an archive.
pub(super) struct Entry {
    /// Its path, without the first slash.
    pub(super) path: String,
    /// Its permissions.
    pub(super) mode: u32,
    /// Its content.
    pub(super) content: Vec<u8>,
}

impl Entry {
    /// A file.
    pub(super) fn new(path: impl Into<String>, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), mode, content: content.into() }
    }
}

/// The archive, with each folder before what is in it.
pub(super) fn tar(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    let mut folders = BTreeSet::new();
    for entry in entries {
        let mut missing = Vec::new();
        for folder in Path::new(&entry.path).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()) {
            if folders.insert(folder) {
                missing.push(folder);
            }
        }
        for folder in missing.into_iter().rev() {
            // The empty end makes a slash.
            let path = folder.join("");
            tar.append_data(&mut header(EntryType::Directory, 0o755, 0)?, path, std::io::empty())?;
        }
        let mut header = header(EntryType::Regular, entry.mode, entry.content.len())?;
        let added = tar.append_data(&mut header, &entry.path, entry.content.as_slice());
        added.with_context(|| entry.path.clone())?;
    }
    Ok(tar.into_inner()?)
}

fn header(kind: EntryType, mode: u32, size: usize) -> Result<Header> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_username("root")?;
    header.set_groupname("root")?;
    Ok(header)
}

/// Compressed, without name and time.
pub(super) fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(content)?;
    Ok(gzip.finish()?)
}
