//! The two text formats: Prometheus 0.0.4 and OpenMetrics 1.0.
//!
//! They differ, for what is used here, in the metadata of counters (OpenMetrics names the family without `_total`), in the
//! `# EOF` at the end, and in the escaping of HELP.

use super::metrics::{Kind, Metric};
use super::selection::{PROCESS, Selection};
use std::fmt::Write;
use std::mem;
use std::ops::Range;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`
    Prometheus,
    /// `application/openmetrics-text; version=1.0.0`
    OpenMetrics,
}

impl Format {
    /// What to answer to an `Accept` header: OpenMetrics if it is asked for at least as much as plain text.
    pub fn negotiate(accept: &str) -> Self {
        let mut best = (0.0, Self::Prometheus);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let format = match parts.next() {
                Some("application/openmetrics-text") => Self::OpenMetrics,
                Some("text/plain" | "text/*" | "*/*") => Self::Prometheus,
                _ => continue,
            };
            let quality = parts.find_map(|p| p.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
            let quality: f32 = quality.unwrap_or(0.0);
            if quality > best.0 || (quality == best.0 && format == Self::OpenMetrics && quality > 0.0) {
                best = (quality, format);
            }
        }
        best.1
    }

    /// The `Content-Type` of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// An exposition that is being written. What is not selected leaves no trace in it.
#[derive(Debug)]
pub(super) struct Text<'a> {
    out: String,
    format: Format,
    selection: &'a Selection,
    /// Whether the family that is open is wanted.
    wanted: bool,
}

impl<'a> Text<'a> {
    pub(super) fn new(format: Format, selection: &'a Selection, capacity: usize) -> Self {
        Self { out: String::with_capacity(capacity), format, selection, wanted: true }
    }

    /// Opens a family.
    pub(super) fn family(&mut self, metric: &Metric) {
        let kind = match (metric.kind, self.format) {
            (Kind::Counter, _) | (Kind::OldCounter, Format::Prometheus) => "counter",
            (Kind::Gauge, _) => "gauge",
            (Kind::OldCounter, Format::OpenMetrics) => "unknown",
        };
        self.wanted = self.selection.wants(metric.section, metric.name);
        self.head(metric.name, kind, metric.help);
    }

    /// Opens a family of the process' own, which are not in the table.
    pub(super) fn process_family(&mut self, name: &str, kind: &str, help: &str) {
        self.wanted = self.selection.wants(PROCESS, name);
        self.head(name, kind, help);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        if !self.wanted {
            return;
        }
        let name = match (self.format, kind) {
            (Format::OpenMetrics, "counter") => name.strip_suffix("_total").unwrap_or(name),
            _ => name,
        };
        let mut help = help.replace('\\', "\\\\").replace('\n', "\\n");
        if self.format == Format::OpenMetrics {
            help = help.replace('"', "\\\"");
        }
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample whose labels were rendered before.
    pub(super) fn sample(&mut self, name: &str, labels: &str, value: u64) {
        if !self.wanted {
            return;
        }
        self.out.push_str(name);
        self.out.push_str(labels);
        self.out.push(' ');
        self.out.push_str(itoa::Buffer::new().format(value));
        self.out.push('\n');
    }

    /// A sample with a value that is not a whole number.
    pub(super) fn sample_f64(&mut self, name: &str, labels: &str, value: f64) {
        if !self.wanted {
            return;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "{name}{labels} {value}");
    }

    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

/// Rendered labels of many accounts, one behind the other: a scrape reads them all in this order.
#[derive(Debug, Default)]
pub(super) struct Labels {
    text: String,
    ends: Vec<usize>,
}

impl Labels {
    pub(super) fn new(all: impl Iterator<Item = String>) -> Self {
        let mut labels = Self::default();
        for one in all {
            labels.text.push_str(&one);
            labels.ends.push(labels.text.len());
        }
        labels.text.shrink_to_fit();
        labels
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Those of a stretch of accounts.
    pub(super) fn of(&self, range: Range<usize>) -> impl Iterator<Item = &str> {
        let before = range.start.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.ends[range].iter().scan(before, |start, &end| Some(&self.text[mem::replace(start, end)..end]))
    }
}

/// Renders labels: `{name="value",...}`, or nothing if there are none.
pub(super) fn render_labels<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    if !text.is_empty() {
        text.push('}');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_that_is_liked_best_is_served() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, want) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain", Format::Prometheus),
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text;q=0.1,text/plain;q=0.9", Format::Prometheus),
            ("application/openmetrics-text;q=x", Format::Prometheus),
        ] {
            assert_eq!(Format::negotiate(accept), want, "{accept}");
        }
    }

    #[test]
    fn labels_of_a_stretch_are_those_that_were_put_there() {
        let labels = Labels::new(["{a}", "", "{bc}", "{d}"].into_iter().map(String::from));
        assert_eq!(labels.of(0..4).collect::<Vec<_>>(), ["{a}", "", "{bc}", "{d}"]);
        assert_eq!(labels.of(1..3).collect::<Vec<_>>(), ["", "{bc}"]);
        assert_eq!(labels.of(4..4).count(), 0);
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(render_labels([("a", "x\"\\\ny"), ("b", "")]), "{a=\"x\\\"\\\\\\ny\",b=\"\"}");
        assert_eq!(render_labels([]), "");
    }
}
