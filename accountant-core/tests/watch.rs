//! Paths mean what they say: for the endpoint chains that Felix wrote in several versions, every way a packet can take
//! through the rules is walked, and what the watched rules tell of it must be what became of it.

mod common;

use accountant_core::calico::chain::ChainKind;
use accountant_core::calico::endpoint::EndpointChain;
use accountant_core::rule::{Action, Chain, Rule};
use accountant_core::watch::{self, Decision, Path, WatchList, Went};
use accountant_core::{ChainName, Table};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

type Chains = HashMap<ChainName, Arc<Chain>>;

/// More ways through one chain than any of the captures has.
const MANY: usize = 200_000;

fn dumps() -> Vec<PathBuf> {
    let root = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let mut folders = vec![root.join("felix"), root.join("chains")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let is_dump =
                path.extension().is_some_and(|end| end == "iptables-save" || end == "ip6tables-save");
            match path.is_dir() {
                true => folders.push(path),
                false if is_dump => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    assert!(found.len() >= 10, "dumps are missing: {found:?}");
    found
}

/// What a packet did.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    mark: u32,
    hits: Vec<(ChainName, usize)>,
    tier: String,
    via: Option<ChainName>,
    /// In the words of [`words`].
    decisions: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Flow {
    /// It comes back out of the chain.
    Back,
    Accepted,
    Dropped,
}

/// Walks all ways through a chain.
struct Walker<'a> {
    chains: &'a Chains,
    accept: u32,
    pass: u32,
    /// Whether the packet is of no connection.
    invalid: bool,
    /// Policies may do anything, as if their rules were others than those that are there: then only the hits of these
    /// rules are of interest.
    wild: Option<&'a WatchList>,
}

impl Walker<'_> {
    fn through(&self, name: &ChainName, packet: Packet) -> Vec<(Packet, Flow)> {
        let Some(chain) = self.chains.get(name) else { return vec![(packet, Flow::Back)] };
        let mut done = Vec::new();
        if let (Some(_), ChainKind::Policy(_) | ChainKind::Profile(_)) = (self.wild, ChainKind::of(name)) {
            for mark in [0, self.accept, self.pass] {
                done.push((Packet { mark: packet.mark | mark, ..packet.clone() }, Flow::Back));
            }
            done.push((packet.clone(), Flow::Dropped));
        }
        let mut here = vec![packet];
        for (index, rule) in chain.rules().iter().enumerate() {
            let mut next = Vec::new();
            for packet in here {
                let (may, may_not) = self.matches(rule, &packet);
                if may_not {
                    next.push(packet.clone());
                }
                if may {
                    for (packet, flow) in self.apply(chain, index, packet) {
                        match flow {
                            None => next.push(packet),
                            Some(flow) => done.push((packet, flow)),
                        }
                    }
                }
            }
            here = next;
            if self.wild.is_some() {
                here.sort();
                here.dedup();
                done.sort();
                done.dedup();
            }
            assert!(here.len() + done.len() < MANY, "{name} has too many ways through it");
        }
        done.extend(here.into_iter().map(|packet| (packet, Flow::Back)));
        done
    }

    /// Whether a packet can match, and whether it can not.
    fn matches(&self, rule: &Rule, packet: &Packet) -> (bool, bool) {
        let matches = &rule.matches;
        let mark = matches.mark.is_none_or(|m| (packet.mark & m.mask == m.value) != m.invert);
        let ct = matches.ct.is_none_or(|ct| if self.invalid { ct.invalid } else { ct.other });
        (mark && ct, matches.others || !mark || !ct)
    }

    /// What a matching rule does; `None` where the packet goes on to the next rule.
    fn apply(&self, chain: &Chain, index: usize, mut packet: Packet) -> Vec<(Packet, Option<Flow>)> {
        let rule = &chain.rules()[index];
        let is_watched =
            |list: &WatchList| list.rules.iter().any(|w| w.chain == chain.name && w.rule == index);
        if rule.counted && self.wild.is_none_or(is_watched) {
            packet.hits.push((chain.name.clone(), index));
        }
        let kind = ChainKind::of(&chain.name);
        if let Some(tier) = rule.comments.iter().find_map(|text| text.strip_prefix("Start of tier ")) {
            packet.tier = tier.into();
        }
        match &rule.action {
            Action::SetMark { value, mask } => {
                let before = packet.mark;
                packet.mark = (packet.mark & !mask) ^ value;
                for (bit, action) in [(self.accept, "allow"), (self.pass, "pass")] {
                    if packet.mark & bit != 0 && before & bit == 0 {
                        self.decide(&chain.name, rule, &mut packet, action);
                    }
                }
                vec![(packet, None)]
            }
            Action::Accept => {
                if kind == ChainKind::Failsafe {
                    packet.decisions.push("failsafe".into());
                }
                vec![(packet, Some(Flow::Accepted))]
            }
            Action::Drop | Action::Reject => {
                self.decide(&chain.name, rule, &mut packet, "deny");
                vec![(packet, Some(Flow::Dropped))]
            }
            Action::Return => vec![(packet, Some(Flow::Back))],
            Action::Jump(target) => {
                if matches!(kind, ChainKind::Endpoint { .. }) {
                    packet.via = Some(target.clone());
                }
                let ways = self.through(target, packet).into_iter();
                ways.map(|(packet, flow)| (packet, Some(flow).filter(|flow| *flow != Flow::Back))).collect()
            }
            _ => vec![(packet, None)],
        }
    }

    fn decide(&self, chain: &ChainName, rule: &Rule, packet: &mut Packet, action: &str) {
        if self.wild.is_some() {
            return;
        }
        let text = rule.comments.join(" ");
        let tier = if packet.tier.is_empty() { "default" } else { &packet.tier };
        let decision = match ChainKind::of(chain) {
            ChainKind::Policy(_) => {
                format!("{tier} {} {chain} {action}", packet.via.as_ref().expect("called"))
            }
            ChainKind::Profile(_) if action != "pass" => format!("{chain} {action}"),
            ChainKind::Endpoint { .. } if action == "deny" => match &text {
                text if text.contains("if no policies passed") => format!("no policy of {tier}"),
                text if text.contains("if no profiles matched") => "no profile".into(),
                _ => "rule".into(),
            },
            ChainKind::Endpoint { forward: true, .. } if action == "allow" => "rule".into(),
            _ => return,
        };
        packet.decisions.push(decision);
    }
}

fn words(decision: &Decision) -> String {
    match decision {
        Decision::Verdict(_) => "rule".into(),
        Decision::Failsafe => "failsafe".into(),
        Decision::Policy { tier, via, chain, action, .. } => {
            format!("{tier} {via} {chain} {}", action.as_str())
        }
        Decision::NoPolicy { tier } => format!("no policy of {tier}"),
        Decision::Profile { chain, action } => format!("{chain} {}", action.as_str()),
        Decision::NoProfile => "no profile".into(),
    }
}

/// The path that the programs would see; none where a rule was hit twice.
fn path(list: &WatchList, packet: &Packet) -> Option<u64> {
    let mut moved = 0;
    for (bit, watched) in list.rules.iter().enumerate() {
        let hit = packet.hits.iter().filter(|(chain, rule)| (chain, *rule) == (&watched.chain, watched.rule));
        match hit.count() {
            0 => {}
            1 => moved |= 1 << bit,
            _ => return None,
        }
    }
    Some(moved)
}

fn decoded(list: &WatchList, moved: u64, went: Went) -> Option<Vec<String>> {
    match list.decode(moved, went) {
        Path::Decided(decisions) => Some(decisions.iter().map(words).collect()),
        Path::Outside | Path::Unresolved => None,
    }
}

/// Whether a chain accepted a packet; not said of one that just fell through it.
fn accepts(decisions: &[String], flow: Flow) -> Option<bool> {
    let last = decisions.last()?;
    let accepted = last.ends_with(" allow") || ["failsafe", "rule"].contains(&last.as_str());
    match flow {
        Flow::Dropped => Some(false),
        Flow::Back | Flow::Accepted => accepted.then_some(true),
    }
}

/// Checks all ways through a chain; says how many paths there are.
fn check(chain: &Arc<Chain>, chains: &Chains) -> usize {
    let list = watch::list(chain, &|name| chains.get(name).cloned())
        .unwrap_or_else(|reason| panic!("{}: {reason}", chain.name));
    let marks = EndpointChain::read(chain).marks;
    let (accept, pass) = (marks.accept.unwrap_or(0), marks.pass.unwrap_or(0));
    let walker = |invalid, wild| Walker { chains, accept, pass, invalid, wild };
    let mut paths = BTreeSet::new();
    for invalid in [false, true] {
        for (packet, flow) in walker(invalid, None).through(&chain.name, Packet::default()) {
            let Some(moved) = path(&list, &packet) else { continue };
            let told = |went| decoded(&list, moved, went);
            let truth = Some(packet.decisions.clone()).filter(|_| moved != 0);
            let text = || format!("{} {moved:b} {:?}\n{:?}", chain.name, packet.hits, list.rules);
            assert_eq!(told(Went::Nowhere), truth, "{}", text());
            let went_on = if flow == Flow::Dropped { None } else { truth };
            assert_eq!(told(Went::On), went_on, "{}", text());
            paths.insert(moved);
            if let (Some(accepts), true) = (accepts(&packet.decisions, flow), moved != 0) {
                let says = moved & list.accepting() != 0 || moved & !list.accepting_alone() == 0;
                assert_eq!(says, accepts, "{}", text());
            }
        }
    }
    // Any other set of rules is no path, whatever the policies' rules were.
    let mut possible = BTreeSet::new();
    for invalid in [false, true] {
        let ways = walker(invalid, Some(&list)).through(&chain.name, Packet::default());
        possible.extend(ways.iter().filter_map(|(packet, _)| path(&list, packet)));
    }
    for moved in paths.iter().flat_map(|path| (0..list.rules.len()).map(move |bit| path ^ (1 << bit))) {
        for went in Went::BOTH {
            let told = decoded(&list, moved, went);
            assert!(told.is_none() || possible.contains(&moved), "{} {moved:b}: {told:?}", chain.name);
        }
    }
    paths.len()
}

#[test]
fn every_way_through_every_chain_is_told() {
    let mut seen: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for dump in dumps() {
        let text = fs::read_to_string(&dump).unwrap();
        for table in Table::ALL {
            let snapshot = common::read_dump(&text, table);
            let chains: Chains =
                snapshot.chains.iter().map(|r| (r.chain.name.clone(), r.chain.clone())).collect();
            for chain in chains.values() {
                let ChainKind::Endpoint { forward, endpoint, .. } = ChainKind::of(&chain.name) else {
                    continue;
                };
                let (chains, paths) = (1, check(chain, &chains));
                let kind = format!("{table} {:?} forward: {forward}", endpoint.kind);
                let entry = seen.entry(kind).or_default();
                *entry = (entry.0 + chains, entry.1 + paths);
            }
        }
    }
    // All kinds of chains were there, and packets do something in each.
    assert!(seen.len() >= 5, "{seen:?}");
    assert!(seen.values().all(|(chains, paths)| *chains > 0 && *paths > *chains), "{seen:?}");
}
