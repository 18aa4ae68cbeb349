//! From a file's bytes to names.
//!
//! In go bytes, whatever they are; out come the objects that give names, and an error for each document or object that
//! cannot be used, with its line in the file. Only slim structs are kept while reading, the nesting of documents and
//! the expansion of aliases are limited, and so is what is told of a file that is all errors.

use super::document::{Document, SyntaxError, Unfolded, parse};
use super::facts::{MAX_ERRORS, MAX_FILE_BYTES};
use super::split::{Piece, split};
use crate::convert::field::Field;
use crate::convert::{ConvertError, Resource, Settings, complaint, convert};
use accountant_core::index::{Object, ObjectKey};
use std::collections::BTreeMap;

/// What a file says.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The names, by object.
    pub objects: BTreeMap<ObjectKey, Object>,
    /// What could not be used.
    pub errors: Vec<DecodeError>,
    /// How many more errors there are than are kept.
    pub more_errors: usize,
}

/// A part of a file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The file is too large to be read at all.
    #[error("cannot read {file}: it has more than {MAX_FILE_BYTES} bytes")]
    TooLarge {
        /// The file.
        file: Box<str>,
    },
    /// Bytes that are no text.
    #[error("cannot read the document at {file}:{line} as text")]
    NotText {
        /// The file.
        file: Box<str>,
        /// The line at which the document begins.
        line: u64,
        /// What is wrong.
        source: std::str::Utf8Error,
    },
    /// Text that is neither YAML nor JSON.
    #[error("cannot parse the document at {file}:{line}")]
    Syntax {
        /// The file.
        file: Box<str>,
        /// The line at which the document begins.
        line: u64,
        /// What is wrong.
        source: SyntaxError,
    },
    /// A document that is no object, or a list item that is none.
    #[error("cannot use {object} at {file}:{line}: it is {found}, not an object")]
    NotAnObject {
        /// The file.
        file: Box<str>,
        /// The line at which the document begins.
        line: u64,
        /// Which item.
        object: String,
        /// What it is.
        found: &'static str,
    },
    /// An object of a known kind that gives no name.
    #[error("cannot use {object} at {file}:{line}")]
    Object {
        /// The file.
        file: Box<str>,
        /// The line at which the document begins.
        line: u64,
        /// Which object.
        object: String,
        /// What is wrong.
        source: ConvertError,
    },
    /// An object that stands in the file twice and not alike.
    #[error("cannot tell which {object} counts: the one at {file}:{line} is not the first and differs")]
    Twice {
        /// The file.
        file: Box<str>,
        /// The line at which the last of them begins, which is used.
        line: u64,
        /// Which object.
        object: String,
    },
}

impl DecodeError {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "split it, or take out what is no pod, policy, profile or endpoint",
            Self::NotText { .. } => "save it as UTF-8",
            Self::Syntax { .. } => "correct it",
            Self::NotAnObject { .. } => "give it apiVersion, kind and metadata, or remove it",
            Self::Object { source, .. } => source.advice(),
            Self::Twice { .. } => "remove one of them",
        }
    }
}

/// Reads a file of manifests. `file` is its name for messages.
pub fn decode(file: &str, bytes: &[u8], settings: &Settings) -> Decoded {
    let mut reader = Reader { file, settings, decoded: Decoded::default() };
    if bytes.len() > MAX_FILE_BYTES {
        reader.fail(DecodeError::TooLarge { file: file.into() });
        return reader.decoded;
    }
    for piece in split(bytes) {
        if let Some(line) = piece.first_line() {
            reader.document(piece, line);
        }
    }
    reader.decoded
}

struct Reader<'a> {
    file: &'a str,
    settings: &'a Settings,
    decoded: Decoded,
}

impl Reader<'_> {
    fn document(&mut self, piece: Piece<'_>, line: u64) {
        let file = || self.file.into();
        let parsed = match std::str::from_utf8(piece.bytes) {
            Ok(text) => parse(text, piece.lines_before).map_err(|source| DecodeError::Syntax {
                file: file(),
                line,
                source,
            }),
            Err(source) => Err(DecodeError::NotText { file: file(), line, source }),
        };
        match parsed {
            Ok(Field::Absent) => {}
            Ok(Field::Is(document)) => self.objects(document, line),
            Ok(Field::Wrong(found)) => {
                let object = "the document".to_string();
                self.fail(DecodeError::NotAnObject { file: file(), line, object, found });
            }
            Err(error) => self.fail(error),
        }
    }

    fn objects(&mut self, document: Document, line: u64) {
        match document.unfold() {
            Unfolded::Object(object) => self.object(&object, object.describe(), line),
            Unfolded::List(items) => {
                for (number, item) in (1..).zip(items) {
                    self.item(item, number, line);
                }
            }
            Unfolded::Broken(object, source) => {
                self.fail(DecodeError::Object { file: self.file.into(), line, object, source });
            }
        }
    }

    fn item(&mut self, item: Field<Resource>, number: usize, line: u64) {
        match item {
            Field::Absent => {}
            Field::Is(object) => self.object(&object, format!("item {number}, {},", object.describe()), line),
            Field::Wrong(found) => {
                let object = format!("item {number}");
                self.fail(DecodeError::NotAnObject { file: self.file.into(), line, object, found });
            }
        }
    }

    fn object(&mut self, resource: &Resource, object: String, line: u64) {
        let file = || self.file.into();
        match convert(resource, self.settings) {
            Ok(None) => {}
            Ok(Some((key, name))) => {
                let differs = self.decoded.objects.get(&key).is_some_and(|first| *first != name);
                self.decoded.objects.insert(key, name);
                if differs {
                    self.fail(DecodeError::Twice { file: file(), line, object });
                } else if let Some(source) = complaint(resource) {
                    self.fail(DecodeError::Object { file: file(), line, object, source });
                }
            }
            Err(source) => self.fail(DecodeError::Object { file: file(), line, object, source }),
        }
    }

    fn fail(&mut self, error: DecodeError) {
        if self.decoded.errors.len() < MAX_ERRORS {
            self.decoded.errors.push(error);
        } else {
            self.decoded.more_errors += 1;
        }
    }
}

#[cfg(test)]
mod tests;
