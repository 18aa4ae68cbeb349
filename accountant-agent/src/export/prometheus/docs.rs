//! docs/metrics.md: its text is written by hand, what it says of each metric comes from the table.
//!
//! In the document, what is between `<!-- metrics: SECTION -->` and `<!-- end -->` is generated. The tests fail when it is
//! stale, or when a label or a cause is not explained; `cargo xtask docs` writes it.

use super::metrics::{ALL, Kind, Metric};
use accountant_core::ledger::Cause;
use accountant_dataplane::source::Note;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// Set, it makes the test write the document.
const REWRITE: &str = "ACCOUNTANT_REWRITE";
const BEGIN: &str = "<!-- metrics: ";
const END: &str = "<!-- end -->";

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md")
}

fn document() -> String {
    fs::read_to_string(path()).unwrap()
}

/// The document with all that is generated in it made anew, and the sections that it has.
fn renewed(document: &str) -> (String, BTreeSet<&str>) {
    let mut text = String::new();
    let mut sections = BTreeSet::new();
    let mut rest = document;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let (section, after) = after.split_once(" -->").unwrap();
        let (_, after) = after.split_once(END).unwrap();
        let metrics = ALL.iter().filter(|metric| metric.section == section).map(describe);
        text += &format!("{before}{BEGIN}{section} -->\n{}{END}", metrics.collect::<String>());
        sections.insert(section);
        rest = after;
    }
    (text + rest, sections)
}

fn describe(metric: &Metric) -> String {
    let kind = match metric.kind {
        Kind::Counter | Kind::OldCounter => "counter",
        Kind::Gauge => "gauge",
    };
    let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
    let labels = if labels.is_empty() { "no labels".into() } else { labels.join(", ") };
    let Metric { name, unit, help, absent, .. } = metric;
    let help = help.trim_end_matches('.');
    format!(
        "* **`{name}`** ({kind}, {unit})<br>\n  {help}.<br>\n  Labels: {labels}.<br>\n  Absent: {absent}.\n"
    )
}

#[test]
fn the_document_is_made_from_the_table() {
    let document = document();
    let (renewed, sections) = renewed(&document);
    let wanted: BTreeSet<_> = ALL.iter().map(|metric| metric.section).collect();
    assert_eq!(sections, wanted, "sections of docs/metrics.md and of the table");
    if std::env::var_os(REWRITE).is_some() {
        fs::write(path(), &renewed).unwrap();
    } else {
        assert!(renewed == document, "docs/metrics.md is stale: `cargo xtask docs` writes it");
    }
}

#[test]
fn labels_and_their_values_are_explained() {
    let document = document();
    let labels = ALL.iter().flat_map(|metric| metric.labels).copied();
    let causes = Cause::ALL.map(Cause::as_str);
    let events = Note::ALL.map(Note::as_str);
    for word in labels.chain(causes).chain(events) {
        assert!(document.contains(&format!("| `{word}` |")), "docs/metrics.md does not explain `{word}`");
    }
}
