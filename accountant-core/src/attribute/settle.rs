//! What the equations of a table say, as postings.
//!
//! Equations that share unknowns, or whose unknowns are part of the same sum of a shared chain, belong together (a
//! [`Component`]). As long as packets move, a component only tells least amounts; they are posted as they grow. When it
//! is read twice without a move in between it is exact: it is settled, and what is still open then stays open for good.
//! A component that never rests is settled after some readings all the same.

use super::Attribution;
use super::amount::{Amount, Unit};
use super::bounds::{Bounds, Contradiction, Sum, UNBOUNDED, tighten};
use super::program::{Relation, Remainder};
use super::store::{EquationId, Store, UnknownId};
use crate::Counter;
use crate::ledger::{AccountKey, Cause, Key, Posting, What};
use crate::snapshot::Source;
use std::collections::{HashMap, HashSet};

/// How many snapshots a component that keeps moving is waited for.
const PATIENCE: u32 = 6;

/// Posts what follows from all equations.
pub(super) fn settle(store: &mut Store, snapshot: u64, source: Source, out: &mut Attribution) {
    let mut settler = Settler { store, snapshot, source, out };
    settler.post_direct();
    for component in settler.components() {
        settler.component(&component);
    }
    settler.drop_orphans();
}

struct Settler<'a> {
    store: &'a mut Store,
    snapshot: u64,
    source: Source,
    out: &'a mut Attribution,
}

/// Equations that only together tell.
#[derive(Debug, Default)]
struct Component {
    /// Equations of endpoints with something unsettled in them.
    rows: Vec<EquationId>,
    /// Sums over endpoints.
    columns: Vec<EquationId>,
    /// Terms of the rows.
    unknowns: Vec<UnknownId>,
}

/// How much the readings are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worth {
    /// Nothing moves: all sums are exact.
    Exact,
    /// As before, but the sums of shared chains hold more than the endpoints know of.
    UpperColumns,
    /// As before, and equations that are not whole are left out.
    WholeRowsOnly,
    /// Packets move: sums are between two values.
    Moving,
}

impl Settler<'_> {
    fn post(&mut self, key: Key, amount: Counter) {
        self.out.postings.push(Posting { key, amount });
    }

    /// Counters that are the answer by themselves. They are settled up to the reading before, because a shared chain may
    /// have been read before the endpoint's.
    fn post_direct(&mut self) {
        let moved: Vec<_> = self
            .store
            .equations()
            .filter(|(_, e)| {
                e.now.plus != e.settled || (e.read_in == self.snapshot && e.last.plus != e.settled)
            })
            .map(|(id, _)| id)
            .filter(|&id| !self.store[id].is_column() && self.store.is_direct(id))
            .collect();
        for id in moved {
            let equation = &self.store[id];
            let (term, held) = (equation.terms[0], equation.now.plus - equation.settled);
            let settled = equation.last.plus - equation.settled;
            self.claim(term, held);
            self.store[id].settled += settled;
            self.store[id].broken = None;
            self.store[term].posted -= settled;
            for column in self.store[term].columns.clone() {
                self.store[column].settled += settled;
            }
        }
    }

    /// Posts what is new in a claim: all of the unknown since it was last settled.
    fn claim(&mut self, id: UnknownId, claim: Amount) {
        let unknown = &mut self.store[id];
        let fresh = (claim - unknown.posted).max(Amount::ZERO);
        unknown.posted += fresh;
        if let (true, Some(key)) = (fresh.any_positive(), unknown.key.clone()) {
            self.post(key, fresh.positive());
        }
    }

    fn components(&self) -> Vec<Component> {
        let open = |id: EquationId| {
            let equation = &self.store[id];
            let doubtful = equation.broken.is_some() || equation.high().any_positive();
            !equation.is_column() && doubtful && !self.store.is_direct(id)
        };
        let open_rows: Vec<_> = self.store.equations().map(|(id, _)| id).filter(|&id| open(id)).collect();
        let open_set: HashSet<_> = open_rows.iter().copied().collect();
        let mut seen_rows = HashSet::new();
        let mut seen_columns = HashSet::new();
        let mut seen_unknowns = HashSet::new();
        let mut components = Vec::new();
        for start in open_rows {
            let mut component = Component::default();
            let mut queue = vec![start];
            while let Some(row) = queue.pop() {
                if !seen_rows.insert(row) {
                    continue;
                }
                component.rows.push(row);
                for &unknown in self.store[row].terms.iter().filter(|&&u| seen_unknowns.insert(u)) {
                    component.unknowns.push(unknown);
                    queue.extend(self.store[unknown].rows.iter().filter(|row| open_set.contains(row)));
                    for &column in self.store[unknown].columns.iter().filter(|&&c| seen_columns.insert(c)) {
                        component.columns.push(column);
                        let others = self.store[column].terms.iter().flat_map(|&u| &self.store[u].rows);
                        queue.extend(others.filter(|row| open_set.contains(row)));
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
        let unread = self.has_unread_columns(component);
        let patient = component.rows.iter().all(|&row| self.store[row].waited < PATIENCE);
        if unread && patient {
            self.wait(component);
            return;
        }
        let quiet = !unread && self.is_quiet(component);
        let known = self.solve(component, quiet);
        if let Ok(known) = &known {
            for (&unknown, &low) in component.unknowns.iter().zip(&known.low) {
                self.claim(unknown, low);
            }
        }
        if quiet || !patient {
            self.close(component, known.ok().as_ref(), quiet);
        } else {
            self.wait(component);
        }
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

    fn has_unread_columns(&self, component: &Component) -> bool {
        let mut columns = component.columns.iter().map(|&column| &self.store[column]);
        columns.any(|column| column.fed && column.read_in != self.snapshot)
    }

    /// Whether all endpoints that the component's sums are over were read twice without a move in between, and the sums
    /// in between.
    fn is_quiet(&self, component: &Component) -> bool {
        let of_columns = component.columns.iter().flat_map(|&column| &self.store[column].terms);
        let rows = component.unknowns.iter().chain(of_columns).flat_map(|&unknown| &self.store[unknown].rows);
        rows.chain(&component.rows).all(|&row| self.store[row].is_quiet(self.snapshot))
    }

    /// The bounds of all unknowns, by the strictest system that is free of contradictions.
    fn solve(&self, component: &Component, quiet: bool) -> Result<Known, Contradiction> {
        let ways: &[Worth] =
            if quiet { &[Worth::Exact, Worth::UpperColumns, Worth::WholeRowsOnly] } else { &[Worth::Moving] };
        let mut result = Err(Contradiction);
        for &worth in ways {
            result = self.solve_as(component, worth);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn solve_as(&self, component: &Component, worth: Worth) -> Result<Known, Contradiction> {
        let unknowns = component.unknowns.len();
        let broken: Vec<_> =
            component.rows.iter().copied().filter(|&row| self.is_upper(row, worth)).collect();
        let mut known = Known {
            low: vec![Amount::ZERO; unknowns],
            open: vec![false; unknowns],
            slack: broken.iter().map(|&row| (row, Amount::ZERO)).collect(),
        };
        for unit in Unit::BOTH {
            let free = vec![Bounds { low: 0, high: UNBOUNDED }; unknowns + broken.len()];
            let bounds = tighten(free, &self.sums(component, &broken, worth, unit))?;
            for (i, bounds) in bounds[..unknowns].iter().enumerate() {
                *known.low[i].get_mut(unit) = bounds.low;
                known.open[i] |= bounds.high > bounds.low;
            }
            for (row, bounds) in broken.iter().zip(&bounds[unknowns..]) {
                if let Some(slack) = known.slack.get_mut(row) {
                    *slack.get_mut(unit) = bounds.high;
                }
            }
        }
        Ok(known)
    }

    /// Whether a row is taken as an upper bound: its terms and a slack make up the sum.
    fn is_upper(&self, row: EquationId, worth: Worth) -> bool {
        let whole = self.is_whole(row) || worth == Worth::Moving;
        !whole && self.row_bounds(row, worth).is_some()
    }

    fn is_whole(&self, row: EquationId) -> bool {
        let equation = &self.store[row];
        equation.broken.is_none() && !equation.loose
    }

    /// The system of a component: one sum for each row and column, and one for the whole.
    ///
    /// Unknowns come first, then the slack of each row that is only an upper bound.
    fn sums(&self, component: &Component, upper: &[EquationId], worth: Worth, unit: Unit) -> Vec<Sum> {
        let place: HashMap<_, _> = component.unknowns.iter().enumerate().map(|(i, &u)| (u, i)).collect();
        let terms = |id: EquationId| -> Vec<usize> {
            self.store[id].terms.iter().filter_map(|term| place.get(term).copied()).collect()
        };
        let mut rows: Vec<_> =
            component.unknowns.iter().flat_map(|&u| self.store[u].rows.iter().copied()).collect();
        rows.sort();
        rows.dedup();
        let mut sums = Vec::new();
        for row in rows {
            let Some((low, high)) = self.row_bounds(row, worth) else { continue };
            let (mut terms, mut low, high) = (terms(row), low.get(unit), high.get(unit));
            if let Some(slack) = upper.iter().position(|&other| other == row) {
                let slack = component.unknowns.len() + slack;
                sums.push(Sum { terms: vec![slack], low: 0, high: high - low });
                terms.push(slack);
                low = high;
            }
            sums.push(Sum { terms, low, high });
        }
        for &column in &component.columns {
            if let Some((low, high)) = self.column_bounds(column, worth) {
                sums.push(Sum { terms: terms(column), low: low.get(unit), high: high.get(unit) });
            }
        }
        if worth == Worth::Exact {
            sums.extend(self.balance(component, upper, unit));
        }
        sums
    }

    /// What all rows hold together is what all columns hold together, and the slack of the rows. Single bounds do not
    /// see this: it tells that the rows are right where it is open how to split them.
    fn balance(&self, component: &Component, upper: &[EquationId], unit: Unit) -> Option<Sum> {
        let counts = |row: &EquationId| self.store[*row].remainder == Remainder::Counts;
        let is_shared = |column: &EquationId| matches!(self.store[*column].relation, Relation::Shared(_));
        for &unknown in &component.unknowns {
            let unknown = &self.store[unknown];
            let in_one_row = unknown.rows.iter().filter(|row| counts(row)).count() == 1;
            let in_one_column = unknown.columns.iter().filter(|column| is_shared(column)).count() == 1;
            if !(in_one_row && in_one_column) {
                return None;
            }
        }
        let mut slack = 0;
        for &row in component.rows.iter().filter(|row| counts(row)) {
            slack += self.row_bounds(row, Worth::Exact)?.1.get(unit);
        }
        for &column in component.columns.iter().filter(|column| is_shared(column)) {
            let (low, high) = self.column_bounds(column, Worth::Exact)?;
            if low != high {
                return None;
            }
            slack -= high.get(unit);
        }
        let first = component.unknowns.len();
        let of_counted = upper.iter().enumerate().filter(|(_, row)| counts(row));
        Some(Sum { terms: of_counted.map(|(i, _)| first + i).collect(), low: slack, high: slack })
    }

    /// Least and most that an equation of an endpoint holds; nothing if it is not to be used.
    fn row_bounds(&self, row: EquationId, worth: Worth) -> Option<(Amount, Amount)> {
        let equation = &self.store[row];
        let whole = self.is_whole(row);
        match worth {
            Worth::Moving => Some((equation.low(), equation.high())),
            Worth::WholeRowsOnly if !whole || equation.remainder == Remainder::Ignored => None,
            _ if whole => Some((equation.exact(), equation.exact())),
            _ => Some((equation.low().min(equation.exact()), equation.exact())),
        }
    }

    fn column_bounds(&self, column: EquationId, worth: Worth) -> Option<(Amount, Amount)> {
        let equation = &self.store[column];
        if equation.broken.is_some() || (equation.fed && equation.read_in != self.snapshot) {
            return None;
        }
        match worth {
            Worth::Moving => Some((Amount::ZERO, equation.high())),
            Worth::Exact if !equation.loose => Some((equation.exact(), equation.exact())),
            _ => Some((Amount::ZERO, equation.exact())),
        }
    }

    /// Accounts for what is left, and starts anew.
    fn close(&mut self, component: &Component, known: Option<&Known>, quiet: bool) {
        let mut left_in_tiers: HashMap<(crate::ChainName, Relation), Amount> = HashMap::new();
        let mut rows = component.rows.clone();
        rows.sort_by_key(|&row| self.store[row].remainder == Remainder::CountsBeyondOthers);
        for &row in &rows {
            let left = self.left_in(row, known, quiet);
            let equation = &self.store[row];
            let tier =
                tier_of(&equation.relation).map(|tier| (equation.chain.clone(), Relation::TierDenied(tier)));
            let counts = match (equation.remainder, &tier) {
                (Remainder::Ignored, _) => continue,
                (Remainder::CountsBeyondOthers, Some(tier)) => {
                    left.minus_known(left_in_tiers.get(tier).copied().unwrap_or_default())
                }
                _ => left,
            };
            if let Some(tier) = tier {
                *left_in_tiers.entry(tier).or_default() += counts.known;
            }
            self.charge(row, component, known, counts);
        }
        let open: HashSet<_> = rows.iter().copied().collect();
        self.start_anew(component, &open, quiet);
    }

    /// What is in an equation and in none of its unknowns' claims.
    fn left_in(&self, row: EquationId, solved: Option<&Known>, quiet: bool) -> Left {
        let equation = &self.store[row];
        let claimed = equation.terms.iter().map(|&u| self.store[u].posted).fold(Amount::ZERO, |a, b| a + b);
        let most = if quiet { equation.exact() } else { equation.high() };
        let (known, suspect, cause) = match equation.broken {
            Some(broken) => {
                let slack = solved.and_then(|solved| solved.slack.get(&row));
                let proven = slack.map_or(Amount::ZERO, |&slack| most - slack);
                (broken.trusted.max(proven).min(most), most, broken.cause)
            }
            None if quiet && !equation.loose => (most, most, Cause::Unexplained),
            None => (equation.low(), equation.low(), Cause::Unexplained),
        };
        Left {
            known: (known - claimed).max(Amount::ZERO),
            suspect: (suspect - known.max(claimed)).max(Amount::ZERO),
            cause,
        }
    }

    /// Charges what is left to the group, where it is clear what was done and only open by whom.
    fn charge(&mut self, row: EquationId, component: &Component, known: Option<&Known>, left: Left) {
        if left.suspect.any_positive() {
            self.post(Key::Unattributed(self.source, left.cause), left.suspect.positive());
        }
        if !left.known.any_positive() {
            return;
        }
        let candidates: Vec<_> = known.map_or(vec![], |known| {
            let open =
                |u: &UnknownId| component.unknowns.iter().position(|c| c == u).is_some_and(|i| known.open[i]);
            self.store[row].terms.iter().copied().filter(open).collect()
        });
        let key = self.group_of(&candidates).unwrap_or_else(|| {
            let cause = if candidates.is_empty() { Cause::Unexplained } else { Cause::Undetermined };
            Key::Unattributed(self.source, cause)
        });
        self.post(key, left.known.positive());
    }

    /// The account "one of these policies decided so", if they all decided the same.
    fn group_of(&self, candidates: &[UnknownId]) -> Option<Key> {
        let mut members = Vec::new();
        let mut common: Option<(AccountKey, crate::id::TierName, crate::calico::shared::PolicyAction)> = None;
        for &candidate in candidates {
            let Some(Key::Account(key)) = &self.store[candidate].key else { return None };
            let What::Policy { tier, policy, action } = &key.what else { return None };
            match &common {
                Some((_, t, a)) if t != tier || a != action => return None,
                Some(_) => {}
                None => common = Some((key.clone(), tier.clone(), *action)),
            }
            if !members.contains(policy) {
                members.push(policy.clone());
            }
        }
        let (key, tier, action) = common?;
        let what = match members.len() {
            1 => What::Policy { tier, policy: members.remove(0), action },
            _ => What::Group { tier, members, action },
        };
        Some(Key::Account(AccountKey { what, ..key }))
    }

    fn start_anew(&mut self, component: &Component, open: &HashSet<EquationId>, quiet: bool) {
        let mut uncertain = Vec::new();
        for &column in &component.columns {
            let of_these = self.store[column].terms.iter().filter(|u| component.unknowns.contains(u));
            let claimed = of_these.map(|&u| self.store[u].posted).fold(Amount::ZERO, |a, b| a + b);
            uncertain.push((column, claimed));
        }
        let mut rows: Vec<_> =
            component.unknowns.iter().flat_map(|&u| self.store[u].rows.iter().copied()).collect();
        rows.extend(&component.rows);
        rows.sort();
        rows.dedup();
        for row in rows {
            let claimed =
                self.store[row].terms.iter().map(|&u| self.store[u].posted).fold(Amount::ZERO, |a, b| a + b);
            let equation = &mut self.store[row];
            equation.waited = 0;
            if quiet {
                equation.settled = equation.now.plus - equation.now.minus;
                equation.loose = false;
            } else if equation.broken.is_some() {
                equation.settled = equation.now.plus - equation.last.minus;
            } else if open.contains(&row) && equation.remainder != Remainder::Ignored {
                let low = equation.low();
                equation.settled += low.max(claimed);
            } else {
                equation.settled += claimed;
                equation.loose = true;
            }
            equation.broken = None;
        }
        for (column, claimed) in uncertain {
            let equation = &mut self.store[column];
            if quiet {
                equation.settled = equation.now.plus - equation.now.minus;
                equation.loose = false;
                equation.broken = None;
            } else {
                equation.settled += claimed;
                equation.loose = true;
            }
        }
        for &unknown in &component.unknowns {
            self.store[unknown].posted = Amount::ZERO;
        }
        for &row in &component.rows {
            self.store.drop_old_terms(row);
        }
    }

    /// Forgets equations whose rules are gone and that hold nothing unsettled any more.
    fn drop_orphans(&mut self) {
        let orphans: Vec<_> = self.store.equations().filter(|(_, e)| !e.fed).map(|(id, _)| id).collect();
        for id in orphans {
            let equation = &self.store[id];
            if equation.is_column() {
                let needed = equation.terms.iter().flat_map(|&u| &self.store[u].rows);
                if !needed.into_iter().any(|&row| self.store[row].high().any_positive()) {
                    self.store.drop_column(id);
                }
            } else if !equation.high().any_positive() {
                self.store.drop_row(id);
            }
        }
    }
}

/// What solving told.
#[derive(Debug)]
struct Known {
    /// The least of each unknown.
    low: Vec<Amount>,
    /// Whether it could be more.
    open: Vec<bool>,
    /// The most that rows which are only upper bounds hold too much.
    slack: HashMap<EquationId, Amount>,
}

/// What an equation holds beyond all claims.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// Certainly there.
    known: Amount,
    /// Perhaps there, perhaps only seen so.
    suspect: Amount,
    /// Why it is suspect.
    cause: Cause,
}

impl Left {
    fn minus_known(self, others: Amount) -> Self {
        Self { known: (self.known - others).max(Amount::ZERO), ..self }
    }
}

fn tier_of(relation: &Relation) -> Option<crate::id::TierName> {
    match relation {
        Relation::Decided { tier, .. } | Relation::TierDenied(tier) => Some(tier.clone()),
        _ => None,
    }
}
