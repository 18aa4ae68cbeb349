//! Equations and unknowns of one table, as they stand between snapshots.
//!
//! Both are known by identity (chain and relation, chain and outcome), so they outlive the rewriting of the rules that
//! feed them.

use super::amount::Amount;
use super::program::{Outcome, Relation, Remainder};
use crate::ChainName;
use crate::ledger::{Cause, Key};
use slab::Slab;
use std::collections::HashMap;

/// Index of an equation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EquationId(pub(crate) usize);

/// Index of an unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct UnknownId(pub(crate) usize);

/// Sums of added and of subtracted counters since the agent first saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sides {
    pub(crate) plus: Amount,
    pub(crate) minus: Amount,
}

/// Why an equation is only an upper bound: its counters tell of different spans of time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Break {
    pub(crate) cause: Cause,
    /// What was known to be in it before, in excess of what is settled.
    pub(crate) trusted: Amount,
}

/// A sum of counters that must equal a sum of unknowns.
///
/// `last` and `now` are the two latest readings. What was counted up to a moment between them lies between the two;
/// where they agree it is known.
#[derive(Clone, Debug)]
pub(crate) struct Equation {
    pub(crate) chain: ChainName,
    pub(crate) relation: Relation,
    pub(crate) terms: Vec<UnknownId>,
    pub(crate) remainder: Remainder,
    /// Whether counters are subtracted.
    pub(crate) difference: bool,
    pub(crate) now: Sides,
    pub(crate) last: Sides,
    /// How much of it is accounted for.
    pub(crate) settled: Amount,
    /// Whether rules still feed it.
    pub(crate) fed: bool,
    /// The snapshot that brought the latest reading.
    pub(crate) read_in: u64,
    /// The snapshot in which it last moved.
    pub(crate) moved_in: u64,
    /// Set while it is only an upper bound.
    pub(crate) broken: Option<Break>,
    /// Whether it is only an upper bound because an unknown part of it was accounted for.
    pub(crate) loose: bool,
    /// How many snapshots it has waited to be settled.
    pub(crate) waited: u32,
    /// The terms that the present rules give it; `terms` can have more until it is settled.
    pub(crate) present: Vec<UnknownId>,
}

impl Equation {
    /// Whether it belongs to a shared chain.
    pub(crate) fn is_column(&self) -> bool {
        matches!(self.relation, Relation::Shared(_) | Relation::Member(_))
    }

    /// The least that is in it and not settled, at a moment between the last two readings.
    ///
    /// Rules of one chain are read in the order in which packets meet them, so a difference comes out too small by what
    /// passed meanwhile, and too large only by packets that were between two rules at that very moment: what both
    /// readings say is not one of those.
    pub(crate) fn low(&self) -> Amount {
        let value = |sides: Sides| sides.plus - sides.minus - self.settled;
        match self.broken {
            Some(broken) => broken.trusted,
            None if self.loose => Amount::ZERO,
            None => value(self.last).min(value(self.now)).max(Amount::ZERO),
        }
    }

    /// The most that can be in it and is not settled, at a moment between the last two readings.
    pub(crate) fn high(&self) -> Amount {
        (self.now.plus - self.last.minus - self.settled).max(Amount::ZERO)
    }

    /// What is in it and not settled, where nothing moves.
    pub(crate) fn exact(&self) -> Amount {
        (self.now.plus - self.now.minus - self.settled).max(Amount::ZERO)
    }

    /// Whether the latest snapshot read it and found it unmoved, or nothing moves it any more.
    pub(crate) fn is_quiet(&self, snapshot: u64) -> bool {
        !self.fed || (self.read_in == snapshot && self.moved_in != snapshot)
    }

    /// Starts a new reading, once a snapshot.
    pub(crate) fn begin_reading(&mut self, snapshot: u64) {
        if self.read_in != snapshot {
            self.read_in = snapshot;
            self.last = self.now;
        }
    }

    /// Notes that its counters tell of different spans of time.
    pub(crate) fn break_off(&mut self, cause: Cause) {
        if self.broken.is_none() {
            let known = self.last.plus - self.last.minus - self.settled;
            let trusted = if self.loose { Amount::ZERO } else { known.max(Amount::ZERO) };
            self.broken = Some(Break { cause, trusted });
        }
    }

    /// Its rules are gone: what it holds now is all there will be.
    pub(crate) fn orphan(&mut self) {
        self.fed = false;
        self.last = self.now;
    }
}

/// Something that packets can have become.
#[derive(Clone, Debug)]
pub(crate) struct Unknown {
    pub(crate) chain: ChainName,
    pub(crate) outcome: Outcome,
    /// Where it is posted to; nowhere if it is not a verdict.
    pub(crate) key: Option<Key>,
    /// Equations of its endpoint that it is in.
    pub(crate) rows: Vec<EquationId>,
    /// Equations of shared chains that it is in.
    pub(crate) columns: Vec<EquationId>,
    /// What was posted of it since its equations were last settled.
    pub(crate) posted: Amount,
}

/// Equations and unknowns by identity.
#[derive(Debug, Default)]
pub(crate) struct Store {
    equations: Slab<Equation>,
    equation_ids: HashMap<(ChainName, Relation), EquationId>,
    unknowns: Slab<Unknown>,
    unknown_ids: HashMap<(ChainName, Outcome), UnknownId>,
}

impl Store {
    /// The equation of this identity, made when it is not there.
    pub(crate) fn equation(&mut self, chain: &ChainName, relation: &Relation) -> EquationId {
        let equations = &mut self.equations;
        *self.equation_ids.entry((chain.clone(), relation.clone())).or_insert_with(|| {
            EquationId(equations.insert(Equation {
                chain: chain.clone(),
                relation: relation.clone(),
                terms: Vec::new(),
                remainder: Remainder::Ignored,
                difference: false,
                now: Sides::default(),
                last: Sides::default(),
                settled: Amount::ZERO,
                fed: true,
                read_in: 0,
                moved_in: 0,
                broken: None,
                loose: false,
                waited: 0,
                present: Vec::new(),
            }))
        })
    }

    /// The unknown of this identity, made when it is not there.
    pub(crate) fn unknown(&mut self, chain: &ChainName, outcome: &Outcome) -> UnknownId {
        let unknowns = &mut self.unknowns;
        *self.unknown_ids.entry((chain.clone(), outcome.clone())).or_insert_with(|| {
            UnknownId(unknowns.insert(Unknown {
                chain: chain.clone(),
                outcome: outcome.clone(),
                key: None,
                rows: Vec::new(),
                columns: Vec::new(),
                posted: Amount::ZERO,
            }))
        })
    }

    /// All equations.
    pub(crate) fn equations(&self) -> impl Iterator<Item = (EquationId, &Equation)> {
        self.equations.iter().map(|(id, equation)| (EquationId(id), equation))
    }

    /// All unknowns.
    pub(crate) fn unknowns(&self) -> impl Iterator<Item = (UnknownId, &Unknown)> {
        self.unknowns.iter().map(|(id, unknown)| (UnknownId(id), unknown))
    }

    /// Whether the counter of this equation is the answer to its only term, and nothing else tells of that term.
    pub(crate) fn is_direct(&self, row: EquationId) -> bool {
        let equation = &self[row];
        match equation.terms[..] {
            [term] => !equation.difference && self[term].rows.len() == 1,
            _ => false,
        }
    }

    /// Makes an unknown of an endpoint a term of one of its equations.
    pub(crate) fn link_row(&mut self, row: EquationId, unknown: UnknownId) {
        if !self[row].terms.contains(&unknown) {
            self[row].terms.push(unknown);
            self[unknown].rows.push(row);
        }
    }

    /// Makes an unknown of an endpoint a term of an equation of a shared chain.
    pub(crate) fn link_column(&mut self, column: EquationId, unknown: UnknownId) {
        if !self[unknown].columns.contains(&column) {
            self[column].terms.push(unknown);
            self[unknown].columns.push(column);
        }
    }

    /// Takes out the terms that the present rules no longer give an endpoint's equation.
    pub(crate) fn drop_old_terms(&mut self, row: EquationId) {
        let equation = &mut self[row];
        let present = &equation.present;
        let old: Vec<_> = equation.terms.extract_if(.., |term| !present.contains(term)).collect();
        for unknown in old {
            self[unknown].rows.retain(|&e| e != row);
            if self[unknown].rows.is_empty() {
                self.drop_unknown(unknown);
            }
        }
    }

    /// Forgets an equation of an endpoint, and unknowns that are in no other.
    pub(crate) fn drop_row(&mut self, row: EquationId) {
        self[row].present.clear();
        self.drop_old_terms(row);
        self.drop_equation(row);
    }

    /// Forgets an equation of a shared chain.
    pub(crate) fn drop_column(&mut self, column: EquationId) {
        for term in std::mem::take(&mut self[column].terms) {
            self[term].columns.retain(|&e| e != column);
        }
        self.drop_equation(column);
    }

    fn drop_equation(&mut self, id: EquationId) {
        let equation = self.equations.remove(id.0);
        self.equation_ids.remove(&(equation.chain, equation.relation));
    }

    fn drop_unknown(&mut self, id: UnknownId) {
        let unknown = self.unknowns.remove(id.0);
        for column in unknown.columns {
            self[column].terms.retain(|&term| term != id);
        }
        self.unknown_ids.remove(&(unknown.chain, unknown.outcome));
    }
}

macro_rules! index_by {
    ($id:ident, $field:ident, $target:ident) => {
        impl std::ops::Index<$id> for Store {
            type Output = $target;
            fn index(&self, id: $id) -> &$target {
                &self.$field[id.0]
            }
        }

        impl std::ops::IndexMut<$id> for Store {
            fn index_mut(&mut self, id: $id) -> &mut $target {
                &mut self.$field[id.0]
            }
        }
    };
}

index_by!(EquationId, equations, Equation);
index_by!(UnknownId, unknowns, Unknown);
