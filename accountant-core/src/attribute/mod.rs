//! From deltas of rules to postings: who decided about how many packets.
//!
//! [`program`] writes down what the rules of an endpoint chain say as equations; deltas feed the equations
//! ([`Attributor::apply`]); [`settle`] posts what follows from them. A counter that is the answer by itself is posted at
//! once. What follows only from several counters is posted as far as two readings running agree on it; what the
//! numbers leave open is charged to the group, or to the unattributed account with its cause.
//!
//! Invariants:
//! * what is posted is never more than what happened, and never taken back;
//! * once everything stands still, all that was counted is posted, to the last packet.

mod amount;
mod bounds;
mod program;
mod settle;
mod store;

use crate::ChainName;
use crate::calico::chain::ChainKind;
use crate::calico::comment::Naming;
use crate::calico::endpoint::{EndpointChain, Marks, RuleIndex};
use crate::calico::policy::{Generation, PolicyId};
use crate::calico::shared::{PolicyAction, PolicyChain, group_members};
use crate::id::Endpoint;
use crate::index::Index;
use crate::ledger::{AccountKey, Cause, Key, PolicyRef, Posting, ProfileRef, What};
use crate::reconcile::{ChainDelta, Circumstances, Reconciler, Span};
use crate::rule::Chain;
use crate::snapshot::{Snapshot, TableId};
use amount::Amount;
use program::{Outcome, Relation, SharedChains, Spec};
use std::collections::HashMap;
use std::sync::Arc;
use store::{EquationId, Store, UnknownId};

/// What a snapshot led to.
#[derive(Debug, Default)]
pub struct Attribution {
    /// Additions to accounts.
    pub postings: Vec<Posting>,
    /// Whether another reading right now would tell more.
    pub unsettled: bool,
    /// Shared chains that this reading would have to contain.
    pub wanted: Vec<ChainName>,
    /// Counters that were reset.
    pub resets: u64,
}

/// Accounts for one table.
#[derive(Debug)]
pub struct Attributor {
    id: TableId,
    reconciler: Reconciler,
    store: Store,
    endpoints: HashMap<ChainName, Program>,
    shared: HashMap<ChainName, Shared>,
    marks: Marks,
    generation: Generation,
    /// Number of the current snapshot.
    snapshot: u64,
    names_version: u64,
}

/// An endpoint chain and the equations that its rules feed.
#[derive(Debug)]
struct Program {
    chain: Arc<Chain>,
    read: EndpointChain,
    endpoint: Endpoint,
    feeds: Vec<Feed>,
}

/// A policy, profile, group or failsafe chain and the equations that its rules feed.
#[derive(Debug)]
struct Shared {
    chain: Arc<Chain>,
    role: Role,
    feeds: Vec<Feed>,
}

#[derive(Debug)]
enum Role {
    Policy(PolicyChain),
    Group(Vec<ChainName>),
}

/// Which rules feed an equation.
#[derive(Debug)]
struct Feed {
    equation: EquationId,
    plus: Vec<RuleIndex>,
    minus: Vec<RuleIndex>,
}

impl Attributor {
    /// Starts to account for a table.
    pub fn new(id: TableId) -> Self {
        Self {
            id,
            reconciler: Reconciler::default(),
            store: Store::default(),
            endpoints: HashMap::new(),
            shared: HashMap::new(),
            marks: Marks::default(),
            generation: Generation::A,
            snapshot: 0,
            names_version: 0,
        }
    }

    /// Which table it accounts for.
    pub fn id(&self) -> TableId {
        self.id
    }

    /// Which generation of Calico's naming wrote the table.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The endpoints that have chains in the table.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values().map(|program| &program.endpoint)
    }

    /// All accounts that the present rules can post to.
    pub fn accounts(&self) -> Vec<Key> {
        self.store.unknowns().filter_map(|(_, unknown)| unknown.key.clone()).collect()
    }

    /// Takes a snapshot and says what it means.
    pub fn apply(&mut self, snapshot: &Snapshot, index: &Index) -> Attribution {
        self.snapshot += 1;
        let mut attribution = Attribution::default();
        for retired in &snapshot.retired {
            self.adopt([&retired.chain]);
            let delta = self.reconciler.retire(retired);
            self.book(&delta, &mut attribution);
        }
        self.adopt(snapshot.chains.iter().map(|reading| &reading.chain));
        let circumstances = Circumstances {
            first_sight: self.snapshot == 1 || snapshot.gap,
            may_dip: snapshot.may_dip,
            at: snapshot.at,
        };
        for reading in &snapshot.chains {
            if let Some(delta) = self.reconciler.read(reading, circumstances) {
                self.book(&delta, &mut attribution);
            }
        }
        for chain in &snapshot.gone {
            self.abandon(chain);
        }
        self.name_unknowns(index);
        settle::settle(&mut self.store, self.snapshot, self.id.source, &mut attribution);
        attribution.unsettled |= self.reconciler.waits();
        attribution.wanted.sort();
        attribution.wanted.dedup();
        attribution
    }

    /// Names that are better known by now: accounts to be renamed, old key first.
    pub fn rename(&mut self, index: &Index) -> Vec<(Key, Key)> {
        if self.names_version == index.version() {
            return Vec::new();
        }
        self.names_version = index.version();
        let mut renamed = Vec::new();
        let keys: Vec<_> = {
            let namer = self.namer(index);
            self.store.unknowns().map(|(id, unknown)| (id, namer.key(unknown))).collect()
        };
        for (id, key) in keys {
            let old = std::mem::replace(&mut self.store[id].key, key.clone());
            if let (Some(old), Some(new)) = (old, key)
                && old != new
                && !renamed.contains(&(old.clone(), new.clone()))
            {
                renamed.push((old, new));
            }
        }
        renamed
    }

    /// Learns the present rules of chains, if they are new.
    fn adopt<'a>(&mut self, chains: impl IntoIterator<Item = &'a Arc<Chain>>) {
        let mut endpoints = Vec::new();
        let mut shared = Vec::new();
        for chain in chains {
            match ChainKind::of(&chain.name) {
                ChainKind::Endpoint { endpoint, .. } => {
                    if self.endpoints.get(&chain.name).is_none_or(|known| !known.chain.same_rules(chain)) {
                        endpoints.push((chain, endpoint));
                    }
                }
                kind if kind.is_shared() => {
                    if self.shared.get(&chain.name).is_none_or(|known| !known.chain.same_rules(chain)) {
                        shared.push((chain, kind));
                    }
                }
                _ => {}
            }
        }
        let marks_before = self.marks;
        for (chain, endpoint) in &endpoints {
            let read = EndpointChain::read(chain);
            self.marks = read.marks.or(self.marks);
            if read.names_tiers && self.generation == Generation::A {
                self.generation = Generation::B;
            }
            let program =
                Program { chain: (*chain).clone(), read, endpoint: endpoint.clone(), feeds: vec![] };
            // The old feeds stay until the new ones are written.
            let old = self.endpoints.insert(chain.name.clone(), program);
            if let (Some(old), Some(new)) = (old, self.endpoints.get_mut(&chain.name)) {
                new.feeds = old.feeds;
            }
        }
        if self.marks != marks_before {
            // Which rules accept and pass is told by the marks.
            let known: Vec<_> = self.shared.values().map(|shared| shared.chain.clone()).collect();
            for chain in known {
                self.adopt_shared(&chain, &ChainKind::of(&chain.name));
            }
        }
        for (chain, kind) in &shared {
            self.adopt_shared(chain, kind);
        }
        let rewrite: Vec<_> = if shared.is_empty() && self.marks == marks_before {
            endpoints.iter().map(|(chain, _)| chain.name.clone()).collect()
        } else {
            self.endpoints.keys().cloned().collect()
        };
        for chain in rewrite {
            self.write_program(&chain);
        }
    }

    fn adopt_shared(&mut self, chain: &Arc<Chain>, kind: &ChainKind) {
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
        let old = self.shared.remove(&chain.name).map(|shared| shared.feeds).unwrap_or_default();
        let mut feeds = Vec::new();
        for (relation, plus, minus) in specs {
            let equation = self.store.equation(&chain.name, &relation);
            self.store[equation].difference = !minus.is_empty();
            self.store[equation].fed = true;
            feeds.push(Feed { equation, plus, minus });
        }
        self.orphan_unfed(&old, &feeds);
        self.shared.insert(chain.name.clone(), Shared { chain: chain.clone(), role, feeds });
    }

    /// Writes the equations of an endpoint chain anew. What is not settled in the old ones stays in them.
    fn write_program(&mut self, chain: &ChainName) {
        let Some(program) = self.endpoints.get(chain) else { return };
        let specs = program::equations(&program.read, &SharedView { shared: &self.shared });
        let mut feeds: Vec<Feed> = Vec::new();
        for Spec { relation, plus, minus, outcomes, remainder } in specs {
            let equation = self.store.equation(chain, &relation);
            let unknowns: Vec<_> = outcomes.iter().map(|outcome| self.unknown(chain, outcome)).collect();
            for &unknown in &unknowns {
                self.store.link_row(equation, unknown);
            }
            let row = &mut self.store[equation];
            row.difference |= !minus.is_empty();
            row.remainder = remainder;
            row.fed = true;
            match feeds.iter_mut().find(|feed| feed.equation == equation) {
                Some(feed) => {
                    feed.plus.extend(plus);
                    feed.minus.extend(minus);
                    row.present.extend(unknowns);
                }
                None => {
                    feeds.push(Feed { equation, plus, minus });
                    row.present = unknowns;
                }
            }
        }
        for feed in &feeds {
            if !self.store[feed.equation].high().any_positive() {
                self.store.drop_old_terms(feed.equation);
            }
        }
        let Some(program) = self.endpoints.get_mut(chain) else { return };
        let old = std::mem::take(&mut program.feeds);
        self.orphan_unfed(&old, &feeds);
        if let Some(program) = self.endpoints.get_mut(chain) {
            program.feeds = feeds;
        }
    }

    /// The unknown of an outcome, linked to the sums over endpoints that it is part of.
    fn unknown(&mut self, chain: &ChainName, outcome: &Outcome) -> UnknownId {
        let unknown = self.store.unknown(chain, outcome);
        for (shared, relation) in columns_of(outcome) {
            let feeds = self.shared.get(&shared).map(|shared| &shared.feeds).into_iter().flatten();
            let column = feeds.map(|feed| feed.equation).find(|&e| self.store[e].relation == relation);
            if let Some(column) = column {
                self.store.link_column(column, unknown);
            }
        }
        unknown
    }

    fn orphan_unfed(&mut self, old: &[Feed], new: &[Feed]) {
        for feed in old {
            if !new.iter().any(|fed| fed.equation == feed.equation) {
                self.store[feed.equation].orphan();
            }
        }
    }

    /// A chain is gone: what its equations hold now is all there will be.
    fn abandon(&mut self, chain: &ChainName) {
        self.reconciler.forget(chain);
        let feeds = match self.endpoints.remove(chain) {
            Some(program) => program.feeds,
            None => self.shared.remove(chain).map(|shared| shared.feeds).unwrap_or_default(),
        };
        self.orphan_unfed(&feeds, &[]);
    }

    /// Adds what the rules of a chain counted to the equations that they feed.
    fn book(&mut self, delta: &ChainDelta, attribution: &mut Attribution) {
        attribution.resets += delta.resets;
        let name = &delta.chain.name;
        let (feeds, column) = match (self.endpoints.get(name), self.shared.get(name)) {
            (Some(program), _) => (&program.feeds, false),
            (None, Some(shared)) => (&shared.feeds, true),
            (None, None) => return,
        };
        for feed in feeds {
            let equation = &mut self.store[feed.equation];
            equation.begin_reading(self.snapshot);
            if let Some(cause) = feed.breaks(delta, column) {
                equation.break_off(cause);
            }
            let plus = feed.sum(&feed.plus, delta);
            let minus = feed.sum(&feed.minus, delta);
            if plus != Amount::ZERO || minus != Amount::ZERO {
                equation.now.plus += plus;
                equation.now.minus += minus;
                equation.moved_in = self.snapshot;
            }
        }
    }

    fn name_unknowns(&mut self, index: &Index) {
        let fresh: Vec<_> = {
            let namer = self.namer(index);
            let nameless = self.store.unknowns().filter(|(_, unknown)| unknown.key.is_none());
            nameless.filter_map(|(id, unknown)| Some((id, namer.key(unknown)?))).collect()
        };
        for (id, key) in fresh {
            self.store[id].key = Some(key);
        }
    }

    fn namer<'a>(&'a self, index: &'a Index) -> Namer<'a> {
        Namer { table: self, index }
    }
}

impl Feed {
    fn sum(&self, rules: &[RuleIndex], delta: &ChainDelta) -> Amount {
        rules
            .iter()
            .filter_map(|&rule| delta.deltas.get(rule))
            .map(|&d| Amount::from(d))
            .fold(Amount::ZERO, |a, b| a + b)
    }

    /// Whether the rules that feed the equation tell of different spans of time, and why.
    fn breaks(&self, delta: &ChainDelta, column: bool) -> Option<Cause> {
        let mut spans =
            self.plus.iter().chain(&self.minus).filter_map(|&rule| delta.spans.get(rule)).peekable();
        let first = **spans.peek()?;
        let mixed = spans.clone().any(|&span| span != first);
        let difference = !self.minus.is_empty();
        if delta.resets > 0 && (difference || column) {
            return Some(Cause::Reset);
        }
        if first == Span::SinceEver || spans.any(|&span| span == Span::SinceEver) {
            let counted =
                self.sum(&self.plus, delta) != Amount::ZERO || self.sum(&self.minus, delta) != Amount::ZERO;
            return (difference && !column && counted).then_some(Cause::History);
        }
        // A shared chain that lost rules lost counts that endpoints know of; an endpoint chain only mixes spans up.
        (delta.lossy && (column || (difference && mixed))).then_some(Cause::Rewrite)
    }
}

/// The equations of shared chains that an outcome is part of.
fn columns_of(outcome: &Outcome) -> Vec<(ChainName, Relation)> {
    match outcome {
        Outcome::Policy { via, chain, action, .. } => {
            let mut columns = vec![(chain.clone(), Relation::Shared(*action))];
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

struct SharedView<'a> {
    shared: &'a HashMap<ChainName, Shared>,
}

impl SharedChains for SharedView<'_> {
    fn members(&self, group: &ChainName) -> Option<Vec<ChainName>> {
        match &self.shared.get(group)?.role {
            Role::Group(members) => Some(members.clone()),
            Role::Policy(_) => None,
        }
    }

    fn policy(&self, chain: &ChainName) -> Option<&PolicyChain> {
        match &self.shared.get(chain)?.role {
            Role::Policy(policy) => Some(policy),
            Role::Group(_) => None,
        }
    }
}

/// Finds the account of an unknown.
struct Namer<'a> {
    table: &'a Attributor,
    index: &'a Index,
}

impl Namer<'_> {
    fn key(&self, unknown: &store::Unknown) -> Option<Key> {
        let what = match &unknown.outcome {
            Outcome::Unmatched { .. } => return None,
            Outcome::Unknown => return Some(Key::Unattributed(self.table.id.source, Cause::UnknownRule)),
            Outcome::Verdict(verdict) => What::Verdict(*verdict),
            Outcome::Failsafe { .. } => What::Failsafe,
            Outcome::Policy { tier, chain, action, .. } => {
                What::Policy { tier: tier.clone(), policy: self.policy(chain), action: *action }
            }
            Outcome::NoPolicy { tier } => What::NoPolicy { tier: tier.clone() },
            Outcome::Profile { chain, action } => {
                What::Profile { profile: self.profile(chain), action: *action }
            }
            Outcome::NoProfile => What::NoProfile,
        };
        let ChainKind::Endpoint { endpoint, direction, .. } = ChainKind::of(&unknown.chain) else {
            return None;
        };
        Some(Key::Account(AccountKey { endpoint, direction, ip_version: self.table.id.ip_version, what }))
    }

    fn naming(&self, chain: &ChainName) -> Option<&Naming> {
        match &self.table.shared.get(chain)?.role {
            Role::Policy(policy) => policy.naming.as_ref(),
            Role::Group(_) => None,
        }
    }

    /// The rules' own word first, then the datastore's, then the chain's name.
    fn policy(&self, chain: &ChainName) -> PolicyRef {
        if let Some(Naming::Policy(id) | Naming::KindPolicy(id)) = self.naming(chain) {
            return PolicyRef::Known(id.clone());
        }
        let generation = self.table.generation;
        let known = self.index.policy(chain, generation).cloned();
        match known.or_else(|| PolicyId::from_chain(chain.as_str(), generation)) {
            Some(id) => PolicyRef::Known(id),
            None => PolicyRef::Chain(chain.clone()),
        }
    }

    fn profile(&self, chain: &ChainName) -> ProfileRef {
        if let Some(Naming::Profile(name)) = self.naming(chain) {
            return ProfileRef::Known(name.clone());
        }
        let plain = || {
            let name =
                chain.as_str().strip_prefix("cali-pri-").or(chain.as_str().strip_prefix("cali-pro-"))?;
            (!name.starts_with('_')).then(|| name.into())
        };
        match self.index.profile(chain).cloned().or_else(plain) {
            Some(name) => ProfileRef::Known(name),
            None => ProfileRef::Chain(chain.clone()),
        }
    }
}
