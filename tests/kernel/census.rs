//! Chains, rules and IP sets beside what Debian's tools list, and who changed Calico's chains.

mod support;

use accountant_core::calico::names::pod_interface;
use accountant_dataplane::census::{self, Census};
use accountant_lab::Namespace;
use accountant_lab::felix::Backend;
use accountant_lab::scenario::demo;
use support::lab::{Lab, dialect};
use support::scrape;

/// Chains and rules of `iptables-save -t TABLE`: Calico's, then others'.
fn saved(namespace: &Namespace, tool: &str, table: &str) -> [(u64, u64); 2] {
    let text = namespace.run(tool, &["-t", table]).unwrap();
    let count = |chain: &str, rule: &str, is_calico: bool| {
        let name = |line: &str, start: &str| line.strip_prefix(start).map(|rest| rest.starts_with("cali-"));
        let of =
            |start: &str| text.lines().filter(|line| name(line, start) == Some(is_calico)).count() as u64;
        (of(chain), of(rule))
    };
    [count(":", "-A ", true), count(":", "-A ", false)]
}

fn told(census: &Census, version: &str, table: &str) -> [(u64, u64); 2] {
    let found = census.tables.iter().find(|((_, v, name), _)| v.to_string() == version && name == table);
    let (_, table) = found.unwrap_or_else(|| panic!("{table} of IPv{version} is not in {census:?}"));
    [table.calico, table.others].map(|extent| (extent.chains, extent.rules))
}

#[test]
fn chains_and_rules_are_those_that_the_tools_list() {
    let scenario = demo();
    for (backend, tools) in [
        (Backend::Legacy, ["iptables-legacy-save", "ip6tables-legacy-save"]),
        (Backend::IptablesNft, ["iptables-nft-save", "ip6tables-nft-save"]),
    ] {
        let lab = Lab::new(&scenario);
        let host = lab.node.host();
        lab.node.felix(dialect(backend)).apply(&scenario.model).unwrap();
        let foreign = "*filter\n:KUBE-FORWARD - [0:0]\n:EMPTY - [0:0]\n-A KUBE-FORWARD -j ACCEPT\n-A FORWARD -j KUBE-FORWARD\nCOMMIT\n";
        host.feed(&tools[0].replace("save", "restore"), &["--noflush"], foreign).unwrap();
        let census = host.enter(census::take).unwrap();
        assert!(census.errors.is_empty(), "{census:?}");
        for (version, tool) in ["4", "6"].into_iter().zip(tools) {
            let listed = saved(host, tool, "filter");
            assert!(listed[0].1 > 10, "{listed:?}");
            assert_eq!(told(&census, version, "filter"), listed, "{tool}");
        }
    }
}

#[test]
fn how_full_sets_are() {
    let namespace = Namespace::new("sets").unwrap();
    let sets = "create cali40few hash:net family inet maxelem 8\ncreate cali60none hash:ip family inet6 maxelem 4\n\
        create other hash:ip maxelem 2\nadd cali40few 192.0.2.0/28\nadd cali40few 198.51.100.1\nadd cali40few 203.0.113.0/24\n";
    namespace.feed("ipset", &["restore"], sets).unwrap();
    let census = namespace.enter(census::take).unwrap();
    assert!(census.errors.is_empty(), "{census:?}");
    let mut told: Vec<_> =
        census.sets.iter().map(|s| (s.name.as_str(), s.ip_version.to_string(), s.entries, s.most)).collect();
    told.sort();
    assert_eq!(told, [("cali40few", "4".into(), 3, 8), ("cali60none", "6".into(), 0, 4)]);
    for set in ["cali40few", "cali60none", "other"] {
        namespace.run("ipset", &["destroy", set]).unwrap();
    }
}

#[test]
fn who_changes_calicos_chains_and_what_is_on_the_node() {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    let host = lab.node.host();
    lab.node.felix(dialect(Backend::Nft)).apply(&scenario.model).unwrap();
    let agent = lab.agent(&["--max-age", "0s"]);
    let rewrites = |writer| {
        scrape(&agent)
            .sum("calico_accountant_rule_rewrites_total", &[("source", "nftables"), ("writer", writer)])
    };
    assert_eq!(rewrites("nft"), 0.0);
    let rule = format!(
        "add rule ip calico filter-cali-tw-{} counter comment \"theirs\"\n",
        pod_interface("cali", "shop", "web")
    );
    for _ in 0..3 {
        host.feed("nft", &["-f", "-"], &rule).unwrap();
    }
    // What is none of Calico's endpoints and policies is not counted.
    host.feed("nft", &["-f", "-"], "add table ip other\nadd chain ip calico filter-mine\n").unwrap();
    assert_eq!(rewrites("nft"), 3.0);
    let now = scrape(&agent);
    assert_eq!(now.sum("calico_accountant_endpoints", &[("kind", "workload")]), 3.0);
    let policies = now.sum("calico_accountant_policies", &[]);
    let reach = now.series.iter().filter(|((name, _), _)| name == "calico_accountant_policy_endpoints");
    assert_eq!(reach.clone().count() as f64, policies);
    assert!(policies >= 6.0 && reach.map(|(_, n)| *n).all(|n| (1.0..=3.0).contains(&n)), "{policies}");
    support::wait_until("a census was taken", || {
        scrape(&agent).sum("calico_accountant_rules", &[("table", "calico"), ("owner", "calico")]) > 10.0
    });
}
