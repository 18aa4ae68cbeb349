//! What the lab renders has the shape of what a real Felix wrote.
//!
//! A rule's hash covers its chain's name, its own text in Felix' spelling and all rules before it. So equal hashes mean
//! an equal chain, and comparing them compares everything: order, targets, marks, comments, names of groups.

mod common;

use accountant_core::IpVersion;
use accountant_lab::felix::{self, Backend, Dialect, Table, Version};
use accountant_lab::policy::Model;
use std::collections::BTreeMap;
use std::fs;

/// Table and chain to hashes.
type Shape = BTreeMap<(String, String), Vec<String>>;

fn hash_of(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("\"cali:")?;
    rest.get(..16).map(str::to_string)
}

fn shape_of_save(text: &str) -> Shape {
    let mut shape = Shape::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.to_string();
        } else if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            shape.entry((table.clone(), chain.to_string())).or_default();
        } else if let (Some(rule), Some(hash)) = (line.split("-A ").nth(1), hash_of(line)) {
            let chain = rule.split(' ').next().unwrap_or_default();
            shape.entry((table.clone(), chain.to_string())).or_default().push(hash);
        }
    }
    shape
}

fn shape_of_listing(text: &str, family: &str) -> Shape {
    let mut shape = Shape::new();
    let (mut ours, mut chain) = (false, String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("table ") {
            ours = rest.starts_with(&format!("{family} calico"));
        } else if let Some(rest) = line.strip_prefix("\tchain ") {
            chain = rest.split(' ').next().unwrap_or_default().to_string();
            if ours {
                shape.entry((table_of(&chain), chain.clone())).or_default();
            }
        } else if let (true, Some(hash)) = (ours, hash_of(line)) {
            shape.entry((table_of(&chain), chain.clone())).or_default().push(hash);
        }
    }
    shape
}

fn table_of(chain: &str) -> String {
    chain.split('-').next().unwrap_or_default().to_string()
}

fn shape_rendered(model: &Model, version: Version, backend: Backend, ip: IpVersion) -> Shape {
    let rendering = felix::render(model, Dialect::new(version, backend).unwrap());
    let chains = &rendering.of(ip).chains;
    let shape = chains.iter().map(|((table, name), rules)| {
        let hashes = rules.iter().map(|rule| rule.hash.clone()).collect();
        ((table.as_str().to_string(), name.clone()), hashes)
    });
    shape.collect()
}

/// Compares chain by chain. Of the fixed chains, those are left out that the lab renders without what it has none of:
/// masquerade and DSCP. Base chains that Felix leaves empty and chains in base chains' place are the kernel's business.
fn check(capture: &str, version: Version, backend: Backend, flow_logs: bool) {
    let folder = common::fixtures().join("felix").join(capture);
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
    for (ip, file, family) in
        [(IpVersion::V4, "rules.iptables-save", "ip"), (IpVersion::V6, "rules.ip6tables-save", "ip6")]
    {
        let written = if backend == Backend::Nft {
            shape_of_listing(&read("rules.nft.txt"), family)
        } else {
            shape_of_save(&read(file))
        };
        let mut model = common::captured::model(version);
        model.settings.flow_logs = flow_logs;
        let rendered = shape_rendered(&model, version, backend, ip);
        // From 3.32 on, Felix puts the annotations of each rule in an order of its own.
        let at_random = |chain: &str| version >= Version::V3_32 && chain == "cali-pi-_G4lS1LeLxP6goU98IGR";
        let with_more = |chain: &str| {
            chain.ends_with("cali-nat-outgoing")
                || chain.contains("dscp")
                || chain.ends_with("cali-POSTROUTING")
        };
        let mut differences = Vec::new();
        for (key, hashes) in written
            .iter()
            .filter(|(key, _)| key.1.contains("cali-") && !with_more(&key.1) && !at_random(&key.1))
        {
            match rendered.get(key) {
                None => differences.push(format!("{key:?} is not rendered")),
                Some(ours) if ours != hashes => {
                    let at = ours.iter().zip(hashes).take_while(|(a, b)| a == b).count();
                    differences.push(format!(
                        "{key:?} differs from rule {at} on ({} rules, {} there)",
                        ours.len(),
                        hashes.len()
                    ));
                }
                Some(_) => {}
            }
        }
        let unknown = rendered.keys().filter(|key| !written.contains_key(*key));
        differences.extend(unknown.map(|key| format!("{key:?} is not in the capture")));
        assert!(differences.is_empty(), "{capture}, IPv{ip}:\n{}", differences.join("\n"));
        assert!(rendered.len() > 60, "{capture}: only {} chains", rendered.len());
    }
}

/// The same for the rules in `tests/fixtures/chains`, which were made from the facts, not by a Felix: of the versions
/// that no capture is of, they are the best there is. Their node has tunnels, and groups with names of their own, so
/// only the chains of endpoints without groups, of policies and of profiles are compared.
fn check_synthetic(file: &str, version: Version, backend: Backend) {
    let text = fs::read_to_string(common::fixtures().join("chains").join(file)).unwrap();
    let written = if backend == Backend::Nft { shape_of_listing(&text, "ip") } else { shape_of_save(&text) };
    let rendered = shape_rendered(&common::shop::model(version), version, backend, IpVersion::V4);
    let grouped = |chain: &str| version >= Version::V3_28 && chain.ends_with("cali-tw-cali663e2c142b3");
    let compared = written.iter().filter(|((_, chain), _)| {
        let kinds = ["cali-tw-", "cali-fw-", "cali-pi-", "cali-po-", "cali-pri-", "cali-pro-"];
        kinds.iter().any(|kind| chain.contains(kind)) && !grouped(chain)
    });
    let mut count = 0;
    for (key, hashes) in compared {
        assert_eq!(rendered.get(key), Some(hashes), "{file}: {key:?}");
        count += 1;
    }
    assert!(count > 12, "{file}: only {count} chains");
}

#[test]
fn as_the_facts_say_of_versions_without_capture() {
    check_synthetic("v3.8-legacy.iptables-save", Version::V3_8, Backend::Legacy);
    check_synthetic("v3.25-legacy.iptables-save", Version::V3_25, Backend::Legacy);
    check_synthetic("v3.29-legacy.iptables-save", Version::V3_29, Backend::Legacy);
    check_synthetic("v3.31-legacy.iptables-save", Version::V3_31, Backend::Legacy);
    check_synthetic("v3.31-nft.iptables-save", Version::V3_31, Backend::IptablesNft);
    check_synthetic("nft/v3.31nft.nft.txt", Version::V3_31, Backend::Nft);
}

#[test]
fn as_3_28_wrote_for_iptables_nft() {
    check("v3.28.5-iptables-nft", Version::V3_28, Backend::IptablesNft, false);
}

#[test]
fn as_3_29_wrote_for_nft() {
    check("v3.29.7-nft", Version::V3_29, Backend::Nft, false);
}

#[test]
fn as_3_31_wrote_for_legacy() {
    check("v3.31.7-legacy", Version::V3_31, Backend::Legacy, false);
}

#[test]
fn as_3_32_wrote_for_iptables_nft() {
    check("v3.32.1-iptables-nft", Version::V3_32, Backend::IptablesNft, false);
}

#[test]
fn as_3_32_wrote_with_flow_logs() {
    check("v3.32.1-legacy-flowlogs", Version::V3_32, Backend::Legacy, true);
}

#[test]
fn every_dialect_renders_both_versions_of_ip() {
    for dialect in Dialect::all() {
        let rendering = felix::render(&common::captured::model(dialect.version()), dialect);
        for ip in IpVersion::BOTH {
            let ruleset = rendering.of(ip);
            assert!(ruleset.rule_count() > 200, "{dialect}");
            assert!(ruleset.chains.keys().any(|(table, _)| *table == Table::Filter), "{dialect}");
        }
    }
}
