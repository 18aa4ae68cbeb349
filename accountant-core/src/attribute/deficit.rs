//! Equations that rest with less than nothing.
//!
//! A packet that comes while counters are read shows in later rules and not yet in earlier ones. If these are rewritten
//! before the next reading, and what they counted is lost, that stays so: later rules were charged, and nothing makes up
//! for it. A rule before them that stayed has counted the packet, and seems to know of one that went nowhere.
//!
//! Invariant: what is charged to nobody because of a rewrite is not charged already. Equations stay as they are.

use super::amount::Amount;
use super::equation::Role;
use super::program::Relation;
use super::settle::Settler;
use super::store::EquationId;

impl Settler<'_> {
    pub(super) fn find_deficits(&mut self) {
        let deficit = |id: EquationId| {
            let row = &self.store[id];
            // That of a Pass tier's last policy is less than nothing by what was passed, too.
            let is_plain = row.role == Role::Counts
                && row.is_difference
                && !matches!(row.relation, Relation::LastDenied(_));
            let missing = (Amount::ZERO - row.rest()).at_least_zero();
            (is_plain && row.is_quiet(self.snapshot) && missing.any_positive()).then_some((id, missing))
        };
        self.deficits = self.store.equations().filter_map(|(id, _)| deficit(id)).collect();
    }

    /// How much of what is doubted in an equation is missing in others of its chain. It is taken once.
    pub(super) fn take_deficit(&mut self, id: EquationId, most: Amount) -> Amount {
        let mut taken = Amount::ZERO;
        for (row, missing) in &mut self.deficits {
            if self.store[*row].chain == self.store[id].chain {
                let part = (*missing).min(most - taken).at_least_zero();
                *missing -= part;
                taken += part;
            }
        }
        taken
    }
}
