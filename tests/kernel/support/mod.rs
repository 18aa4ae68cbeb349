//! The agent under test, in a namespace of its own, and what it says.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test uses its part")]

pub mod books;

use accountant_lab::Namespace;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// `accountant` with these arguments, in the namespace.
fn accountant(namespace: &Namespace, arguments: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace.name(), env!("CARGO_BIN_EXE_accountant")]).args(arguments);
    command.env("XTABLES_LOCKFILE", namespace.lock_file());
    for variable in ["DATASTORE_TYPE", "ACCOUNTANT_MANIFESTS", "NODENAME", "FELIX_INTERFACEPREFIX"] {
        command.env_remove(variable);
    }
    command
}

/// What a command of ours prints and how it ends.
pub fn run(namespace: &Namespace, arguments: &[&str]) -> (String, String, i32) {
    let output = accountant(namespace, arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

/// `accountant show --json`, read directly.
pub fn show(namespace: &Namespace, arguments: &[&str]) -> Value {
    let (out, err, code) = run(namespace, &[&["show", "--json", "--direct"], arguments].concat());
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

/// A running agent; killed when dropped.
pub struct Agent<'a> {
    namespace: &'a Namespace,
    child: Child,
    log: PathBuf,
}

impl<'a> Agent<'a> {
    /// Starts it, and waits until it is ready.
    pub fn start(namespace: &'a Namespace, arguments: &[&str]) -> Self {
        let agent = Self::spawn(namespace, arguments);
        let deadline = Instant::now() + PATIENCE;
        while agent.get("/readyz", "").is_none_or(|(status, _)| status != 200) {
            assert!(Instant::now() < deadline, "the agent does not get ready: {}", agent.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    /// Starts it without waiting.
    pub fn spawn(namespace: &'a Namespace, arguments: &[&str]) -> Self {
        let log = std::env::temp_dir().join(format!("{}.log", namespace.name()));
        let child =
            accountant(namespace, &[&["run", "--listen-address", "127.0.0.1:9009"], arguments].concat())
                .stdout(Stdio::null())
                .stderr(std::fs::File::create(&log).unwrap())
                .spawn()
                .unwrap();
        Self { namespace, child, log }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Status and body of a request; nothing if it does not listen.
    pub fn get(&self, path: &str, headers: &str) -> Option<(u16, String)> {
        let asking = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect("127.0.0.1:9009")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = self.namespace.enter(asking).unwrap().ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        Some((status, if chunked { unchunk(body) } else { body.to_string() }))
    }

    /// All accounts, as JSON, fresh.
    pub fn accounts(&self) -> Value {
        let (status, body) =
            self.get("/accounts?all=true", "").unwrap_or_else(|| panic!("no answer: {}", self.log()));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// A scrape, as values by series.
    pub fn scrape(&self) -> Scrape {
        let (status, body) = self.get("/metrics", "").unwrap_or_else(|| panic!("no answer: {}", self.log()));
        assert_eq!(status, 200, "{body}");
        Scrape::parse(&body)
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the agent\n{}", self.log());
        }
        let _ = std::fs::remove_file(&self.log);
    }
}

fn unchunk(body: &str) -> String {
    let mut rest = body;
    let mut whole = String::new();
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || tail.len() < size {
            break;
        }
        whole.push_str(&tail[..size]);
        rest = tail[size..].trim_start_matches("\r\n");
    }
    whole
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
