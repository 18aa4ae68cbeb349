//! Host endpoints: what untracked policy, policy before NAT and what leaves after it decide, in the raw and in the mangle
//! table, is counted packet by packet like all else, and charged to its policy; programs stand there for as long as a host
//! endpoint has chains there, and on nodes without any they do not.

mod support;

use accountant_core::{Counter, Direction, IpVersion, Table};
use accountant_lab::Agent;
use accountant_lab::felix::Backend;
use accountant_lab::policy::Did;
use accountant_lab::scenario::{HOST_TRAFFIC, HostTraffic, HostVisit, Scenario, hosts, without_untracked};
use serde_json::Value;
use std::collections::BTreeMap;
use support::lab::{Lab, dialect};
use support::place::{Place, is_attached, names};
use support::{Lacks, Scrape, lacks, run, scrape, wait_until};

const POLICY: [&str; 2] = ["calico_accountant_policy_packets_total", "calico_accountant_policy_bytes_total"];
const ENDPOINT: &str = "calico_accountant_endpoint_packets_total";

fn word(did: Did) -> &'static str {
    match did {
        Did::Allow => "allow",
        Did::Deny => "deny",
        Did::Pass => "pass",
    }
}

/// What was counted of a policy of the host endpoint: packets and bytes.
fn of_policy(scrape: &Scrape, policy: &str, direction: Direction, version: IpVersion, did: Did) -> [u64; 2] {
    let (direction, version) = (direction.to_string(), version.to_string());
    let labels =
        [("policy", policy), ("direction", &*direction), ("ip_version", &*version), ("action", word(did))];
    POLICY.map(|name| scrape.sum(name, &labels) as u64)
}

/// Packets of the host endpoint that the programs saw, by what became of them.
fn seen(scrape: &Scrape, direction: Direction, verdict: &str) -> u64 {
    let direction = direction.to_string();
    let labels = [("pod", ""), ("direction", &*direction), ("verdict", verdict), ("state", "new")];
    scrape.sum(ENDPOINT, &labels) as u64
}

fn exact(backend: Backend) {
    let scenario = hosts();
    let lab = Lab::new(&scenario);
    let mut felix = lab.node.felix(dialect(backend));
    felix.apply(&scenario.model).unwrap();
    let visit = HostVisit::new(&lab.node).unwrap();
    let lock = lab.node.host().lock_file().display().to_string();
    let agent = lab.agent(&["--max-age", "0s", "--xtables-lock-file", &lock]);
    let sees = !lacks(Lacks::Programs);
    if sees {
        wait_until("programs are attached", || is_attached(&agent));
    }
    agent.settled().unwrap();
    let mut want: BTreeMap<_, [u64; 2]> = BTreeMap::new();
    let mut became: BTreeMap<(Direction, &str), u64> = BTreeMap::new();
    for _ in 0..2 {
        for (kind, version, sent) in visit.round().unwrap() {
            let [packets, bytes] = want.entry((kind.policy, kind.direction, version, kind.did)).or_default();
            *packets += sent.packets;
            *bytes += sent.bytes;
            // What is dropped after its destination was changed is behind the filter table.
            let is_behind = (kind.table(backend), kind.direction) == (Table::Mangle, Direction::Egress);
            let verdict = if kind.did == Did::Deny && !is_behind { "dropped" } else { "accepted" };
            *became.entry((kind.direction, verdict)).or_default() += sent.packets;
        }
        agent.settled().unwrap();
    }
    let after = scrape(&agent);
    for ((policy, direction, version, did), sent) in want {
        let counted = of_policy(&after, policy, direction, version, did);
        assert_eq!(counted, sent, "{backend:?}: {policy} {direction} IPv{version} {did:?}");
    }
    if sees {
        for ((direction, verdict), packets) in became {
            assert_eq!(seen(&after, direction, verdict), packets, "{backend:?}: {direction} {verdict}");
        }
        let by_verdict = [("result", "verdict")];
        assert_eq!(after.sum("calico_accountant_kernel_packets_total", &by_verdict), 0.0, "{backend:?}");
        denied_flows_have_their_policy(&lab, &agent);
    }
    assert_eq!(after.sum("calico_accountant_unattributed_packets_total", &[]), 0.0, "{backend:?}");
}

fn denied_flows_have_their_policy(lab: &Lab, agent: &Agent) {
    let (said, error, code) = run(lab.node.host(), &["show", "--denied", "--json"]);
    assert_eq!(code, 0, "{error} {}", agent.log());
    let said: Value = serde_json::from_str(&said).unwrap();
    let flows = said["flows"].as_array().unwrap();
    for kind in HOST_TRAFFIC.iter().filter(|kind| kind.did == Did::Deny) {
        // What is denied after its destination was changed goes to another port by then.
        let port = if kind.port == 7201 { 7101 } else { kind.port };
        let is_it = |flow: &&Value| flow["destination_port"] == port;
        assert!(flows.iter().any(|flow| is_it(&flow)), "{port}: {said:#}");
        let wrong = flows.iter().filter(is_it).find(|flow| flow["policy"] != kind.policy);
        assert_eq!(wrong, None, "{kind:?}");
    }
}

#[test]
fn legacy() {
    exact(Backend::Legacy);
}

#[test]
fn iptables_nft() {
    exact(Backend::IptablesNft);
}

#[test]
fn native_nftables() {
    exact(Backend::Nft);
}

/// Where programs of an agent stand beside the filter table, by the names of their pinned links.
fn beside_filter(place: &Place) -> Vec<String> {
    let (folder, left) = place.left();
    let maps = folder.join(&left[0]);
    let links = names(&maps).into_iter().find(|name| name.starts_with("links-")).unwrap();
    let mut found = names(&maps.join(links));
    found.retain(|name| name.starts_with("raw-") || name.starts_with("mangle-"));
    found.sort();
    found
}

fn around(table: &str, hooks: &[&str]) -> Vec<String> {
    let all = ["after", "before"].into_iter().flat_map(|program| {
        let of = move |version| hooks.iter().map(move |hook| format!("{table}-{program}-{version}-{hook}"));
        ["IPv4", "IPv6"].into_iter().flat_map(of)
    });
    all.collect()
}

#[test]
fn programs_stand_where_host_endpoints_have_chains() {
    if lacks(Lacks::Programs) {
        return;
    }
    let Scenario { model, .. } = hosts();
    let mut place = Place::new(Backend::Legacy);
    let without = place.scenario.model.clone();
    let agent = place.agent();
    wait_until("programs are attached", || is_attached(&agent));
    assert_eq!(beside_filter(&place), [""; 0], "a node without host endpoints");
    let after_nat = around("mangle", &["postrouting"]);
    let mut all =
        [around("mangle", &["postrouting", "prerouting"]), around("raw", &["local-out", "prerouting"])];
    all.iter_mut().for_each(|names| names.sort());
    let all = all.concat();
    let filter_only = without_untracked(&model);
    for (model, wanted) in
        [(&model, &all), (&filter_only, &after_nat), (&without, &Vec::new()), (&model, &all)]
    {
        place.felix.apply(model).unwrap();
        wait_until("programs stand where they are needed", || {
            agent.settled().unwrap();
            beside_filter(&place) == *wanted
        });
    }
    // The next agent goes on with them.
    let visit = HostVisit::new(&place.lab.node).unwrap();
    let denied = |agent: &Agent| {
        agent.settled().unwrap();
        seen(&scrape(agent), Direction::Ingress, "dropped")
    };
    let of_round = |sent: Vec<(HostTraffic, IpVersion, Counter)>| {
        let is_in = |kind: &HostTraffic| kind.direction == Direction::Ingress && kind.did == Did::Deny;
        sent.iter().filter(|(kind, ..)| is_in(kind)).map(|(.., sent)| sent.packets).sum::<u64>()
    };
    let mut sent = of_round(visit.round().unwrap());
    assert_eq!(denied(&agent), sent);
    drop(agent);
    // Nobody else counts meanwhile.
    sent += of_round(visit.round().unwrap());
    let agent = place.agent();
    assert_eq!(denied(&agent), sent);
    assert_eq!(beside_filter(&place), all);
    let log = agent.log();
    assert!(log.contains("the programs of an earlier agent go on counting"), "{log}");
}
