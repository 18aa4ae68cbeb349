//! Verdicts of Calico's eBPF dataplane, read beside a stand-in for it, on real interfaces with real traffic: every number as it
//! was sent, and as the dataplane itself counts.

mod bad_input;
mod events;
mod stand_in;
mod totals;

use accountant_abi::calico::{EGRESS, INGRESS};
use accountant_abi::stand_in::{Case, FOREIGN, LATE_DROP, NO_POLICY, QOS, SKIP};
use accountant_core::calico::bpf::{Outcome, RuleId};
use accountant_core::{Counter, Direction};
use accountant_dataplane::calico_bpf::{CalicoBpf, Settings};
use accountant_dataplane::source::Note;
use accountant_dataplane::{Poll, RuleSource, Wanted};
use accountant_lab::Node;
use accountant_lab::policy::Endpoint;
use accountant_lab::traffic::{Flood, Until, udp};
use aya::programs::{LinkOrder, TcAttachType};
use aya_obj::generated::bpf_map_type;
use stand_in::{Foreign, NEWEST, Pins, StandIn, VERSIONS, Version, make};
use std::collections::BTreeMap;
use std::net::IpAddr;

const SEEN: u32 = 0x0100_0000;
const BYPASS: u32 = 0x0300_0000;
/// Bytes of each packet behind its headers.
const SIZE: usize = 100;

/// Interface, direction, IP version, outcome and rules: what is counted apart.
type Line = (String, Direction, u8, Outcome, Vec<u64>);
type Counts = BTreeMap<Line, Counter>;

/// A node with two pods and the stand-in on all interfaces.
struct Lab {
    node: Node,
    pins: Pins,
    a: String,
    b: String,
}

fn pods() -> [Endpoint; 2] {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let pod = |name, v4, v6| Endpoint::new("shop", name, &[address(v4), address(v6)]);
    [pod("a", "10.65.0.2", "fd00:65::2"), pod("b", "10.65.0.3", "fd00:65::3")]
}

/// Runs a test on a node of its own, in the node's network namespace.
fn in_lab(test: impl FnOnce(&Lab) + Send) {
    let lab = Lab::new();
    lab.node.host().enter(|| test(&lab)).unwrap();
}

impl Lab {
    fn new() -> Self {
        let pods = pods();
        let [a, b] = [0, 1].map(|pod: usize| pods[pod].interface.to_string());
        Self { node: Node::new(&pods).unwrap(), pins: Pins::new(), a, b }
    }

    fn source(&self) -> CalicoBpf {
        CalicoBpf::new(Settings { pins: self.pins.path(), listings: self.pins.listings() }).unwrap()
    }

    fn stand_in(&self, version: Version) -> StandIn {
        let mut stand_in = StandIn::new(&self.pins, version);
        for interface in ["eth0", &self.a, &self.b] {
            stand_in.attach_both(interface);
        }
        stand_in
    }

    fn index(&self, interface: &str) -> u32 {
        nix::net::if_::if_nametoindex(interface).unwrap()
    }

    /// Sends packets from pod a to pod b, with both IP versions.
    fn send(&self, port: u16, packets: u32) {
        let [a, b] = ["a", "b"].map(|pod| self.node.pod("shop", pod).unwrap());
        for to in [b.v4(), b.v6()] {
            udp(&a.netns, to.unwrap(), port, 1, packets, SIZE).unwrap();
        }
    }
}

/// What was counted; `None` if the source does not run.
fn counts(poll: &Poll) -> Counts {
    let mut counts = Counts::new();
    for (id, reading) in &poll.verdicts {
        for (((endpoint, direction), verdict), counter) in &reading.counted {
            let path = verdict.path.iter().map(|RuleId(id)| *id).collect();
            let line =
                (endpoint.interface.to_string(), *direction, id.ip_version.number(), verdict.outcome, path);
            counts.insert(line, *counter);
        }
    }
    counts
}

/// What must have been counted for so many packets of each IP version.
fn expect(
    want: &mut Counts,
    interface: &str,
    direction: Direction,
    outcome: Outcome,
    path: &[u64],
    packets: u32,
) {
    for (ip_version, headers) in [(4, 20 + 8), (6, 40 + 8)] {
        let line = (interface.to_string(), direction, ip_version, outcome, path.to_vec());
        let packets = u64::from(packets);
        *want.entry(line).or_default() += Counter::new(packets, packets * (headers + SIZE as u64));
    }
}

fn case(said: i32, rules: &[u64]) -> Case {
    let mut case = Case { said, hits: rules.len() as u32, mark: SEEN, ..Case::default() };
    case.rules[..rules.len()].copy_from_slice(rules);
    case
}

fn allow(rules: &[u64]) -> Case {
    case(1, rules)
}

fn deny(rules: &[u64]) -> Case {
    case(2, rules)
}

fn skip() -> Case {
    Case { flags: SKIP, mark: SEEN, ..Case::default() }
}

/// Rule hits by number, as ours say.
fn hits(counts: &Counts) -> BTreeMap<u64, u64> {
    let mut hits = BTreeMap::new();
    for ((.., path), counter) in counts {
        for id in path {
            *hits.entry(*id).or_default() += counter.packets;
        }
    }
    hits
}

/// What is to be counted: whether at pod a or b, and the rules.
type Verdicts = Vec<(bool, Outcome, Vec<u64>)>;

/// All kinds of verdicts: the port, what is decided at both hooks, and what is to be counted there.
fn scenes(lab: &Lab) -> Vec<(u16, Case, Option<Case>, Verdicts)> {
    let redirected = Case { redirect: lab.index(&lab.b), ..allow(&[11, 12]) };
    let approved = Case { mark: BYPASS, ..allow(&[21]) };
    let established = Case { mark: BYPASS, ..skip() };
    let limited = |case: Case| Some(Case { flags: QOS, ..case });
    let (at_a, at_b) = (true, false);
    use Outcome::{Allowed, AllowedThenDropped, Denied, DroppedWithoutPolicy};
    vec![
        // Accepted at both ends, once through the stack and once redirected.
        (
            7101,
            allow(&[1, 2, 3]),
            Some(allow(&[4])),
            vec![(at_a, Allowed, vec![1, 2, 3]), (at_b, Allowed, vec![4])],
        ),
        (
            7102,
            redirected,
            Some(allow(&[13])),
            vec![(at_a, Allowed, vec![11, 12]), (at_b, Allowed, vec![13])],
        ),
        // Denied by a rule, at the end of a tier, and with no number noted.
        (7103, deny(&[5, 6]), None, vec![(at_a, Denied, vec![5, 6])]),
        (7104, allow(&[7]), Some(deny(&[0])), vec![(at_a, Allowed, vec![7]), (at_b, Denied, vec![0])]),
        (7105, redirected, Some(deny(&[])), vec![(at_a, Allowed, vec![11, 12]), (at_b, Denied, vec![])]),
        // Approved: the other end does not look. Established: policy is not asked.
        (7106, approved, Some(deny(&[99])), vec![(at_a, Allowed, vec![21])]),
        (7107, established, Some(deny(&[99])), vec![]),
        (7108, skip(), Some(skip()), vec![]),
        // Approved, and looked at all the same.
        (7109, established, limited(allow(&[31])), vec![(at_b, Allowed, vec![31])]),
        (7110, established, limited(deny(&[32])), vec![(at_b, Denied, vec![32])]),
        // Dropped for reasons of the packet's own.
        (7111, Case { flags: LATE_DROP, ..allow(&[41]) }, None, vec![(at_a, AllowedThenDropped, vec![41])]),
        (
            7112,
            Case { flags: NO_POLICY, ..Case::default() },
            None,
            vec![(at_a, DroppedWithoutPolicy, vec![])],
        ),
    ]
}

/// Sends all kinds of packets, in small numbers that are told apart, and says what must have been counted.
fn play(lab: &Lab, stand_in: &StandIn, rounds: u32) -> Counts {
    let mut want = Counts::new();
    let scenes = scenes(lab);
    for (port, at_a, at_b, _) in &scenes {
        stand_in.decide(*port, INGRESS, *at_a);
        if let Some(case) = at_b {
            stand_in.decide(*port, EGRESS, *case);
        }
    }
    for round in 0..rounds {
        for (number, (port, .., counted)) in (1..).zip(&scenes) {
            let packets = 1 + (number * 7 + round) % 5;
            lab.send(*port, packets);
            for (at_a, outcome, path) in counted {
                let (interface, direction) =
                    if *at_a { (&lab.a, Direction::Egress) } else { (&lab.b, Direction::Ingress) };
                expect(&mut want, interface, direction, *outcome, path, packets);
            }
        }
    }
    want
}

fn read(source: &mut CalicoBpf) -> Poll {
    source.read(&Wanted::default()).unwrap()
}

/// How often something happened.
fn happened(poll: &Poll, note: Note) -> u64 {
    poll.happened.iter().filter(|(other, _)| *other == note).map(|(_, times)| times).sum()
}

#[test]
fn every_verdict_is_counted_in_every_layout() {
    let lab = Lab::new();
    for version in VERSIONS {
        lab.node
            .host()
            .enter(|| {
                let stand_in = lab.stand_in(version);
                let mut source = lab.source();
                assert_eq!(counts(&read(&mut source)), Counts::new(), "{version:?}");
                let want = play(&lab, &stand_in, 3);
                let poll = read(&mut source);
                let counted = counts(&poll);
                assert_eq!(counted, want, "{version:?} {:?}", poll.happened);
                assert_eq!(poll.difference, Some(0), "{version:?}");
                assert_eq!(hits(&counted), stand_in.rules(), "{version:?}");
            })
            .unwrap();
        lab.pins.clear();
    }
}

/// The same is counted while XDP overwrites the state on the same processors, thousands of times a second.
#[test]
fn xdp_does_not_take_verdicts_away() {
    in_lab(|lab| {
        let mut stand_in = lab.stand_in(NEWEST);
        stand_in.attach_xdp("eth0");
        let mut source = lab.source();
        read(&mut source);
        let host: IpAddr = accountant_lab::node::NODE_ADDRESSES[0].parse().unwrap();
        let flood = |cpu| Flood { until: Until::Stopped, cpu: Some(cpu), ..Flood::new(host, 7200) };
        let flooding = [flood(0), flood(1)].map(|flood| flood.start(lab.node.outside()));
        let want = play(lab, &stand_in, 40);
        for flooding in flooding {
            flooding.stop().unwrap();
        }
        let poll = read(&mut source);
        assert_eq!(counts(&poll), want, "{:?}", poll.happened);
        assert_eq!(poll.difference, Some(0));
    });
}

/// Ours were first, and Calico's come behind them: ours move behind those, and stay there when they are replaced in place.
#[test]
fn the_order_is_kept() {
    in_lab(|lab| {
        let mut stand_in = lab.stand_in(NEWEST);
        let mut source = lab.source();
        read(&mut source);
        let mut want = play(lab, &stand_in, 1);
        read(&mut source);
        for interface in [lab.a.clone(), lab.b.clone()] {
            stand_in.attach_both(&interface);
        }
        assert_eq!(counts(&read(&mut source)), want);
        want = sum(want, play(lab, &stand_in, 2));
        assert_eq!(counts(&read(&mut source)), want);
        for interface in [&lab.a, &lab.b] {
            stand_in.replace(interface, INGRESS);
            stand_in.replace(interface, EGRESS);
        }
        want = sum(want, play(lab, &stand_in, 2));
        let poll = read(&mut source);
        assert_eq!(counts(&poll), want);
        assert_eq!((poll.difference, happened(&poll, Note::Misplaced)), (Some(0), 0));
    });
}

/// Calico goes from clsact to tcx and back: ours follow, in front and behind.
#[test]
fn both_ways_of_attaching_are_followed() {
    in_lab(|lab| {
        let mut stand_in = lab.stand_in(NEWEST);
        let mut source = lab.source();
        let mut want = Counts::new();
        for on_clsact in [true, false, true] {
            for interface in ["eth0", &lab.a, &lab.b] {
                if on_clsact {
                    stand_in.attach_to_clsact(interface);
                } else {
                    stand_in.attach_both(interface);
                }
            }
            read(&mut source);
            want = sum(want, play(lab, &stand_in, 3));
            let poll = read(&mut source);
            assert_eq!(counts(&poll), want, "on clsact: {on_clsact} {:?}", poll.happened);
            assert_eq!((poll.difference, happened(&poll, Note::Misplaced)), (Some(0), 0));
        }
    });
}

/// What somebody else's programs drop, in front of Calico's or behind, is not charged to Calico.
#[test]
fn drops_of_others_are_nobodys() {
    in_lab(|lab| {
        let stand_in = lab.stand_in(NEWEST);
        let mut source = lab.source();
        read(&mut source);
        let mut want = Counts::new();
        stand_in.decide(FOREIGN, INGRESS, allow(&[51]));
        stand_in.decide(FOREIGN, EGRESS, allow(&[52]));
        for (order, seen) in [(LinkOrder::first as fn() -> LinkOrder, false), (LinkOrder::last, true)] {
            let foreign = Foreign::attach(&lab.a, TcAttachType::Ingress, order());
            read(&mut source);
            for packets in [3, 4] {
                // Between them, what Calico does deny: its state is there when the others are dropped.
                want = sum(want, play(lab, &stand_in, 1));
                stand_in.decide(7103, INGRESS, deny(&[5, 6]));
                lab.send(7103, 1);
                expect(&mut want, &lab.a, Direction::Egress, Outcome::Denied, &[5, 6], 1);
                lab.send(FOREIGN, packets);
                if seen {
                    expect(&mut want, &lab.a, Direction::Egress, Outcome::Allowed, &[51], packets);
                }
            }
            drop(foreign);
        }
        let poll = read(&mut source);
        assert_eq!(counts(&poll), want, "{:?}", poll.happened);
        assert_eq!(poll.difference, Some(0));
    });
}

/// Felix replaces maps under the same names, by the same layout and by another, and goes; no count is lost or doubled.
#[test]
fn maps_are_followed_and_counts_outlive_them() {
    in_lab(|lab| {
        let mut stand_in = lab.stand_in(NEWEST);
        let mut source = lab.source();
        read(&mut source);
        let mut want = play(lab, &stand_in, 1);
        for version in [NEWEST, VERSIONS[4], VERSIONS[1], NEWEST] {
            stand_in.detach_all();
            lab.pins.clear();
            stand_in = lab.stand_in(version);
            read(&mut source);
            want = sum(want, play(lab, &stand_in, 1));
            let poll = read(&mut source);
            assert_eq!(counts(&poll), want, "{version:?}");
            assert_eq!(poll.difference, Some(0), "{version:?}");
        }
        stand_in.detach_all();
        lab.pins.clear();
        let poll = read(&mut source);
        assert_eq!(counts(&poll), want);
        assert_eq!(poll.gone.len(), 2);
        assert!(poll.how.why_absent().is_some_and(|reason| reason.contains("no map of packet states")));
        let poll = read(&mut source);
        assert_eq!((poll.verdicts.len(), poll.gone.len()), (0, 0));
    });
}

fn sum(mut one: Counts, other: Counts) -> Counts {
    for (line, counter) in other {
        *one.entry(line).or_default() += counter;
    }
    one
}

/// What is pinned under Calico's names and is not Calico's is refused, with a reason.
#[test]
fn pins_that_are_something_else_are_refused() {
    in_lab(|lab| {
        let mut source = lab.source();
        let mut reason = || {
            let poll = read(&mut source);
            assert!(poll.verdicts.is_empty());
            poll.how.why_absent().unwrap().to_string()
        };
        assert!(reason().contains("no map of packet states is pinned"));
        let path = lab.pins.path().join("cali_state6");
        for (kind, size) in [
            (bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY, 496),
            (bpf_map_type::BPF_MAP_TYPE_ARRAY, 512),
            (bpf_map_type::BPF_MAP_TYPE_HASH, 512),
        ] {
            make(&path, kind, 4, size, 2);
            assert!(reason().contains("layout that is not known"), "{kind:?} {size}");
            std::fs::remove_file(&path).unwrap();
        }
        make(&path, bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY, 4, 512, 2);
        assert!(reason().contains("none of its programs is attached"));
    });
}
