//! What is missed is posted once, whoever reads when.

use super::*;
use crate::calico::bpf::{Decision, Meaning};
use crate::calico::policy::{PolicyId, PolicyKind};
use crate::calico::shared::PolicyAction;
use crate::id::{Endpoint, EndpointKind};
use crate::index::{HostEndpoint, Object};
use crate::{Direction, Table};

const RULE: RuleId = RuleId(7);

fn way() -> Way {
    (Endpoint { kind: EndpointKind::Workload, interface: "cali1".into() }, Direction::Ingress)
}

fn program() -> Arc<PolicyProgram> {
    let policy = PolicyId::new(PolicyKind::GlobalNetworkPolicy, "", "p");
    let decision = Decision::Policy { tier: "default".into(), policy, action: PolicyAction::Allow };
    let meaning = Meaning { direction: Direction::Ingress, decision };
    Arc::new(PolicyProgram { meanings: BTreeMap::from([(RULE, meaning)]), tiers: Vec::new() })
}

/// A dataplane with one endpoint and one rule, and a reader that may have programs beside it.
#[derive(Default)]
struct Node {
    totals: Totals,
    calico: u64,
    map: u32,
    /// What programs of ours read, while they are there.
    ours: u64,
    beside: bool,
    fresh: bool,
    /// Calico has not counted anything at the endpoint yet.
    absent: bool,
    /// An interface of the host without a listing, and what the datastore says.
    host: bool,
    index: Index,
    posted: BTreeMap<String, u64>,
}

impl Node {
    fn pass(&mut self, packets: u64) {
        self.calico += packets;
        self.ours += if self.beside { packets } else { 0 };
    }

    fn own(&self) -> Own {
        let decided = Decided {
            origin: (self.map, 1),
            packets: [self.calico, 0, 0],
            watched: self.beside,
            policed: !self.host,
        };
        let kind = if self.host { EndpointKind::Host } else { EndpointKind::Workload };
        // A rule that was never hit, or not since Felix deleted all counters, is not in Calico's map.
        let hits = BTreeMap::from([(RULE, self.calico)]).into_iter().filter(|(_, hits)| *hits > 0).collect();
        let way = (Endpoint { kind, ..way().0 }, way().1);
        Own {
            rules: Some(RuleHits { map: self.map, hits }),
            ways: BTreeMap::from([(way, decided)]).into_iter().filter(|_| !self.absent).collect(),
            programs: vec![program()],
            fresh: self.fresh,
            beside: self.beside,
        }
    }

    /// Reads; `late` packets come between Calico's counters and ours.
    fn read(&mut self, late: u64) {
        let own = self.own();
        self.pass(late);
        self.take(&own);
    }

    fn take(&mut self, own: &Own) {
        let verdict = Verdict { outcome: Outcome::Allowed, path: [RULE].into() };
        let counted = BTreeMap::from([((way(), verdict), Counter::new(self.ours, 0))]);
        let id = TableId {
            source: Source::CalicoBpf,
            native: false,
            ip_version: IpVersion::V4,
            table: Table::Filter,
        };
        let reading = [(id, Reading { counted, ..Reading::default() })];
        let verdicts = if self.beside { &reading[..] } else { &[] };
        for Posting { key, amount } in self.totals.apply(own, verdicts, &self.index).postings {
            let name = match &key {
                Key::Total(total) if total.endpoint.is_none() => "policy",
                Key::Total(_) => "endpoint",
                _ => "unattributed",
            };
            *self.posted.entry(name.into()).or_default() += amount.packets;
        }
    }

    fn posted(&self) -> [u64; 2] {
        ["policy", "endpoint"].map(|name| self.posted.get(name).copied().unwrap_or(0))
    }

    /// Our programs come: Calico's counters are read before.
    fn attach(&mut self) {
        let own = self.own();
        self.beside = true;
        self.take(&own);
    }
}

#[test]
fn alone_all_that_is_counted_since_the_first_reading_is_a_total() {
    let mut node = Node { calico: 100, ..Node::default() };
    node.read(0);
    assert_eq!(node.posted(), [0, 0]);
    node.pass(5);
    node.read(2);
    node.read(0);
    assert_eq!(node.posted(), [7, 7]);
    // Maps that came into being before the agent's eyes are counted whole.
    let mut node = Node { calico: 3, fresh: true, ..Node::default() };
    node.read(0);
    assert_eq!(node.posted(), [3, 3]);
}

#[test]
fn counters_that_begin_anew_are_counted_whole() {
    let mut node = Node::default();
    node.read(0);
    node.pass(5);
    node.read(0);
    node.calico = 2;
    node.read(0);
    // Another map, whose value is greater than the old one's.
    (node.map, node.calico) = (1, 10);
    node.read(0);
    assert_eq!(node.posted(), [17, 17]);
}

#[test]
fn what_programs_of_ours_read_is_no_total() {
    let mut node = Node::default();
    node.read(0);
    node.pass(5);
    node.attach();
    // Between the reading and the attachment nobody but Calico counts.
    node.calico += 2;
    for late in [3, 0, 4, 0, 0] {
        node.pass(10);
        node.read(late);
        assert!(node.posted()[0] <= 7, "{:?}", node.posted);
    }
    assert_eq!(node.posted(), [7, 7]);
    assert_eq!(node.totals.difference(), Some(0));
    // What is missed while all is watched is told and not posted, even when the programs go later.
    (0..OPEN).for_each(|_| node.read(0));
    node.calico += 6;
    (0..4).for_each(|_| node.read(0));
    assert_eq!((node.posted(), node.totals.difference()), ([7, 7], Some(6)));
    node.beside = false;
    node.ours = 0;
    node.pass(1);
    node.read(0);
    assert_eq!((node.posted(), node.totals.difference()), ([8, 8], None));
}

#[test]
fn a_reset_beside_our_programs_makes_no_packets() {
    let mut node = Node::default();
    node.attach();
    for _ in 0..3 {
        node.pass(10);
        node.read(0);
    }
    node.pass(4);
    node.calico = 1;
    node.ours += 1;
    for _ in 0..3 {
        node.read(0);
    }
    assert_eq!((node.posted(), node.totals.difference()), ([0, 0], Some(0)));
}

/// Whatever comes in whatever order: no packet is posted that was read, and none twice.
#[test]
fn nothing_is_posted_twice_whatever_happens() {
    for seed in 1..400_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut node = Node::default();
        node.read(0);
        let mut truth = 0;
        for _ in 0..60 {
            match next(8) {
                0..3 => {
                    let packets = next(20);
                    truth += if node.beside { 0 } else { packets };
                    node.pass(packets);
                }
                3..6 => {
                    let late = next(4);
                    truth += if node.beside { 0 } else { late };
                    node.read(late);
                }
                6 if node.beside => {
                    // Ours go: they tell their last, and Calico's are read again.
                    node.read(0);
                    (node.beside, node.ours) = (false, 0);
                    node.read(0);
                }
                6 => node.attach(),
                _ => (node.map, node.calico) = (node.map + 1, 0),
            }
            assert!(node.posted().iter().all(|posted| *posted <= truth), "{seed}: {:?} {truth}", node.posted);
        }
    }
}

#[test]
fn an_interface_of_the_host_without_a_listing_is_an_endpoint_if_the_datastore_says_so() {
    let mut node = Node { host: true, ..Node::default() };
    node.read(0);
    node.pass(5);
    node.read(0);
    assert_eq!(node.posted(), [5, 0], "an interface without policy has no account");
    let host = HostEndpoint { name: "node-1".into(), interface: "cali1".into(), expected_ips: Vec::new() };
    node.index.apply(Default::default(), Object::HostEndpoint(host));
    node.pass(2);
    node.read(0);
    assert_eq!(node.posted(), [7, 2], "what passed before it was an endpoint is nobody's");
}

#[test]
fn first_hits_that_only_our_programs_have_read_are_no_difference() {
    let mut node = Node::default();
    node.attach();
    node.read(3);
    node.read(0);
    node.read(0);
    assert_eq!((node.posted(), node.totals.difference()), ([0, 0], Some(0)));
    // Felix starts anew and deletes its counters; what our programs read meanwhile is more than Calico has.
    node.pass(5);
    node.calico = 0;
    for late in [4, 0, 3, 1, 4, 2, 0] {
        node.read(late);
        node.pass(2);
    }
    for _ in 0..3 {
        node.read(0);
    }
    assert_eq!((node.posted(), node.totals.difference()), ([0, 0], Some(0)));
}

#[test]
fn what_passed_at_a_new_interface_before_our_programs_came_is_a_total() {
    let mut node = Node { absent: true, ..Node::default() };
    node.attach();
    node.read(0);
    // When it is looked the next time they are there already.
    node.absent = false;
    node.calico += 5;
    for _ in 0..3 {
        node.pass(2);
        node.read(1);
    }
    node.read(0);
    node.read(0);
    assert_eq!(node.posted(), [5, 5]);
}

#[test]
fn first_verdicts_at_a_new_interface_are_no_total() {
    let mut node = Node { absent: true, ..Node::default() };
    node.attach();
    node.read(3);
    node.absent = false;
    for _ in 0..3 {
        node.pass(2);
        node.read(1);
    }
    for _ in 0..3 {
        node.read(0);
    }
    assert_eq!((node.posted(), node.totals.difference()), ([0, 0], Some(0)));
}
