//! docs/metrics.md: its text is written by hand, what it says of each metric comes from the table.
//!
//! In the document, what is between `<!-- metrics: SECTION -->` and `<!-- end -->` is generated ([`crate::generated`]). The tests
//! also fail when a label or a cause is not explained.

use super::metrics::{ALL, Kind, Metric};
use crate::generated;
use accountant_core::ledger::Cause;
use accountant_dataplane::source::Note;
use std::collections::BTreeSet;

const DOCUMENT: &str = "metrics.md";

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
    let section = |name: &str| ALL.iter().filter(|metric| metric.section == name).map(describe).collect();
    let sections = generated::keep_fresh(DOCUMENT, "metrics", section);
    let wanted: BTreeSet<_> = ALL.iter().map(|metric| metric.section.to_string()).collect();
    assert_eq!(sections, wanted, "sections of docs/metrics.md and of the table");
}

#[test]
fn labels_and_their_values_are_explained() {
    let document = generated::read(DOCUMENT);
    let labels = ALL.iter().flat_map(|metric| metric.labels).copied();
    let causes = Cause::ALL.map(Cause::as_str);
    let events = Note::ALL.map(Note::as_str);
    for word in labels.chain(causes).chain(events) {
        assert!(document.contains(&format!("| `{word}` |")), "docs/metrics.md does not explain `{word}`");
    }
}
