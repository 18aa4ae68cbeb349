//! What the lab renders and what was captured really loads, and the kernel then has what was written.

mod common;

use accountant_core::IpVersion;
use accountant_lab::Namespace;
use accountant_lab::apply::{Felix, load_capture};
use accountant_lab::felix::{Backend, Dialect, Version, render};
use accountant_lab::policy::{Allow, Deny, Endpoint, HostEndpoint, Model, Rule, ToHost};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Chain and rule, in the words of `iptables-save` or `nft list`, without what differs between two loadings.
type Lines = BTreeMap<String, Vec<String>>;

fn listing(namespace: &Namespace, backend: Backend, version: IpVersion) -> String {
    let family = if version == IpVersion::V4 { "iptables" } else { "ip6tables" };
    match backend {
        Backend::Legacy => namespace.run(&format!("{family}-legacy-save"), &["-c"]).unwrap(),
        Backend::IptablesNft => namespace.run(&format!("{family}-nft-save"), &["-c"]).unwrap(),
        Backend::Nft => namespace.run("nft", &["list", "ruleset"]).unwrap(),
    }
}

/// The rules of a listing by chain, in order, counters included.
fn rules(listing: &str) -> Lines {
    let mut lines = Lines::new();
    let mut place = String::new();
    for line in listing.lines() {
        if let Some((counters, rule)) = line.split_once("-A ") {
            let chain = rule.split(' ').next().unwrap_or_default();
            lines.entry(format!("{place} {chain}")).or_default().push(format!("{counters}{rule}"));
        } else if line.starts_with('*') || line.starts_with("table") || line.starts_with("\tchain") {
            let name = line.split(" #").next().unwrap_or_default().trim_end_matches(" {").to_string();
            place = if line.starts_with('\t') {
                format!("{}{name}", place.split('\t').next().unwrap())
            } else {
                name
            };
        } else if line.contains("comment \"cali:") {
            let rule = line.split(" # handle").next().unwrap_or_default();
            lines.entry(place.clone()).or_default().push(rule.to_string());
        }
    }
    lines
}

fn captures() -> Vec<PathBuf> {
    let all = |folder: &str| -> Vec<PathBuf> {
        fs::read_dir(common::fixtures().join(folder)).unwrap().flatten().map(|entry| entry.path()).collect()
    };
    let mut captures: Vec<PathBuf> = all("felix").into_iter().filter(|path| path.is_dir()).collect();
    captures.extend(all("chains").into_iter().chain(all("chains/nft")).filter(|path| {
        let name = path.to_string_lossy();
        name.ends_with(".iptables-save") || name.ends_with(".nft.txt")
    }));
    captures.retain(|path| !path.ends_with("v3.32.1-bpf"));
    captures
}

fn written_in(capture: &Path, version: IpVersion, backend: Backend) -> Option<String> {
    if capture.is_file() {
        return (version == IpVersion::V4).then(|| fs::read_to_string(capture).unwrap());
    }
    let file = match (backend, version) {
        (Backend::Nft, _) => "rules.nft.txt",
        (_, IpVersion::V4) => "rules.iptables-save",
        (_, IpVersion::V6) => "rules.ip6tables-save",
    };
    Some(fs::read_to_string(capture.join(file)).unwrap())
}

#[test]
fn captures_load_and_read_back_with_their_counters() {
    let captures = captures();
    assert!(captures.len() >= 11, "{captures:?}");
    for capture in captures {
        let namespace = Namespace::new("capture").unwrap();
        let backend = load_capture(&namespace, &capture).unwrap();
        for version in IpVersion::BOTH {
            let Some(written) = written_in(&capture, version, backend) else { continue };
            let (written, read) = (rules(&written), rules(&listing(&namespace, backend, version)));
            assert!(written.values().map(Vec::len).sum::<usize>() > 80, "{capture:?}");
            for (chain, lines) in &written {
                assert_eq!(read.get(chain), Some(lines), "{capture:?} {chain}");
            }
            assert_eq!(read.len(), written.len(), "{capture:?}");
        }
    }
}

fn load_whole(namespace: &Namespace, model: &Model, dialect: Dialect) {
    let rendering = render(model, dialect);
    if dialect.backend() == Backend::Nft {
        namespace.feed("nft", &["-f", "-"], &rendering.nft_text()).unwrap();
        return;
    }
    let kind = if dialect.backend() == Backend::Legacy { "legacy" } else { "nft" };
    namespace.feed("ipset", &["restore"], &rendering.ipset_text()).unwrap();
    for (family, version) in [("iptables", IpVersion::V4), ("ip6tables", IpVersion::V6)] {
        namespace.feed(&format!("{family}-{kind}-restore"), &[], &rendering.restore_text(version)).unwrap();
    }
}

/// The captured model, and others that each differ from the one before in many ways.
fn models(version: Version) -> Vec<Model> {
    let captured = common::captured::model(version);

    let mut harsh = captured.clone();
    harsh.settings.deny = Deny::Reject;
    harsh.settings.allow = Allow::Return;
    harsh.settings.to_host = ToHost::Drop;
    harsh.settings.flow_logs = true;
    harsh.settings.prefixes.push("tap".to_string());

    let mut other = captured.clone();
    other.endpoints.remove(1);
    other.endpoints[0].admin_down = true;
    let addresses = ["10.244.1.77".parse().unwrap(), "fd00:10:244:1::77".parse().unwrap()];
    // Two interfaces that begin alike: the dispatch tree gets a branch.
    let mut alike = Endpoint::new("frontend", "web-9", &addresses).label("app", "web");
    alike.interface = "cali1f5825ffff0".into();
    other.endpoints.extend([
        Endpoint { interface: "cali1f5825ffff1".into(), pod: "web-8".to_string(), ..alike.clone() },
        alike,
    ]);
    other.sets[0].members.remove(0);
    other.sets[1].members.push("10.244.1.77".parse().unwrap());
    other.policy_mut("payments", "allow-web-to-api").unwrap().ingress = Some(vec![Rule::deny().tcp(&[81])]);
    other.sets.remove(2);
    let default = other.tier_mut("default").unwrap();
    default.policies.reverse();
    let many = (1..=16).fold(Rule::allow().tcp(&[]), |rule, port| rule.ports(port * 10, port * 10 + 5));
    let many = many.from("10.1.0.0/16".parse().unwrap()).from("10.2.0.0/16".parse().unwrap());
    let many = many.to("10.3.0.0/16".parse().unwrap()).to("10.4.0.0/16".parse().unwrap());
    default.policies[3].ingress = Some(vec![many]);

    let mut everywhere = other.clone();
    everywhere.host_endpoints[0].interface = "*".to_string();
    everywhere
        .host_endpoints
        .push(HostEndpoint { interface: "eth1".to_string(), ..captured.host_endpoints[0].clone() });

    let nothing = Model { settings: captured.settings.clone(), ..Model::default() };
    vec![captured.clone(), harsh, other, everywhere, nothing, captured]
}

fn what_was_written_in_parts_is_what_would_be_written_whole(backend: Backend) {
    for dialect in Dialect::all().into_iter().filter(|dialect| dialect.backend() == backend) {
        let node = Namespace::new("parts").unwrap();
        let mut felix = Felix::new(&node, dialect);
        for (number, model) in models(dialect.version()).iter().enumerate() {
            felix.apply(model).unwrap();
            let whole = Namespace::new("whole").unwrap();
            load_whole(&whole, model, dialect);
            for version in IpVersion::BOTH {
                let [whole, parts] =
                    [&whole, &node].map(|ns| rules(&listing(ns, dialect.backend(), version)));
                assert_eq!(parts, whole, "{dialect}, model {number}");
            }
            if dialect.backend() != Backend::Nft {
                let sets = |ns: &Namespace| {
                    let text = ns.run("ipset", &["save"]).unwrap();
                    let mut lines: Vec<String> =
                        text.lines().filter(|line| line.starts_with("add")).map(str::to_string).collect();
                    lines.sort();
                    lines
                };
                assert_eq!(sets(&node), sets(&whole), "{dialect}, model {number}");
            }
        }
    }
}

#[test]
fn parts_make_a_whole_in_legacy() {
    what_was_written_in_parts_is_what_would_be_written_whole(Backend::Legacy);
}

#[test]
fn parts_make_a_whole_in_iptables_nft() {
    what_was_written_in_parts_is_what_would_be_written_whole(Backend::IptablesNft);
}

#[test]
fn parts_make_a_whole_in_nft() {
    what_was_written_in_parts_is_what_would_be_written_whole(Backend::Nft);
}

#[test]
fn every_dialect_loads_whole_and_by_the_writer() {
    for dialect in Dialect::all() {
        let mut model = common::captured::model(dialect.version());
        model.settings.flow_logs = true;
        let rendering = render(&model, dialect);

        let whole = Namespace::new("whole").unwrap();
        load_whole(&whole, &model, dialect);

        let node = Namespace::new("written").unwrap();
        let mut felix = Felix::new(&node, dialect);
        let applied = felix.apply(&model).unwrap();
        assert_eq!(applied.written_rules, rendering.rulesets.iter().map(|r| r.rule_count()).sum::<usize>());

        for version in IpVersion::BOTH {
            let (whole, node) =
                (listing(&whole, dialect.backend(), version), listing(&node, dialect.backend(), version));
            assert_eq!(rules(&whole), rules(&node), "{dialect}");
            if dialect.backend() != Backend::Nft {
                let count = rules(&node).values().map(Vec::len).sum::<usize>();
                assert_eq!(count, rendering.of(version).rule_count(), "{dialect} IPv{version}");
            }
        }
        felix.remove_everything().unwrap();
        for version in IpVersion::BOTH {
            assert!(rules(&listing(&node, dialect.backend(), version)).is_empty(), "{dialect}");
        }
    }
}
