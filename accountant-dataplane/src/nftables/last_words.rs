//! What counters of deleted rules had last.
//!
//! The notification of a deleted rule has its counter as it was when the commit was told. A packet that a processor had in
//! the old rules at that moment counts there later. When the kernel frees a counter no packet can be in its rule any more,
//! and [`Freed`] tells what it had then. Each walk through the kernel's lists tells which pointer is which rule's.
//!
//! Invariant: a last value is replaced by a higher one only, and only by that of the same rule. Who replaces a rule gives the
//! new one its handle, so a pointer belongs to the rule that the first commit after the walk deletes, if it was walked at a
//! generation that stood still; it is nobody else's until it is freed.

use super::mirror::{Went, is_after};
use crate::in_place::CannotHere;
use crate::in_place::freed::Freed;
use crate::kernel::clock;
use accountant_abi::in_place::WalkedRule;
use accountant_core::Counter;
use accountant_core::snapshot::{Retired, TableId};
use std::collections::HashMap;
use std::thread;
use std::time::Duration;

/// How long to wait for the kernel to free what was deleted: it does so a grace period after the commit.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many rules that went are remembered one by one until there is another walk.
const MOST_DELETED: usize = 1 << 16;
/// How long between two looks.
const NAP: Duration = Duration::from_millis(1);

/// Where counters are, and what was told of those that are freed.
#[derive(Debug)]
pub(super) struct LastWords {
    /// Or why nobody tells.
    freed: Result<Freed, CannotHere>,
    /// A walk of which it is not known yet whether the generation stood still.
    fresh: Option<Walk>,
    latest: Walk,
    /// What earlier walks came by and the next one did not, since the last reading.
    former: HashMap<(TableId, u64), Vec<Seen>>,
    /// The latest generation at which each handle's rule went, of those that went since the latest walk.
    deleted: HashMap<(TableId, u64), u32>,
    /// The generation at which everything was read anew: what went before was not told.
    anew: Option<u32>,
    /// How many news had found no room at the last reading.
    lost: u64,
}

/// Table, handle, and pointer to the counter of a rule.
type Place = (TableId, u64, u64);

/// A pointer as a walk found it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    generation: u32,
    at: Duration,
    pointer: u64,
}

/// Where the counters of all rules were that matter.
#[derive(Debug, Default)]
pub(super) struct Walk {
    generation: u32,
    /// After the generation was asked for, before the walk.
    at: Duration,
    /// In their order, once it is over.
    places: Vec<Place>,
}

impl Walk {
    /// Begins at a generation that the kernel has reached.
    pub(super) fn at(generation: u32) -> Self {
        Self { generation, at: clock(), places: Vec::new() }
    }

    pub(super) fn came_by(&mut self, table: TableId, rules: &[WalkedRule]) {
        let counted = rules.iter().filter(|rule| rule.counter != 0);
        self.places.extend(counted.map(|rule| (table, rule.handle, rule.counter)));
    }

    fn find(&self, table: TableId, handle: u64) -> Option<Seen> {
        let place = self.places.binary_search_by_key(&(table, handle), |&(table, handle, _)| (table, handle));
        let pointer = self.places[place.ok()?].2;
        Some(Seen { generation: self.generation, at: self.at, pointer })
    }
}

impl LastWords {
    /// Knows nothing, and is told this way or, for a reason, not at all.
    pub(super) fn new(freed: Result<Freed, CannotHere>) -> Self {
        let (latest, former, deleted) = (Walk::default(), HashMap::new(), HashMap::new());
        Self { freed, fresh: None, latest, former, deleted, anew: None, lost: 0 }
    }

    /// Why last values are not told.
    pub(super) fn reason(&self) -> Option<&CannotHere> {
        self.freed.as_ref().err()
    }

    /// Everything was read anew at this generation.
    pub(super) fn read_anew(&mut self, generation: u32) {
        self.anew = Some(generation);
    }

    /// Takes a walk, to be believed if the generation still is the same.
    pub(super) fn walked(&mut self, walk: Walk) {
        if let Ok(freed) = &mut self.freed {
            freed.know(walk.places.iter().map(|&(.., pointer)| pointer));
        }
        self.fresh = Some(walk);
    }

    /// Whether there was a walk of which it is not known yet whether the generation stood still.
    pub(super) fn has_fresh_walk(&self) -> bool {
        self.fresh.is_some()
    }

    /// Remembers where counters are if this, the present generation, is that of the last walk.
    pub(super) fn stood(&mut self, generation: u32) {
        let Some(mut walk) = self.fresh.take().filter(|walk| walk.generation == generation) else { return };
        walk.places.sort_unstable();
        walk.places.shrink_to_fit();
        let before = std::mem::replace(&mut self.latest, walk);
        let Walk { generation, at, places } = before;
        for (table, handle, pointer) in places {
            if self.latest.find(table, handle).is_none_or(|seen| seen.pointer != pointer) {
                let seen = Seen { generation, at, pointer };
                self.former.entry((table, handle)).or_default().push(seen);
            }
        }
    }

    /// Puts the last values of rules that went in the place of those that were told when they were deleted; also of those
    /// of whose deletion nothing was told. Returns of how many nothing is known.
    pub(super) fn confirm(&mut self, went: &mut [Went]) -> usize {
        let seen = self.seen(went);
        self.wait(&seen);
        let last =
            |seen: &Option<Seen>| seen.and_then(|seen| self.freed.as_ref().ok()?.last(seen.pointer, seen.at));
        let mut lasts = seen.iter().map(last);
        let unconfirmed = went.iter_mut().map(|went| went.take_last(&mut lasts)).sum();
        self.forget();
        unconfirmed
    }

    /// Forgets what no rule that goes from now on can be asked for.
    fn forget(&mut self) {
        if !self.former.is_empty() {
            self.former = HashMap::new();
            let pointers = self.latest.places.iter().map(|&(.., pointer)| pointer).collect();
            if let Ok(freed) = &mut self.freed {
                freed.forget_all_but(&pointers);
            }
        }
        let latest = self.latest.generation;
        self.deleted.retain(|_, generation| is_after(*generation, latest));
        if self.deleted.len() > MOST_DELETED {
            // As if they had gone unheard.
            self.anew = self
                .deleted
                .values()
                .copied()
                .reduce(|one, other| if is_after(one, other) { one } else { other });
            self.deleted.clear();
        }
        if let Ok(freed) = &mut self.freed {
            freed.forget_before(self.latest.at);
        }
    }

    /// Where the counter of each rule that went was seen, before the commit that deleted it and after any that deleted
    /// another of the same handle.
    fn seen(&mut self, went: &[Went]) -> Vec<Option<Seen>> {
        let Self { latest, former, deleted, anew, .. } = self;
        let mut all = Vec::new();
        for went in went {
            for handle in went.deleted() {
                let former = former.get(&(went.table, handle)).map(Vec::as_slice).unwrap_or_default();
                let latest = latest.find(went.table, handle);
                let before = deleted.insert((went.table, handle), went.generation);
                let unheard = anew.filter(|anew| is_after(went.generation, *anew));
                let is_it = |seen: &Seen| {
                    let went_meanwhile =
                        |other: Option<u32>| other.is_some_and(|other| is_after(other, seen.generation));
                    is_after(went.generation, seen.generation)
                        && !went_meanwhile(before)
                        && !went_meanwhile(unheard)
                };
                all.push(latest.filter(is_it).or_else(|| former.iter().copied().rfind(is_it)));
            }
        }
        all
    }

    /// Waits until all of these are freed, or it takes too long.
    fn wait(&mut self, seen: &[Option<Seen>]) {
        let Ok(freed) = &mut self.freed else { return };
        let lost = freed.hear();
        // What is waited for may be among what found no room.
        let deadline = clock() + if lost == self.lost { PATIENCE } else { Duration::ZERO };
        self.lost = lost;
        let all_told =
            |freed: &Freed| seen.iter().flatten().all(|seen| freed.last(seen.pointer, seen.at).is_some());
        while !all_told(freed) && clock() < deadline {
            thread::sleep(NAP);
            freed.hear();
        }
    }
}

impl Went {
    /// The handle of each rule that was deleted, in the order in which [`Went::take_last`] wants their last values.
    fn deleted(&self) -> impl Iterator<Item = u64> {
        let finals = self.retired.finals.iter().map(|(index, _)| *index);
        finals.chain(self.retired.lost.iter().copied()).map(|index| self.handles[index])
    }

    /// Takes the last values of its rules, where they are known. Returns of how many that have counters they are not.
    fn take_last(&mut self, lasts: &mut impl Iterator<Item = Option<Counter>>) -> usize {
        let Retired { chain, finals, lost } = &mut self.retired;
        let mut unknown = 0;
        for ((index, told), last) in finals.iter_mut().zip(&mut *lasts) {
            match last {
                Some(last) if !last.fell_below(*told) => *told = last,
                _ => unknown += usize::from(chain.rules()[*index].counted),
            }
        }
        let still_lost = std::mem::take(lost).into_iter().zip(lasts).filter_map(|(index, last)| match last {
            Some(last) => {
                finals.push((index, last));
                None
            }
            None => Some(index),
        });
        *lost = still_lost.collect();
        unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nftables::mirror::tests::rule;
    use accountant_core::rule::Chain;
    use accountant_core::snapshot::Source;
    use accountant_core::{IpVersion, Table};
    use std::sync::Arc;

    const TABLE: TableId =
        TableId { source: Source::Nftables, native: true, ip_version: IpVersion::V4, table: Table::Filter };

    fn went(generation: u32, handles: &[u64]) -> Went {
        let rules = handles.iter().map(|&content| rule(content)).collect();
        let chain = Arc::new(Chain::new("cali-tw-x".into(), rules));
        let finals = (0..handles.len()).map(|index| (index, Counter::new(3, 30))).collect();
        let retired = Retired { chain, finals, lost: vec![] };
        Went { table: TABLE, retired, generation, handles: handles.to_vec() }
    }

    fn walk(words: &mut LastWords, generation: u32, rules: &[(u64, u64)]) {
        let mut walk = Walk::at(generation);
        let rule = |&(handle, counter): &(u64, u64)| WalkedRule { handle, counter, chain: 0, padding: 0 };
        walk.came_by(TABLE, &rules.iter().map(rule).collect::<Vec<_>>());
        words.walked(walk);
    }

    fn pointers(words: &mut LastWords, went: &[Went]) -> Vec<Option<u64>> {
        words.seen(went).iter().map(|seen| seen.map(|seen| seen.pointer)).collect()
    }

    #[test]
    fn a_rule_that_takes_the_handle_of_another_is_another() {
        let mut words = LastWords::new(Err(CannotHere::NotYet));
        walk(&mut words, 4, &[(1, 0x10), (2, 0x20), (3, 0)]);
        words.stood(4);
        walk(&mut words, 6, &[(1, 0x11), (2, 0x20)]);
        words.stood(6);
        // Rule 1 is replaced twice, and the second one deleted.
        let all = [went(5, &[1]), went(7, &[1]), went(8, &[1, 2, 3])];
        assert_eq!(pointers(&mut words, &all), [Some(0x10), Some(0x11), None, Some(0x20), None]);
    }

    #[test]
    fn what_went_since_the_latest_walk_is_remembered() {
        let mut words = LastWords::new(Err(CannotHere::NotYet));
        walk(&mut words, 6, &[(1, 0x10), (2, 0x20)]);
        words.stood(6);
        words.confirm(&mut [went(7, &[1])]);
        // The rule that took its handle goes before there is another walk.
        assert_eq!(pointers(&mut words, &[went(8, &[1])]), [None]);
        // One that went unheard at 9 can have taken the other's, too; what is found gone at 9 was seen at 6.
        words.read_anew(9);
        assert_eq!(pointers(&mut words, &[went(9, &[2])]), [Some(0x20)]);
        assert_eq!(pointers(&mut words, &[went(10, &[2])]), [None]);
        walk(&mut words, 11, &[(1, 0x10)]);
        words.stood(11);
        assert_eq!(pointers(&mut words, &[went(12, &[1])]), [Some(0x10)]);
    }

    #[test]
    fn a_walk_counts_if_the_generation_stood() {
        let mut words = LastWords::new(Err(CannotHere::NotYet));
        walk(&mut words, 4, &[(1, 0x10)]);
        words.stood(5);
        assert_eq!(pointers(&mut words, &[went(5, &[1])]), [None]);
        // Generations wrap around.
        let mut words = LastWords::new(Err(CannotHere::NotYet));
        walk(&mut words, u32::MAX, &[(1, 0x10)]);
        words.stood(u32::MAX);
        assert_eq!(pointers(&mut words, &[went(1, &[1])]), [Some(0x10)]);
    }

    #[test]
    fn a_last_value_is_never_less_than_what_was_told() {
        let mut rules = went(1, &[1, 2, 3]);
        rules.retired.finals.pop();
        rules.retired.lost = vec![2];
        let (lower, higher) = (Counter::new(2, 30), Counter::new(4, 40));
        let unknown = rules.take_last(&mut [Some(lower), Some(higher), Some(higher)].into_iter());
        assert_eq!(unknown, 1);
        assert_eq!(rules.retired.finals, [(0, Counter::new(3, 30)), (1, higher), (2, higher)]);
        assert!(rules.retired.lost.is_empty());
    }
}
