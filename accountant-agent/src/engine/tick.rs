//! A tick that is under way: which sources were asked, and which are to be asked after those.
//!
//! Where two backends hold Calico's chains, the one that posts is read first: then the other has counted all that was posted, and
//! what it lacks is what it never saw (see [`super::overlap`]).

use accountant_core::snapshot::Source;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

/// How often a source is read within one tick at most.
const READINGS: u32 = 3;

/// A tick that is under way.
#[derive(Debug)]
pub(super) struct Tick {
    /// Sources that were asked and have not answered.
    pending: HashSet<Source>,
    /// Sources that are asked when all others have answered.
    later: BTreeSet<Source>,
    /// How often each was asked.
    readings: BTreeMap<Source, u32>,
    /// Whether somebody waits for exact numbers.
    pub(super) thorough: bool,
    /// When sources were asked that had not to wait for others.
    pub(super) asked: Instant,
}

impl Tick {
    /// Begins a tick; [`Self::ask`] says who is to be asked first.
    pub(super) fn new(later: BTreeSet<Source>, thorough: bool) -> Self {
        Self { pending: HashSet::new(), later, readings: BTreeMap::new(), thorough, asked: Instant::now() }
    }

    /// Takes these sources for asked, but those that wait.
    pub(super) fn ask(&mut self, sources: impl IntoIterator<Item = Source>) -> Vec<Source> {
        let now: Vec<_> = sources.into_iter().filter(|source| !self.later.contains(source)).collect();
        self.pending.extend(&now);
        self.asked = Instant::now();
        now
    }

    /// The sources that waited, when nobody else is waited for.
    pub(super) fn ask_later(&mut self) -> Vec<Source> {
        if !self.pending.is_empty() {
            return Vec::new();
        }
        let later = std::mem::take(&mut self.later);
        self.ask(later)
    }

    /// Whether a source that has answered is to be asked once more, as its answer was not the last word.
    pub(super) fn asks_again(&mut self, source: Source) -> bool {
        let readings = self.readings.entry(source).or_insert(1);
        let again = self.thorough && self.pending.contains(&source) && *readings < READINGS;
        *readings += u32::from(again);
        again
    }

    /// Takes the last word of a source.
    pub(super) fn end(&mut self, source: Source) {
        self.pending.remove(&source);
        self.later.remove(&source);
    }

    /// Does not wait any longer for those that were asked; says which they are.
    pub(super) fn give_up(&mut self) -> HashSet<Source> {
        std::mem::take(&mut self.pending)
    }

    /// Whether all have answered.
    pub(super) fn is_done(&self) -> bool {
        self.pending.is_empty() && self.later.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_wait_are_asked_when_the_others_have_answered() {
        let [first, second] = [Source::Nftables, Source::IptablesLegacy];
        let mut tick = Tick::new(BTreeSet::from([second]), true);
        assert_eq!(tick.ask([second, first]), [first]);
        assert_eq!(tick.ask_later(), []);
        assert!(tick.asks_again(first) && tick.asks_again(first) && !tick.asks_again(first));
        tick.end(first);
        assert!(!tick.is_done());
        assert_eq!(tick.ask_later(), [second]);
        tick.end(second);
        assert!(tick.is_done());
        assert_eq!(tick.ask_later(), []);
    }

    #[test]
    fn whoever_does_not_answer_keeps_nobody_from_being_asked() {
        let [first, second] = [Source::Nftables, Source::IptablesLegacy];
        let mut tick = Tick::new(BTreeSet::from([second]), true);
        tick.ask([second, first]);
        assert_eq!(tick.give_up(), HashSet::from([first]));
        assert_eq!(tick.ask_later(), [second]);
        assert!(!tick.is_done());
    }
}
