//! The alerting and recording rules, as their files in deploy/prometheus/rules have them, and what docs/alerts.md lists of them.
//!
//! The rule files are what people write, and what Prometheus loads. Unknown fields are errors here, as they are there.

use crate::{files, read};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Where the rules are.
pub const FOLDER: &str = "deploy/prometheus/rules";
/// Where the runbooks are.
pub const DOCUMENT: &str = "docs/alerts.md";
const BEGIN: &str = "<!-- alerts -->\n";
const END: &str = "<!-- end -->";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "interval")]
    _interval: Option<String>,
    rules: Vec<Rule>,
}

/// A rule: an alert or a recording.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The alert's name.
    pub alert: Option<String>,
    /// The recording's name.
    pub record: Option<String>,
    /// The query.
    pub expr: String,
    /// How long it must be true.
    pub r#for: Option<String>,
    /// Labels that the alert gets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What people are told.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// All rules, in the order of the files.
pub fn all() -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for path in files(FOLDER, ".yaml")? {
        let file: File = serde_saphyr::from_str(&read(&path)?).with_context(|| path.display().to_string())?;
        rules.extend(file.groups.into_iter().flat_map(|group| group.rules));
    }
    Ok(rules)
}

/// docs/alerts.md with its table made anew.
pub fn document() -> Result<String> {
    let text = read(DOCUMENT)?;
    let parts = text.split_once(BEGIN).and_then(|(before, after)| Some((before, after.split_once(END)?.1)));
    let Some((before, after)) = parts else { bail!("{DOCUMENT} has no place for the table of alerts") };
    Ok(format!("{before}{BEGIN}{}{END}{after}", table()?))
}

fn table() -> Result<String> {
    let mut table = String::from("| alert | severity | after | |\n|---|---|---|---|\n");
    for rule in all()? {
        let Some(name) = &rule.alert else { continue };
        let of = |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned().unwrap_or_default();
        let (severity, summary) = (of(&rule.labels, "severity"), of(&rule.annotations, "summary"));
        let after = rule.r#for.clone().unwrap_or_else(|| "at once".into());
        writeln!(table, "| [{name}](#{}) | {severity} | {after} | {summary} |", name.to_lowercase())?;
    }
    Ok(table)
}
