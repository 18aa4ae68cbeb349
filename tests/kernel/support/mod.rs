//! The agent under test, in a namespace of its own, and what it says.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test uses its part")]

pub mod bpffs;
pub mod container;
pub mod lab;
pub mod place;
pub mod routers;
pub mod streams;
pub mod unit;

use accountant_lab::{Agent, Namespace};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the agent can do on newer kernels only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacks {
    /// Programs in the packet's path.
    Programs,
    /// Reading counters of nftables in place.
    InPlace,
}

/// Whether this kernel lacks it, as `cargo xtask vm-test` says in `ACCOUNTANT_KERNEL_LACKS` once `accountant check` has said
/// so. Without that variable everything has to be there.
pub fn lacks(what: Lacks) -> bool {
    let name = match what {
        Lacks::Programs => "programs",
        Lacks::InPlace => "in_place",
    };
    std::env::var("ACCOUNTANT_KERNEL_LACKS").is_ok_and(|lacks| lacks.split(',').any(|lack| lack == name))
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// The binary under test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_accountant"))
}

/// Starts `accountant run` and waits until it is ready.
pub fn start(namespace: &Namespace, arguments: &[&str]) -> Agent {
    Agent::start(namespace, program(), arguments).unwrap()
}

/// What a command of ours prints and how it ends.
pub fn run(namespace: &Namespace, arguments: &[&str]) -> (String, String, i32) {
    let output = Agent::run(namespace, program(), arguments).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

/// `accountant show --json`, read directly.
pub fn show(namespace: &Namespace, arguments: &[&str]) -> Value {
    let (out, err, code) = run(namespace, &[&["show", "--json", "--direct"], arguments].concat());
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

/// Waits until something is so, or fails.
pub fn wait_until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A scrape, as values by series.
pub fn scrape(agent: &Agent) -> Scrape {
    let answer = agent.get("/metrics").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    Scrape::parse(&answer.body)
}

/// One series: name and labels.
pub type Series = (String, BTreeMap<String, String>);

/// A scrape in the text format.
#[derive(Debug, Default)]
pub struct Scrape {
    pub series: BTreeMap<Series, f64>,
    pub types: BTreeMap<String, String>,
}

impl Scrape {
    pub fn parse(text: &str) -> Self {
        let mut scrape = Self::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(scrape.types.insert(name.into(), kind.into()).is_none(), "family {name} twice");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                let series = (name.to_string(), parse_labels(labels.trim_end_matches('}')));
                let value = value.parse().unwrap();
                assert!(scrape.series.insert(series.clone(), value).is_none(), "{series:?} twice");
            }
        }
        scrape
    }

    /// Sum over all series of a name whose labels include these.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |series: &Series| {
            series.0 == name && labels.iter().all(|(k, v)| series.1.get(*k).map(String::as_str) == Some(*v))
        };
        self.series.iter().filter(|(series, _)| fits(series)).map(|(_, value)| value).sum()
    }

    /// Asserts that no counter is lower than in an earlier scrape.
    pub fn assert_not_below(&self, earlier: &Self) {
        for (series, before) in &earlier.series {
            let counter = earlier.types.get(&series.0).is_some_and(|kind| kind == "counter");
            if let (true, Some(now)) = (counter, self.series.get(series)) {
                assert!(now >= before, "{series:?} fell from {before} to {now}");
            }
        }
    }
}

fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while let Some((name, tail)) = rest.split_once("=\"") {
        let end = tail.find('"').unwrap();
        labels.insert(name.trim_start_matches(',').to_string(), tail[..end].to_string());
        rest = &tail[end + 1..];
    }
    labels
}

/// One line an account that says something, by what tells accounts apart: what a test compares.
pub fn lines(object: &Value, families: &[&str]) -> BTreeMap<String, u64> {
    let mut lines = BTreeMap::new();
    for account in object["accounts"].as_array().into_iter().flatten() {
        let family = account["family"].as_str().unwrap();
        let packets = account["packets"].as_u64().unwrap();
        if families.contains(&family) && packets > 0 {
            let line = describe(account);
            assert!(lines.insert(line.clone(), packets).is_none(), "{line} twice");
        }
    }
    lines
}

/// Labels of accounts, in order.
const FIELDS: [&str; 16] = [
    "family",
    "namespace",
    "pod",
    "endpoint",
    "direction",
    "ip_version",
    "tier",
    "policy_kind",
    "policy_namespace",
    "policy",
    "profile",
    "action",
    "reason",
    "rule",
    "verdict",
    "cause",
];

/// An account as text; fields that are empty are left out.
pub fn describe(account: &Value) -> String {
    let field = |name: &&str| match &account[*name] {
        Value::String(text) if !text.is_empty() => Some(format!("{name}={text}")),
        Value::Number(number) => Some(format!("{name}={number}")),
        _ => None,
    };
    FIELDS.iter().filter_map(field).collect::<Vec<_>>().join(" ")
}
