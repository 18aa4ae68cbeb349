//! Known traffic through real rules of every dialect: every number exact.

mod support;

use accountant_core::Counter;
use accountant_core::calico::PolicyKind::{GlobalNetworkPolicy, KubernetesNetworkPolicy, NetworkPolicy};
use accountant_lab::books::{Books, counted, counted_bytes, expected, expected_bytes};
use accountant_lab::felix::{Backend, Dialect, Version};
use accountant_lab::policy::{
    Allow, Deny, Endpoint, Model, Packet, Policy, Profile, Protocol, Rule, Selector, Tier, TierEnd, Truth,
};
use accountant_lab::scenario::{Scenario, Visit, demo};
use accountant_lab::{Agent, traffic};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};
use support::lab::Lab;
use support::{Lacks, lacks, scrape, show, start, wait_until};

fn dialects(backend: Backend, versions: impl Fn(Version) -> bool) -> Vec<Dialect> {
    let fits = |dialect: &Dialect| dialect.backend() == backend && versions(dialect.version());
    let dialects: Vec<_> = Dialect::all().into_iter().filter(fits).collect();
    assert!(!dialects.is_empty());
    dialects
}

/// Three rounds of everything, compared with the truth after each, by a running agent and by one that comes late.
fn every_number_is_exact(backend: Backend) {
    for dialect in dialects(backend, |version| version >= Version::V3_29) {
        let scenario = demo();
        let lab = Lab::new(&scenario);
        let mut felix = lab.node.felix(dialect);
        felix.apply(&scenario.model).unwrap();
        let sees_packets = !lacks(Lacks::Programs);
        let compares = sees_packets && dialect.version() == Version::V3_31;
        let accepted = if compares { "--accepted-flows=true" } else { "--accepted-flows=false" };
        let agent = start(lab.node.host(), &[&lab.arguments()[..], &["--max-age", "0s", accepted]].concat());
        let visit = Visit::new(&lab.node).unwrap();
        let mut truth = Truth::default();
        if compares {
            wait_for_programs(&agent);
        }
        for round in 0..3 {
            visit.round(&scenario.model, &mut truth, || drop(agent.accounts())).unwrap();
            let accounts = agent.accounts().unwrap();
            assert_eq!(counted(&accounts), expected(&truth), "{dialect:?} round {round}");
            assert_eq!(counted_bytes(&accounts), expected_bytes(&truth), "{dialect:?} round {round}, bytes");
        }
        let scrape = scrape(&agent);
        assert_eq!(scrape.sum("calico_accountant_unattributed_packets_total", &[]), 0.0);
        assert_eq!(scrape.sum("calico_accountant_attribution_packets_total", &[("result", "group")]), 0.0);
        if sees_packets {
            let denied = flows_are_told(&agent, "/denied", &truth, "deny");
            assert!(denied.iter().any(|policy| policy == "platform.no-telnet"), "{denied:?}");
        } else {
            nothing_is_said_of_flows(&agent);
        }
        if compares {
            let accepted = flows_are_told(&agent, "/flows", &truth, "allow");
            assert!(accepted.iter().any(|policy| policy == "web"), "{accepted:?}");
            rules_and_programs_agree(&agent, dialect);
        } else {
            assert_eq!(agent.get("/flows").unwrap().status, 404);
        }
        let late = show(lab.node.host(), &lab.arguments());
        assert_eq!(counted(&late), known_late(expected(&truth)), "{dialect:?}, read late");
        let bytes = known_late(expected_bytes(&truth));
        assert_eq!(counted_bytes(&late), bytes, "{dialect:?}, read late, bytes");
    }
}

/// What programs and rules counted is compared from the first rest on.
fn wait_for_programs(agent: &Agent) {
    wait_until("programs are attached", || {
        scrape(agent).sum("calico_accountant_kernel_programs_attached", &[]) > 0.0
    });
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(1500) {
        agent.accounts().unwrap();
        thread::sleep(Duration::from_millis(100));
    }
}

/// Once traffic rests, what rules counted is what the programs in the kernel told.
fn rules_and_programs_agree(agent: &Agent, dialect: Dialect) {
    let checked =
        |result| scrape(agent).sum("calico_accountant_reconcile_checked_total", &[("result", result)]);
    wait_until("rules and programs are compared", || checked("agreed") > 0.0);
    assert_eq!(checked("programs_only").abs(), 0.0, "{dialect:?}");
    assert_eq!(checked("rules_only").abs(), 0.0, "{dialect:?}");
}

/// The packets of all flows that policies decided so are those that they should have; accepted ones in the sender's chain only
/// as far as the receiver's did not deny them. Returns these policies.
fn flows_are_told(agent: &Agent, path: &str, truth: &Truth, verdict: &str) -> BTreeSet<String> {
    let flows: Value = serde_json::from_str(&agent.get(path).unwrap().body).unwrap();
    assert_eq!(flows["lost_packets"], 0, "{path}");
    let mut by_line: BTreeMap<[String; 4], u64> = BTreeMap::new();
    for flow in flows["flows"].as_array().unwrap() {
        let field = |name: &str| flow[name].as_str().unwrap_or_default().to_string();
        let workload = format!("{}/{}", field("namespace"), field("pod"));
        let line = [workload, field("direction"), flow["ip_version"].to_string(), field("tier")];
        *by_line.entry(line).or_default() += flow["packets"].as_u64().unwrap();
        assert!(flow["source"].is_string() && flow["first"].as_f64() <= flow["last"].as_f64(), "{flow}");
    }
    let mut due: BTreeMap<[String; 4], u64> = BTreeMap::new();
    for (line, packets) in expected(truth).into_iter().filter(|(line, _)| line.verdict == verdict) {
        let version = format!("\"{}\"", line.ip_version);
        *due.entry([line.workload, line.direction, version, line.tier]).or_default() += packets;
    }
    due.retain(|_, packets| *packets > 0);
    if verdict == "allow" {
        for ([_, direction, ..], told) in by_line.iter().filter(|(line, told)| due.get(*line) > Some(*told)) {
            assert!(direction == "egress" && *told > 0, "{by_line:?} of {due:?}");
        }
        due.retain(|[_, direction, ..], _| direction == "ingress");
        by_line.retain(|line, _| due.contains_key(line));
    }
    assert_eq!(by_line, due, "{path}");
    let policies = flows["flows"].as_array().unwrap().iter().filter_map(|flow| flow["policy"].as_str());
    policies.map(String::from).collect()
}

/// Without programs in the kernel nobody sees a flow.
fn nothing_is_said_of_flows(agent: &Agent) {
    let flows: Value = serde_json::from_str(&agent.get("/denied").unwrap().body).unwrap();
    assert_eq!((&flows["flows"], &flows["lost_packets"]), (&Value::Array(Vec::new()), &0.into()));
    assert_eq!(scrape(agent).sum("calico_accountant_kernel_programs_attached", &[]), 0.0);
}

/// What rules alone tell whoever first reads them at the end. In a tier that ends in Pass, what a policy passed goes on just
/// like what it did not match; the policy's own chain says how much was passed, but all pods share it.
fn known_late(mut books: Books) -> Books {
    books.retain(|line, _| (line.tier.as_str(), line.verdict.as_str()) != ("platform", "pass"));
    books
}

#[test]
fn legacy() {
    every_number_is_exact(Backend::Legacy);
}

#[test]
fn iptables_nft() {
    every_number_is_exact(Backend::IptablesNft);
}

#[test]
fn native_nftables() {
    every_number_is_exact(Backend::Nft);
}

/// Names as long as Felix writes them in nftables do not keep counters from being read in place.
#[test]
fn long_names_in_nftables() {
    let mut scenario = demo();
    let name = "of-a-policy-with-a-name-that-nobody-will-ever-type-twice-".repeat(3);
    let policy = Policy::new(NetworkPolicy, "shop", &name, Selector::All);
    let policy = policy.ingress([Rule::deny().tcp(&[7])]).egress([Rule::deny().tcp(&[7])]);
    scenario.model.tier_mut("default").unwrap().policies.insert(0, policy);
    let dialect = Dialect::new(Version::V3_31, Backend::Nft).unwrap();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect).apply(&scenario.model).unwrap();
    let agent = start(lab.node.host(), &[&lab.arguments()[..], &["--max-age", "0s"]].concat());
    let (visit, mut truth) = (Visit::new(&lab.node).unwrap(), Truth::default());
    visit.round(&scenario.model, &mut truth, || drop(agent.accounts())).unwrap();
    let accounts = agent.accounts().unwrap();
    assert_eq!(counted(&accounts), expected(&truth));
    let nftables = [("source", "nftables")];
    let in_place = f64::from(u8::from(!lacks(Lacks::InPlace)));
    assert_eq!(scrape(&agent).sum("calico_accountant_source_in_place", &nftables), in_place);
    assert_eq!(scrape(&agent).sum("calico_accountant_source_rewrites_watched", &nftables), in_place);
}

/// A model without tiers, for versions that have none.
fn one_tier() -> Scenario {
    let pod =
        |name: &str, address: &str| Endpoint::new("n", name, &[address.parse().unwrap()]).label("app", name);
    let policy = |name: &str| Policy::new(NetworkPolicy, "n", name, Selector::All);
    let mut model = Model {
        endpoints: vec![pod("a", "10.65.0.2"), pod("b", "10.65.0.3")],
        profiles: vec![Profile::namespace("n"), Profile::service_account("n", "default")],
        ..Model::default()
    };
    model.tiers.push(
        Tier::new("default", TierEnd::Deny)
            .with(
                Policy::new(GlobalNetworkPolicy, "", "first", Selector::has("app"))
                    .ingress([Rule::deny().udp(&[1])]),
            )
            .with(policy("both").ingress([Rule::allow().udp(&[2]), Rule::deny().udp(&[3])]))
            .with(
                Policy::new(KubernetesNetworkPolicy, "n", "last", Selector::is("app", "b"))
                    .ingress([Rule::allow().udp(&[4])]),
            ),
    );
    Scenario { name: "one tier".into(), model, real_pods: 2 }
}

/// UDP of several sizes to several ports; the last port is nobody's.
fn send_to_b(lab: &Lab, model: &Model, truth: &mut Truth, bytes: &mut BTreeMap<u16, u64>) {
    let (a, b) = (lab.node.pod("n", "a").unwrap(), lab.node.pod("n", "b").unwrap());
    let (source, destination) = (a.v4().unwrap(), b.v4().unwrap());
    for (port, flows, packets, size) in
        [(1, 3, 2, 10), (2, 5, 1, 100), (3, 1, 7, 1000), (4, 2, 2, 0), (5, 1, 4, 33)]
    {
        let sent = traffic::udp(&a.netns, destination, port, flows, packets, size).unwrap();
        let sent = Counter::new(sent, sent * traffic::udp_length(destination, size));
        *bytes.entry(port).or_default() += sent.bytes;
        truth.book(model, &Packet { source, destination, protocol: Protocol::Udp, port }, sent);
    }
}

#[test]
fn versions_without_tiers_and_bytes_of_every_size() {
    for backend in [Backend::Legacy, Backend::IptablesNft] {
        for dialect in dialects(backend, |version| version < Version::V3_29) {
            let scenario = one_tier();
            let lab = Lab::new(&scenario);
            lab.node.felix(dialect).apply(&scenario.model).unwrap();
            let agent = start(lab.node.host(), &[&lab.arguments()[..], &["--max-age", "0s"]].concat());
            let (mut truth, mut bytes) = (Truth::default(), BTreeMap::new());
            for _ in 0..2 {
                send_to_b(&lab, &scenario.model, &mut truth, &mut bytes);
                let accounts = agent.accounts().unwrap();
                assert_eq!(counted(&accounts), expected(&truth), "{dialect:?}");
                let found = |policy: &str, action: &str| {
                    let mut all = accounts["accounts"].as_array().unwrap().iter();
                    let of_policy = |a: &&Value| {
                        a["policy"] == policy
                            && a["action"] == action
                            && a["pod"] == "b"
                            && a["direction"] == "ingress"
                    };
                    all.find(of_policy).unwrap()["bytes"].as_u64().unwrap()
                };
                let wanted =
                    [("first", "deny", 1), ("both", "allow", 2), ("both", "deny", 3), ("last", "allow", 4)];
                for (policy, action, port) in wanted {
                    assert_eq!(found(policy, action), bytes[&port], "{dialect:?} {policy}");
                }
            }
        }
    }
}

#[test]
fn reject_return_down_and_flow_logs() {
    for backend in [Backend::Legacy, Backend::IptablesNft, Backend::Nft] {
        let dialect = Dialect::new(Version::V3_31, backend).unwrap();
        for variant in 0..4 {
            let mut scenario = demo();
            match variant {
                0 => scenario.model.settings.deny = Deny::Reject,
                1 => scenario.model.settings.allow = Allow::Return,
                2 => scenario.model.settings.flow_logs = true,
                _ => scenario.model.endpoints[2].admin_down = true,
            }
            let lab = Lab::new(&scenario);
            lab.node.felix(dialect).apply(&scenario.model).unwrap();
            let agent = start(lab.node.host(), &[&lab.arguments()[..], &["--max-age", "0s"]].concat());
            let visit = Visit::new(&lab.node).unwrap();
            let mut truth = Truth::default();
            visit.round(&scenario.model, &mut truth, || drop(agent.accounts())).unwrap();
            let accounts = agent.accounts().unwrap();
            assert_eq!(counted(&accounts), expected(&truth), "{dialect:?} variant {variant}");
            assert_eq!(counted_bytes(&accounts), expected_bytes(&truth), "{dialect:?} variant {variant}");
        }
    }
}
