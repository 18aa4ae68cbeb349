//! Calico's own counters beside verdicts, and instead of them where our programs cannot be: what both say together is what was
//! decided, once, while the one takes the other's place under load.

use super::*;
use accountant_core::calico::bpf::Totals;
use accountant_core::calico::bpf::totals::RuleHits;
use accountant_core::index::Index;
use accountant_core::ledger::{Key, What};
use accountant_core::watch::Fate;

const PORT: u16 = 7401;

/// Who reads, and what was read so far.
struct Reader {
    source: CalicoBpf,
    totals: Totals,
    /// Packets in totals: of rules, and accepted at each endpoint.
    posted: (u64, u64),
    /// Verdicts of programs that are gone, and of those that are there.
    gone: Counts,
    counted: Counts,
}

impl Reader {
    fn new(lab: &Lab) -> Self {
        Self {
            source: lab.source(),
            totals: Totals::default(),
            posted: (0, 0),
            gone: Counts::new(),
            counted: Counts::new(),
        }
    }

    fn read(&mut self) -> Poll {
        let poll = read(&mut self.source);
        for own in &poll.totals {
            for posting in self.totals.apply(own, &poll.verdicts, &Index::default()).postings {
                match &posting.key {
                    Key::Unattributed(..) => self.posted.0 += posting.amount.packets,
                    Key::Total(total) => match total.what {
                        What::Seen { fate: Fate::Accepted, .. } => self.posted.1 += posting.amount.packets,
                        ref what => panic!("{what:?}"),
                    },
                    Key::Account(_) => panic!("{posting:?}"),
                }
            }
        }
        let counted = counts(&poll);
        if !counted.is_empty() || poll.gone.is_empty() {
            self.counted = counted;
        }
        if !poll.gone.is_empty() {
            self.gone = sum(std::mem::take(&mut self.gone), std::mem::take(&mut self.counted));
        }
        poll
    }

    /// Hits of all rules, by verdicts and totals together, and packets accepted at endpoints.
    fn all(&self) -> (u64, u64) {
        let all = sum(self.gone.clone(), self.counted.clone());
        let accepted: u64 = all.values().map(|counter| counter.packets).sum();
        (hits(&all).values().sum::<u64>() + self.posted.0, accepted + self.posted.1)
    }
}

/// A state of a size that nobody knows takes the place of the one that there is, and goes.
fn hide_state(lab: &Lab) -> impl FnOnce() {
    let path = lab.pins.path().join("cali_state7");
    make(&path, bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY, 4, 496, 2);
    move || std::fs::remove_file(path).unwrap()
}

#[test]
fn totals_and_verdicts_take_turns_under_load() {
    in_lab(|lab| {
        let stand_in = lab.stand_in(NEWEST);
        stand_in.decide(PORT, INGRESS, allow(&[1, 2]));
        stand_in.decide(PORT, EGRESS, allow(&[3]));
        let shown = hide_state(lab);
        let mut reader = Reader::new(lab);
        let how = reader.read().how;
        assert!(
            how.is_totals_only()
                && how.describe(accountant_core::snapshot::Source::CalicoBpf).contains("496")
        );
        let [a, b] = ["a", "b"].map(|pod| lab.node.pod("shop", pod).unwrap());
        let flood = |cpu, to: IpAddr| Flood { until: Until::Stopped, cpu: Some(cpu), ..Flood::new(to, PORT) };
        let flooding = [flood(0, b.v4().unwrap()).start(&a.netns), flood(1, b.v6().unwrap()).start(&a.netns)];
        let mut shown = Some(shown);
        let mut before = 0;
        for round in 0..24 {
            if round % 6 == 5 {
                match shown.take() {
                    Some(show) => show(),
                    None => shown = Some(hide_state(lab)),
                }
            }
            let poll = reader.read();
            let all = reader.all().0;
            assert!(all >= before, "round {round}: {all} after {before}, {:?}", poll.how);
            assert!(all <= stand_in.rules().values().sum(), "round {round}");
            before = all;
        }
        for flooding in flooding {
            flooding.stop().unwrap();
        }
        for _ in 0..6 {
            reader.read();
        }
        let rules: u64 = stand_in.rules().values().sum();
        assert!(rules > 10_000, "{rules}");
        assert_eq!(reader.all(), (rules, rules / 3 * 2), "{:?} {:?}", reader.posted, reader.counted);
        assert!(reader.posted.0 > 0 && !reader.counted.is_empty() || !reader.gone.is_empty());
    });
}

/// Every layout of counters, also those that each interface has for itself, and none.
#[test]
fn totals_are_read_in_every_layout() {
    let lab = Lab::new();
    for version in VERSIONS {
        let test = || {
            let stand_in = lab.stand_in(version);
            stand_in.decide(PORT, INGRESS, allow(&[1, 2]));
            stand_in.decide(PORT, EGRESS, allow(&[3]));
            let _shown = hide_state(&lab);
            let mut reader = Reader::new(&lab);
            reader.read();
            lab.send(PORT, 5);
            for _ in 0..4 {
                reader.read();
            }
            assert_eq!(reader.posted, (30, 20), "{version:?}");
        };
        lab.node.host().enter(test).unwrap();
        lab.pins.clear();
    }
}

/// The check by rules sees what Calico counts and we do not, and its own resets are none.
#[test]
fn rule_by_rule_ours_are_calicos() {
    in_lab(|lab| {
        let stand_in = lab.stand_in(NEWEST);
        let mut reader = Reader::new(lab);
        reader.read();
        play(lab, &stand_in, 2);
        let poll = reader.read();
        assert_eq!(reader.totals.difference(), Some(0));
        assert_eq!(reader.posted, (0, 0));
        let Some(RuleHits { hits, .. }) = &poll.totals[0].rules else { panic!() };
        assert_eq!(poll.rules, Some(hits.len()));
        for _ in 0..12 {
            reader.read();
        }
        // A hit that we know nothing of.
        stand_in.hit(1, 4);
        reader.read();
        assert_eq!(reader.totals.difference(), Some(4));
        // Felix deletes what it counted.
        stand_in.forget_rules();
        reader.read();
        play(lab, &stand_in, 1);
        reader.read();
        reader.read();
        assert_eq!(reader.totals.difference().map(|d| d <= 4), Some(true));
        assert_eq!(reader.posted, (0, 0));
    });
}
