//! The rules: Prometheus takes them, each alert fires where it must and is silent where it must, is made of metrics that exist,
//! and has a runbook.

use accountant_deploy::rules::{DOCUMENT, FOLDER, Rule, all, document};
use accountant_deploy::{files, read, root};
use accountant_rigs::{output, promtool};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Set, it makes the test write the document.
const REWRITE: &str = "ACCOUNTANT_REWRITE";
const TESTS: &str = "deploy/prometheus/tests";

fn alerts() -> Vec<Rule> {
    all().unwrap().into_iter().filter(|rule| rule.alert.is_some()).collect()
}

fn name(rule: &Rule) -> &str {
    rule.alert.as_deref().unwrap()
}

/// Runs promtool over files of the workspace.
fn promtool_on(command: &[&str], files: &[PathBuf]) -> String {
    let files: Vec<_> = files.iter().map(|file| root().join(file).display().to_string()).collect();
    let files = files.iter().map(String::as_str);
    let arguments: Vec<_> = command.iter().copied().chain(files).collect();
    output(&promtool().unwrap(), &arguments).unwrap()
}

#[test]
fn prometheus_takes_the_rules() {
    let said = promtool_on(&["check", "rules"], &files(FOLDER, ".yaml").unwrap());
    let found: usize = said
        .lines()
        .filter_map(|line| line.trim().strip_prefix("SUCCESS: ")?.strip_suffix(" rules found"))
        .map(|number| number.parse::<usize>().unwrap())
        .sum();
    assert_eq!(found, all().unwrap().len());
}

#[test]
fn alerts_fire_and_are_silent_as_their_tests_say() {
    promtool_on(&["test", "rules"], &files(TESTS, ".yaml").unwrap());
}

/// All tests compare everything that fires, so what is not expected is silent.
#[test]
fn every_alert_has_a_test_that_makes_it_fire() {
    let tests: String = files(TESTS, ".yaml").unwrap().iter().map(|file| read(file).unwrap()).collect();
    let missing: Vec<_> = alerts()
        .iter()
        .map(|rule| name(rule).to_string())
        .filter(|name| !tests.contains(&format!("{{alertname=\"{name}\"")))
        .collect();
    assert_eq!(missing, Vec::<String>::new(), "alerts that no test makes fire");
}

/// Alerts about what all nodes together do.
const OVER_NODES: [&str; 3] = ["CalicoDeniedEgressSpike", "CalicoPolicySeesLess", "CalicoPolicyNeverMatched"];

/// Series of the node called `good`, as those of 99 of them; and the metrics that they are of.
fn ninety_nine(series: &[Value]) -> (Vec<Value>, BTreeSet<String>) {
    const GOOD: &str = "=\"good\"";
    let (good, others): (Vec<_>, Vec<_>) =
        series.iter().cloned().partition(|series| series["series"].as_str().unwrap().contains(GOOD));
    let selector = |series: &Value| series["series"].as_str().unwrap().to_string();
    let metrics = good.iter().map(|series| selector(series).split('{').next().unwrap().to_string()).collect();
    let copies = (1..100).flat_map(|number| {
        good.iter().map(move |series| {
            let named = selector(series).replace(GOOD, &format!("=\"good {number}\""));
            json!({"series": named, "values": series["values"]})
        })
    });
    (others.into_iter().chain(copies).collect(), metrics)
}

/// What makes each alert fire, with 99 nodes in place of the good one: the same is told, by name, and of no other node.
#[test]
fn one_bad_node_of_a_hundred_is_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (mut written, mut compared) = (Vec::new(), BTreeSet::new());
    for file in files(TESTS, ".yaml").unwrap() {
        let mut tests: Value = serde_saphyr::from_str(&read(&file).unwrap()).unwrap();
        let mut kept = tests["tests"].take();
        let kept = kept.as_array_mut().unwrap();
        kept.retain(|test| test["name"].as_str().is_some_and(|name| name.starts_with("each fires")));
        for test in &mut *kept {
            let (series, metrics) = ninety_nine(test["input_series"].as_array().unwrap());
            test["input_series"] = series.into();
            compared.extend(metrics);
        }
        if kept.is_empty() {
            continue;
        }
        tests["tests"] = kept.clone().into();
        // Seldom, as there are many.
        tests["evaluation_interval"] = "5m".into();
        for rules in tests["rule_files"].as_array_mut().unwrap() {
            *rules = root().join(TESTS).join(rules.as_str().unwrap()).display().to_string().into();
        }
        written.push(folder.path().join(file.file_name().unwrap()));
        std::fs::write(written.last().unwrap(), tests.to_string()).unwrap();
    }
    promtool_on(&["test", "rules"], &written);
    let is_told = |rule: &Rule| {
        let mut words = rule.expr.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        OVER_NODES.contains(&name(rule)) || words.any(|word| compared.contains(word))
    };
    let alone: Vec<_> =
        alerts().iter().filter(|rule| !is_told(rule)).map(|rule| name(rule).to_string()).collect();
    assert_eq!(alone, Vec::<String>::new(), "alerts that no good node is silent of while another one fires");
}

/// Names of metrics in a text that begin with one of these.
fn metrics_in(text: &str, beginnings: &[&str]) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| beginnings.iter().any(|beginning| word.starts_with(beginning)))
        .map(str::to_string)
        .collect()
}

/// The metrics that exist: the agent's by its document, Felix's by what six versions export.
fn known() -> BTreeSet<String> {
    let agent = read("docs/metrics.md").unwrap();
    let mut known = metrics_in(&agent, &["calico_accountant_"]);
    let felix = read("tests/fixtures/felix/felix-metrics.tsv").unwrap();
    for line in felix.lines() {
        let (name, rest) = line.split_once('\t').unwrap();
        known.insert(name.to_string());
        if rest.starts_with("summary") {
            known.extend(["_sum", "_count"].map(|ending| format!("{name}{ending}")));
        }
    }
    // What BIRD tells, by the names that its exporters agree on.
    known.extend(["bird_bgp_state", "bird_up", "bird_routes"].map(String::from));
    known.extend(metrics_in(&agent, &["bird_"]));
    known
}

#[test]
fn rules_are_about_metrics_that_exist() {
    let known = known();
    for rule in all().unwrap() {
        for metric in metrics_in(&rule.expr, &["calico_accountant_", "felix_", "bird_"]) {
            let label = ["bird_protocol_instance", "bird_route_type"].contains(&metric.as_str());
            assert!(label || known.contains(&metric), "{metric} in {}", rule.expr);
        }
    }
}

#[test]
fn every_alert_says_what_is_wrong_and_has_a_runbook() {
    let text = read(DOCUMENT).unwrap();
    let runbooks: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let rules = alerts();
    let names: BTreeSet<_> = rules.iter().map(name).collect();
    assert_eq!(names.len(), rules.len(), "two alerts of one name");
    assert_eq!(runbooks, names, "runbooks in {DOCUMENT}, and alerts");
    for rule in &rules {
        let name = name(rule);
        let severity = rule.labels["severity"].as_str();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        assert!(["policy", "agent", "felix", "bgp"].contains(&rule.labels["component"].as_str()), "{name}");
        assert!(rule.annotations["summary"].ends_with('.'), "{name}");
        let description = &rule.annotations["description"];
        assert!(description.contains("{{ $"), "{name} tells no values: {description}");
        assert_eq!(rule.annotations["runbook"], format!("{DOCUMENT}#{}", name.to_lowercase()));
    }
}

#[test]
fn the_table_of_the_document_is_made_from_the_rules() {
    let renewed = document().unwrap();
    if std::env::var_os(REWRITE).is_some() {
        std::fs::write(root().join(DOCUMENT), renewed).unwrap();
    } else {
        assert!(renewed == read(DOCUMENT).unwrap(), "{DOCUMENT} is stale: `cargo xtask docs` writes it");
    }
}
