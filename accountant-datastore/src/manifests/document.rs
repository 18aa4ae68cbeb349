//! One YAML or JSON document: parsing, and unfolding of lists.
//!
//! In goes text; out come slim objects, or where the text is broken. Nesting and the expansion of aliases are limited.

use crate::convert::field::{Field, Group, read_from_maps};
use crate::convert::resource::{Metadata, Spec, Status};
use crate::convert::{ConvertError, Resource};
use serde::Deserialize;
use serde_saphyr::{Options, RenderOptions, SnippetMode, UserMessageFormatter};
use std::fmt;

/// Deepest nesting: more than the schemas of custom resources have, and less than the stack of a thread holds (the
/// parser takes up to 4 KiB a level, 25 KiB in debug builds).
const MAX_NESTING: usize = 64;
/// Most values of a document, which bounds what the parser remembers of keys; lists of a file's largest size have
/// fewer, as people and kubectl write them.
const MAX_VALUES: usize = 5_000_000;
/// How many of them may come from aliases.
const MAX_REPEATED: usize = 1_000_000;

/// A document, which is one object or a list of them.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Document {
    api_version: Field<Box<str>>,
    kind: Field<Box<str>>,
    metadata: Group<Metadata>,
    spec: Group<Spec>,
    status: Group<Status>,
    items: Field<Vec<Field<Resource>>>,
}
read_from_maps!(Document);

/// What a document holds.
pub(super) enum Unfolded {
    /// One object.
    Object(Box<Resource>),
    /// A `List`, or a typed one such as `PodList`, whose items need not tell their kind.
    List(Vec<Field<Resource>>),
    /// A list whose items are none, by its description.
    Broken(String, ConvertError),
}

impl Document {
    /// What the document holds. Kubernetes has no lists of lists.
    pub(super) fn unfold(self) -> Unfolded {
        let Self { api_version, kind, metadata, spec, status, items } = self;
        let object = Resource { api_version, kind, metadata, spec, status };
        let Field::Is(kind) = &object.kind else { return Unfolded::Object(Box::new(object)) };
        let Some(item_kind) = kind.strip_suffix("List") else { return Unfolded::Object(Box::new(object)) };
        match items {
            Field::Absent => Unfolded::List(Vec::new()),
            Field::Wrong(found) => {
                Unfolded::Broken(object.describe(), ConvertError::Type { field: "items", found })
            }
            Field::Is(mut items) => {
                if !item_kind.is_empty() {
                    inherit(&mut items, item_kind, &object.api_version);
                }
                Unfolded::List(items)
            }
        }
    }
}

fn inherit(items: &mut [Field<Resource>], kind: &str, api_version: &Field<Box<str>>) {
    for item in items {
        let Field::Is(item) = item else { continue };
        if item.kind == Field::Absent {
            item.kind = Field::Is(kind.into());
        }
        if item.api_version == Field::Absent {
            item.api_version.clone_from(api_version);
        }
    }
}

/// Reads one document; nothing if it is empty. `lines_before` are the lines of the file that are before the text.
///
/// What is JSON is read as JSON, which is faster; whatever else it is, an error tells of the YAML that it is not.
pub(super) fn parse(text: &str, lines_before: u64) -> Result<Field<Document>, SyntaxError> {
    if text.trim_start().starts_with('{')
        && let Ok(document) = serde_json::from_str(text)
    {
        return Ok(document);
    }
    serde_saphyr::from_str_with_options(text, options())
        .map_err(|error| SyntaxError { error: Box::new(error), lines_before })
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_NESTING,
            max_events: 2 * MAX_VALUES,
            max_nodes: MAX_VALUES,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPEATED },
        emit_comments: false,
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
        // A name may be `no` or `n`; what wants a truth value takes these words as well.
        strict_booleans: true,
        with_snippet: false,
    }
}

/// Why a document does not parse. Lines are counted from the beginning of the file.
#[derive(Debug)]
pub struct SyntaxError {
    error: Box<serde_saphyr::Error>,
    lines_before: u64,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut options = RenderOptions::new(&UserMessageFormatter);
        options.snippets = SnippetMode::Off;
        options.line_offset = self.lines_before;
        f.write_str(&self.error.render_with_options(options))
    }
}

impl std::error::Error for SyntaxError {}
