//! Clients that cost nothing: that only connect, never end what they say, or never take what they asked for. Meanwhile every
//! number is exact, scrapes are answered, and memory is bounded.

use crate::site::{Site, tls};
use crate::support::lab::{Lab, dialect};
use crate::support::wait_until;
use accountant_lab::Agent;
use accountant_lab::agent::ADDRESS;
use accountant_lab::books::{counted, differences, expected};
use accountant_lab::felix::Backend;
use accountant_lab::policy::Truth;
use accountant_lab::scenario::{Visit, demo};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};

/// How many connect and do nothing.
const IDLE: usize = 10_000;
/// How much memory they may cost, in kB: far less than as many buffers.
const MEMORY: u64 = 24 * 1024;

fn memory(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(agent: &Agent) -> usize {
    fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count()
}

/// Connections that each say this and then nothing.
fn connect(site: &Site, many: usize, say: &[u8]) -> Vec<TcpStream> {
    let one = || {
        let mut stream = TcpStream::connect(ADDRESS).unwrap();
        // Who has been cut already need not hear it.
        let _ = stream.write_all(say);
        stream
    };
    site.namespace.enter(|| (0..many).map(|_| one()).collect()).unwrap()
}

/// One crowd at a time: both would want more descriptors than a process has.
static TURN: Mutex<()> = Mutex::new(());

fn crowds(web: &str, asks: impl Fn(&Site, &str) -> String) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let scenario = demo();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(Backend::Nft)).apply(&scenario.model).unwrap();
    let site = Site::new(lab.node.host().clone());
    site.configure(web);
    let agent = site.start(&[&lab.arguments()[..], &["--max-age", "0s"]].concat());
    asks(&site, "/metrics");
    let (before, open) = (memory(&agent), descriptors(&agent));
    let mut truth = Truth::default();
    let visit = Visit::new(&lab.node).unwrap();
    let endless = [b"GET /".as_slice(), &[b'x'; 8000]].concat();
    let crowds = [
        connect(&site, IDLE, b""),
        connect(&site, 500, b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: "),
        connect(&site, 500, &endless),
        // They ask again and again, and take nothing.
        connect(&site, 200, &b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100)),
    ];
    visit.round(&scenario.model, &mut truth, || drop(asks(&site, "/accounts"))).unwrap();
    let accounts = serde_json::from_str(&asks(&site, "/accounts")).unwrap();
    assert_eq!(differences(&expected(&truth), &counted(&accounts)), [""; 0]);
    let grown = memory(&agent).saturating_sub(before);
    assert!(grown < MEMORY, "memory grew by {grown} kB");
    assert!(descriptors(&agent) < open + 300, "{} descriptors after {open}", descriptors(&agent));
    drop(crowds);
    wait_until("all are gone", || descriptors(&agent) <= open + 2);
}

fn body(asked: crate::site::Asked) -> String {
    assert_eq!(asked.status, "200", "{asked:?}");
    asked.text.split_once("\r\n\r\n").unwrap().1.to_string()
}

#[test]
fn crowds_that_only_connect_and_talk_without_end() {
    // Who is cut in the crowd asks again.
    crowds("", |site, path| body(site.http(path, &["--retry", "5", "--retry-all-errors"])));
}

#[test]
fn the_same_where_tls_is_spoken() {
    crowds(&tls(""), |site, path| {
        body(site.https(path, &["--http1.1", "--retry", "5", "--retry-all-errors"]))
    });
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    let site = Site::in_a_namespace();
    site.configure("");
    let _agent = site.start(&[]);
    let answer = |say: &[u8]| {
        let ask = || {
            let mut stream = TcpStream::connect(ADDRESS).unwrap();
            // It may be refused before all is said.
            let _ = stream.write_all(say);
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).map(|()| String::from_utf8_lossy(&answer).into_owned())
        };
        site.namespace.enter(ask).unwrap()
    };
    let line = [b"GET /".as_slice(), &[b'x'; 20_000]].concat();
    let head = [b"GET / HTTP/1.1\r\nHost: x\r\nX: ".as_slice(), &[b'x'; 20_000]].concat();
    for (what, say) in [("line", &line), ("head", &head)] {
        let answer = answer(say);
        assert!(answer.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 4")), "{what}: {answer:?}");
    }
    assert_eq!(site.http("/healthz", &[]).status, "200");
}
