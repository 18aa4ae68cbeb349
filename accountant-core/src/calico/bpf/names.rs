//! What the numbers of rules mean, as far as it was learnt: from listings of programs, and by the formulas from the names of
//! the datastore.
//!
//! Invariant: a number keeps its meaning until a listing gives it another one.

use super::PolicyProgram;
use super::rule_id::{Formulas, Meaning, RuleId};
use crate::index::Index;
use std::collections::{BTreeSet, HashMap, HashSet};

/// How many numbers without a name are remembered.
const REMEMBERED: usize = 10_000;

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Names {
    meanings: HashMap<RuleId, Meaning>,
    /// Numbers that nothing explains, and the version of the names that they were looked up in.
    unexplained: BTreeSet<RuleId>,
    looked_up: Option<u64>,
}

impl Names {
    /// What a number means.
    pub(super) fn meaning(&self, id: RuleId) -> Option<&Meaning> {
        self.meanings.get(&id)
    }

    /// Whether there is nothing to wait for.
    pub(super) fn explains(&self, id: RuleId) -> bool {
        id == RuleId::NONE || self.meanings.contains_key(&id)
    }

    /// Numbers that were looked up last and that nothing explains.
    pub(super) fn unexplained(&self) -> impl Iterator<Item = RuleId> {
        self.unexplained.iter().copied()
    }

    /// Learns what a listing says.
    pub(super) fn learn(&mut self, program: &PolicyProgram) {
        self.meanings.extend(program.meanings.iter().map(|(id, meaning)| (*id, meaning.clone())));
    }

    /// Looks up those of these numbers that no listing explains; says whether one was found.
    pub(super) fn look_up(&mut self, ids: impl Iterator<Item = RuleId>, index: &Index) -> bool {
        let nameless: BTreeSet<_> = ids.filter(|id| !self.explains(*id)).take(REMEMBERED).collect();
        let mut found = false;
        if self.looked_up != Some(index.version()) || nameless != self.unexplained {
            self.looked_up = Some(index.version());
            let wanted: HashSet<_> = nameless.iter().copied().collect();
            let formulas =
                Formulas { policies: index.policies().collect(), profiles: index.profiles().collect() };
            let explained = formulas.explain(&wanted);
            found = !explained.is_empty();
            self.meanings.extend(explained);
        }
        self.unexplained = nameless.into_iter().filter(|id| !self.meanings.contains_key(id)).collect();
        found
    }
}
