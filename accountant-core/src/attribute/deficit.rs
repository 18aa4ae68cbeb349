//! Equations that rest with less than nothing.
//!
//! A packet that comes while counters are read shows in later rules and not yet in earlier ones. If these are rewritten
//! before the next reading, and what they counted is lost, that stays so: later rules were charged, and nothing makes up
//! for it. A rule before them that stayed has counted the packet, and seems to know of one that went nowhere.
//!
//! Invariant: what is charged to nobody because of a rewrite is not charged already.

use super::amount::Amount;
use super::equation::Role;
use super::settle::Settler;
use super::store::EquationId;
use std::collections::HashSet;

impl Settler<'_> {
    pub(super) fn find_deficits(&mut self) {
        let rests_below = |id: EquationId| {
            let row = &self.store[id];
            let is_plain = row.role == Role::Counts && row.is_difference && row.minus_terms.is_empty();
            is_plain && row.is_quiet(self.snapshot) && (Amount::ZERO - row.rest()).any_positive()
        };
        self.deficits = self.store.equations().map(|(id, _)| id).filter(|&id| rests_below(id)).collect();
    }

    /// How much of what is doubted in an equation is missing in others of its chain, which have it from now on.
    pub(super) fn take_deficit(&mut self, id: EquationId, most: Amount) -> Amount {
        let mut taken = Amount::ZERO;
        for &row in &self.deficits {
            if self.store[row].chain == self.store[id].chain {
                let equation = &mut self.store[row];
                let deficit = (Amount::ZERO - equation.rest()).at_least_zero();
                let part = deficit.min(most - taken).at_least_zero();
                equation.readings_mut().settled -= part;
                taken += part;
            }
        }
        taken
    }

    /// Once all of a chain is settled nothing was charged for what is missing in it.
    pub(super) fn forget_deficits(&mut self) {
        if self.deficits.is_empty() {
            return;
        }
        let open = self.store.equations().filter(|&(id, _)| self.is_open(id));
        let open: HashSet<_> = open.map(|(_, row)| row.chain.clone()).collect();
        for id in std::mem::take(&mut self.deficits) {
            let row = &mut self.store[id];
            if !open.contains(&row.chain) {
                let readings = row.readings_mut();
                readings.settled = readings.now.difference();
            }
        }
    }
}
