//! What a real Felix wrote, put back into a kernel with its counters, gives exactly the truth of the traffic that had gone
//! through: by `accountant show --json` and by `/metrics`, with manifests and without a datastore.

mod support;

use accountant_core::calico::names::pod_interface;
use accountant_lab::Namespace;
use accountant_lab::apply::load_capture;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use support::{Scrape, describe, fixtures, lines, scrape, show, start};

const FAMILIES: [&str; 3] = ["policy", "default_deny", "profile"];

fn captures() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(fixtures().join("felix")).unwrap().map(|entry| entry.unwrap().path());
    let rules =
        |path: &PathBuf| ["rules.iptables-save", "rules.nft.txt"].iter().any(|file| path.join(file).exists());
    let mut captures: Vec<_> = folders.filter(rules).collect();
    captures.sort();
    assert!(captures.len() >= 5, "{captures:?}");
    captures
}

fn load(capture: &Path) -> Namespace {
    let namespace = Namespace::new("capture").unwrap();
    namespace.run("ip", &["link", "set", "lo", "up"]).unwrap();
    load_capture(&namespace, capture).unwrap();
    namespace
}

fn expected(capture: &Path) -> Value {
    let text = std::fs::read_to_string(capture.join("expected.json")).unwrap();
    let accounts: Value = serde_json::from_str(&text).unwrap();
    serde_json::json!({ "accounts": accounts })
}

/// In the capture of 3.28.5 two pods share a group of two policies, and each was denied by another of them. By pod and by
/// policy it is 3 and 2 packets, of 60 bytes each: three tables have these sums. What all three say is charged to the
/// policy, the rest to the group. Put in the truth's place, so that everything else is compared.
fn accept_open_group(found: &mut BTreeMap<String, u64>) {
    let account = |namespace: &str, pod: &str, kind: &str, policy: &str| {
        format!(
            "family=policy namespace={namespace} pod={pod} direction=ingress ip_version=4 tier=default \
             policy_kind={kind} policy={policy} action=deny"
        )
    };
    let group = |namespace, pod| account(namespace, pod, "PolicyGroup", "block-bad,telnet");
    let single = |namespace, pod, policy| account(namespace, pod, "GlobalNetworkPolicy", policy);
    assert_eq!(found.remove(&group("frontend", "web-1")), Some(2));
    assert_eq!(found.remove(&group("payments", "api-1")), Some(2));
    assert_eq!(found.insert(single("frontend", "web-1", "block-bad"), 3), Some(1));
    assert_eq!(found.insert(single("payments", "api-1", "telnet"), 2), None);
}

#[test]
fn show_with_manifests() {
    for capture in captures() {
        let namespace = load(&capture);
        let manifests = capture.join("manifests");
        let object =
            show(&namespace, &["--manifests", manifests.to_str().unwrap(), "--node-name", "worker-1"]);
        let mut found = lines(&object, &FAMILIES);
        found.retain(|line, _| line.contains(" pod="));
        if capture.ends_with("v3.28.5-iptables-nft") {
            accept_open_group(&mut found);
        }
        assert_eq!(found, lines(&expected(&capture), &FAMILIES), "{capture:?}");
        assert_eq!(lines(&object, &["unattributed"]), BTreeMap::new(), "{capture:?}");
    }
}

/// The host endpoint's accounts, derived from `traffic.json`: 8023 and 31234 twice, 6666 three times denied, 8022 once and
/// eight forwarded packets allowed, 8024, 4000 (twice to the host, three times through it) unmatched.
#[test]
fn host_endpoints() {
    for capture in captures() {
        let namespace = load(&capture);
        let manifests = capture.join("manifests");
        let object =
            show(&namespace, &["--manifests", manifests.to_str().unwrap(), "--node-name", "worker-1"]);
        let mut found = lines(&object, &FAMILIES);
        found.retain(|line, _| line.contains(" endpoint=worker-1-eth0 ") && line.contains("ip_version=4"));
        let mut short = BTreeMap::new();
        for (line, packets) in found {
            let field =
                |name: &str| line.split(' ').find_map(|f| f.strip_prefix(name)).unwrap_or("").to_string();
            short.insert(
                [field("direction="), field("policy="), field("action="), field("reason=")].join(" "),
                packets,
            );
        }
        let want = [
            ("egress hep-fwd allow ", 1),
            ("ingress hep-fwd allow ", 8),
            ("ingress hep-in allow ", 1),
            ("ingress hep-in deny ", 2),
            ("ingress hep-prednat deny ", 2),
            ("ingress hep-untracked deny ", 3),
            ("ingress   no_policy", 5),
        ];
        assert_eq!(short, want.into_iter().map(|(k, v)| (k.to_string(), v)).collect(), "{capture:?}");
    }
}

#[test]
fn show_without_a_datastore() {
    for capture in captures() {
        let namespace = load(&capture);
        let mut found = lines(&show(&namespace, &[]), &FAMILIES);
        found.retain(|line, _| line.contains(" pod="));
        assert_eq!(of_scrape(&scrape(&start(&namespace, &[]))), found, "{capture:?} as a scrape");
        // The interface stands in for the pod; the rules name the policies.
        let mut wanted = expected(&capture);
        for account in wanted["accounts"].as_array_mut().unwrap() {
            let field = |name: &str| account[name].as_str().unwrap().to_string();
            let interface = pod_interface("cali", &field("namespace"), &field("pod")).to_string();
            account["namespace"] = "".into();
            account["pod"] = interface.into();
        }
        let wanted = lines(&wanted, &FAMILIES);
        if capture.ends_with("v3.28.5-iptables-nft") {
            let by_action = |lines: &BTreeMap<String, u64>| lines.values().sum::<u64>();
            assert_eq!(by_action(&found), by_action(&wanted));
        } else {
            assert_eq!(found, wanted, "{capture:?}");
        }
    }
}

/// The expected accounts in the families of a scrape.
fn of_scrape(scrape: &Scrape) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for ((name, labels), value) in &scrape.series {
        let family = name.strip_prefix("calico_accountant_").and_then(|n| n.strip_suffix("_packets_total"));
        let Some(family) = family.filter(|family| FAMILIES.contains(family)) else { continue };
        let mut account: Value = labels.iter().map(|(k, v)| (k.clone(), Value::from(v.clone()))).collect();
        account["family"] = family.into();
        if !labels["pod"].is_empty() && *value > 0.0 {
            found.insert(describe(&account), *value as u64);
        }
    }
    found
}

#[test]
fn metrics_ours_and_the_old_ones() {
    for capture in captures() {
        let namespace = load(&capture);
        let manifests = capture.join("manifests");
        let agent =
            start(&namespace, &["--manifests", manifests.to_str().unwrap(), "--node-name", "worker-1"]);
        let scrape = scrape(&agent);
        let mut found = of_scrape(&scrape);
        if capture.ends_with("v3.28.5-iptables-nft") {
            accept_open_group(&mut found);
        }
        assert_eq!(found, lines(&expected(&capture), &FAMILIES), "{capture:?}");

        // The compatible families: same names and labels, IP versions and tiers summed.
        let mut sums: BTreeMap<(&str, String, String), u64> = BTreeMap::new();
        for account in expected(&capture)["accounts"].as_array().unwrap() {
            let field = |name: &str| account[name].as_str().unwrap_or_default().to_string();
            let family = match (field("family").as_str(), field("action").as_str()) {
                ("policy", "allow") => "policy_accept_counter",
                ("policy", "deny") => "policy_accept_drop_counter",
                ("default_deny", _) => "no_policy_drop_counter",
                _ => continue,
            };
            let chain = if field("direction") == "ingress" { "tw" } else { "fw" };
            *sums.entry((family, field("pod"), chain.into())).or_default() +=
                account["packets"].as_u64().unwrap();
        }
        for ((family, pod, chain), packets) in sums {
            let found = scrape.sum(family, &[("pod", &pod), ("type", &chain)]);
            assert_eq!(found, packets as f64, "{capture:?} {family} {pod} {chain}");
        }
        let labels = &scrape
            .series
            .keys()
            .find(|(name, l)| name == "policy_accept_counter" && l["pod"] == "web-1")
            .unwrap()
            .1;
        assert_eq!(labels["ip"], "10.244.1.10,fd00:10:244:1::10");
        assert_eq!((labels["app"].as_str(), labels["pod_namespace"].as_str()), ("web", "frontend"));
        let old_names = ["frontend/knp.default.web-in", "payments/default.allow-web-to-api"];
        for name in old_names {
            assert!(scrape.sum("policy_accept_counter", &[("policy", name)]) > 0.0, "{capture:?} {name}");
        }
        assert!(scrape.series.contains_key(&("calico_accountant_dropped_scrape".into(), BTreeMap::new())));
    }
}
