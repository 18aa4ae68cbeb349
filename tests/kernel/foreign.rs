//! Rules that are not Calico's drop packets in FORWARD, in front of Calico's chains and behind them: that is told as such, of
//! each endpoint and flow, and charged to no policy.

mod support;

use accountant_core::{Counter, IpVersion};
use accountant_lab::books::{counted, differences, expected};
use accountant_lab::felix::Backend;
use accountant_lab::policy::{Model, Packet, Protocol, Truth};
use accountant_lab::scenario::demo;
use accountant_lab::traffic::{UdpEcho, udp, udp_length};
use accountant_lab::{Agent, Namespace, Node};
use serde_json::Value;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;
use support::lab::{Lab, dialect};
use support::{Lacks, lacks, scrape, wait_until};

/// What the demo's policy `web` allows.
const ALLOWED: u16 = 5000;
/// Dropped in front of Calico's chains.
const FORBIDDEN: u16 = 7001;
/// Bytes of payload of packets that are dropped behind Calico's chains, and of those that are in front of them.
const BEHIND: usize = 200;
const BEFORE: usize = 300;
/// How many packets are sent of each kind.
const TO_FORBIDDEN: u64 = 7;
const DROPPED_BEHIND: u64 = 5;
const DROPPED_ESTABLISHED: u64 = 3;

fn address(text: &str, version: IpVersion) -> IpAddr {
    let versions: Vec<IpAddr> = text.split(' ').map(|text| text.parse().unwrap()).collect();
    versions[usize::from(version == IpVersion::V6)]
}

fn client(version: IpVersion) -> IpAddr {
    address("10.65.0.4 fd00:65::4", version)
}

fn web(version: IpVersion) -> IpAddr {
    address("10.65.0.2 fd00:65::2", version)
}

/// Rules of somebody else's, in the tables of iptables.
fn iptables(host: &Namespace, backend: Backend) {
    let suffix = if backend == Backend::Legacy { "legacy" } else { "nft" };
    for version in IpVersion::BOTH {
        let tool = match version {
            IpVersion::V4 => format!("iptables-{suffix}"),
            IpVersion::V6 => format!("ip6tables-{suffix}"),
        };
        let length = |payload| udp_length(web(version), payload).to_string();
        // Calico's own jump is the first rule, and behind it is one that accepts what policy accepted.
        for (place, matches) in [
            ("2", ["-m", "length", "--length", &length(BEHIND)]),
            ("1", ["-m", "length", "--length", &length(BEFORE)]),
            ("1", ["-m", "udp", "--dport", &FORBIDDEN.to_string()]),
        ] {
            let rule = [&["-w", "-I", "FORWARD", place, "-p", "udp"], &matches[..], &["-j", "DROP"]].concat();
            host.run(&tool, &rule).unwrap();
        }
    }
}

/// The same in tables of nftables of their own: of two chains at one place, the kernel asks the newer one first.
fn nftables(host: &Namespace, table: &str, rules: &[String]) {
    let mut text = format!(
        "add table inet {table}\nadd chain inet {table} forward {{ type filter hook forward priority filter; }}\n"
    );
    for rule in rules {
        text.push_str(&format!("add rule inet {table} forward {rule} drop\n"));
    }
    host.feed("nft", &["-f", "-"], &text).unwrap();
}

fn of_length(payload: usize) -> String {
    let [v4, v6] = IpVersion::BOTH.map(|version| udp_length(web(version), payload));
    format!("udp dport {ALLOWED} meta length {{ {v4}, {v6} }}")
}

/// A flow that was answered, and then packets of it that are not.
fn established(node: &Node, version: IpVersion) {
    let from = &node.pod("default", "client").unwrap().netns;
    from.enter(|| {
        let socket = UdpSocket::bind((client(version), 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let to = (web(version), ALLOWED);
        socket.send_to(b"hello", to).unwrap();
        socket.recv(&mut [0; 16]).unwrap();
        for _ in 0..DROPPED_ESTABLISHED {
            socket.send_to(&[0; BEFORE], to).unwrap();
        }
    })
    .unwrap();
}

fn book(truth: &mut Truth, model: &Model, version: IpVersion, packets: u64, payload: usize) {
    let (source, destination) = (client(version), web(version));
    let packet = Packet { source, destination, protocol: Protocol::Udp, port: ALLOWED };
    truth.book(model, &packet, Counter::new(packets, packets * udp_length(destination, payload)));
}

/// Packets of an endpoint, by what became of them.
fn seen(agent: &Agent, labels: [&str; 3], state: &str, verdict: &str) -> f64 {
    let [pod, direction, ip_version] = labels;
    let labels = [
        ("pod", pod),
        ("direction", direction),
        ("ip_version", ip_version),
        ("state", state),
        ("verdict", verdict),
    ];
    scrape(agent).sum("calico_accountant_endpoint_packets_total", &labels)
}

fn told_as_such(backend: Backend) {
    if lacks(Lacks::Programs) {
        return;
    }
    let scenario = demo();
    let lab = Lab::new(&scenario);
    let host = lab.node.host();
    if backend == Backend::Nft {
        nftables(host, "behind", &[of_length(BEHIND)]);
    }
    lab.node.felix(dialect(backend)).apply(&scenario.model).unwrap();
    match backend {
        Backend::Nft => nftables(host, "before", &[format!("udp dport {FORBIDDEN}"), of_length(BEFORE)]),
        _ => iptables(host, backend),
    }
    let agent = lab.agent(&["--max-age", "0s"]);
    wait_until("programs are attached", || {
        scrape(&agent).sum("calico_accountant_kernel_programs_attached", &[]) > 0.0
    });
    let mut truth = Truth::default();
    let from = &lab.node.pod("default", "client").unwrap().netns;
    let web_netns = &lab.node.pod("shop", "web").unwrap().netns;
    for version in IpVersion::BOTH {
        let to = web(version);
        udp(from, to, FORBIDDEN, 1, TO_FORBIDDEN as u32, 10).unwrap();
        udp(from, to, ALLOWED, DROPPED_BEHIND as u32, 1, BEHIND).unwrap();
        book(&mut truth, &scenario.model, version, DROPPED_BEHIND, BEHIND);
        let _echo = UdpEcho::new(web_netns, to, ALLOWED).unwrap();
        established(&lab.node, version);
        book(&mut truth, &scenario.model, version, 1, 5);
    }
    let accounts = agent.settled().unwrap();
    assert_eq!(differences(&expected(&truth), &counted(&accounts)), [""; 0], "{backend:?}");
    for (version, pod, direction) in
        ["4", "6"].into_iter().flat_map(|v| [(v, "client", "egress"), (v, "web", "ingress")])
    {
        let seen = |state, verdict| seen(&agent, [pod, direction, version], state, verdict);
        let text = format!("{backend:?} IPv{version} {pod} {direction}");
        assert_eq!(seen("new", "dropped_elsewhere"), (TO_FORBIDDEN + DROPPED_BEHIND) as f64, "{text}");
        assert_eq!(seen("established", "dropped_elsewhere"), DROPPED_ESTABLISHED as f64, "{text}");
        assert_eq!((seen("new", "dropped"), seen("established", "dropped")), (0.0, 0.0), "{text}");
        assert_eq!(seen("new", "accepted"), 1.0, "{text}");
    }
    flows_are_told_without_a_policy(&agent);
}

fn flows_are_told_without_a_policy(agent: &Agent) {
    let flows: Value = serde_json::from_str(&agent.get("/denied").unwrap().body).unwrap();
    assert_eq!(flows["lost_packets"], 0, "{flows}");
    let mut told = 0;
    for flow in flows["flows"].as_array().unwrap() {
        assert_eq!(flow["verdict"], "dropped_elsewhere", "{flow}");
        assert!(flow["policy"].is_null() && flow["profile"].is_null(), "{flow}");
        assert_eq!((&flow["pod"], &flow["direction"]), (&"web".into(), &"ingress".into()), "{flow}");
        told += flow["packets"].as_u64().unwrap();
    }
    assert_eq!(told, 2 * (TO_FORBIDDEN + DROPPED_BEHIND), "{flows}");
}

#[test]
fn legacy() {
    told_as_such(Backend::Legacy);
}

#[test]
fn iptables_nft() {
    told_as_such(Backend::IptablesNft);
}

#[test]
fn native_nftables() {
    told_as_such(Backend::Nft);
}
