//! Denied flows are told as they happen, with the policy that denied them: to whoever runs `accountant show --denied --follow`.

mod support;

use accountant_lab::felix::Backend;
use accountant_lab::traffic::udp;
use accountant_lab::{Agent, Namespace};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;
use support::lab::{Lab, dialect};
use support::streams::{DENIED_IN_PASS_TIER, DENIED_LAST, NOBODYS, SIZE, shop};
use support::{Lacks, lacks, program, run, scrape, wait_until};

/// How long a line is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Denied, and sent again and again until somebody follows.
const PROBE: u16 = 6000;

/// `accountant show --denied --follow`, and its lines.
struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn start(host: &Namespace, arguments: &[&str]) -> Self {
        let arguments = [&["show", "--denied", "--follow"], arguments].concat();
        let mut child = Agent::begin(host, program(), &arguments).unwrap();
        let (told, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    /// The next flows that are no probes.
    fn flows(&self, number: usize) -> Vec<Value> {
        let flows = std::iter::repeat_with(|| serde_json::from_str::<Value>(&self.line()).unwrap());
        flows.filter(|flow| flow["destination_port"] != PROBE).take(number).collect()
    }

    fn wait_for_its_end(mut self) -> String {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(1), "{said}");
        said
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn told_as_they_happen(backend: Backend) {
    if lacks(Lacks::Programs) {
        return;
    }
    let scenario = shop();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(backend)).apply(&scenario.model).unwrap();
    // What is told cannot come from a reading.
    let agent = lab.agent(&["--poll-interval", "1h", "--max-age", "1h"]);
    wait_until("programs are attached", || {
        scrape(&agent).sum("calico_accountant_kernel_programs_attached", &[]) > 0.0
    });
    let client = &lab.node.pod("default", "client").unwrap().netns;
    let web = lab.node.pod("shop", "web").unwrap();
    let send = |to: IpAddr, port, flows, packets| udp(client, to, port, flows, packets, SIZE).unwrap();
    let follower = Follower::start(lab.node.host(), &["--json"]);
    let people = Follower::start(lab.node.host(), &[]);
    for each in [&follower, &people] {
        wait_until("it follows", || {
            send(web.v4().unwrap(), PROBE, 1, 1);
            each.lines.recv_timeout(Duration::from_millis(50)).is_ok()
        });
    }
    for (to, version) in [(web.v4().unwrap(), "4"), (web.v6().unwrap(), "6")] {
        send(to, DENIED_LAST, 1, 3);
        send(to, DENIED_IN_PASS_TIER, 1, 2);
        send(to, NOBODYS, 2, 2);
        let flows = follower.flows(4);
        let field = |name: &str| flows.iter().map(|flow| &flow[name]).collect::<Vec<_>>();
        assert_eq!(
            field("policy"),
            [&"web".into(), &"platform.no-telnet".into(), &Value::Null, &Value::Null]
        );
        assert_eq!(field("tier"), ["default", "platform", "default", "default"]);
        for flow in &flows {
            assert_eq!((&flow["pod"], &flow["direction"]), (&"web".into(), &"ingress".into()), "{flow}");
            assert_eq!((&flow["ip_version"], &flow["packets"]), (&version.into(), &1.into()), "{flow}");
            assert_eq!((&flow["protocol"], &flow["destination"]), (&"udp".into(), &to.to_string().into()));
        }
    }
    let line = std::iter::repeat_with(|| people.line()).find(|line| line.contains(":24 ")).unwrap();
    assert!(line.ends_with("shop/web ingress by KubernetesNetworkPolicy shop/web (tier default)"), "{line}");
    drop(agent);
    assert!(follower.wait_for_its_end().contains("tells no more"));
    let (_, error, code) = run(lab.node.host(), &["show", "--denied", "--follow"]);
    assert!(code == 1 && error.contains("no agent answers"), "{code} {error}");
}

#[test]
fn legacy() {
    told_as_they_happen(Backend::Legacy);
}

#[test]
fn native_nftables() {
    told_as_they_happen(Backend::Nft);
}

/// Without programs nobody sees a flow, and that is said.
#[test]
fn without_programs() {
    let scenario = shop();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(Backend::Nft)).apply(&scenario.model).unwrap();
    let _agent = lab.agent(&["--kernel-programs", "off"]);
    let (_, error, code) = run(lab.node.host(), &["show", "--denied", "--follow"]);
    assert!(
        code == 1 && error.contains("nobody sees denied flows") && error.contains("turned off"),
        "{error}"
    );
}
