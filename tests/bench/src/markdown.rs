//! The measurements as they stand in docs/performance.md.

use crate::machine;
use crate::report::{Report, Row, Section};

/// Machine and measurements: a table for each section.
pub(crate) fn render(report: &Report) -> String {
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
