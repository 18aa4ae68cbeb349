//! The rules: Prometheus takes them, each alert fires where it must and is silent where it must, is made of metrics that exist,
//! and has a runbook.

use accountant_deploy::rules::{DOCUMENT, FOLDER, Rule, all, document};
use accountant_deploy::{files, read, root};
use accountant_rigs::{output, promtool};
use std::collections::BTreeSet;
use std::fmt::Write;
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

/// Debian's Prometheus is built without Kubernetes: targets are replaced, the rest is checked.
#[test]
fn prometheus_takes_the_scrape_jobs() {
    let jobs = read("deploy/prometheus/scrape.yaml").unwrap();
    let pods = "kubernetes_sd_configs:\n  - role: pod\n";
    assert_eq!(jobs.matches(pods).count(), 3);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scrape.yaml");
    std::fs::write(&file, jobs.replace(pods, "static_configs: [{targets: [a]}]\n")).unwrap();
    promtool_on(&["check", "config"], &[file]);
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

/// One node of a hundred is bad: exactly that one is told, whatever the other 99 do.
#[test]
fn one_bad_node_of_a_hundred_is_told_by_name() {
    let mut test = format!(
        "rule_files: [{}]\nevaluation_interval: 1m\ntests:\n- interval: 1m\n  input_series:\n",
        root().join(FOLDER).join("felix.yaml").display()
    );
    for node in 0..100 {
        let (failures, state) = if node == 37 { ("0+1x60", "1x60") } else { ("5x60", "3x60") };
        for (metric, values) in [("felix_int_dataplane_failures", failures), ("felix_resync_state", state)] {
            writeln!(test, "  - {{series: '{metric}{{instance=\"{node}\"}}', values: '{values}'}}").unwrap();
        }
    }
    test += "  promql_expr_test:\n  - eval_time: 1h\n    expr: group by (alertname, instance) \
             (ALERTS{alertstate=\"firing\"})\n    exp_samples:\n";
    for alert in ["CalicoFelixDataplaneFailures", "CalicoFelixNotInSync"] {
        writeln!(test, "    - {{labels: '{{alertname=\"{alert}\", instance=\"37\"}}', value: 1}}").unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hundred.yaml");
    std::fs::write(&file, test).unwrap();
    promtool_on(&["test", "rules"], &[file]);
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
