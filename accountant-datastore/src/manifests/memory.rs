//! What each file of the folder said last.
//!
//! In go the files of one reading after another, good and bad; out come all names together, and whether they changed.
//!
//! Invariant: a file that cannot be read or used in part adds what it does say to what it said when it was last good;
//! only a file that is good again, or gone, takes names away. A file whose bytes are the same is not decoded again.

use super::decode::{Decoded, decode};
use super::facts::MAX_ERRORS;
use crate::convert::Settings;
use crate::explain;
use accountant_core::index::{Object, ObjectKey};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

type Objects = BTreeMap<ObjectKey, Object>;

/// What all files say.
#[derive(Debug, Default)]
pub(super) struct Memory {
    files: BTreeMap<PathBuf, File>,
    /// Folders that could not be read.
    unread: Vec<String>,
    /// Objects that stand in several files and not alike.
    rivals: Vec<String>,
    /// What does not work and costs no names.
    troubles: Vec<String>,
}

#[derive(Debug, Default)]
struct File {
    /// A hash of the bytes that `errors` tells of; none if they could not be read.
    digest: Option<u64>,
    /// What counts now.
    says: Objects,
    /// While there are errors: what it said when it was last good.
    last_good: Option<Objects>,
    errors: Vec<String>,
}

impl File {
    /// Takes what the file says now. Returns whether other names count than before.
    fn turn(&mut self, digest: Option<u64>, objects: Objects, errors: Vec<String>) -> bool {
        let was_good = self.errors.is_empty();
        let before = std::mem::take(&mut self.says);
        let last_good = match self.last_good.take() {
            None if was_good => before.clone(),
            kept => kept.unwrap_or_default(),
        };
        if errors.is_empty() {
            self.says = objects;
        } else {
            self.says = last_good.clone();
            self.says.extend(objects);
            self.last_good = Some(last_good);
        }
        self.digest = digest;
        self.errors = errors;
        self.says != before
    }
}

impl Memory {
    /// Begins a new reading of the folder.
    pub(super) fn reading(&mut self) -> Reading<'_> {
        self.troubles.clear();
        self.unread.clear();
        Reading { memory: self, seen: BTreeSet::new(), kept: Vec::new(), changed: false }
    }

    /// All names. Of an object that stands in several files, the last file in the order of their names counts.
    pub(super) fn objects(&self) -> Objects {
        self.files.values().flat_map(|file| file.says.clone()).collect()
    }

    /// Whether the names are all that the folder says now.
    pub(super) fn is_complete(&self) -> bool {
        let all_good = self.files.values().all(|file| file.errors.is_empty());
        all_good && self.unread.is_empty() && self.rivals.is_empty()
    }

    /// All errors, up to a limit.
    pub(super) fn errors(&self) -> Vec<String> {
        let in_files = self.files.values().flat_map(|file| &file.errors);
        let elsewhere = self.troubles.iter().chain(&self.unread).chain(&self.rivals);
        let mut errors: Vec<_> = elsewhere.chain(in_files).cloned().collect();
        let more = errors.len().saturating_sub(MAX_ERRORS);
        if more > 0 {
            errors.truncate(MAX_ERRORS);
            errors.push(format!("{more} more errors are not shown; correct these first"));
        }
        errors
    }

    fn find_rivals(&self) -> Vec<String> {
        let mut first: BTreeMap<&ObjectKey, (&Path, &Object)> = BTreeMap::new();
        let mut rivals = Vec::new();
        for (path, file) in &self.files {
            for (key, object) in &file.says {
                match first.insert(key, (path, object)) {
                    Some((other, rival)) if rival != object => rivals.push(rivalry(key, other, path)),
                    _ => {}
                }
            }
        }
        rivals
    }
}

fn rivalry((kind, namespace, name): &ObjectKey, one: &Path, other: &Path) -> String {
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!(
        "cannot tell which {kind} {namespace}{slash}{name} counts: {} and {} differ, the latter is used; remove it from one",
        one.display(),
        other.display()
    )
}

/// One reading of the folder.
pub(super) struct Reading<'a> {
    memory: &'a mut Memory,
    seen: BTreeSet<PathBuf>,
    /// Folders that could not be listed: what is below them is kept.
    kept: Vec<PathBuf>,
    changed: bool,
}

impl Reading<'_> {
    /// A file that was read.
    pub(super) fn file(&mut self, path: &Path, bytes: &[u8], settings: &Settings) {
        let file = self.memory.files.entry(path.into()).or_default();
        self.seen.insert(path.into());
        let digest = Some(digest(bytes));
        if file.digest == digest {
            return;
        }
        let decoded = decode(&path.to_string_lossy(), bytes, settings);
        let errors = texts(&decoded);
        self.changed |= file.turn(digest, decoded.objects, errors);
    }

    /// A file that could not be read.
    pub(super) fn unreadable_file(&mut self, path: &Path, error: String) {
        let file = self.memory.files.entry(path.into()).or_default();
        self.seen.insert(path.into());
        self.changed |= file.turn(None, Objects::new(), vec![error]);
    }

    /// A folder that could not be read, or not to its end.
    pub(super) fn unreadable_folder(&mut self, path: &Path, error: String) {
        self.memory.unread.push(error);
        self.kept.push(path.into());
    }

    /// Something that does not work and costs no names.
    pub(super) fn trouble(&mut self, error: String) {
        self.memory.troubles.push(error);
    }

    /// Ends the reading: files that are gone are forgotten. Returns whether any name changed.
    pub(super) fn finish(self) -> bool {
        let Self { memory, seen, kept, mut changed } = self;
        memory.files.retain(|path, file| {
            let stays = seen.contains(path) || kept.iter().any(|folder| path.starts_with(folder));
            changed |= !stays && !file.says.is_empty();
            stays
        });
        if changed {
            memory.rivals = memory.find_rivals();
        }
        changed
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn texts(decoded: &Decoded) -> Vec<String> {
    let mut texts: Vec<_> = decoded.errors.iter().map(|error| explain(error, error.advice())).collect();
    if decoded.more_errors > 0 {
        texts.push(format!("{} more errors in the same file; correct these first", decoded.more_errors));
    }
    texts
}

#[cfg(test)]
mod tests;
