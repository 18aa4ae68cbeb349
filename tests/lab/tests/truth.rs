//! What the model says about packets is what a real Felix made of them.
//!
//! The captures have the traffic that was sent (`traffic.json`) and the accounts that followed (`expected.json`), which
//! agreed with the counters of the real Felix' rules. Here the model books the same traffic.

mod common;

use accountant_core::Counter;
use accountant_lab::felix::Version;
use accountant_lab::policy::{Account, By, Did, Model, Packet, Protocol, Truth};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;

/// Flows that were answered: only the first packet was new.
const ANSWERED: [&str; 2] = ["udp-lone1-web1-5000", "udp-web1-lone1-4444"];
/// Denied by the host endpoint's policy for forwarded traffic, before any pod's.
const NEVER_ARRIVED: &str = "udp-ext-web1-4000";

fn read(capture: &str, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(common::fixtures().join("felix").join(capture).join(file)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("")
}

/// The packets of one kind of traffic that were new, if pods' policies saw any.
fn sent(model: &Model, traffic: &Value) -> Option<(Packet, u64)> {
    if text(traffic, "from") == "node" || text(traffic, "id") == NEVER_ARRIVED {
        return None;
    }
    let destination = text(traffic, "dst").parse().unwrap();
    let source = match text(traffic, "src") {
        "-" => {
            let pod = model.endpoints.iter().find(|pod| pod.pod == text(traffic, "from")).unwrap();
            pod.address_like(destination).unwrap()
        }
        address => address.parse().unwrap(),
    };
    let protocol = match text(traffic, "proto") {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "icmp" => Protocol::Icmp(Some(8)),
        _ => Protocol::Icmpv6(Some(128)),
    };
    let one_flow = ANSWERED.contains(&text(traffic, "id")) || text(traffic, "proto").starts_with("icmp");
    let count = if one_flow { 1 } else { traffic["count"].as_u64().unwrap() };
    let port = u16::try_from(traffic["dport"].as_u64().unwrap()).unwrap();
    Some((Packet { source, destination, protocol, port }, count))
}

/// An account in the words of `expected.json`.
fn spelled(account: &Account, packets: u64) -> String {
    let did = |did: Did| match did {
        Did::Allow => "allow",
        Did::Deny => "deny",
        Did::Pass => "pass",
    };
    let by = match &account.by {
        By::Policy { tier, policy, did: what } => {
            let (kind, namespace, name) = (policy.kind, &policy.namespace, &policy.name);
            format!("policy {tier} {kind} {namespace} {name} {}", did(*what))
        }
        By::NoPolicy { tier } => format!("default_deny {tier} no_policy"),
        By::Profile { profile, did: what } => format!("profile {profile} {}", did(*what)),
        By::NoProfile => "default_deny  no_profile".to_string(),
        By::Down => "down".to_string(),
    };
    let Account { namespace, pod, direction, ip_version, .. } = account;
    format!("{namespace}/{pod} {direction} v{ip_version} {by}: {packets}")
}

fn expected(value: &Value) -> String {
    let by = match text(value, "family") {
        "policy" => {
            let words = ["tier", "policy_kind", "policy_namespace", "policy", "action"];
            format!("policy {}", words.map(|word| text(value, word)).join(" "))
        }
        "profile" => format!("profile {} {}", text(value, "profile"), text(value, "action")),
        family => format!("{family} {} {}", text(value, "tier"), text(value, "reason")),
    };
    let (namespace, pod, direction) =
        (text(value, "namespace"), text(value, "pod"), text(value, "direction"));
    format!("{namespace}/{pod} {direction} v{} {by}: {}", value["ip_version"], value["packets"])
}

fn check(capture: &str, version: Version) {
    let model = common::captured::model(version);
    let mut truth = Truth::default();
    for (packet, count) in read(capture, "traffic.json").iter().filter_map(|traffic| sent(&model, traffic)) {
        truth.book(&model, &packet, Counter::new(count, 0));
    }
    let booked: BTreeSet<String> =
        truth.accounts().map(|(account, packets)| spelled(account, packets)).collect();
    // In 3.32 the captured datastore has Kubernetes policies as Calico policies with a prefix.
    let booked: BTreeSet<String> = booked
        .into_iter()
        .map(|line| line.replace("NetworkPolicy frontend knp.default.", "KubernetesNetworkPolicy frontend "))
        .collect();
    let expected: BTreeSet<String> = read(capture, "expected.json").iter().map(expected).collect();
    assert!(expected.len() > 15);
    assert_eq!(booked, expected, "{capture}");
}

#[test]
fn the_model_books_what_felix_counted() {
    check("v3.28.5-iptables-nft", Version::V3_28);
    check("v3.29.7-nft", Version::V3_29);
    check("v3.31.7-legacy", Version::V3_31);
    check("v3.32.1-iptables-nft", Version::V3_32);
    check("v3.32.1-legacy-flowlogs", Version::V3_32);
}
