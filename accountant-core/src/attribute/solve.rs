//! What a component's equations say about each of its unknowns.
//!
//! The system holds for one moment: at rest any, else one between the last two readings. What is doubtful in an equation,
//! or what it misses, is an unknown of its own. Where that doubt can be refuted (nothing that counted is known to be
//! lost) the system is first tried without it: numbers of packets and of bytes that agree over all rules are believed.

use super::amount::{Amount, Unit};
use super::bounds::{Bounds, Contradiction, Sum, UNBOUNDED, tighten};
use super::equation::{Equation, Role};
use super::program::Relation;
use super::settle::{Component, Settler};
use super::store::{EquationId, UnknownId};
use std::collections::HashMap;

/// What solving told.
#[derive(Debug)]
pub(super) struct Known {
    /// The least of each unknown of the component.
    pub(super) low: Vec<Amount>,
    /// The most of each.
    pub(super) high: Vec<Amount>,
    /// The most that is doubtful in a row.
    pub(super) doubtful: HashMap<EquationId, Amount>,
}

/// How much the numbers are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worth {
    /// At rest, and doubts that can be refuted are.
    Believed,
    /// At rest.
    Doubted,
    /// Packets move: numbers are between two values.
    Moving,
}

struct System {
    worth: Worth,
    unit: Unit,
    /// Where the unknowns of the component stand among all.
    place: HashMap<UnknownId, usize>,
    unknowns: Vec<Bounds>,
    sums: Vec<Sum>,
    /// The unknown for what is doubtful in an equation.
    slack: HashMap<EquationId, usize>,
}

impl System {
    /// An unknown for what is doubtful in an equation.
    fn doubt(&mut self, equation: EquationId, most: Amount) -> usize {
        self.unknowns.push(Bounds::up_to(most.get(self.unit)));
        self.slack.insert(equation, self.unknowns.len() - 1);
        self.unknowns.len() - 1
    }

    /// The terms that are of the component.
    fn places(&self, terms: &[UnknownId]) -> Vec<usize> {
        terms.iter().filter_map(|term| self.place.get(term).copied()).collect()
    }
}

impl Settler<'_> {
    /// The bounds of all unknowns, by the strictest system that is free of contradictions.
    pub(super) fn solve(&self, component: &Component, quiet: bool) -> Result<Known, Contradiction> {
        match quiet {
            true => {
                let doubted = || self.solve_as(component, Worth::Doubted);
                match self.is_refutable(component) {
                    true => self.solve_as(component, Worth::Believed).or_else(|_| doubted()),
                    false => doubted(),
                }
            }
            false => self.solve_as(component, Worth::Moving),
        }
    }

    /// Whether all doubts can be refuted by numbers that agree.
    fn is_refutable(&self, component: &Component) -> bool {
        self.rows_of(component).iter().chain(&component.columns).all(|&id| {
            let equation = &self.store[id];
            equation.doubt().is_none_or(|doubt| doubt.refutable)
                && equation.missing().is_none_or(|missing| missing.refutable)
        })
    }

    fn solve_as(&self, component: &Component, worth: Worth) -> Result<Known, Contradiction> {
        let count = component.unknowns.len();
        let mut known = Known {
            low: vec![Amount::ZERO; count],
            high: vec![Amount::ZERO; count],
            doubtful: HashMap::new(),
        };
        for unit in Unit::BOTH {
            let System { unknowns, sums, slack, .. } = self.system(component, worth, unit);
            let bounds = tighten(unknowns, &sums)?;
            for (i, bounds) in bounds[..count].iter().enumerate() {
                *known.low[i].get_mut(unit) = bounds.low;
                *known.high[i].get_mut(unit) = bounds.high;
            }
            for (row, index) in slack {
                *known.doubtful.entry(row).or_insert(Amount::ZERO).get_mut(unit) = bounds[index].high;
            }
        }
        Ok(known)
    }

    fn system(&self, component: &Component, worth: Worth, unit: Unit) -> System {
        let place: HashMap<UnknownId, usize> =
            component.unknowns.iter().enumerate().map(|(i, &u)| (u, i)).collect();
        let most = |&id: &UnknownId| {
            let possible = worth != Worth::Believed || !self.store[id].guessed;
            Bounds::up_to(if possible { UNBOUNDED } else { 0 })
        };
        let unknowns = component.unknowns.iter().map(most).collect();
        let (sums, slack) = (Vec::new(), HashMap::new());
        let mut system = System { worth, unit, place, unknowns, sums, slack };
        let rows = self.rows_of(component);
        for &row in &rows {
            self.add_row(&mut system, row);
        }
        for &column in &component.columns {
            self.add_column(&mut system, column);
        }
        if worth != Worth::Moving {
            let balance = self.balance(&system, component, &rows);
            system.sums.extend(balance);
        }
        system
    }

    /// Least and most that an equation holds and is not settled.
    fn bounds(&self, equation: &Equation, worth: Worth, unit: Unit) -> (i128, i128) {
        match worth {
            Worth::Moving => {
                let low = equation.low() - equation.settled();
                let high = equation.high(self.snapshot) - equation.settled();
                (low.get(unit), high.get(unit))
            }
            _ => (equation.rest().get(unit), equation.rest().get(unit)),
        }
    }

    fn add_row(&self, system: &mut System, id: EquationId) {
        let (worth, unit) = (system.worth, system.unit);
        let row = &self.store[id];
        if row.unusable {
            return;
        }
        let (mut plus, minus) = (system.places(&row.terms), system.places(&row.minus_terms));
        let (mut low, mut high) = self.bounds(row, worth, unit);
        if row.minus_terms.is_empty() {
            (low, high) = (low.max(0), high.max(0));
        }
        if row.role == Role::AtMost {
            low = 0;
        } else {
            for term in row.terms.iter().filter(|term| !system.place.contains_key(term)) {
                let (least, most) = self.term_bounds(*term, worth, unit);
                (low, high) = (low - most, high - least);
            }
        }
        if let Some(missing) = row.missing()
            && worth != Worth::Believed
        {
            high += missing.most.get(unit);
        }
        if row.doubt().is_some() && worth != Worth::Believed {
            plus.push(system.doubt(id, row.doubtful()));
        }
        system.sums.push(Sum { plus, minus, low, high });
    }

    fn add_column(&self, system: &mut System, id: EquationId) {
        let (worth, unit) = (system.worth, system.unit);
        let column = &self.store[id];
        if !column.ever_fed {
            return;
        }
        let (mut low, mut high) = self.bounds(column, worth, unit);
        let mut plus = Vec::new();
        for &term in &column.terms {
            match system.place.get(&term) {
                Some(&index) => plus.push(index),
                None => {
                    // Not of this component: what is known of it from its own equation.
                    let (least, most) = self.term_bounds(term, worth, unit);
                    low -= most;
                    high -= least;
                }
            }
        }
        // Numbers that agree prove nothing about what is in no equation of its endpoint, if it can be another endpoint's.
        let mut chains = column.terms.iter().map(|&term| &self.store[term].chain);
        let is_of_many = chains.next().is_some_and(|first| chains.any(|chain| chain != first));
        let is_unproven = is_of_many && column.terms.iter().any(|&term| self.is_lone(term));
        let is_doubted = worth != Worth::Believed || is_unproven;
        if let Some(missing) = column.missing()
            && is_doubted
        {
            high += missing.most.get(unit);
        }
        if column.doubt().is_some() && is_doubted {
            plus.push(system.doubt(id, column.doubtful()));
        }
        system.sums.push(Sum { plus, minus: vec![], low: low.max(0), high });
    }

    /// What is known of an unknown from its own equation alone.
    fn term_bounds(&self, id: UnknownId, worth: Worth, unit: Unit) -> (i128, i128) {
        let counts = |row: &&EquationId| self.store[**row].role == Role::Counts || self.is_lone(id);
        let rows = self.store[id].rows.iter().filter(counts);
        let most = rows.clone().map(|&row| {
            let missing = self.store[row].missing().filter(|_| worth != Worth::Believed);
            let missing = missing.map_or(0, |missing| missing.most.get(unit));
            self.bounds(&self.store[row], worth, unit).1.max(0) + missing
        });
        let most = most.min();
        let least = rows.filter(|&&row| self.store.is_direct(row));
        let least = least.map(|&row| self.bounds(&self.store[row], worth, unit).0.max(0)).max();
        (least.unwrap_or(0), most.unwrap_or(0))
    }

    /// What all rows hold together is what all columns hold together, but for what is doubtful. Single sums do not see
    /// this: it tells that the rows are right where it is open how to split them.
    fn balance(&self, system: &System, component: &Component, rows: &[EquationId]) -> Option<Sum> {
        let &System { worth, unit, ref place, .. } = system;
        let is_whole = |equation: &Equation| equation.missing().is_none() || worth == Worth::Believed;
        let mut sum = Sum::default();
        // What is not known of endpoints that are not of the component.
        let mut open = 0;
        for &id in rows {
            let row = &self.store[id];
            if row.role != Role::Counts {
                continue;
            }
            if row.unusable || !is_whole(row) || row.terms.iter().any(|term| !place.contains_key(term)) {
                return None;
            }
            sum.low += self.bounds(row, worth, unit).0;
            sum.plus.extend(system.slack.get(&id));
            sum.minus.extend(row.minus_terms.iter().filter_map(|term| place.get(term)));
        }
        for &id in &component.columns {
            let column = &self.store[id];
            if !matches!(column.relation, Relation::Shared(_)) {
                continue;
            }
            if !column.ever_fed || !is_whole(column) {
                return None;
            }
            let elsewhere = column.terms.iter().filter(|term| !place.contains_key(term));
            let elsewhere = elsewhere.map(|&term| self.term_bounds(term, worth, unit));
            let (least, most) = elsewhere.fold((0, 0), |sum, term| (sum.0 + term.0, sum.1 + term.1));
            sum.low -= self.bounds(column, worth, unit).0 - least;
            open += most - least;
            sum.minus.extend(system.slack.get(&id));
        }
        for (i, &id) in component.unknowns.iter().enumerate() {
            let unknown = &self.store[id];
            let is_shared =
                |column: &&EquationId| matches!(self.store[**column].relation, Relation::Shared(_));
            if unknown.columns.iter().filter(is_shared).count() != 1 {
                return None;
            }
            match unknown.rows.iter().filter(|&&row| self.store[row].role == Role::Counts).count() {
                0 => sum.minus.push(i),
                1 => {}
                _ => return None,
            }
        }
        sum.high = sum.low + open;
        Some(sum)
    }
}
