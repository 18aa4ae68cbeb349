//! What the programs in the kernel see of each packet is what the rules count, rule by rule and byte by byte: the packets of
//! all paths that hit a rule are those that the rule counted.

use accountant_core::calico::endpoint::{EndpointChain, Verdict};
use accountant_core::snapshot::{Around, TableId};
use accountant_core::watch::{ChainVerdicts, Went};
use accountant_core::{ChainName, Counter, IpVersion, Table};
use accountant_dataplane::in_place::CannotHere;
use accountant_dataplane::iptables_legacy::{IptablesLegacy, Settings};
use accountant_dataplane::kernel::{News, Programs, SeenFlow};
use accountant_dataplane::nftables::Nftables;
use accountant_dataplane::{Poll, RuleSource, Wanted};
use accountant_lab::Node;
use accountant_lab::felix::{Backend, Dialect, Version};
use accountant_lab::policy::{Did, Truth};
use accountant_lab::scenario::{HostTraffic, HostVisit, Scenario, Visit, demo, hosts};
use accountant_lab::traffic::{Flood, Until};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Counters by table, chain and place in the chain.
type Rules = BTreeMap<(TableId, ChainName, usize), Counter>;

/// A source of rules and the programs, in a node's namespace.
struct Witnessed {
    source: Box<dyn RuleSource>,
    programs: Arc<Programs>,
    /// All shared chains, so that readings have every rule.
    wanted: Wanted,
    last: Option<Poll>,
}

impl Witnessed {
    fn new(node: &Node, backend: Backend) -> Self {
        let programs = Programs::new(true);
        let mut source: Box<dyn RuleSource> = match backend {
            Backend::Legacy => {
                let settings = Settings {
                    lock_file: node.host().lock_file(),
                    programs: programs.clone(),
                    ..Settings::default()
                };
                Box::new(IptablesLegacy::new(settings))
            }
            _ => Box::new(Nftables::with(true, programs.clone()).unwrap()),
        };
        let first = source.read(&Wanted::default()).unwrap();
        assert_eq!(programs.reason(), None);
        let wanted = rules(&first).into_keys().map(|(table, chain, _)| (table, chain)).collect();
        Self { source, programs, wanted, last: None }
    }

    fn read(&mut self) -> (Rules, BTreeMap<TableId, Around>) {
        let poll = self.source.read(&self.wanted).unwrap();
        let seen = poll
            .tables
            .iter()
            .filter_map(|table| Some((table.id, table.snapshot.as_ref().unwrap().verdicts.clone()?)));
        let all = (rules(&poll), seen.collect());
        self.last = Some(poll);
        all
    }
}

fn rules(poll: &Poll) -> Rules {
    let mut rules = Rules::new();
    for table in &poll.tables {
        for reading in &table.snapshot.as_ref().unwrap().chains {
            for (rule, counter) in reading.counters.iter().enumerate() {
                rules.insert((table.id, reading.chain.name.clone(), rule), *counter);
            }
        }
    }
    rules
}

/// What paths say that each rule counted.
fn by_paths(table: TableId, chains: &[ChainVerdicts]) -> Rules {
    let mut sums = Rules::new();
    for list in chains.iter().flat_map(|chain| &chain.lists) {
        for (bit, rule) in list.list.rules.iter().enumerate() {
            let hit = list.paths.iter().filter(|(moved, ..)| moved >> bit & 1 == 1);
            let sum: Counter = hit.map(|(.., counter)| *counter).sum();
            *sums.entry((table, rule.chain.clone(), rule.rule)).or_default() += sum;
        }
    }
    sums
}

fn unresolved(chains: &[ChainVerdicts]) -> u64 {
    chains.iter().map(|chain| chain.unresolved).sum()
}

/// All that all paths counted, by whether it went on.
fn went(chains: &[ChainVerdicts], went: Went) -> u64 {
    let paths = chains.iter().flat_map(|chain| &chain.lists).flat_map(|list| &list.paths);
    paths.filter(|(moved, path, _)| *moved != 0 && *path == went).map(|(.., counter)| counter.packets).sum()
}

/// The counter of the rule that accepts established packets, and what the programs say of it.
fn compare_established(poll: &Poll, seen: &BTreeMap<TableId, Around>) -> u64 {
    let mut compared = 0;
    for table in poll.tables.iter().filter(|table| table.id.table == Table::Filter) {
        for reading in &table.snapshot.as_ref().unwrap().chains {
            let read = EndpointChain::read(&reading.chain);
            let Some((rule, _)) = read.verdicts.iter().find(|(_, v)| *v == Verdict::Established) else {
                continue;
            };
            let chains = &seen[&table.id].after;
            let Some(chain) = chains.iter().find(|chain| chain.chain == reading.chain.name) else { continue };
            let of_rule = reading.counters[*rule];
            let [on, nowhere, elsewhere] = chain.established;
            let all = on.since(chain.sheltered) + nowhere + elsewhere;
            assert_eq!(all, of_rule, "{} established", chain.chain);
            compared += of_rule.packets;
        }
    }
    compared
}

fn felix_writes(scenario: &Scenario, node: &Node, backend: Backend) {
    node.felix(Dialect::new(Version::V3_31, backend).unwrap()).apply(&scenario.model).unwrap();
}

fn every_path_is_known(backend: Backend) {
    let scenario = demo();
    let node = scenario.node().unwrap();
    felix_writes(&scenario, &node, backend);
    node.host()
        .enter(|| {
            let mut witnessed = Witnessed::new(&node, backend);
            let visit = Visit::new(&node).unwrap();
            let mut truth = Truth::default();
            for _ in 0..2 {
                visit.round(&scenario.model, &mut truth, || ()).unwrap();
            }
            let (counted, seen) = witnessed.read();
            let mut compared = 0;
            for (table, around) in &seen {
                assert_eq!(unresolved(&around.after), 0, "{table:?}");
                for (rule, sum) in by_paths(*table, &around.after) {
                    assert_eq!(sum, counted[&rule], "{rule:?}");
                    compared += sum.packets;
                }
                for verdict in Went::BOTH {
                    assert!(went(&around.after, verdict) > 10, "{table:?} {verdict:?}");
                }
            }
            assert!(compared > 1000, "{compared}");
            let versions: Vec<_> = seen.keys().map(|table| table.ip_version).collect();
            assert_eq!(versions, IpVersion::BOTH);
            let seen_flows = &witnessed.last.as_ref().unwrap().flows;
            assert_eq!(seen_flows.denied_lost, 0);
            for (table, around) in &seen {
                let of_table = seen_flows.denied.iter().filter(|flow| flow.table == *table);
                let flows: u64 = of_table.map(|flow| flow.counter.packets).sum();
                assert_eq!(flows, went(&around.after, Went::Nowhere), "{table:?}: dropped, by flow");
            }
            let of_pods = |flow: &&SeenFlow| flow.source.is_ipv4() && flow.protocol == 17;
            let flow = seen_flows.denied.iter().find(of_pods).unwrap();
            assert!(flow.path.is_some() && flow.ports.is_some_and(|(_, to)| to > 0), "{flow:?}");
            assert!(flow.first <= flow.last && flow.last > Duration::ZERO);
            let established = compare_established(witnessed.last.as_ref().unwrap(), &seen);
            assert!(established > 10, "{established}");
            println!("{backend:?}: {compared} of rules by paths, {established} established");
            assert_eq!(witnessed.programs.reason(), None);
        })
        .unwrap();
}

#[test]
fn legacy() {
    every_path_is_known(Backend::Legacy);
}

#[test]
fn iptables_nft() {
    every_path_is_known(Backend::IptablesNft);
}

#[test]
fn native_nftables() {
    every_path_is_known(Backend::Nft);
}

/// Untracked policy, policy before NAT and what leaves after it: rules of the raw and the mangle table.
fn host_endpoints(backend: Backend) {
    let scenario = hosts();
    let node = scenario.node().unwrap();
    felix_writes(&scenario, &node, backend);
    let visit = HostVisit::new(&node).unwrap();
    node.host()
        .enter(|| {
            let mut witnessed = Witnessed::new(&node, backend);
            let sent = visit.round().unwrap();
            let (counted, seen) = witnessed.read();
            for (table, around) in &seen {
                assert_eq!(unresolved(&around.after), 0, "{table:?}");
                for (rule, sum) in by_paths(*table, &around.after) {
                    assert_eq!(sum, counted[&rule], "{rule:?}");
                }
                let is_here = |(kind, version, _): &&(HostTraffic, IpVersion, Counter)| {
                    (kind.table(backend), *version, kind.did) == (table.table, table.ip_version, Did::Deny)
                };
                let denied: u64 = sent.iter().filter(is_here).map(|(.., sent)| sent.packets).sum();
                assert_eq!(went(&around.after, Went::Nowhere), denied, "{table:?}");
                let flows = &witnessed.last.as_ref().unwrap().flows.denied;
                let flows = flows.iter().filter(|flow| flow.table == *table && flow.path.is_some());
                assert_eq!(flows.map(|flow| flow.counter.packets).sum::<u64>(), denied, "{table:?}, by flow");
            }
            assert_eq!(seen.len(), 2 * Table::ALL.len());
        })
        .unwrap();
}

#[test]
fn host_endpoints_of_legacy() {
    host_endpoints(Backend::Legacy);
}

#[test]
fn host_endpoints_of_iptables_nft() {
    host_endpoints(Backend::IptablesNft);
}

#[test]
fn host_endpoints_of_native_nftables() {
    host_endpoints(Backend::Nft);
}

/// New flows from both processors, accepted, denied and unmatched mixed.
fn flood(backend: Backend) {
    let scenario = demo();
    let node = scenario.node().unwrap();
    felix_writes(&scenario, &node, backend);
    let (web, client) = (node.pod("shop", "web").unwrap(), node.pod("default", "client").unwrap());
    node.host()
        .enter(|| {
            let mut witnessed = Witnessed::new(&node, backend);
            let flood = |cpu, to| Flood {
                other: Some((9, 7)),
                until: Until::Packets(20_000),
                cpu: Some(cpu),
                flows: 64,
                ports: 50,
                ..Flood::new(to, 9000)
            };
            let floods = [
                flood(0, web.v4().unwrap()).start(&client.netns),
                flood(1, web.v6().unwrap()).start(&client.netns),
            ];
            for flooding in floods {
                assert_eq!(flooding.finish().unwrap().lost, 0);
            }
            let (counted, seen) = witnessed.read();
            for (table, around) in &seen {
                assert_eq!(unresolved(&around.after), 0, "{table:?}");
                for (rule, sum) in by_paths(*table, &around.after) {
                    assert_eq!(sum, counted[&rule], "{rule:?}");
                }
            }
        })
        .unwrap();
}

#[test]
fn floods_of_legacy() {
    flood(Backend::Legacy);
}

#[test]
fn floods_of_nftables() {
    flood(Backend::Nft);
}

#[test]
fn two_agents_do_not_attach_their_programs_twice() {
    let scenario = demo();
    let node = scenario.node().unwrap();
    felix_writes(&scenario, &node, Backend::Nft);
    node.host()
        .enter(|| {
            let first = Witnessed::new(&node, Backend::Nft);
            let second = Programs::new(true);
            Nftables::with(true, second.clone()).unwrap().read(&Wanted::default()).unwrap();
            assert_eq!(second.reason(), Some(CannotHere::AnotherAgent));
            drop(first);
            Witnessed::new(&node, Backend::Nft);
        })
        .unwrap();
}

/// The verifier gives up after a million instructions, and newer kernels' look at more of the same program: there is room.
#[test]
fn the_verifier_has_room() {
    const NAMES: [&str; 7] =
        ["before", "after", "raw_before", "raw_after", "mangle_before", "mangle_after", "dropped"];
    const MOST: u32 = 150_000;
    let scenario = hosts();
    let node = scenario.node().unwrap();
    felix_writes(&scenario, &node, Backend::Legacy);
    let _witnessed = node.host().enter(|| Witnessed::new(&node, Backend::Legacy)).unwrap();
    let loaded = aya::programs::loaded_programs().flatten();
    let looked_at: BTreeMap<_, _> = loaded
        .filter_map(|program| {
            Some((program.name_as_str()?.to_string(), program.verified_instruction_count()?))
        })
        .filter(|(name, _)| NAMES.contains(&name.as_str()))
        .collect();
    assert_eq!(looked_at.len(), NAMES.len(), "{looked_at:?}");
    assert!(looked_at.values().all(|instructions| *instructions < MOST), "{looked_at:?}");
}

/// Flows come faster than they are taken: each is told or counted as lost, and the packets' own counts miss nothing.
#[test]
fn flows_that_nobody_takes_are_counted() {
    const SOURCES: u16 = 64;
    const PORTS: u16 = 101;
    let flows = u64::from(SOURCES) * u64::from(PORTS);
    let scenario = demo();
    let node = scenario.node().unwrap();
    felix_writes(&scenario, &node, Backend::Nft);
    let web = node.pod("shop", "web").unwrap().v4().unwrap();
    let client = &node.pod("default", "client").unwrap().netns;
    node.host()
        .enter(|| {
            let mut witnessed = Witnessed::new(&node, Backend::Nft);
            let (tells, told) = std::sync::mpsc::sync_channel(0);
            let listening = witnessed.programs.listen(move |news| tells.send(news).is_ok()).unwrap();
            let flood = Flood {
                flows: SOURCES,
                ports: PORTS,
                until: Until::Packets(flows),
                ..Flood::new(web, 20_000)
            };
            assert_eq!(flood.run(client).unwrap().lost, 0);
            let (mut heard, mut lost) = (0, 0);
            while heard + lost < flows {
                let News { flows, lost: more } = told.recv_timeout(Duration::from_secs(60)).unwrap();
                assert!(flows.iter().all(|flow| flow.path.is_some() && flow.counter.packets == 1));
                heard += flows.len() as u64;
                lost += more;
            }
            assert_eq!(heard + lost, flows);
            assert!(heard > 1000 && lost > 1000, "{heard} and {lost}");
            drop(listening);
            let (_, seen) = witnessed.read();
            let seen_flows = &witnessed.last.as_ref().unwrap().flows;
            assert_eq!((seen_flows.denied_lost, seen_flows.events_lost), (0, lost));
            assert_eq!(seen_flows.denied.len() as u64, flows);
            assert_eq!(seen.values().map(|around| went(&around.after, Went::Nowhere)).sum::<u64>(), flows);
            // Nobody listens: nothing is told, and nothing lost.
            flood.run(client).unwrap();
            witnessed.read();
            assert_eq!(witnessed.last.as_ref().unwrap().flows.events_lost, lost);
        })
        .unwrap();
}
