//! What the agent serves: metrics that promtool accepts, in both formats, compressed or not; whether it lives and whether
//! it is ready.

mod support;

use accountant_lab::agent::ADDRESS;
use accountant_lab::felix::Backend;
use accountant_lab::policy::Truth;
use accountant_lab::scenario::{Visit, demo};
use accountant_lab::{Agent, Namespace};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::lab::{Lab, dialect};
use support::{Scrape, program, run, wait_until};

/// Prometheus' tool, which `cargo xtask setup` unpacks.
fn promtool() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/debian/usr/bin/promtool");
    assert!(path.is_file(), "{} is not there: run `cargo xtask setup`", path.display());
    path
}

/// What `promtool check metrics` says of a scrape. Empty if it accepts it.
fn complaints(scrape: &str) -> Vec<String> {
    let mut child = Command::new(promtool())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    let complaints: Vec<_> = text.lines().map(str::to_string).collect();
    assert!(output.status.success() || !complaints.is_empty(), "{}", output.status);
    complaints
}

/// An agent with accounts of every family.
fn with_accounts(more: &[&str], check: impl Fn(&Lab, &Agent)) {
    let scenario = demo();
    for backend in [Backend::Legacy, Backend::Nft] {
        let lab = Lab::new(&scenario);
        lab.node.felix(dialect(backend)).apply(&scenario.model).unwrap();
        let agent = lab.agent(&[&["--max-age", "0s"], more].concat());
        let visit = Visit::new(&lab.node).unwrap();
        visit.round(&scenario.model, &mut Truth::default(), || drop(agent.accounts())).unwrap();
        check(&lab, &agent);
    }
}

/// The names that dashboards know from calico-accountant. promtool would have them end in `_total` and say no type, which
/// they cannot and still be the same.
const OLD_NAMES: [&str; 4] = [
    "no_policy_drop_counter",
    "policy_accept_counter",
    "policy_accept_drop_counter",
    "calico_accountant_dropped_scrape",
];

#[test]
fn promtool_accepts_the_metrics() {
    with_accounts(&[], |_, agent| {
        let answer = agent.get("/metrics").unwrap();
        assert_eq!(answer.content_type, "text/plain; version=0.0.4; charset=utf-8");
        for name in OLD_NAMES {
            assert!(answer.body.contains(&format!("\n# TYPE {name} ")), "{name}");
        }
        let old = |line: &String| OLD_NAMES.iter().any(|name| line.starts_with(name));
        let complaints_of_ours: Vec<_> =
            complaints(&answer.body).into_iter().filter(|line| !old(line)).collect();
        assert_eq!(complaints_of_ours, Vec::<String>::new());
    });
    with_accounts(&["--compat-metrics", "false"], |_, agent| {
        let answer = agent.get("/metrics").unwrap();
        assert!(answer.body.contains("\ncalico_accountant_policy_packets_total{"));
        assert_eq!(complaints(&answer.body), Vec::<String>::new());
    });
}

#[test]
fn openmetrics_where_it_is_liked_best() {
    with_accounts(&[], |_, agent| {
        let accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5";
        let answer = agent.get_with("/metrics", &[("accept", accept)]).unwrap();
        assert_eq!(answer.content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert!(answer.body.ends_with("\n# EOF\n"));
        assert_eq!(answer.body.matches("# EOF").count(), 1);
        // A counter's family has no _total, its samples have.
        assert!(answer.body.contains("# TYPE calico_accountant_policy_packets counter\n"), "{}", answer.body);
        assert!(answer.body.contains("\ncalico_accountant_policy_packets_total{"));
        let plain = agent.get("/metrics").unwrap();
        assert!(!plain.body.contains("# EOF"));
        let values = |text: &str, name: &str| Scrape::parse(text).sum(name, &[]);
        let name = "calico_accountant_policy_packets_total";
        assert_eq!(values(&answer.body.replace("# EOF\n", ""), name), values(&plain.body, name));
    });
}

/// The answer to a request of HTTP/1.0, whose body ends with the connection: head and body.
fn get_raw(on: &Namespace, path: &str, headers: &str) -> (String, Vec<u8>) {
    let ask = || {
        let mut stream = TcpStream::connect(ADDRESS)?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: node\r\n{headers}\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map(|_| answer)
    };
    let answer: Vec<u8> = on.enter(ask).unwrap().unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    (String::from_utf8_lossy(&answer[..end]).to_lowercase(), answer[end + 4..].to_vec())
}

#[test]
fn compressed_where_it_is_accepted() {
    with_accounts(&[], |lab, _| {
        let (head, plain) = get_raw(lab.node.host(), "/metrics", "");
        assert!(!head.contains("content-encoding"), "{head}");
        let (head, compressed) = get_raw(lab.node.host(), "/metrics", "accept-encoding: gzip\r\n");
        assert!(head.contains("content-encoding: gzip"), "{head}");
        assert!(compressed.len() * 4 < plain.len(), "{} of {}", compressed.len(), plain.len());
        let mut gunzip =
            Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut pipe = gunzip.stdin.take().unwrap();
        let text = std::thread::scope(|scope| {
            scope.spawn(move || pipe.write_all(&compressed).unwrap());
            gunzip.wait_with_output().unwrap().stdout
        });
        let sum = |bytes: &[u8]| {
            Scrape::parse(&String::from_utf8_lossy(bytes)).sum("calico_accountant_policy_packets_total", &[])
        };
        assert!(sum(&plain) > 0.0);
        assert_eq!(sum(&text), sum(&plain));
    });
}

/// The lock is held, so that the first reading takes until the agent gives up waiting for it.
#[test]
fn ready_after_the_first_reading_and_not_before() {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(Backend::Legacy)).apply(&scenario.model).unwrap();
    let (held, lock) = lab.hold_lock();
    let arguments = ["--xtables-lock-file", &lock, "--xtables-lock-wait", "1h"];
    let arguments = [&lab.arguments()[..], &arguments].concat();
    let agent = Agent::spawn(lab.node.host(), program(), &arguments).unwrap();
    wait_until("it answers", || agent.get("/healthz").is_ok_and(|answer| answer.status == 200));
    assert_eq!(agent.get("/healthz").unwrap().body, "ok\n");
    let nftables_read = || !agent.get("/readyz").unwrap().body.contains("nftables");
    wait_until("nftables was read", nftables_read);
    let answer = agent.get("/readyz").unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (503, "source iptables-legacy: not yet read\n"));
    drop(held);
    wait_until("it is ready", || agent.get("/readyz").unwrap().status == 200);
    assert_eq!(agent.get("/readyz").unwrap().body, "ready\n");
}

/// Counting does not wait for the port, and the agent takes it when it is free.
#[test]
fn a_port_that_is_taken() {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(Backend::Nft)).apply(&scenario.model).unwrap();
    let taken = lab.node.host().enter(|| TcpListener::bind(ADDRESS)).unwrap().unwrap();
    let agent = Agent::spawn(lab.node.host(), program(), &lab.arguments()).unwrap();
    wait_until("it says so", || agent.log().contains("cannot listen"));
    let log = agent.log();
    assert!(log.contains("127.0.0.1:9009") && log.contains("--listen-address"), "{log}");
    // It counts meanwhile, and tries again by itself.
    drop(taken);
    wait_until("it serves", || agent.get("/readyz").is_ok_and(|answer| answer.status == 200));
}

/// The families that JSON and metrics share.
const FAMILIES: [&str; 6] =
    ["policy", "default_deny", "profile", "endpoint_chain", "endpoint", "unattributed"];

/// JSON has an entry for each series of the metrics, also for those at zero, wherever it comes from; the table has those
/// in which something was counted.
#[test]
fn json_has_every_series() {
    with_accounts(&[], |lab, agent| {
        let scrape = Scrape::parse(&agent.get("/metrics").unwrap().body);
        let (out, err, _) = run(lab.node.host(), &["show", "--json"]);
        let shown: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
        for object in [&agent.accounts().unwrap(), &shown] {
            let accounts = object["accounts"].as_array().unwrap();
            for family in FAMILIES {
                let name = format!("calico_accountant_{family}_packets_total");
                let series = scrape.series.keys().filter(|(other, _)| *other == name).count();
                let entries = accounts.iter().filter(|account| account["family"] == family).count();
                assert_eq!(entries, series, "{family}");
            }
            assert!(accounts.iter().any(|account| account["family"] == "policy" && account["packets"] == 0));
        }
        let lines = |more: &[&str]| run(lab.node.host(), &[&["show"], more].concat()).0.lines().count();
        assert!(lines(&[]) < lines(&["--all"]));
    });
}

/// `show` asks where an agent with the same settings listens.
#[test]
fn show_asks_where_the_agent_listens() {
    let namespace = Namespace::new("asked").unwrap();
    let listener = namespace.enter(|| TcpListener::bind("127.0.0.1:9101")).unwrap().unwrap();
    // In the place of an agent.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let body = r#"{"accounts": [], "asked": true}"#;
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.read(&mut request);
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    for (variable, value, arguments) in [
        ("METRICS_SERVER_PORT", "9101", &[][..]),
        ("ACCOUNTANT_LISTEN_ADDRESS", "[::]:9101", &[]),
        ("METRICS_SERVER_PORT", "9102", &["--listen-address", "127.0.0.1:9103,:9101"]),
        ("ACCOUNTANT_LISTEN_ADDRESS", "[::]:9102", &["--agent", "127.0.0.1:9101"]),
    ] {
        let mut command = namespace.command(&program().display().to_string()).unwrap();
        let command = command.args(["show", "--json"]).args(arguments).env(variable, value);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("\"asked\": true"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Names can be known before the first reading is: the agent is ready then, though nobody asks and its books were just written.
#[test]
fn an_agent_becomes_ready_by_itself() {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(Backend::Nft)).apply(&scenario.model).unwrap();
    let state = tempfile::tempdir().unwrap();
    let state = state.path().display().to_string();
    // Waits until it is ready.
    drop(lab.agent(&["--state-dir", &state, "--poll-interval", "1h"]));
}
