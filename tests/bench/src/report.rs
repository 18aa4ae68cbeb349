//! What was measured: printed while it comes in, kept for the files that are written at the end.

use crate::samples::{Summary, ratio};
use serde_json::{Value, json};
use std::fmt;

/// All measurements.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) sections: Vec<Section>,
}

/// Measurements of one thing.
#[derive(Debug)]
pub(crate) struct Section {
    /// What the names of its measurements begin with.
    pub(crate) name: String,
    /// What it is about, for people.
    pub(crate) title: String,
    pub(crate) rows: Vec<Row>,
}

/// One measurement.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) value: Summary,
    pub(crate) unit: &'static str,
    /// What it is compared with, and how many times as much it is.
    pub(crate) beside: Option<(String, f64)>,
    pub(crate) wish: Option<Wish>,
}

/// What is wanted of a measurement: no more than this.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wish {
    /// Of the value itself.
    Value(f64),
    /// Of the ratio to what it is compared with.
    Ratio(f64),
}

/// The values of several rounds, from which a row is made.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) what: &'static str,
    pub(crate) values: Vec<f64>,
    pub(crate) unit: &'static str,
}

impl Measured {
    /// Milliseconds of something.
    pub(crate) fn milliseconds(what: &'static str, values: Vec<f64>) -> Self {
        Self { what, values, unit: "ms" }
    }

    /// The row for it.
    pub(crate) fn row(&self) -> Row {
        Row::new(self.what, Summary::of(self.values.iter().copied()), self.unit)
    }

    /// The row for it, beside another that was measured in the same rounds.
    pub(crate) fn beside(&self, other: &Self) -> Row {
        let beside = Some((other.what.to_string(), ratio(&self.values, &other.values)));
        Row { beside, ..self.row() }
    }
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, value: Summary, unit: &'static str) -> Self {
        Self { what: what.into(), value, unit, beside: None, wish: None }
    }

    pub(crate) fn wanted(self, wish: Wish) -> Self {
        Self { wish: Some(wish), ..self }
    }

    /// The median, and the quartiles if there are any.
    pub(crate) fn spread(&self) -> String {
        let Summary { median, low, high } = self.value;
        if low == high {
            String::new()
        } else {
            let digits = digits(median);
            format!("{low:.digits$} to {high:.digits$}")
        }
    }

    /// The value as it is printed.
    pub(crate) fn median(&self) -> String {
        let digits = digits(self.value.median);
        format!("{:.digits$}", self.value.median)
    }

    /// How many times as much as what it is compared with.
    pub(crate) fn ratio(&self) -> String {
        self.beside.as_ref().map_or(String::new(), |(_, ratio)| format!("{ratio:.*}", digits(*ratio).min(2)))
    }

    /// What it is compared with.
    pub(crate) fn other(&self) -> &str {
        self.beside.as_ref().map_or("", |(name, _)| name)
    }

    /// The wish, and whether it is fulfilled.
    pub(crate) fn wish(&self) -> String {
        let Some(wish) = self.wish else { return String::new() };
        let ratio = self.beside.as_ref().map_or(f64::NAN, |(_, ratio)| *ratio);
        let fulfilled = match wish {
            Wish::Value(most) => self.value.median <= most,
            Wish::Ratio(most) => ratio <= most,
        };
        let word = if fulfilled { "yes" } else { "MISSED" };
        match wish {
            Wish::Value(most) => format!("<= {most} {}: {word}", self.unit),
            Wish::Ratio(most) => format!("<= {most}x: {word}"),
        }
    }
}

/// Digits behind the point: three that matter.
fn digits(value: f64) -> usize {
    match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        0.0 => 0,
        _ => 3,
    }
}

impl Report {
    /// Begins a section.
    pub(crate) fn section(&mut self, name: &str, title: &str) {
        let heading = ["", "median", "", "quartiles", "compared with", "ratio", "wanted"];
        println!("\n{title}");
        print_line(heading);
        self.sections.push(Section { name: name.into(), title: title.into(), rows: Vec::new() });
    }

    /// Takes a measurement of the present section, and prints it.
    pub(crate) fn add(&mut self, row: Row) {
        let cells =
            [&row.what, &row.median(), row.unit, &row.spread(), row.other(), &row.ratio(), &row.wish()];
        print_line(cells);
        if let Some(section) = self.sections.last_mut() {
            section.rows.push(row);
        }
    }

    /// A list of all measurements.
    pub(crate) fn to_json(&self) -> Value {
        let rows = self.sections.iter().flat_map(|section| {
            section.rows.iter().map(|row| {
                let full = |what: &str| format!("{}/{what}", section.name);
                json!({
                    "name": full(&row.what),
                    "value": row.value.median,
                    "unit": row.unit,
                    "compared_with": row.beside.as_ref().map(|(name, _)| full(name)),
                    "ratio": row.beside.as_ref().map(|(_, ratio)| ratio),
                })
            })
        });
        rows.collect()
    }
}

fn print_line([what, median, unit, spread, other, ratio, wish]: [&str; 7]) {
    let line = format!("  {what:<40} {median:>8} {unit:<11} {spread:<18} {other:<32} {ratio:>6}  {wish}");
    println!("{}", line.trim_end());
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_about_the_value_or_the_ratio() {
        let ours = Measured::milliseconds("ours", vec![3.0, 3.0, 3.0]);
        let bare = Measured::milliseconds("bare", vec![2.0, 2.0, 2.0]);
        let wish = |wish| ours.beside(&bare).wanted(wish).wish();
        assert_eq!(wish(Wish::Ratio(1.5)), "<= 1.5x: yes");
        assert_eq!(wish(Wish::Ratio(1.3)), "<= 1.3x: MISSED");
        assert_eq!(wish(Wish::Value(2.5)), "<= 2.5 ms: MISSED");
    }

    #[test]
    fn values_have_three_digits_that_matter() {
        let row = |value| Row::new("", Summary::exact(value), "").median();
        assert_eq!([row(0.1234), row(1.234), row(12.34), row(1234.5)], ["0.123", "1.23", "12.3", "1234"]);
    }
}
