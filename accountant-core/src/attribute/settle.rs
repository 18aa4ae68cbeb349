//! What the equations of a table say, as postings.
//!
//! Equations that share unknowns, or whose unknowns are part of the same sum of a shared chain, belong together (a
//! [`Component`]). As long as packets move, a component only tells least amounts; they are posted as they grow. When it
//! is read twice without a move in between it is exact: it is closed ([`super::close`]), and what is still open then
//! stays open for good. A component that never rests is closed after some readings all the same.

use super::amount::Amount;
use super::equation::{Equation, Role};
use super::program::Outcome;
use super::solve::Known;
use super::store::{EquationId, Store, UnknownId};
use super::witness::Witness;
use super::{Attribution, Attributor};
use crate::Counter;
use crate::calico::endpoint::Place;
use crate::ledger::{Key, Posting};
use crate::snapshot::Source;
use std::collections::HashSet;

/// How many snapshots a component that keeps moving is waited for.
const PATIENCE: u32 = 6;

/// Posts what follows from all equations.
pub(super) fn settle(table: &mut Attributor, out: &mut Attribution) {
    let Attributor { store, witness, snapshot, id, .. } = table;
    let (snapshot, source) = (*snapshot, id.source);
    let mut settler = Settler { store, witness, snapshot, source, out, deficits: vec![] };
    for equation in settler.store.equations_mut() {
        equation.end_doubt(snapshot);
    }
    settler.post_direct();
    settler.post_told();
    settler.find_deficits();
    for component in settler.components() {
        settler.component(&component);
    }
    settler.drop_unused();
    for equation in settler.store.equations_mut() {
        equation.forget_accounted();
    }
}

pub(super) struct Settler<'a> {
    pub(super) store: &'a mut Store,
    pub(super) witness: &'a mut Witness,
    pub(super) snapshot: u64,
    pub(super) source: Source,
    pub(super) out: &'a mut Attribution,
    /// Equations that rest with less than nothing, and by how much.
    pub(super) deficits: Vec<(EquationId, Amount)>,
}

/// Equations that only together tell.
#[derive(Debug, Default)]
pub(super) struct Component {
    /// Equations of endpoints with something unsettled in them.
    pub(super) rows: Vec<EquationId>,
    /// Sums over endpoints.
    pub(super) columns: Vec<EquationId>,
    /// Terms of the rows.
    pub(super) unknowns: Vec<UnknownId>,
}

impl Settler<'_> {
    pub(super) fn post(&mut self, key: Key, amount: Counter) {
        self.witness.note(&key, amount);
        self.out.postings.push(Posting { key, amount });
    }

    /// Counters that are the answer by themselves. They are settled up to the reading before, because a shared chain may
    /// have been read before the endpoint's.
    fn post_direct(&mut self) {
        let moved: Vec<_> = self
            .store
            .equations()
            .filter(|(_, e)| e.readings().now.plus != e.settled())
            .map(|(id, _)| id)
            .filter(|&id| self.store.is_direct(id))
            .collect();
        for id in moved {
            let row = &mut self.store[id];
            let is_unread = row.fed && row.read_in != self.snapshot;
            let (term, readings) = (row.terms[0], row.readings_mut());
            if is_unread {
                readings.last = readings.now;
            }
            let held = readings.now.plus - readings.settled;
            let settled = readings.last.plus - readings.settled;
            readings.settled = readings.last.plus;
            self.claim(term, held);
            self.store[term].posted -= settled;
            if settled == Amount::ZERO {
                continue;
            }
            for column in self.store[term].columns.clone() {
                self.store[column].readings_mut().settled += settled;
            }
        }
    }

    /// Posts what is new in a claim: all of the unknown since it was last settled.
    pub(super) fn claim(&mut self, id: UnknownId, claim: Amount) {
        let unknown = &mut self.store[id];
        let fresh = (claim - unknown.posted).at_least_zero();
        unknown.posted += fresh;
        if let (true, Some(key)) = (fresh.any_positive(), unknown.key.clone()) {
            self.post(key, fresh.positive());
        }
    }

    /// Whether there is something in an equation that has to be solved for.
    fn is_open(&self, id: EquationId) -> bool {
        let equation = &self.store[id];
        match equation.role {
            Role::Counts => {
                (equation.is_open(self.snapshot) || self.may_hold(equation)) && !self.store.is_direct(id)
            }
            // The last policy of a tier without an end can pass, and nothing else tells of that.
            Role::AtMost => equation.rest().any_positive() && equation.terms.iter().any(|&t| self.is_lone(t)),
            Role::Helps | Role::Column => false,
        }
    }

    /// Whether something can be in an equation that seems to rest, because it is not known yet how much is subtracted.
    fn may_hold(&self, equation: &Equation) -> bool {
        let mut rows = equation.minus_terms.iter().flat_map(|&term| &self.store[term].rows);
        rows.any(|&row| self.store[row].is_open(self.snapshot))
    }

    /// Whether no equation of its endpoint has this unknown as a part.
    pub(super) fn is_lone(&self, id: UnknownId) -> bool {
        matches!(self.store[id].outcome, Outcome::Policy { place: Place::Alone, .. })
    }

    fn components(&self) -> Vec<Component> {
        let open_rows: Vec<_> =
            self.store.equations().map(|(id, _)| id).filter(|&id| self.is_open(id)).collect();
        let open_set: HashSet<_> = open_rows.iter().copied().collect();
        let (mut seen_rows, mut seen_sums, mut seen_unknowns) =
            (HashSet::new(), HashSet::new(), HashSet::new());
        let mut components = Vec::new();
        for start in open_rows {
            let mut component = Component::default();
            let mut queue = vec![start];
            while let Some(row) = queue.pop() {
                if !seen_rows.insert(row) {
                    continue;
                }
                component.rows.push(row);
                let terms = self.store[row].terms.iter().chain(&self.store[row].minus_terms);
                for &unknown in terms.filter(|&&u| seen_unknowns.insert(u)) {
                    component.unknowns.push(unknown);
                    let unknown = &self.store[unknown];
                    // What is subtracted here may be all that keeps a sum at nothing.
                    queue.extend(&unknown.minus_rows);
                    let helpers = unknown.rows.iter().filter(|&&row| self.store[row].is_helper());
                    for &sum in unknown.columns.iter().chain(helpers).filter(|&&sum| seen_sums.insert(sum)) {
                        let sum_of = &self.store[sum];
                        component.columns.extend(sum_of.is_column().then_some(sum));
                        let others = sum_of.terms.iter().map(|&other| &self.store[other]);
                        let rows = others.flat_map(|u| u.rows.iter().chain(&u.minus_rows));
                        let belongs = |row: &&EquationId| {
                            open_set.contains(row) || !self.store[**row].minus_terms.is_empty()
                        };
                        queue.extend(rows.filter(belongs));
                    }
                }
            }
            if !component.rows.is_empty() {
                components.push(component);
            }
        }
        components
    }

    fn component(&mut self, component: &Component) {
        if component.columns.iter().any(|&column| self.is_unread(column)) {
            self.wait(component);
            return;
        }
        let (quiet, patient) = (self.is_quiet(component), self.is_patient(component));
        let known = self.solve(component, quiet).ok();
        if let Some(known) = &known {
            for (&unknown, &low) in component.unknowns.iter().zip(&known.low) {
                self.claim(unknown, low);
            }
        }
        // A processor can stand still with a packet between two rules, so that all seems to rest: it goes on sooner or later.
        let explained = || known.as_ref().is_some_and(|known| self.explains(component, known));
        let has_waited = || component.rows.iter().any(|&row| self.store[row].waited >= PATIENCE);
        match (quiet && (has_waited() || explained()), patient) {
            (true, _) => self.close_at_rest(component, known.as_ref()),
            (false, false) => self.close_moving(component, known.as_ref()),
            (false, true) => self.wait(component),
        }
    }

    /// Whether it is better to wait: the moment at which it would be closed has to be one that bounds are known of.
    fn is_patient(&self, component: &Component) -> bool {
        let rows = component.rows.iter().map(|&row| &self.store[row]);
        let mut all = rows.clone().chain(component.columns.iter().map(|&column| &self.store[column]));
        rows.clone().all(|row| row.waited < PATIENCE)
            || rows.clone().any(|row| !row.minus_terms.is_empty())
            || all.any(|equation| equation.doubt().is_some_and(|doubt| doubt.to.is_none()))
    }

    /// Whether everything in the rows of a component can have been done by their terms.
    fn explains(&self, component: &Component, known: &Known) -> bool {
        component.rows.iter().all(|&row| {
            let equation = &self.store[row];
            let is_accounted =
                equation.role != Role::Counts || equation.unusable || equation.doubt().is_some();
            is_accounted
                || !(equation.rest() - self.claimed(row)).any_positive()
                || equation.terms.iter().any(|&term| self.is_undecided(component, known, term))
        })
    }

    /// Asks for another reading, with the shared chains in it.
    fn wait(&mut self, component: &Component) {
        self.out.unsettled = true;
        let fed = component.columns.iter().map(|&column| &self.store[column]).filter(|column| column.fed);
        self.out.wanted.extend(fed.map(|column| column.chain.clone()));
        for &row in &component.rows {
            self.store[row].waited += 1;
        }
    }

    fn is_unread(&self, column: EquationId) -> bool {
        let column = &self.store[column];
        column.fed && column.read_in != self.snapshot
    }

    /// Whether all of it, and all endpoints that its sums are over, were read twice running without a move in between.
    fn is_quiet(&self, component: &Component) -> bool {
        let of_columns = component.columns.iter().flat_map(|&column| &self.store[column].terms);
        let unknowns = component.unknowns.iter().chain(of_columns);
        let rows = unknowns.flat_map(|&u| self.store[u].rows.iter().chain(&self.store[u].minus_rows));
        let all = rows.chain(&component.rows).chain(&component.columns);
        all.into_iter().all(|&id| self.store[id].is_quiet(self.snapshot))
    }

    /// Forgets terms that the present rules do not have, and equations without rules, where nothing is unsettled.
    fn drop_unused(&mut self) {
        let snapshot = self.snapshot;
        let at_rest = |equation: &Equation| {
            equation.is_quiet(snapshot) && equation.rest() == Amount::ZERO && equation.doubt().is_none()
        };
        let rows = self.store.equations().filter(|(_, e)| !e.is_column());
        let rows: Vec<_> = rows
            .filter(|(_, e)| !e.fed || (!e.former.is_empty() && (at_rest(e) || e.is_helper())))
            .map(|(id, _)| id)
            .collect();
        for &id in &rows {
            let row = &self.store[id];
            // One that helps is needed as long as one is open that it can help with.
            let others = row.terms.iter().flat_map(|&term| &self.store[term].rows);
            let helps = row.is_helper() && others.into_iter().any(|&other| self.is_open(other));
            match (helps || self.is_open(id), row.fed) {
                (true, _) => {}
                (false, true) => self.store.drop_old_terms(id),
                (false, false) => self.store.drop_row(id),
            }
        }
        let columns = self.store.equations().filter(|(_, e)| e.is_column() && !e.fed);
        let columns: Vec<_> = columns.map(|(id, _)| id).collect();
        for id in columns {
            if self.store[id].terms.is_empty() {
                self.store.drop_column(id);
            }
        }
    }
}
