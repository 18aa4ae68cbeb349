//! The agent on a node with Calico's eBPF dataplane, as a stand-in plays it, with the listings that a real Felix wrote: every
//! account as the traffic was, what `check` says, and changes from and to another dataplane.

#[path = "calico_bpf/stand_in.rs"]
mod stand_in;
mod support;

use accountant_abi::calico::{EGRESS, INGRESS};
use accountant_abi::stand_in::Case;
use accountant_core::calico::bpf::RuleId;
use accountant_core::calico::names::pod_interface;
use accountant_lab::felix::Backend;
use accountant_lab::policy::Endpoint;
use accountant_lab::scenario::demo;
use accountant_lab::traffic::udp;
use accountant_lab::{Agent, Node};
use stand_in::{NEWEST, Pins, StandIn};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use support::lab::{self, Lab};
use support::{fixtures, lines, run, scrape, start};

/// Interfaces of the pods of the capture: Calico computes them of their names.
const WEB: &str = "cali695fe2a3341";
const API: &str = "cali700d3c2e654";

fn capture() -> PathBuf {
    fixtures().join("felix/v3.32.1-bpf")
}

/// Two pods of the capture.
fn node() -> Node {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let pod = |namespace, name, v4| Endpoint::new(namespace, name, &[address(v4)]);
    let pods = [pod("frontend", "web-1", "10.244.1.10"), pod("payments", "api-1", "10.244.1.12")];
    assert_eq!([pods[0].interface.as_str(), pods[1].interface.as_str()], [WEB, API]);
    Node::new(&pods).unwrap()
}

fn arguments(pins: &Pins) -> Vec<String> {
    let text = |path: PathBuf| path.to_str().unwrap().to_string();
    let arguments = [
        ("--manifests", text(capture().join("manifests"))),
        ("--node-name", "worker-1".into()),
        ("--calico-bpf-pins", text(pins.path())),
        ("--calico-bpf-policies", text(pins.listings())),
        ("--max-age", "0s".into()),
    ];
    arguments.into_iter().flat_map(|(flag, value)| [flag.to_string(), value]).collect()
}

fn send(node: &Node, port: u16, packets: u32) {
    let [web, api] = [("frontend", "web-1"), ("payments", "api-1")].map(|(n, p)| node.pod(n, p).unwrap());
    udp(&web.netns, api.v4().unwrap(), port, 1, packets, 10).unwrap();
}

fn case(said: i32, rules: &[u64]) -> Case {
    let mut case = Case { said, hits: rules.len() as u32, mark: 0x0100_0000, ..Case::default() };
    case.rules[..rules.len()].copy_from_slice(rules);
    case
}

/// Decides as the real one did; the paths are those of the capture.
fn decide(stand_in: &StandIn) {
    let out = case(1, &[0x8b940d2c2996771a, 0x7b1443b2419fc24f, 0xcfeba7efecafe613]);
    for port in [9001, 9999, 7777, 9009] {
        stand_in.decide(port, INGRESS, out);
    }
    stand_in.decide(5000, INGRESS, case(2, &[0x24c537e5284654e3]));
    stand_in.decide(9001, EGRESS, case(1, &[0xa1561994508c1979, 0x60c96cd928210d9b, 0xfde9a0d8b288710f]));
    stand_in.decide(9999, EGRESS, case(2, &[0xa1561994508c1979, 0x60c96cd928210d9b, 0x3407769500568619]));
    stand_in.decide(7777, EGRESS, case(2, &[0x78f148bf87700442]));
    // A rule that nothing explains.
    stand_in.decide(9009, EGRESS, case(2, &[0xdead]));
}

fn accounts(agent: &Agent) -> BTreeMap<String, u64> {
    lines(&agent.settled().unwrap(), &["policy", "default_deny", "profile", "unattributed", "endpoint_chain"])
}

/// The dataplane that the capture is of, at work on this node, with its listings.
fn captured(node: &Node, pins: &Pins) -> StandIn {
    for entry in std::fs::read_dir(capture().join("policy")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), pins.listings().join(entry.file_name())).unwrap();
    }
    let begin = || {
        let mut stand_in = StandIn::new(pins, NEWEST);
        ["eth0", WEB, API].iter().for_each(|interface| stand_in.attach_both(interface));
        decide(&stand_in);
        stand_in
    };
    node.host().enter(begin).unwrap()
}

#[test]
fn accounts_are_as_the_traffic_was() {
    let (node, pins) = (node(), Pins::new());
    let mut stand_in = captured(&node, &pins);
    let arguments = arguments(&pins);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let agent = start(node.host(), &arguments);
    for (port, packets) in [(9001, 2), (9999, 3), (7777, 4), (5000, 5), (9009, 6)] {
        send(&node, port, packets);
    }
    let web = "namespace=frontend pod=web-1 direction=egress ip_version=4";
    let api = "namespace=payments pod=api-1 direction=ingress ip_version=4";
    let rest = "policy_kind=GlobalNetworkPolicy policy=security.pass-rest action=pass";
    let want = [
        (format!("family=policy {web} tier=security {rest}"), 15),
        (
            format!(
                "family=policy {web} tier=default policy_kind=NetworkPolicy policy_namespace=frontend \
                 policy=a-really-long-policy-name-that-will-not-fit-into-a-chain-name action=allow"
            ),
            15,
        ),
        (
            format!(
                "family=policy {web} tier=security policy_kind=GlobalNetworkPolicy policy=security.block-bad \
                 action=deny"
            ),
            5,
        ),
        (format!("family=policy {api} tier=security {rest}"), 5),
        (
            format!(
                "family=policy {api} tier=default policy_kind=NetworkPolicy policy_namespace=payments \
                 policy=grp-a action=allow"
            ),
            2,
        ),
        (format!("family=default_deny {api} tier=default reason=no_policy"), 3),
        (format!("family=default_deny {api} tier=security reason=no_policy"), 4),
        ("family=unattributed cause=unknown_rule".to_string(), 6),
    ];
    // What is not explained waits for a name first.
    support::wait_until("the last verdicts are charged", || accounts(&agent).len() == want.len());
    let found = accounts(&agent);
    assert_eq!(found, BTreeMap::from(want.clone()));
    let scraped = scrape(&agent);
    let of_source = [("source", "calico-bpf")];
    assert_eq!(scraped.sum("calico_accountant_reconcile_difference_packets", &of_source), 0.0);
    assert_eq!(scraped.sum("calico_accountant_source_up", &of_source), 1.0);
    assert_eq!(scraped.sum("no_policy_drop_counter", &[("pod", "api-1"), ("type", "tw")]), 7.0);
    let (said, _, code) = run(node.host(), &[&["check"], &arguments[..arguments.len() - 2]].concat());
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("source calico-bpf: counting") && said.contains("3.32 and later"), "{said}");
    // Felix goes: nothing falls, and the source says why it is silent.
    node.host().enter(|| stand_in.detach_all()).unwrap();
    pins.clear();
    support::wait_until("the source is gone", || {
        let scraped = scrape(&agent);
        scraped.assert_not_below(&scraped);
        scraped.sum("calico_accountant_source_up", &of_source) == 0.0
    });
    assert_eq!(accounts(&agent), found);
}

/// An agent that may not look up programs counts what Calico's own counters say, and says what is missing.
#[test]
fn without_the_capability_there_are_totals() {
    let (node, pins) = (node(), Pins::new());
    let _stand_in = captured(&node, &pins);
    let program = without_sys_admin(&pins);
    let arguments = arguments(&pins);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let agent = Agent::start(node.host(), &program, &arguments).unwrap();
    for (port, packets) in [(9001, 2), (7777, 4), (5000, 5)] {
        send(&node, port, packets);
    }
    let pass = "tier=security policy_kind=GlobalNetworkPolicy policy=security.pass-rest action=pass";
    let long = "a-really-long-policy-name-that-will-not-fit-into-a-chain-name";
    let want = BTreeMap::from([
        (format!("family=policy direction=egress {pass}"), 6),
        (format!("family=policy direction=ingress {pass}"), 2),
        (
            format!(
                "family=policy direction=egress tier=default policy_kind=NetworkPolicy policy_namespace=frontend \
                 policy={long} action=allow"
            ),
            6,
        ),
        (
            "family=policy direction=egress tier=security policy_kind=GlobalNetworkPolicy \
             policy=security.block-bad action=deny"
                .into(),
            5,
        ),
        (
            "family=policy direction=ingress tier=default policy_kind=NetworkPolicy policy_namespace=payments \
             policy=grp-a action=allow"
                .into(),
            2,
        ),
        ("family=default_deny direction=ingress tier=security reason=no_policy".into(), 4),
        ("family=endpoint namespace=frontend pod=web-1 direction=egress verdict=accepted".into(), 6),
        ("family=endpoint namespace=frontend pod=web-1 direction=egress verdict=dropped".into(), 5),
        ("family=endpoint namespace=payments pod=api-1 direction=ingress verdict=accepted".into(), 2),
        ("family=endpoint namespace=payments pod=api-1 direction=ingress verdict=dropped".into(), 4),
    ]);
    let found = || {
        let families = ["policy", "default_deny", "profile", "unattributed", "endpoint_chain", "endpoint"];
        lines(&agent.settled().unwrap(), &families)
    };
    support::wait_until("all is counted", || found().len() >= want.len());
    assert_eq!(found(), want);
    let scraped = scrape(&agent);
    let of_source = |metric: &str| scraped.sum(metric, &[("source", "calico-bpf")]);
    assert_eq!(of_source("calico_accountant_source_totals_only"), 1.0);
    assert_eq!(of_source("calico_accountant_source_up"), 1.0);
    assert_eq!(of_source("calico_accountant_source_counted_rules"), 8.0);
    assert_eq!(scraped.sum("policy_accept_counter", &[]), 0.0);
    let check = [&["check"], &arguments[..arguments.len() - 2]].concat();
    let said = Agent::run(node.host(), &program, &check).unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("source calico-bpf: counting (totals only)"), "{said}");
    assert!(said.contains("policies without workloads") && said.contains("CAP_SYS_ADMIN"), "{said}");
}

/// The agent, started without `CAP_SYS_ADMIN`.
fn without_sys_admin(pins: &Pins) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let script = pins.run().join("accountant");
    let text = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-sys_admin {} \"$@\"\n",
        support::program().display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// Felix goes from iptables to eBPF and back, with both in place in between: no packet is counted twice, none is lost.
#[test]
fn felix_changes_the_dataplane() {
    let scenario = demo();
    let (lab, pins) = (Lab::new(&scenario), Pins::new());
    let web = lab.node.pod("shop", "web").unwrap();
    let interface = pod_interface("cali", "shop", "web").to_string();
    // No listing names these rules: the names of the datastore do.
    let path = ["PPE0|gnp/security.pass-rest", "DPE1|np/shop/web-egress"].map(|rule| RuleId::of(rule).0);
    let to = lab::v4(&lab.node, "shop", "db");
    let send = |packets| udp(&web.netns, to, 6000, 1, packets, 10).unwrap();
    let stand_in = || {
        let begin = || {
            let mut stand_in = StandIn::new(&pins, NEWEST);
            stand_in.attach_both(&interface);
            stand_in.decide(6000, INGRESS, case(2, &path));
            stand_in
        };
        lab.node.host().enter(begin).unwrap()
    };
    let mut felix = lab.node.felix(lab::dialect(Backend::Legacy));
    felix.apply(&scenario.model).unwrap();
    let (at, listings) = (pins.path(), pins.listings());
    let more =
        ["--calico-bpf-pins", at.to_str().unwrap(), "--calico-bpf-policies", listings.to_str().unwrap()];
    let agent = lab.agent(&[&more[..], &["--max-age", "0s"]].concat());
    let sum = |action| {
        let labels = [("pod", "web"), ("direction", "egress"), ("ip_version", "4"), ("action", action)];
        scrape(&agent).sum("calico_accountant_policy_packets_total", &labels)
    };
    let counted = |wanted: f64, when: &str| {
        support::wait_until(when, || {
            let (denied, passed) = (sum("deny"), sum("pass"));
            assert!(denied <= wanted && passed <= wanted, "{when}: {denied} and {passed} of {wanted}");
            denied == wanted && passed == wanted
        });
    };
    let up = |up: f64| {
        let of_source = [("source", "calico-bpf")];
        support::wait_until("the source has changed", || {
            scrape(&agent).sum("calico_accountant_source_up", &of_source) == up
        });
    };
    send(3);
    counted(3.0, "rules count");
    let mut verdicts = stand_in();
    up(1.0);
    send(4);
    counted(7.0, "both are in place");
    felix.remove_rules().unwrap();
    send(5);
    counted(12.0, "the rules are gone");
    felix.apply(&scenario.model).unwrap();
    send(2);
    counted(14.0, "the rules are back");
    lab.node.host().enter(|| verdicts.detach_all()).unwrap();
    pins.clear();
    up(0.0);
    send(1);
    counted(15.0, "rules count again");
}
