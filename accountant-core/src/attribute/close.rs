//! Closing a component: what is left in its equations is accounted for, and they start anew.
//!
//! At rest all that is left is known. While packets move it is accounted for up to a moment between the last two
//! readings, of which only bounds are known: the next time starts with what may have been counted on either side of it.

use super::amount::Amount;
use super::equation::{Blame, Doubt, Missing, Role};
use super::settle::{Component, Settler};
use super::solve::Known;
use super::store::{EquationId, UnknownId};
use crate::calico::shared::PolicyAction;
use crate::id::TierName;
use crate::ledger::{AccountKey, Cause, Key, What};
use std::collections::{BTreeSet, HashMap};

impl Settler<'_> {
    /// Nothing moves: everything is accounted for.
    pub(super) fn close_at_rest(&mut self, component: &Component, known: Option<&Known>) {
        let mut in_tiers: HashMap<EquationId, Amount> = HashMap::new();
        let rows = self.rows_of(component);
        for &row in &component.rows {
            let held = self.store[row].rest();
            let charged = self.charge(row, component, known, held);
            if let Some(tier) = self.tier_of(row) {
                *in_tiers.entry(tier).or_default() += charged;
            }
        }
        let stand_ins: Vec<_> = rows.iter().copied().filter(|&row| self.stands_in(row)).collect();
        for row in stand_ins {
            let others = in_tiers.get(&row).copied().unwrap_or_default();
            let held = self.store[row].rest() - others;
            self.charge(row, component, known, held);
        }
        for &row in &rows {
            self.forget_told(row);
        }
        for id in rows.into_iter().chain(component.columns.iter().copied()) {
            self.store[id].close();
        }
        for &unknown in &component.unknowns {
            self.store[unknown].posted = Amount::ZERO;
        }
        for &row in &component.rows {
            self.store.drop_old_terms(row);
        }
    }

    /// The sum over a tier that this row's denies are part of.
    fn tier_of(&self, row: EquationId) -> Option<EquationId> {
        let rows = self.store[row].terms.iter().flat_map(|&term| &self.store[term].rows);
        rows.copied().find(|&row| self.store[row].role == Role::Helps)
    }

    /// Whether the sum over a tier is accounted for in place of those policies whose rules changed their meaning.
    pub(super) fn stands_in(&self, row: EquationId) -> bool {
        let rows = self.store[row].terms.iter().flat_map(|&term| &self.store[term].rows);
        let rows = rows.map(|&row| &self.store[row]).filter(|row| row.role == Role::Counts);
        let mut blames = rows.filter_map(|row| row.doubt()).map(|doubt| doubt.blame);
        self.store[row].role == Role::Helps && blames.any(|blame| blame == Blame::Elsewhere)
    }

    /// Whether part of it is doubted, and charged to nobody if it turns out to be there.
    pub(super) fn is_nobodys(&self, row: EquationId) -> bool {
        let mut rows = self.store[row].terms.iter().flat_map(|&term| &self.store[term].rows);
        rows.any(|&row| self.store[row].doubt().is_some_and(|doubt| matches!(doubt.blame, Blame::Nobody(_))))
    }

    /// It does not come to rest: what is certain by now is accounted for.
    pub(super) fn close_moving(&mut self, component: &Component, known: Option<&Known>) {
        let rows = self.rows_of(component);
        let can_move = |term: UnknownId| {
            let place = component.unknowns.iter().position(|&unknown| unknown == term);
            place.zip(known).is_none_or(|(place, known)| known.high[place].any_positive())
        };
        for &row in &rows {
            let equation = &self.store[row];
            let low = equation.low();
            if component.rows.contains(&row) && !equation.is_helper() {
                self.charge(row, component, known, (low - equation.settled()).at_least_zero());
            }
            let claimed = self.claimed(row);
            // Where only one of them can have done anything it is clear who did what is not settled.
            let is_shared = self.store[row].terms.iter().filter(|&&term| can_move(term)).count() > 1;
            let (snapshot, high) = (self.snapshot, self.store[row].high(self.snapshot));
            let equation = &mut self.store[row];
            let settled = low.max(equation.settled() + claimed);
            equation.readings_mut().settled = settled;
            equation.waited = 0;
            if equation.is_helper() {
                equation.unusable = true;
            } else if is_shared || equation.doubt().is_some() {
                equation.set_doubt(Some(Doubt {
                    blame: equation.doubt().map_or(Blame::Terms, |doubt| doubt.blame),
                    refutable: false,
                    from: settled,
                    to: high.is_bounded().then_some(high),
                    since: snapshot,
                }));
            }
        }
        for &column in &component.columns {
            self.reopen(column);
        }
        for &unknown in &component.unknowns {
            self.store[unknown].posted = Amount::ZERO;
        }
    }

    /// Starts a sum over endpoints anew, at a moment of which only bounds are known.
    fn reopen(&mut self, id: EquationId) {
        let column = &self.store[id];
        if !column.ever_fed {
            return;
        }
        let (low, high) = (column.low(), column.high(self.snapshot));
        let before = |&term: &UnknownId| -> Amount {
            let unknown = &self.store[term];
            let rows = unknown.rows.iter().map(|&row| &self.store[row]);
            let rows = rows.filter(|row| row.role == Role::Counts && row.doubt().is_none());
            rows.map(|row| (row.high(self.snapshot) - row.settled()).at_least_zero()).sum()
        };
        // Not more than the sum itself can have held by then, and missed before.
        let missed = column.missing().map_or(Amount::ZERO, |missing| missing.most);
        let held = (high - column.settled()).at_least_zero() + missed;
        let most = column.terms.iter().map(before).sum::<Amount>().min(held);
        let (snapshot, column) = (self.snapshot, &mut self.store[id]);
        column.readings_mut().settled = low;
        column.set_missing(Missing { most, refutable: false });
        let blame = Blame::Elsewhere;
        let doubt = Doubt { blame, refutable: false, from: low, to: Some(high), since: snapshot };
        column.set_doubt(Some(doubt));
    }

    /// The rows that have an unknown of the component in them.
    pub(super) fn rows_of(&self, component: &Component) -> Vec<EquationId> {
        let unknowns = component.unknowns.iter().map(|&unknown| &self.store[unknown]);
        let rows = unknowns.flat_map(|unknown| unknown.rows.iter().chain(&unknown.minus_rows));
        let rows: BTreeSet<_> = rows.chain(&component.rows).copied().collect();
        rows.into_iter().collect()
    }

    /// What was posted of the terms of a row since it was last settled.
    pub(super) fn claimed(&self, row: EquationId) -> Amount {
        let posted = |terms: &[UnknownId]| -> Amount { terms.iter().map(|&t| self.store[t].posted).sum() };
        let row = &self.store[row];
        posted(&row.terms) - posted(&row.minus_terms)
    }

    /// Accounts for what an equation holds beyond all claims; says how much that was.
    fn charge(
        &mut self,
        id: EquationId,
        component: &Component,
        known: Option<&Known>,
        held: Amount,
    ) -> Amount {
        let row = &self.store[id];
        if row.role == Role::AtMost || row.unusable {
            return Amount::ZERO;
        }
        let left = (held - self.claimed(id)).at_least_zero();
        let most = known.and_then(|known| known.doubtful.get(&id).copied());
        let doubtful = match (row.doubt(), known) {
            // Numbers that were believed leave no doubt.
            (Some(_), Some(_)) => most.unwrap_or(Amount::ZERO).min(left),
            (Some(_), None) => left,
            (None, _) => Amount::ZERO,
        };
        let terms: Vec<_> = row.terms.iter().copied().filter(|&term| !self.store[term].guessed).collect();
        let is_open =
            |&term: &UnknownId| known.is_some_and(|known| self.is_undecided(component, known, term));
        let open: Vec<_> = row.terms.iter().copied().filter(is_open).collect();
        let key_of_doubtful = match row.doubt().map(|doubt| doubt.blame) {
            Some(Blame::Nobody(cause)) => Some(Key::Unattributed(self.source, cause)),
            Some(Blame::Terms) => Some(self.one_of(&terms)),
            Some(Blame::Elsewhere) | None => None,
        };
        let elsewhere = if key_of_doubtful.is_none() { doubtful } else { Amount::ZERO };
        let twice = match &key_of_doubtful {
            Some(Key::Unattributed(..)) => self.take_deficit(id, doubtful),
            _ => Amount::ZERO,
        };
        let to_nobody = if key_of_doubtful.is_some() { doubtful - twice } else { Amount::ZERO };
        self.witness.blur(&self.store[id].chain, to_nobody);
        self.witness.blur(&self.store[id].chain, left - doubtful);
        self.post_some(key_of_doubtful, doubtful - twice);
        self.post_some(Some(self.one_of(&open)), left - doubtful);
        left - elsewhere
    }

    /// Whether the numbers leave open how much an unknown is.
    pub(super) fn is_undecided(&self, component: &Component, known: &Known, term: UnknownId) -> bool {
        let place = component.unknowns.iter().position(|&unknown| unknown == term);
        place.is_some_and(|place| known.high[place] != known.low[place])
    }

    fn post_some(&mut self, key: Option<Key>, amount: Amount) {
        if let (Some(key), true) = (key, amount.any_positive()) {
            self.post(key, amount.positive());
        }
    }

    /// Who it was: the group, where it is clear what was done and only open by whom.
    fn one_of(&self, candidates: &[UnknownId]) -> Key {
        self.group_of(candidates).unwrap_or_else(|| {
            let cause = if candidates.is_empty() { Cause::Unexplained } else { Cause::Undetermined };
            Key::Unattributed(self.source, cause)
        })
    }

    /// The account "one of these policies decided so", if they all decided the same.
    fn group_of(&self, candidates: &[UnknownId]) -> Option<Key> {
        let mut members = Vec::new();
        let mut common: Option<(&AccountKey, &TierName, PolicyAction)> = None;
        for &candidate in candidates {
            let Some(Key::Account(key)) = &self.store[candidate].key else { return None };
            let What::Policy { tier, policy, action } = &key.what else { return None };
            match &common {
                Some((_, t, a)) if *t != tier || a != action => return None,
                Some(_) => {}
                None => common = Some((key, tier, *action)),
            }
            if !members.contains(policy) {
                members.push(policy.clone());
            }
        }
        let (key, tier, action) = common?;
        let tier = tier.clone();
        let what = match members.len() {
            1 => What::Policy { tier, policy: members.remove(0), action },
            _ => What::Group { tier, members, action },
        };
        Some(AccountKey { what, ..key.clone() }.into())
    }
}
