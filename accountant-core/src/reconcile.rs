//! From counter values to what was counted since: one rule at a time.
//!
//! A rule is known again by its content ([`crate::rule::RuleId`]), not by its position. Its first value counts whole, a
//! rise counts as the difference. A fall is not believed until a second reading confirms it; until then the whole
//! table is held back: what rose may have fallen, too, and be past its old value again. Then the new value counts whole
//! and a reset is on record. Where counters may show a moment of zeros, a chain that is all zeros right after rules changed is
//! not believed either: it tells of nothing, and may hide what was counted. A rule that was deleted hands over its last value ([`crate::snapshot::Retired`]).
//!
//! Invariant: no delta is negative, and nothing is counted twice.

use crate::rule::{Chain, RuleId};
use crate::snapshot::{Reading, Retired, Snapshot};
use crate::{ChainName, Counter};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a fall must stand before it is believed, where counters may show a moment of zeros.
const DIP_IS_OVER: Duration = Duration::from_millis(250);

/// What span of time a rule's delta covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// From the previous reading on.
    SinceReading,
    /// From the rule's creation, after the previous reading, on.
    SinceCreation,
    /// From a moment before the agent first saw the table on.
    SinceEver,
    /// From a reset of its counter on; what was counted between the last reading and the reset is lost.
    SinceReset,
}

/// What one chain counted since the previous reading.
#[derive(Clone, Debug)]
pub struct ChainDelta {
    /// The chain as it stood.
    pub chain: Arc<Chain>,
    /// One delta a rule.
    pub deltas: Vec<Counter>,
    /// What each delta covers.
    pub spans: Vec<Span>,
    /// Rules vanished without their last values.
    pub lossy: bool,
    /// How many counters were reset.
    pub resets: u64,
}

/// Remembers the last value of every rule of one table.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reconciler {
    chains: HashMap<ChainName, Track>,
    /// Since when zeros may be a moment's.
    #[serde(skip)]
    uneasy_since: Option<Duration>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Track {
    chain: Arc<Chain>,
    /// The last value of each rule of `chain`; none for a rule that has handed over its last value.
    last: Vec<Option<Counter>>,
    /// When a fall was first seen that is not yet believed.
    #[serde(skip)]
    fell_at: Option<Duration>,
}

/// Circumstances of a reading that matter here.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// The agent has not seen the table before, or not without a gap.
    pub first_sight: bool,
    /// This may be a moment in which counters show zeros, [`Reconciler::may_hide`].
    pub may_hide: bool,
    /// Nothing is told, [`Reconciler::holds_back`].
    pub held_back: bool,
}

impl Reconciler {
    /// Takes the last values of rules that were deleted.
    pub fn retire(&mut self, retired: &Retired) -> ChainDelta {
        let chain = &retired.chain;
        let mut delta = ChainDelta::empty(chain);
        let mut track = self.chains.get_mut(&chain.name);
        for &(index, last_value) in &retired.finals {
            let Some(&id) = chain.ids().get(index) else { continue };
            let before = track.as_deref_mut().and_then(|track| track.take_last(id));
            delta.set(index, last_value, before, Span::SinceCreation);
        }
        let lost = retired.lost.iter().filter_map(|&index| chain.ids().get(index));
        for &id in lost {
            delta.lossy |= track.as_deref_mut().and_then(|track| track.take_last(id)).is_some();
        }
        delta
    }

    /// Takes a reading of a chain. `None` while it is not believed.
    pub fn read(&mut self, reading: &Reading, circumstances: Circumstances) -> Option<ChainDelta> {
        let Reading { chain, counters } = reading;
        let fresh = if circumstances.first_sight { Span::SinceEver } else { Span::SinceCreation };
        let track = self.chains.entry(chain.name.clone()).or_insert_with(|| Track::new(chain));

        let hides = circumstances.may_hide && counters.iter().all(|now| now.is_zero());
        if circumstances.held_back || hides {
            return None;
        }
        let before = track.last_of(chain);
        let mut delta = ChainDelta::empty(chain);
        for (index, (&now, &before)) in counters.iter().zip(&*before).enumerate() {
            delta.set(index, now, before, fresh);
        }
        let kept = before.iter().flatten().count();
        delta.lossy = kept < track.last.iter().flatten().count();
        *track =
            Track { chain: chain.clone(), last: counters.iter().copied().map(Some).collect(), fell_at: None };
        Some(delta)
    }

    /// Whether a snapshot is held back as a whole: counters of a chain fell, and it is not yet believed. A fall is when it
    /// was seen before, long enough ago where counters may show a moment of zeros. Call it once for each snapshot, when
    /// rules that went have handed over their last values.
    pub fn holds_back(&mut self, snapshot: &Snapshot) -> bool {
        let mut holds_back = false;
        for reading in &snapshot.chains {
            let Some(track) = self.chains.get_mut(&reading.chain.name) else { continue };
            if !track.falls(reading) {
                track.fell_at = None;
            } else if let Some(since) = track.fell_at {
                holds_back |= snapshot.may_dip && snapshot.at.saturating_sub(since) < DIP_IS_OVER;
            } else {
                track.fell_at = Some(snapshot.at);
                holds_back = true;
            }
        }
        holds_back
    }

    /// Whether a snapshot may be of the moment in which counters are at zero: rules changed, or counters fell, and neither
    /// was long ago. Chains that are all zeros in it tell nothing then.
    pub fn may_hide(&mut self, snapshot: &Snapshot) -> bool {
        let first_fall = self.first_fall();
        let is_uneasy = self.uneasy_since.is_some() || first_fall.is_some() || self.will_change(snapshot);
        if !snapshot.may_dip || !is_uneasy {
            self.uneasy_since = None;
            return false;
        }
        let since = *self.uneasy_since.get_or_insert(first_fall.unwrap_or(snapshot.at));
        let is_over = snapshot.at.saturating_sub(since) >= DIP_IS_OVER;
        if is_over {
            self.uneasy_since = None;
        }
        !is_over
    }

    /// Whether rules are gone in a snapshot, or chains, that did not hand over their last values.
    pub fn will_lose(&self, snapshot: &Snapshot) -> bool {
        let mut handed_over: HashMap<&ChainName, HashSet<RuleId>> = HashMap::new();
        for retired in &snapshot.retired {
            let ids = retired.finals.iter().filter_map(|(index, _)| retired.chain.ids().get(*index).copied());
            handed_over.entry(&retired.chain.name).or_default().extend(ids);
        }
        let loses = |name: &ChainName, kept: &[RuleId]| {
            let Some(track) = self.chains.get(name) else { return false };
            let handed_over = handed_over.get(name);
            let mut rules = track.chain.rules().iter().zip(track.chain.ids()).zip(&track.last);
            rules.any(|((rule, id), last)| {
                let is_there = handed_over.is_some_and(|ids| ids.contains(id)) || kept.contains(id);
                rule.counted && last.is_some() && !is_there
            })
        };
        let changed = snapshot.chains.iter().filter(|reading| self.differs(&reading.chain));
        changed.into_iter().any(|reading| loses(&reading.chain.name, reading.chain.ids()))
            || snapshot.gone.iter().any(|chain| loses(chain, &[]))
    }

    /// Whether a snapshot has other rules than before.
    pub fn will_change(&self, snapshot: &Snapshot) -> bool {
        !snapshot.gone.is_empty() || snapshot.chains.iter().any(|reading| self.differs(&reading.chain))
    }

    fn differs(&self, chain: &Arc<Chain>) -> bool {
        let track = self.chains.get(&chain.name);
        track.is_none_or(|track| !Arc::ptr_eq(&track.chain, chain) && !track.chain.same_rules(chain))
    }

    /// Forgets a chain that is gone.
    pub fn forget(&mut self, chain: &ChainName) {
        self.chains.remove(chain);
    }

    /// A chain as it is remembered.
    pub(crate) fn chain(&self, name: &ChainName) -> Option<&Arc<Chain>> {
        self.chains.get(name).map(|track| &track.chain)
    }

    /// Whether a fall waits for its confirmation, or zeros for their end.
    pub fn waits(&self) -> bool {
        self.uneasy_since.is_some() || self.first_fall().is_some()
    }

    /// Since when a fall waits to be believed.
    fn first_fall(&self) -> Option<Duration> {
        self.chains.values().filter_map(|track| track.fell_at).min()
    }
}

impl ChainDelta {
    fn empty(chain: &Arc<Chain>) -> Self {
        let rules = chain.rules().len();
        Self {
            chain: chain.clone(),
            deltas: vec![Counter::ZERO; rules],
            spans: vec![Span::SinceReading; rules],
            lossy: false,
            resets: 0,
        }
    }

    /// One rule's delta: `fresh` is the span where the rule was not there before.
    fn set(&mut self, index: usize, now: Counter, before: Option<Counter>, fresh: Span) {
        let (delta, span) = match before {
            None => (now, fresh),
            Some(before) if now.cannot_follow(before) => (now, Span::SinceReset),
            Some(before) => (now.since(before), Span::SinceReading),
        };
        self.resets += u64::from(span == Span::SinceReset);
        self.deltas[index] = delta;
        self.spans[index] = span;
    }
}

impl Track {
    fn new(chain: &Arc<Chain>) -> Self {
        Self { chain: chain.clone(), last: vec![None; chain.rules().len()], fell_at: None }
    }

    /// Whether a reading has counters that no packets can have made of the last ones.
    fn falls(&self, reading: &Reading) -> bool {
        let last = self.last_of(&reading.chain);
        last.iter().zip(&reading.counters).any(|(last, now)| last.is_some_and(|last| now.cannot_follow(last)))
    }

    /// The last values of the rules of `chain`, in its order.
    fn last_of(&self, chain: &Arc<Chain>) -> Cow<'_, [Option<Counter>]> {
        if Arc::ptr_eq(&self.chain, chain) || self.chain.same_rules(chain) {
            return Cow::Borrowed(&self.last);
        }
        let known: HashMap<RuleId, Option<Counter>> =
            self.chain.ids().iter().copied().zip(self.last.iter().copied()).collect();
        chain.ids().iter().map(|id| known.get(id).copied().flatten()).collect()
    }

    fn take_last(&mut self, id: RuleId) -> Option<Counter> {
        let index = self.chain.ids().iter().position(|&known| known == id)?;
        self.last[index].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Action, Matches, Rule};

    fn chain(hashes: &[&str]) -> Arc<Chain> {
        named("cali-tw-x", hashes)
    }

    fn named(name: &str, hashes: &[&str]) -> Arc<Chain> {
        let rule = |hash: &&str| Rule {
            hash: Some((*hash).into()),
            comments: vec![],
            matches: Matches::default(),
            action: Action::None,
            content: 0,
            counted: true,
        };
        Arc::new(Chain::new(name.into(), hashes.iter().map(rule).collect()))
    }

    fn reading(chain: &Arc<Chain>, packets: &[u64]) -> Reading {
        let counters = packets.iter().map(|&p| Counter::new(p, p)).collect();
        Reading { chain: chain.clone(), counters }
    }

    /// Takes a snapshot of one chain, as an attributor does.
    fn read(reconciler: &mut Reconciler, reading: Reading, millis: u64, may_dip: bool) -> Option<ChainDelta> {
        let at = Duration::from_millis(millis);
        let snapshot = Snapshot { chains: vec![reading], may_dip, at, ..Snapshot::default() };
        let may_hide = reconciler.may_hide(&snapshot);
        let held_back = reconciler.holds_back(&snapshot);
        let circumstances = Circumstances { first_sight: false, may_hide, held_back };
        reconciler.read(&snapshot.chains[0], circumstances)
    }

    fn packets(delta: &ChainDelta) -> Vec<u64> {
        delta.deltas.iter().map(|d| d.packets).collect()
    }

    #[test]
    fn rules_are_known_again_wherever_they_stand() {
        let mut reconciler = Reconciler::default();
        read(&mut reconciler, reading(&chain(&["a", "b"]), &[5, 7]), 0, false);
        let delta = read(&mut reconciler, reading(&chain(&["new", "b", "a"]), &[2, 8, 5]), 1, false).unwrap();
        assert_eq!(packets(&delta), [2, 1, 0]);
        assert_eq!(delta.spans, [Span::SinceCreation, Span::SinceReading, Span::SinceReading]);
        assert!(!delta.lossy);
        let delta = read(&mut reconciler, reading(&chain(&["new", "c"]), &[2, 1]), 2, false).unwrap();
        assert_eq!((packets(&delta), delta.lossy), (vec![0, 1], true));
    }

    #[test]
    fn a_dip_loses_and_doubles_nothing() {
        let mut reconciler = Reconciler::default();
        let chain = chain(&["a", "b"]);
        read(&mut reconciler, reading(&chain, &[5, 7]), 0, false);
        assert!(read(&mut reconciler, reading(&chain, &[0, 8]), 1, false).is_none());
        assert!(reconciler.waits());
        assert_eq!(packets(&read(&mut reconciler, reading(&chain, &[6, 9]), 2, false).unwrap()), [1, 2]);
        assert!(!reconciler.waits());
    }

    #[test]
    fn a_fall_that_stands_is_a_reset() {
        let mut reconciler = Reconciler::default();
        let chain = chain(&["a", "b"]);
        read(&mut reconciler, reading(&chain, &[5, 7]), 0, false);
        assert!(read(&mut reconciler, reading(&chain, &[1, 8]), 1, false).is_none());
        let delta = read(&mut reconciler, reading(&chain, &[2, 9]), 2, false).unwrap();
        assert_eq!((packets(&delta), delta.resets), (vec![2, 2], 1));
        assert_eq!(delta.spans, [Span::SinceReset, Span::SinceReading]);
    }

    #[test]
    fn where_dips_are_possible_a_fall_must_stand_for_a_while() {
        let mut reconciler = Reconciler::default();
        let chain = chain(&["a"]);
        read(&mut reconciler, reading(&chain, &[5]), 0, false);
        assert!(read(&mut reconciler, reading(&chain, &[0]), 1, true).is_none());
        assert!(read(&mut reconciler, reading(&chain, &[0]), 2, true).is_none());
        assert_eq!(packets(&read(&mut reconciler, reading(&chain, &[0]), 300, true).unwrap()), [0]);
    }

    #[test]
    fn a_moment_of_zeros_after_a_fall_is_none_of_it() {
        let mut reconciler = Reconciler::default();
        let [fallen, other] = ["cali-pi-a", "cali-pi-b"].map(|name| named(name, &["a"]));
        let mut held_back = |values: [u64; 2], millis| {
            let chains = vec![reading(&fallen, &values[..1]), reading(&other, &values[1..])];
            let at = Duration::from_millis(millis);
            let snapshot = Snapshot { chains, may_dip: true, at, ..Snapshot::default() };
            let held_back = reconciler.holds_back(&snapshot);
            for reading in &snapshot.chains {
                reconciler.read(reading, Circumstances { first_sight: false, may_hide: false, held_back });
            }
            held_back
        };
        assert!(!held_back([5, 7], 0));
        assert!(held_back([1, 7], 100));
        assert!(held_back([0, 0], 400), "the other fell just now");
        assert!(!held_back([1, 7], 500));
    }

    #[test]
    fn zeros_of_new_rules_may_be_a_dip() {
        let mut reconciler = Reconciler::default();
        read(&mut reconciler, reading(&chain(&["a", "b"]), &[0, 0]), 0, false);
        let rewritten = chain(&["a", "c"]);
        assert!(read(&mut reconciler, reading(&rewritten, &[0, 0]), 1, true).is_none());
        let delta = read(&mut reconciler, reading(&rewritten, &[1, 1]), 2, true).unwrap();
        assert_eq!(delta.spans, [Span::SinceReading, Span::SinceCreation]);
    }

    #[test]
    fn last_values_count_once_and_the_next_incarnation_starts_at_zero() {
        let mut reconciler = Reconciler::default();
        let old = chain(&["a", "b"]);
        read(&mut reconciler, reading(&old, &[5, 7]), 0, false);
        let finals = vec![(0, Counter::new(9, 9)), (1, Counter::new(7, 7))];
        assert_eq!(
            packets(&reconciler.retire(&Retired { chain: old.clone(), finals, lost: vec![] })),
            [4, 0]
        );
        // A version that came and went between two readings.
        let between = chain(&["c"]);
        let finals = vec![(0, Counter::new(3, 3))];
        assert_eq!(packets(&reconciler.retire(&Retired { chain: between, finals, lost: vec![] })), [3]);
        let delta = read(&mut reconciler, reading(&old, &[1, 2]), 1, false).unwrap();
        assert_eq!((packets(&delta), delta.lossy), (vec![1, 2], false));
    }

    #[test]
    fn what_follows_a_rule_whose_last_value_is_lost_counts_whole() {
        let mut reconciler = Reconciler::default();
        let chain = chain(&["a", "b"]);
        read(&mut reconciler, reading(&chain, &[20, 7]), 0, false);
        let delta = reconciler.retire(&Retired { chain: chain.clone(), finals: vec![], lost: vec![0] });
        assert_eq!((packets(&delta), delta.lossy), (vec![0, 0], true));
        // It is past its old value again.
        let delta = read(&mut reconciler, reading(&chain, &[21, 8]), 1, false).unwrap();
        assert_eq!((packets(&delta), delta.spans[0]), (vec![21, 1], Span::SinceCreation));
    }
}
