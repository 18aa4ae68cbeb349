//! The dashboards and rules on real data: a real Prometheus scrapes a running agent that counts known traffic and asks a BIRD with a
//! session to another one, and what Felix of six versions exports; then every query of every panel returns data, and every rule can
//! be evaluated.

mod support;

use accountant_deploy::{grafana, rules};
use accountant_lab::Namespace;
use accountant_lab::agent::ADDRESS;
use accountant_lab::felix::Backend;
use accountant_lab::policy::Truth;
use accountant_lab::scenario::{NODE_NAME, Scenario, Visit, demo};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::lab::{Lab, dialect};
use support::routers::{Pair, Version};
use support::{fixtures, wait_until};

const PROMETHEUS: &str = "127.0.0.1:9090";
/// How long until all that is scraped has been scraped often enough for rates.
const PATIENCE: Duration = Duration::from_secs(90);

/// Serves a text to everybody who asks, until the test ends.
fn serve(on: &Namespace, port: u16, text: String) {
    let listener = on.enter(move || TcpListener::bind(("127.0.0.1", port))).unwrap().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 4096]);
            let length = text.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {length}"
            );
            let _ = client.write_all(format!("{head}\r\nconnection: close\r\n\r\n{text}").as_bytes());
        }
    });
}

/// What Felix of each version exported; name and text.
fn felix() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(fixtures().join("felix")).unwrap() {
        let folder = entry.unwrap();
        if let Ok(text) = fs::read_to_string(folder.path().join("felix-metrics.prom")) {
            found.push((folder.file_name().to_string_lossy().into_owned(), text));
        }
    }
    assert!(found.len() >= 6, "{}", found.len());
    found
}

/// What kube-state-metrics tells of the scenario's pods, of one that is in the node's network, and of one that has ended.
fn kube_state(scenario: &Scenario) -> String {
    let pods = scenario.model.endpoints.iter();
    let pods = pods.map(|pod| (pod.namespace.as_str(), pod.pod.as_str(), "false", "Running"));
    let others =
        [("kube-system", "calico-node", "true", "Running"), ("shop", "migration", "false", "Succeeded")];
    let mut text = String::new();
    for (namespace, pod, host_network, phase) in pods.chain(others) {
        let of = format!("namespace=\"{namespace}\",pod=\"{pod}\"");
        writeln!(text, "kube_pod_info{{{of},node=\"{NODE_NAME}\",host_network=\"{host_network}\"}} 1")
            .unwrap();
        writeln!(text, "kube_pod_status_phase{{{of},phase=\"{phase}\"}} 1").unwrap();
    }
    text
}

/// A running Prometheus; ended when dropped.
struct Prometheus {
    child: Child,
    on: Namespace,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Scrapes these targets, each by its job, every second.
    fn start(on: &Namespace, folder: &Path, targets: &[(String, String)]) -> Self {
        let mut config = "global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n".to_string();
        for (job, address) in targets {
            writeln!(
                config,
                "- {{job_name: {job}, honor_labels: true, static_configs: [{{targets: ['{address}']}}]}}"
            )
            .unwrap();
        }
        let file = folder.join("prometheus.yml");
        fs::write(&file, config).unwrap();
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/debian/usr/bin/prometheus");
        assert!(program.is_file(), "{} is not there: run `cargo xtask setup`", program.display());
        let mut command: Command = on.command(program.to_str().unwrap()).unwrap();
        let data = folder.join("data");
        let child = command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, on: on.clone() }
    }

    /// How many series a query returns now; or what is wrong with it.
    fn series(&self, query: &str) -> Result<usize, String> {
        let url = format!("http://{PROMETHEUS}/api/v1/query");
        let query = format!("query={query}");
        let arguments = ["--silent", "--show-error", "--get", "--data-urlencode", &query, &url];
        let answer = self.on.run("curl", &arguments).map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"]["result"].as_array().map_or(0, Vec::len)),
            _ => Err(answer.to_string()),
        }
    }
}

/// A panel's query with everything chosen, over the seconds that the test lasts.
fn chosen(query: &grafana::Query) -> String {
    let values = [("$__rate_interval", "10s"), ("$__range", "30s")];
    let any = ["$cluster", "$namespace", "$pod", "$tier", "$policy", "$instance"].map(|name| (name, ".*"));
    let replace = |text: String, (name, value): &(&str, &str)| text.replace(name, value);
    values.iter().chain(&any).fold(query.promql(), replace)
}

#[test]
fn every_panel_has_data_and_every_rule_can_be_evaluated() {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(Backend::Nft)).apply(&scenario.model).unwrap();
    let routers = Pair::new(Version::V2);
    let more =
        ["--max-age", "0s", "--kernel-program-statistics", "true", "--bird-socket", &routers.sockets()];
    let _agent = lab.agent(&more);
    let host = lab.node.host();
    let mut targets = vec![("accountant".to_string(), ADDRESS.to_string())];
    let others = [("kube-state-metrics".to_string(), kube_state(&scenario))];
    for ((name, text), port) in felix().into_iter().chain(others).zip(9100..) {
        serve(host, port, text);
        targets.push((name, format!("127.0.0.1:{port}")));
    }
    let folder = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(host, folder.path(), &targets);
    let mut open = Vec::new();
    for (name, dashboard) in grafana::all().unwrap() {
        for panel in dashboard.rows.iter().flat_map(|row| &row.panels) {
            let of = format!("{name}: {}", panel.title);
            open.extend(panel.queries.iter().map(|query| (of.clone(), chosen(query))));
        }
    }
    assert!(open.len() > 100, "{}", open.len());
    let visit = Visit::new(&lab.node).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !open.is_empty() {
        visit.round(&scenario.model, &mut Truth::default(), || {}).unwrap();
        open.retain(|(_, query)| prometheus.series(query).unwrap_or(0) == 0);
        assert!(Instant::now() < deadline, "queries without data:\n{open:#?}");
    }
    let rules = rules::all().unwrap();
    for rule in &rules {
        prometheus.series(&rule.expr).unwrap();
    }
    // The session goes down, and that is what the alert tells; another one was never up.
    let down = rules.iter().find(|rule| rule.alert.as_deref() == Some("CalicoBGPSessionDown")).unwrap();
    let told = || prometheus.series(&down.expr).unwrap();
    wait_until("the session is established", || told() == 1);
    routers.there("disable");
    wait_until("the session is down", || told() == 2);
}
