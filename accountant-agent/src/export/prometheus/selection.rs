//! Which families a scrape wants: `/metrics?collect[]=policy&collect[]=build_info`.
//!
//! A name is a section of docs/metrics.md, `process`, or a metric with or without our prefix. None means all.

use super::metrics::{ALL, Metric};
use percent_encoding::percent_decode_str;
use std::collections::BTreeSet;

/// The section of the process' own metrics, which are not in the table.
pub(super) const PROCESS: &str = "process";
const PREFIX: &str = "calico_accountant_";

/// A choice of families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection(BTreeSet<String>);

/// A name that is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("collect[]={name:?} names no metric and no section; sections are {sections}")]
pub struct Unknown {
    name: String,
    sections: String,
}

impl Selection {
    /// Reads the query of a request; parameters of other names are nothing to us.
    pub fn parse(query: &str) -> Result<Self, Unknown> {
        let decoded =
            |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
        let wanted = parameters.filter(|(key, _)| decoded(key) == "collect[]");
        let names = wanted.map(|(_, name)| decoded(name)).filter(|name| !name.is_empty());
        names
            .map(|name| if is_known(&name) { Ok(name) } else { Err(unknown(name)) })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether a metric is wanted.
    pub(super) fn wants(&self, section: &str, name: &str) -> bool {
        let short = name.strip_prefix(PREFIX).unwrap_or(name);
        self.0.is_empty() || [section, name, short].iter().any(|name| self.0.contains(*name))
    }
}

fn is_known(name: &str) -> bool {
    let is = |metric: &Metric| {
        [metric.section, metric.name].contains(&name) || metric.name.strip_prefix(PREFIX) == Some(name)
    };
    name == PROCESS || ALL.iter().any(is)
}

fn unknown(name: String) -> Unknown {
    let mut sections: Vec<_> = ALL.iter().map(|metric| metric.section).collect();
    sections.push(PROCESS);
    sections.dedup();
    Unknown { name, sections: sections.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_metrics_by_name() {
        let wants =
            |query: &str, section: &str, name: &str| Selection::parse(query).unwrap().wants(section, name);
        let policy = "calico_accountant_policy_packets_total";
        for (query, wanted) in [
            ("", true),
            ("x=y", true),
            ("collect[]=", true),
            ("collect[]=policy", true),
            ("collect%5B%5D=policy", true),
            ("collect[]=agent&collect[]=policy", true),
            ("collect[]=calico_accountant_policy_packets_total", true),
            ("collect[]=policy_packets_total", true),
            ("collect[]=policy_bytes_total", false),
            ("collect[]=process", false),
            ("collect[]=compat", false),
        ] {
            assert_eq!(wants(query, "policy", policy), wanted, "{query}");
        }
        assert!(wants("collect[]=process", PROCESS, "process_open_fds"));
    }

    #[test]
    fn a_name_that_is_none_is_said_to_be_none() {
        let error = Selection::parse("collect[]=polcy").unwrap_err().to_string();
        assert!(error.contains("\"polcy\"") && error.contains("policy, default_deny"), "{error}");
    }
}
