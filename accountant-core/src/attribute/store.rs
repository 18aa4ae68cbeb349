//! Equations and unknowns of one table, as they stand between snapshots.
//!
//! Both are known by identity (chain and relation, chain and outcome), so they outlive the rewriting of the rules that
//! feed them.

use super::amount::Amount;
use super::equation::Equation;
use super::indexed::{Identified, Indexed};
use super::program::{Outcome, Relation};
use crate::ChainName;
use crate::ledger::Key;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// Index of an equation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct EquationId(u32);

/// Index of an unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct UnknownId(u32);

/// Unknowns of an equation: mostly one or two.
pub(crate) type Terms = SmallVec<[UnknownId; 4]>;
/// Equations of an unknown: mostly one or two.
pub(crate) type Equations = SmallVec<[EquationId; 4]>;

/// Something that packets can have become.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Unknown {
    pub(crate) chain: ChainName,
    pub(crate) outcome: Outcome,
    /// Where it is posted to.
    pub(crate) key: Option<Key>,
    /// Equations of its endpoint that it is in.
    pub(crate) rows: Equations,
    /// Equations of its endpoint that subtract it.
    pub(crate) minus_rows: Equations,
    /// Equations of shared chains that it is in.
    pub(crate) columns: Equations,
    /// Whether it is only possible because not every version of its policy was seen.
    pub(crate) guessed: bool,
    /// What was posted of it since its equations were last settled.
    pub(crate) posted: Amount,
}

impl Identified for Equation {
    type What = Relation;
    fn identity(&self) -> (&ChainName, &Relation) {
        (&self.chain, &self.relation)
    }
}

impl Identified for Unknown {
    type What = Outcome;
    fn identity(&self) -> (&ChainName, &Outcome) {
        (&self.chain, &self.outcome)
    }
}

/// Equations and unknowns by identity.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(super) equations: Indexed<Equation>,
    pub(super) unknowns: Indexed<Unknown>,
}

impl Store {
    /// The equation of this identity, made when it is not there.
    pub(crate) fn equation(&mut self, chain: &ChainName, relation: &Relation) -> EquationId {
        let new = || Equation::new(chain.clone(), relation.clone());
        EquationId(self.equations.number(chain, relation, new))
    }

    /// The unknown of this identity, made when it is not there.
    pub(crate) fn unknown(&mut self, chain: &ChainName, outcome: &Outcome) -> UnknownId {
        let new = || Unknown {
            chain: chain.clone(),
            outcome: outcome.clone(),
            key: None,
            rows: Equations::new(),
            minus_rows: Equations::new(),
            columns: Equations::new(),
            guessed: true,
            posted: Amount::ZERO,
        };
        UnknownId(self.unknowns.number(chain, outcome, new))
    }

    /// The unknown of this identity, if it is there.
    pub(crate) fn find_unknown(&self, chain: &ChainName, outcome: &Outcome) -> Option<UnknownId> {
        self.unknowns.find(chain, outcome).map(UnknownId)
    }

    /// Accounts for what was posted of an unknown in all equations that it is in: it is certain, and they go on with the
    /// rest.
    pub(crate) fn settle_posted(&mut self, id: UnknownId) {
        let posted = std::mem::take(&mut self[id].posted);
        let Unknown { rows, minus_rows, columns, .. } = &self[id];
        let (rows, minus_rows, columns) = (rows.clone(), minus_rows.clone(), columns.clone());
        for equation in rows.into_iter().chain(columns) {
            self[equation].readings_mut().settled += posted;
        }
        for equation in minus_rows {
            self[equation].readings_mut().settled -= posted;
        }
    }

    /// All equations.
    pub(crate) fn equations(&self) -> impl Iterator<Item = (EquationId, &Equation)> {
        self.equations.iter().map(|(id, equation)| (EquationId(id), equation))
    }

    /// Equations of endpoints' chains that hold something that is not charged yet, or not surely.
    pub(crate) fn open_rows(&self) -> impl Iterator<Item = &Equation> {
        let rows = self.equations().filter(|(id, row)| !row.is_column() && !self.is_direct(*id));
        rows.filter(|(_, row)| !row.is_accounted()).map(|(_, row)| row)
    }

    /// All equations, to be changed.
    pub(crate) fn equations_mut(&mut self) -> impl Iterator<Item = &mut Equation> {
        self.equations.iter_mut()
    }

    /// All unknowns.
    pub(crate) fn unknowns(&self) -> impl Iterator<Item = (UnknownId, &Unknown)> {
        self.unknowns.iter().map(|(id, unknown)| (UnknownId(id), unknown))
    }

    /// Whether the present rules can make an unknown grow.
    pub(crate) fn is_present(&self, id: UnknownId, unknown: &Unknown) -> bool {
        unknown.rows.iter().any(|&row| self[row].fed && !self[row].former.contains(&id))
    }

    /// Whether the counter of this equation is the answer to its only term.
    pub(crate) fn is_direct(&self, row: EquationId) -> bool {
        let equation = &self[row];
        equation.role == super::equation::Role::Counts
            && !equation.is_difference
            && equation.terms.len() == 1
            && equation.doubt().is_none()
            && equation.missing().is_none()
    }

    /// Makes an unknown of an endpoint a term of one of its equations.
    pub(crate) fn link_row(&mut self, row: EquationId, unknown: UnknownId) {
        if !self[row].terms.contains(&unknown) {
            self[row].terms.push(unknown);
            self[unknown].rows.push(row);
        }
    }

    /// Makes an unknown of an endpoint a term that one of its equations subtracts.
    pub(crate) fn link_minus(&mut self, row: EquationId, unknown: UnknownId) {
        if !self[row].minus_terms.contains(&unknown) {
            self[row].minus_terms.push(unknown);
            self[unknown].minus_rows.push(row);
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
        let former = std::mem::take(&mut equation.former);
        equation.terms.retain(|term| !former.contains(term));
        equation.minus_terms.retain(|term| !former.contains(term));
        for unknown in former {
            self[unknown].rows.retain(|e| *e != row);
            self[unknown].minus_rows.retain(|e| *e != row);
            self.drop_if_unused(unknown);
        }
    }

    /// Forgets an equation of an endpoint, and unknowns that are in no other.
    pub(crate) fn drop_row(&mut self, row: EquationId) {
        let equation = &mut self[row];
        equation.former = equation.terms.iter().chain(&equation.minus_terms).copied().collect();
        self.drop_old_terms(row);
        self.equations.remove(row.0);
    }

    /// Forgets an equation of a shared chain.
    pub(crate) fn drop_column(&mut self, column: EquationId) {
        for term in std::mem::take(&mut self[column].terms) {
            self[term].columns.retain(|e| *e != column);
        }
        self.equations.remove(column.0);
    }

    fn drop_if_unused(&mut self, id: UnknownId) {
        if !self[id].rows.is_empty() || !self[id].minus_rows.is_empty() {
            return;
        }
        let unknown = self.unknowns.remove(id.0);
        for column in unknown.columns {
            self[column].terms.retain(|term| *term != id);
            // What was posted of it is accounted for.
            if unknown.posted != Amount::ZERO {
                self[column].readings_mut().settled += unknown.posted;
            }
        }
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
