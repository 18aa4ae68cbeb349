//! Keeping the equations in step with the rules: which rules feed which equation, now.
//!
//! A rule that stays goes on feeding the equation that it fed; an equation whose rules are all gone holds what they last
//! counted until that is settled. Policies are taken to have been able to do what any version of their chains could
//! do since the last snapshot; where versions may not have been seen, anything.

use super::equation::{Blame, Role as EquationRole};
use super::program::{self, Outcome, Relation, SharedChains, Spec};
use super::store::{EquationId, UnknownId};
use super::{Amount, Attributor, Blind};
use crate::ChainName;
use crate::calico::chain::ChainKind;
use crate::calico::comment::Naming;
use crate::calico::endpoint::{EndpointChain, Marks, RuleIndex};
use crate::calico::policy::Generation;
use crate::calico::shared::{PolicyAction, PolicyChain, group_members};
use crate::id::Endpoint;
use crate::ledger::Cause;
use crate::rule::{Chain, RuleId};
use crate::snapshot::Snapshot;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// An endpoint chain and the equations that its rules feed.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) chain: Arc<Chain>,
    pub(super) read: EndpointChain,
    pub(super) endpoint: Endpoint,
    pub(super) feeds: Vec<Feed>,
}

/// A policy, profile, group or failsafe chain and the equations that its rules feed.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) chain: Arc<Chain>,
    pub(super) role: Role,
    pub(super) feeds: Vec<Feed>,
}

#[derive(Debug)]
pub(super) enum Role {
    Policy(PolicyChain),
    Group(Vec<ChainName>),
}

/// Rules that feed an equation: mostly one or two.
type Rules = SmallVec<[u32; 4]>;

/// Which rules feed an equation.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Feed {
    pub(super) equation: EquationId,
    pub(super) plus: Rules,
    pub(super) minus: Rules,
}

/// What a snapshot tells of shared chains, all versions of them together.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    members: HashMap<ChainName, Vec<ChainName>>,
    able: HashSet<(ChainName, PolicyAction)>,
    /// Chains of which versions may not have been seen.
    unseen: HashSet<ChainName>,
}

impl Arriving {
    /// Chains that are as they are known tell nothing new.
    pub(super) fn of(snapshot: &Snapshot, known: &HashMap<ChainName, Shared>, marks: Marks) -> Self {
        let mut arriving = Self::default();
        let retired = snapshot.retired.iter().map(|retired| &retired.chain);
        let all = retired.chain(snapshot.chains.iter().map(|reading| &reading.chain));
        let is_new = |chain: &&Arc<Chain>| known.get(&chain.name).is_none_or(|k| !k.chain.same_rules(chain));
        for chain in all.filter(is_new) {
            match ChainKind::of(&chain.name) {
                ChainKind::Group(_) => {
                    let members = group_members(chain).into_iter().map(|member| member.chain).collect();
                    arriving.members.insert(chain.name.clone(), members);
                }
                kind if kind.is_shared() => {
                    let policy = PolicyChain::read(chain, marks);
                    let able = PolicyAction::ALL.into_iter().filter(|&action| policy.can(action));
                    arriving.able.extend(able.map(|action| (chain.name.clone(), action)));
                }
                _ => {}
            }
        }
        arriving
    }
}

impl Attributor {
    /// Learns the present rules of chains, if they are new.
    pub(super) fn adopt<'a>(&mut self, chains: impl IntoIterator<Item = &'a Arc<Chain>>, blind: Blind) {
        let (mut endpoints, mut shared) = (Vec::new(), Vec::new());
        for chain in chains {
            let known = self.endpoints.get(&chain.name).map(|program| &program.chain);
            let known = known.or(self.shared.get(&chain.name).map(|shared| &shared.chain));
            if known.is_some_and(|known| known.same_rules(chain)) {
                continue;
            }
            match ChainKind::of(&chain.name) {
                ChainKind::Endpoint { endpoint, .. } => endpoints.push((chain, endpoint)),
                kind if kind.is_shared() => shared.push((chain, kind)),
                _ => {}
            }
        }
        let marks_before = self.marks;
        let mut old_chains = HashMap::new();
        for (chain, endpoint) in endpoints {
            let read = EndpointChain::read(chain);
            self.marks = read.marks.or(self.marks);
            if read.names_tiers && self.generation == Generation::A {
                self.generation = Generation::B;
            }
            let program = Program { chain: chain.clone(), read, endpoint, feeds: vec![] };
            // The old feeds stay until the new ones are written.
            let old = self.endpoints.insert(chain.name.clone(), program);
            if let (Some(old), Some(new)) = (old, self.endpoints.get_mut(&chain.name)) {
                new.feeds = old.feeds;
                old_chains.insert(chain.name.clone(), Some(old.chain));
            } else {
                old_chains.insert(chain.name.clone(), None);
            }
        }
        let marks_changed = self.marks != marks_before;
        if marks_changed {
            // Which rules accept and pass is told by the marks.
            let known: Vec<_> = self.shared.values().map(|shared| shared.chain.clone()).collect();
            for chain in known {
                self.adopt_shared(&chain, &ChainKind::of(&chain.name), Blind::default());
            }
        }
        let all = marks_changed || !shared.is_empty();
        for (chain, kind) in &shared {
            self.adopt_shared(chain, kind, blind);
        }
        let rewrite: Vec<_> = match all {
            true => self.endpoints.keys().cloned().collect(),
            false => old_chains.keys().cloned().collect(),
        };
        for chain in rewrite {
            self.write_program(&chain, old_chains.get(&chain).and_then(Option::as_ref), blind);
        }
    }

    /// Lets endpoints have done what versions of policies can do that come with the snapshot.
    pub(super) fn widen(&mut self) {
        let view = SharedView { table: self, wide: false };
        if self.arriving.able.iter().all(|(chain, action)| view.can(chain, *action)) {
            return;
        }
        for chain in self.endpoints.keys().cloned().collect::<Vec<_>>() {
            self.write_program(&chain, None, Blind::default());
        }
    }

    fn adopt_shared(&mut self, chain: &Arc<Chain>, kind: &ChainKind, blind: Blind) {
        let mut specs = Vec::new();
        let role = if let ChainKind::Group(_) = kind {
            let members = group_members(chain);
            for pair in members.windows(2) {
                specs.push((Relation::Member(pair[0].chain.clone()), vec![pair[0].jump], vec![pair[1].jump]));
            }
            Role::Group(members.into_iter().map(|member| member.chain).collect())
        } else {
            let policy = PolicyChain::read(chain, self.marks);
            if let Some(Naming::KindPolicy(_)) = policy.naming {
                self.generation = Generation::C;
            }
            for action in PolicyAction::ALL {
                specs.push((Relation::Shared(action), policy.rules(action).to_vec(), vec![]));
            }
            Role::Policy(policy)
        };
        if blind.unseen {
            self.arriving.unseen.insert(chain.name.clone());
        }
        let old = self.shared.remove(&chain.name);
        if let Some(Shared { role: Role::Policy(policy), .. }) = &old {
            let able = PolicyAction::ALL.into_iter().filter(|&action| policy.can(action));
            self.arriving.able.extend(able.map(|action| (chain.name.clone(), action)));
        }
        let old_feeds = old.map(|shared| shared.feeds).unwrap_or_default();
        let mut feeds = Vec::new();
        for (relation, plus, minus) in specs {
            let id = self.store.equation(&chain.name, &relation);
            let column = &mut self.store[id];
            column.role = EquationRole::Column;
            column.is_difference = !minus.is_empty();
            (column.fed, column.ever_fed) = (true, true);
            if blind.unseen {
                column.misses(Amount::UNBOUNDED, blind.refutable);
            }
            feeds.push(Feed { equation: id, plus: places(plus), minus: places(minus) });
        }
        self.orphan_unfed(&old_feeds, &feeds, blind);
        self.shared.insert(chain.name.clone(), Shared { chain: chain.clone(), role, feeds });
    }

    /// Writes the equations of an endpoint chain anew. What is not settled in the old ones stays in them.
    fn write_program(&mut self, chain: &ChainName, old_chain: Option<&Arc<Chain>>, blind: Blind) {
        let Some(program) = self.endpoints.get(chain) else { return };
        self.accounts_version += 1;
        let specs = |wide| program::equations(&program.read, &SharedView { table: self, wide });
        let (present, possible) = (specs(false), specs(true));
        let mut feeds: Vec<Feed> = Vec::new();
        let mut present_terms: HashMap<EquationId, HashSet<UnknownId>> = HashMap::new();
        for (present, Spec { relation, role, plus, minus, outcomes, minus_outcomes }) in
            present.into_iter().zip(possible)
        {
            let row = self.store.equation(chain, &relation);
            for outcome in &outcomes {
                let unknown = self.unknown(chain, outcome);
                self.store.link_row(row, unknown);
            }
            for outcome in &minus_outcomes {
                let unknown = self.unknown(chain, outcome);
                self.store.link_minus(row, unknown);
            }
            let now = present.outcomes.iter().chain(&present.minus_outcomes);
            let now = now.map(|outcome| self.store.unknown(chain, outcome));
            present_terms.entry(row).or_default().extend(now);
            let equation = &mut self.store[row];
            equation.role = role;
            equation.is_difference |= !minus.is_empty();
            (equation.fed, equation.ever_fed) = (true, true);
            match feeds.iter_mut().find(|feed| feed.equation == row) {
                Some(feed) => {
                    feed.plus.extend(places(plus));
                    feed.minus.extend(places(minus));
                }
                None => feeds.push(Feed { equation: row, plus: places(plus), minus: places(minus) }),
            }
        }
        for (row, present) in present_terms {
            let equation = &mut self.store[row];
            let all = equation.terms.iter().chain(&equation.minus_terms);
            equation.former = all.copied().filter(|term| !present.contains(term)).collect();
        }
        let Some(program) = self.endpoints.get_mut(chain) else { return };
        let new_chain = program.chain.clone();
        let old = std::mem::take(&mut program.feeds);
        if let Some(old_chain) = old_chain {
            self.doubt_straddled((old_chain, &old), (&new_chain, &feeds));
        }
        self.orphan_unfed(&old, &feeds, blind);
        if let Some(program) = self.endpoints.get_mut(chain) {
            program.feeds = feeds;
        }
    }

    /// A rule that stays and feeds other equations than before: what it counted since the last reading is of both times,
    /// and is in the new equations whole.
    fn doubt_straddled(&mut self, old: (&Arc<Chain>, &[Feed]), new: (&Arc<Chain>, &[Feed])) {
        let handed_over = self.handed_over.get(&old.0.name);
        let (old, new) = (uses(old), uses(new));
        for (&rule, before) in &old {
            let Some(after) = new.get(&rule) else { continue };
            if before == after || handed_over.is_some_and(|rules| rules.contains(&rule)) {
                continue;
            }
            for &(id, added) in before.symmetric_difference(after) {
                let equation = &mut self.store[id];
                // What is subtracted too little is as good as added too much.
                if added == before.contains(&(id, added)) {
                    equation.misses(Amount::UNBOUNDED, false);
                } else {
                    equation.doubts(Blame::Elsewhere, false, self.snapshot);
                }
            }
        }
    }

    /// The unknown of an outcome, linked to the sums over endpoints that it is part of.
    fn unknown(&mut self, chain: &ChainName, outcome: &Outcome) -> UnknownId {
        let unknown = self.store.unknown(chain, outcome);
        self.store[unknown].guessed &= self.is_guess(outcome);
        for (shared, relation) in columns_of(outcome) {
            let column = self.store.equation(&shared, &relation);
            self.store[column].role = EquationRole::Column;
            self.store.link_column(column, unknown);
        }
        unknown
    }

    /// Whether no version of a policy that was seen can decide so.
    fn is_guess(&self, outcome: &Outcome) -> bool {
        let (Outcome::Policy { chain, action, .. } | Outcome::Profile { chain, action }) = outcome else {
            return false;
        };
        let is_able = SharedView { table: self, wide: false }.can(chain, *action);
        !is_able && !self.arriving.able.contains(&(chain.clone(), *action))
    }

    /// A chain is gone: what its equations hold now is all there will be.
    pub(super) fn abandon(&mut self, chain: &ChainName, blind: Blind) {
        self.reconciler.forget(chain);
        self.accounts_version += 1;
        let feeds = match self.endpoints.remove(chain) {
            Some(program) => program.feeds,
            None => self.shared.remove(chain).map(|shared| shared.feeds).unwrap_or_default(),
        };
        self.orphan_unfed(&feeds, &[], blind);
    }

    fn orphan_unfed(&mut self, old: &[Feed], new: &[Feed], blind: Blind) {
        for feed in old {
            if new.iter().any(|fed| fed.equation == feed.equation) {
                continue;
            }
            let (in_flight, snapshot) = (self.in_flight, self.snapshot);
            let equation = &mut self.store[feed.equation];
            equation.begin_reading(snapshot, in_flight);
            if blind.unseen {
                match equation.is_column() {
                    true => equation.misses(Amount::UNBOUNDED, blind.refutable),
                    false if feed.is_difference() => {
                        equation.doubts(Blame::Nobody(Cause::Rewrite), false, snapshot);
                    }
                    false => {}
                }
            }
            equation.orphan();
        }
    }
}

/// No chain has as many rules as a `u32` can tell: the kernel keeps a table's in 32 bits, too (`xt_table_info.number`).
fn places(rules: Vec<RuleIndex>) -> Rules {
    rules.into_iter().filter_map(|rule| u32::try_from(rule).ok()).collect()
}

/// Which equations each rule feeds, and whether it is added.
fn uses((chain, feeds): (&Arc<Chain>, &[Feed])) -> HashMap<RuleId, HashSet<(EquationId, bool)>> {
    let mut uses: HashMap<RuleId, HashSet<(EquationId, bool)>> = HashMap::new();
    for feed in feeds {
        let plus = feed.plus.iter().map(|&rule| (rule, true));
        for (rule, added) in plus.chain(feed.minus.iter().map(|&rule| (rule, false))) {
            if let Some(&id) = chain.ids().get(rule as usize) {
                uses.entry(id).or_default().insert((feed.equation, added));
            }
        }
    }
    uses
}

/// The equations of shared chains that an outcome is part of.
fn columns_of(outcome: &Outcome) -> Vec<(ChainName, Relation)> {
    match outcome {
        Outcome::Policy { via, chain, action, .. } => {
            let mut columns = vec![(chain.clone(), Relation::Shared(*action))];
            // The last member has no counter behind it, and what it decided follows from nothing.
            if via != chain {
                columns.push((via.clone(), Relation::Member(chain.clone())));
            }
            columns
        }
        Outcome::Profile { chain, action } => vec![(chain.clone(), Relation::Shared(*action))],
        Outcome::Failsafe { chain } => vec![(chain.clone(), Relation::Shared(PolicyAction::Allow))],
        _ => vec![],
    }
}

/// Shared chains as the program of an endpoint sees them: as they are, or as they may have been since the last snapshot.
struct SharedView<'a> {
    table: &'a Attributor,
    wide: bool,
}

impl SharedChains for SharedView<'_> {
    fn members(&self, group: &ChainName) -> Option<Vec<ChainName>> {
        match self.table.shared.get(group).map(|shared| &shared.role) {
            Some(Role::Group(members)) => Some(members.clone()),
            Some(Role::Policy(_)) => None,
            None => self.table.arriving.members.get(group).cloned(),
        }
    }

    fn can(&self, chain: &ChainName, action: PolicyAction) -> bool {
        let arriving = &self.table.arriving;
        if self.wide && (arriving.unseen.contains(chain) || arriving.able.contains(&(chain.clone(), action)))
        {
            return true;
        }
        match self.table.shared.get(chain).map(|shared| &shared.role) {
            Some(Role::Policy(policy)) => policy.can(action),
            // A chain that is not known might do anything.
            _ => true,
        }
    }
}
