//! Counters read in place are those that the kernel hands out, for every rule, at rest and under traffic.
//!
//! `ACCOUNTANT_RULES` says how many rules there are in place of those of each test, on a node with 250 pods.

use accountant_core::rule::RuleId;
use accountant_core::snapshot::TableId;
use accountant_core::{ChainName, Counter, IpVersion};
use accountant_dataplane::iptables_legacy::{IptablesLegacy, Settings};
use accountant_dataplane::kernel::Programs;
use accountant_dataplane::nftables::Nftables;
use accountant_dataplane::source::How;
use accountant_dataplane::{Poll, RuleSource, Wanted};
use accountant_lab::felix::{Backend, Dialect, Version};
use accountant_lab::traffic::{self, Flood, Until};
use accountant_lab::{Node, scenario};
use std::collections::BTreeMap;

/// Counters by table, chain and rule.
type Counters = BTreeMap<(TableId, ChainName, RuleId), Counter>;

fn counters(poll: &Poll) -> Counters {
    let mut all = Counters::new();
    for table in &poll.tables {
        for reading in &table.snapshot.as_ref().unwrap().chains {
            for (id, counter) in reading.chain.ids().iter().zip(&reading.counters) {
                all.insert((table.id, reading.chain.name.clone(), *id), *counter);
            }
        }
    }
    all
}

/// All shared chains of a first reading, so that later ones contain every rule.
fn everything(poll: &Poll) -> Wanted {
    let chains = |table: &accountant_dataplane::TablePoll| {
        let id = table.id;
        let chains = table.snapshot.as_ref().unwrap().chains.iter();
        chains.map(|reading| (id, reading.chain.name.clone())).collect::<Vec<_>>()
    };
    poll.tables.iter().flat_map(chains).collect()
}

/// A reader that reads in place, and one that reads as everybody does.
struct Both {
    ours: Box<dyn RuleSource>,
    theirs: Box<dyn RuleSource>,
    wanted: Wanted,
}

impl Both {
    /// In the calling thread's network namespace.
    fn new(make: impl Fn(bool) -> Box<dyn RuleSource>) -> Self {
        let (mut ours, mut theirs) = (make(true), make(false));
        let wanted = everything(&ours.read(&Wanted::default()).unwrap());
        theirs.read(&Wanted::default()).unwrap();
        Self { ours, theirs, wanted }
    }

    fn ours(&mut self) -> Counters {
        let poll = self.ours.read(&self.wanted).unwrap();
        assert!(matches!(poll.how, How::InPlace(_)), "{:?}", poll.how);
        counters(&poll)
    }

    fn theirs(&mut self) -> Counters {
        let poll = self.theirs.read(&self.wanted).unwrap();
        assert!(matches!(poll.how, How::Whole(_)), "{:?}", poll.how);
        counters(&poll)
    }

    /// At rest both are the same; what was counted between two readings of one is seen by the other in between.
    fn compare(&mut self) -> u64 {
        let (before, between, after) = (self.theirs(), self.ours(), self.theirs());
        assert_eq!(before.len(), between.len());
        let mut moved = 0;
        for (key, counter) in &between {
            let (least, most) = (before[key], after[key]);
            for (least, value, most) in
                [(least.packets, counter.packets, most.packets), (least.bytes, counter.bytes, most.bytes)]
            {
                assert!(least <= value && value <= most, "{key:?}: {least} {value} {most}");
            }
            moved += most.packets - least.packets;
        }
        moved
    }
}

fn legacy(node: &Node, in_place: bool) -> Box<dyn RuleSource> {
    let lock_file = node.host().lock_file();
    Box::new(IptablesLegacy::new(Settings { lock_file, in_place, ..Settings::default() }))
}

/// UDP to an allowed, a denied and nobody's port, both IP versions.
fn some_traffic(node: &Node) {
    let (a, b) = (node.pods().first().unwrap(), node.pods().last().unwrap());
    for to in [b.v4().unwrap(), b.v6().unwrap()] {
        for (port, packets) in [(7, 5), (9, 3), (10, 2)] {
            traffic::udp(&a.netns, to, port, 2, packets, 20).unwrap();
        }
    }
}

fn equal_at_rest_and_under_traffic(
    backend: Backend,
    rules: usize,
    pods: usize,
    make: fn(&Node, bool) -> Box<dyn RuleSource>,
) {
    let given = std::env::var("ACCOUNTANT_RULES").ok();
    let (rules, pods) = given.map_or((rules, pods), |text| (text.parse().expect("a number of rules"), 250));
    let scenario = scenario::scale(rules, pods);
    let node = scenario.node().unwrap();
    node.felix(Dialect::new(Version::V3_33, backend).unwrap()).apply(&scenario.model).unwrap();
    some_traffic(&node);
    let (a, b) = (node.pods().first().unwrap(), node.pods().last().unwrap());
    // From two processors, where there are two.
    let last = std::thread::available_parallelism().unwrap().get() - 1;
    let flood = |cpu: usize, to| Flood {
        other: Some((9, 10)),
        until: Until::Stopped,
        cpu: Some(cpu.min(last)),
        ..Flood::new(to, 7)
    };
    node.host()
        .enter(|| {
            let mut both = Both::new(|in_place| make(&node, in_place));
            let (ours, theirs) = (both.ours(), both.theirs());
            assert_eq!(ours, theirs);
            for ip_version in IpVersion::BOTH {
                let of_version = ours.iter().filter(|((id, ..), _)| id.ip_version == ip_version);
                let counted = of_version.filter(|(_, counter)| !counter.is_zero()).count();
                assert!(counted > 10, "IPv{ip_version}: {counted} rules counted");
            }
            let flooding =
                [flood(0, b.v4().unwrap()).start(&a.netns), flood(1, b.v6().unwrap()).start(&a.netns)];
            let moved: u64 = (0..20).map(|_| both.compare()).sum();
            for flooding in flooding {
                flooding.stop().unwrap();
            }
            assert!(moved > 1000, "{moved}");
            assert_eq!(both.ours(), both.theirs());
            println!("{} rules of {rules}, {moved} counted meanwhile", ours.len());
        })
        .unwrap();
}

fn nftables(_: &Node, in_place: bool) -> Box<dyn RuleSource> {
    Box::new(Nftables::with(in_place, Programs::new(false)).unwrap())
}

#[test]
fn iptables_nft() {
    equal_at_rest_and_under_traffic(Backend::IptablesNft, 1_700, 30, nftables);
}

#[test]
fn native_nftables() {
    equal_at_rest_and_under_traffic(Backend::Nft, 1_700, 30, nftables);
}

#[test]
fn legacy_small() {
    equal_at_rest_and_under_traffic(Backend::Legacy, 1_700, 30, legacy);
}

#[test]
fn legacy_usual() {
    equal_at_rest_and_under_traffic(Backend::Legacy, 23_500, 110, legacy);
}
