//! The measurements as they stand in docs/performance.md.

use crate::machine;
use crate::report::{Report, Row, Section};

/// Where in a document measurements stand; what is around them is written by hand.
const BEGIN: &str = "<!-- measured -->\n";
const END: &str = "<!-- end -->";

/// Puts the measurements into a document that has a place for them.
pub(crate) fn insert(document: &str, report: &Report) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{}{END}{after}", render(report)))
}

/// Machine and measurements: a table for each section.
fn render(report: &Report) -> String {
    let mut text = format!(
        "Measured on {}. Medians, with the quartiles of the repetitions; what is compared was measured in turns.\n",
        machine::describe()
    );
    for section in &report.sections {
        text.push_str(&table(section));
    }
    text
}

fn table(section: &Section) -> String {
    let mut text = format!("\n### {section}\n\n");
    text.push_str("| | median | quartiles | compared with | ratio | wanted |\n|---|---:|---|---|---:|---|\n");
    for row in &section.rows {
        text.push_str(&line(row));
    }
    text
}

fn line(row: &Row) -> String {
    let (median, unit) = (row.median(), row.unit);
    let cells =
        [&row.what, &format!("{median} {unit}"), &row.spread(), row.other(), &row.ratio(), &row.wish()];
    format!("| {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_by_hand_stays() {
        let old = "by hand\n<!-- measured -->\nold numbers\n<!-- end -->\nmore\n";
        let new = insert(old, &Report::default()).unwrap();
        assert!(new.starts_with("by hand\n<!-- measured -->\nMeasured on "), "{new}");
        assert!(new.ends_with("\n<!-- end -->\nmore\n") && !new.contains("old numbers"), "{new}");
        assert_eq!(insert("no place for them", &Report::default()), None);
    }
}
