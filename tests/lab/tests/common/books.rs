//! A tiny accountant: reads the listing of a kernel's rules and does the arithmetic of `facts/calico-chains.md` 1.2 in
//! the simplest way, on rules that nothing has rewritten. The real one is the project's; this one checks the lab.

use accountant_core::calico::policy::{Spelling, tier_of_stored};
use accountant_core::calico::{PolicyId, PolicyKind};
use accountant_core::id::TierName;
use accountant_core::{Direction, IpVersion};
use accountant_lab::Namespace;
use accountant_lab::felix::Backend;
use accountant_lab::policy::{By, Did, Model, Truth};
use std::collections::{BTreeMap, BTreeSet};

/// A rule of a listing, whatever tool listed it.
#[derive(Clone, Debug)]
struct Line {
    packets: u64,
    comment: String,
    /// The chain that it jumps to, or its verdict.
    target: String,
}

type Chains = BTreeMap<String, Vec<Line>>;

/// The filter chains of one IP version, named as in iptables.
fn read(node: &Namespace, backend: Backend, version: IpVersion) -> Chains {
    let family = if version == IpVersion::V4 { "iptables" } else { "ip6tables" };
    let listing = match backend {
        Backend::Legacy => node.run(&format!("{family}-legacy-save"), &["-c", "-t", "filter"]),
        Backend::IptablesNft => node.run(&format!("{family}-nft-save"), &["-c", "-t", "filter"]),
        Backend::Nft => {
            node.run("nft", &["list", "table", if version == IpVersion::V4 { "ip" } else { "ip6" }, "calico"])
        }
    };
    let mut chains = Chains::new();
    let mut chain = String::new();
    for line in listing.unwrap().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(name) = line.strip_prefix("\tchain ") {
            chain = name.trim_end_matches(" {").replace("filter-", "");
        } else if let Some(place) = words.iter().position(|word| *word == "-A") {
            let packets = words[0].trim_matches(['[', ']']).split(':').next().unwrap().parse().unwrap();
            let comments: Vec<&str> =
                line.split("--comment \"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
            let target = words.iter().position(|word| ["-j", "-g"].contains(word)).map(|at| words[at + 1]);
            let line =
                Line { packets, comment: comments[1..].join(" "), target: target.unwrap_or("").to_string() };
            chains.entry(words[place + 1].to_string()).or_default().push(line);
        } else if let Some((body, comment)) = line.split_once(" comment \"cali:") {
            let body: Vec<&str> = body.split_whitespace().collect();
            let after = |word: &str| body.iter().position(|w| *w == word).map(|at| body[at + 1]);
            let target = after("jump").or(after("goto")).unwrap_or(body.last().unwrap());
            let comment = comment[17..].trim_end_matches('"').trim().to_string();
            let packets = after("packets").map_or(0, |packets| packets.parse().unwrap());
            chains.entry(chain.clone()).or_default().push(Line {
                packets,
                comment,
                target: target.replace("filter-", ""),
            });
        }
    }
    chains
}

/// The policies that a chain stands for: itself, or the members of a group.
fn policies(chains: &Chains, chain: &str) -> BTreeSet<PolicyId> {
    if chain.starts_with("cali-gi-") || chain.starts_with("cali-go-") {
        let members = chains[chain].iter().filter(|line| line.target.starts_with("cali-p"));
        return members.flat_map(|line| policies(chains, &line.target)).collect();
    }
    let name = &chains[chain][0].comment;
    let words: Vec<&str> = name.rsplit(' ').collect();
    let (stored, kind) = (words[1], words[2]);
    let (namespace, plain) = stored.split_once('/').unwrap_or(("", stored));
    let policy = match PolicyKind::parse(kind) {
        Some(kind) => Spelling::of_kind(kind, namespace, plain).in_tier(&TierName::default_tier()),
        None => Spelling::stored(stored).in_tier(&tier_of_stored(plain).into()),
    };
    [policy].into()
}

/// Compares every account of every pod with the truth. What a group did is compared as a whole.
pub(crate) fn check(node: &Namespace, backend: Backend, model: &Model, truth: &Truth) {
    let mut compared = 0;
    for version in IpVersion::BOTH {
        let chains = read(node, backend, version);
        for endpoint in &model.endpoints {
            for (prefix, direction) in [("cali-tw-", Direction::Ingress), ("cali-fw-", Direction::Egress)] {
                let rules = &chains[&format!("{prefix}{}", endpoint.interface)];
                let booked = |wanted: &dyn Fn(&By) -> bool| -> u64 {
                    let ours = truth.accounts().filter(|(account, _)| {
                        (account.namespace.as_str(), account.pod.as_str())
                            == (&endpoint.namespace, &endpoint.pod)
                            && (account.direction, account.ip_version) == (direction, version)
                            && wanted(&account.by)
                    });
                    ours.map(|(_, packets)| packets).sum()
                };
                let place = format!("{}/{} {direction} v{version}", endpoint.namespace, endpoint.pod);
                for (at, rule) in rules.iter().enumerate() {
                    let next = |steps: usize| rules.get(at + steps);
                    if ["cali-pi-", "cali-po-", "cali-gi-", "cali-go-"]
                        .iter()
                        .any(|p| rule.target.starts_with(p))
                    {
                        let members = policies(&chains, &rule.target);
                        let by = |dids: &'static [Did]| {
                            let members = members.clone();
                            move |by: &By| matches!(by, By::Policy { policy, did, .. } if members.contains(policy) && dids.contains(did))
                        };
                        let accepted = next(1).unwrap();
                        assert_eq!(accepted.comment, "Return if policy accepted", "{place}");
                        assert_eq!(
                            accepted.packets,
                            booked(&by(&[Did::Allow])),
                            "{place}: accepted by {members:?}"
                        );
                        // In the last policy of a tier that passes, the next rule is not about this tier.
                        let after = next(2).filter(|rule| {
                            !rule.comment.starts_with("Start of") && !rule.target.starts_with("cali-pr")
                        });
                        if let Some(after) = after {
                            let decided = rule.packets - accepted.packets - after.packets;
                            let truth = booked(&by(&[Did::Deny, Did::Pass]));
                            assert_eq!(decided, truth, "{place}: denied or passed by {members:?}");
                        }
                        compared += 1;
                    } else if rule.target.starts_with("cali-pri-") || rule.target.starts_with("cali-pro-") {
                        let name = chains[&rule.target][0].comment.split(' ').nth(1).unwrap().to_string();
                        let accepted = booked(
                            &|by: &By| matches!(by, By::Profile { profile, did: Did::Allow } if *profile == name),
                        );
                        assert_eq!(next(1).unwrap().packets, accepted, "{place}: accepted by {name}");
                        compared += 1;
                    } else if rule.comment.ends_with("if no policies passed packet") {
                        let tier = rules[..at]
                            .iter()
                            .rev()
                            .find_map(|rule| rule.comment.strip_prefix("Start of tier "));
                        let tier = tier.unwrap_or("default").to_string();
                        let denied =
                            booked(&|by: &By| matches!(by, By::NoPolicy { tier: of } if *of == tier));
                        assert_eq!(rule.packets, denied, "{place}: no policy of {tier}");
                        compared += 1;
                    }
                }
            }
        }
    }
    assert!(compared > 20, "only {compared} accounts were compared");
}

/// The packets of a chain's rules, in order.
pub(crate) fn packets(node: &Namespace, backend: Backend, version: IpVersion, chain: &str) -> Vec<u64> {
    let chains = read(node, backend, version);
    chains.get(chain).map(|rules| rules.iter().map(|rule| rule.packets).collect()).unwrap_or_default()
}
