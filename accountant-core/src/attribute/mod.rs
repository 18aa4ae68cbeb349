//! From deltas of rules to postings: who decided about how many packets.
//!
//! [`program`] writes down what the rules of an endpoint chain say as equations; [`structure`] keeps them in step with
//! the rules; deltas feed the equations ([`Attributor::apply`]); [`settle`] posts what follows from them. A counter that
//! is the answer by itself is posted at once. What follows only from several counters is posted as far as the readings
//! prove it; what the numbers leave open is charged to the group, or to the unattributed account with its cause.
//!
//! Invariants:
//! * what is posted is never more than what happened, and never taken back;
//! * once everything stands still, all that was counted is posted, to the last packet.

mod amount;
mod bounds;
mod close;
mod deficit;
mod equation;
mod indexed;
mod kept;
mod naming;
mod program;
mod settle;
mod solve;
mod store;
mod structure;
mod witness;

use crate::ChainName;
use crate::calico::endpoint::Marks;
use crate::calico::policy::Generation;
use crate::id::Endpoint;
use crate::index::Index;
use crate::ledger::{Cause, Key, Posting};
use crate::reconcile::{ChainDelta, Circumstances, Reconciler, Span};
use crate::rule::RuleId;
use crate::snapshot::{Snapshot, Source, TableId};
use amount::Amount;
use equation::Blame;
use naming::Namer;
use std::collections::{BTreeSet, HashMap, HashSet};
use store::Store;
use structure::{Arriving, Feed, Program, Role, Shared};
use witness::Witness;

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
    /// How rules and programs in the kernel compare where traffic has come to rest since the last snapshot.
    pub compared: Compared,
}

/// Packets by who counted them: both the rules and the programs in the kernel should have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Counted by the rules and told by the programs.
    pub agreed: u64,
    /// Not told: the programs saw the packet's verdict alone, or did not see it.
    pub rules_only: u64,
    /// Told, and not counted by the rules.
    pub programs_only: u64,
    /// The same where counters were lost, and posted for that.
    pub repaired: u64,
}

/// Accounts for one table.
#[derive(Debug)]
pub struct Attributor {
    id: TableId,
    reconciler: Reconciler,
    store: Store,
    /// What the programs in the kernel told.
    witness: Witness,
    endpoints: HashMap<ChainName, Program>,
    shared: HashMap<ChainName, Shared>,
    marks: Marks,
    generation: Generation,
    /// What the current snapshot tells of shared chains before they are read one by one.
    arriving: Arriving,
    /// Rules of each chain that handed over their last values, at its last version.
    handed_over: HashMap<ChainName, HashSet<RuleId>>,
    /// Number of the current snapshot.
    snapshot: u64,
    /// The version of the rules in the last snapshot, where the kernel numbers versions.
    version: Option<u64>,
    /// Whether the agent was away since the last snapshot: nobody told what happened meanwhile.
    was_away: bool,
    /// What was not known of snapshots that were held back since the last that was taken.
    held_back: Option<Blind>,
    /// How many packets can be between two rules while counters are read.
    in_flight: u32,
    names_version: u64,
    accounts_version: u64,
}

/// What is not known of the time between two readings of a table.
#[derive(Clone, Copy, Debug, Default)]
struct Blind {
    /// Rules may have been rewritten without each version having been seen.
    unseen: bool,
    /// Whether what is doubted for that is believed all the same if all numbers agree: nothing that counted is lost.
    refutable: bool,
    /// Also rules that are the same as before may have been others meanwhile.
    gap: bool,
    /// It is the first reading: counters tell of times that nobody saw.
    first: bool,
}

impl Blind {
    /// What is not known of two times together.
    fn and(self, before: Self) -> Self {
        Self {
            unseen: self.unseen || before.unseen,
            refutable: self.refutable && before.refutable,
            gap: self.gap || before.gap,
            first: self.first || before.first,
        }
    }

    fn blame(self) -> Blame {
        Blame::Nobody(if self.first { Cause::History } else { Cause::Rewrite })
    }
}

impl Attributor {
    /// Starts to account for a table.
    pub fn new(id: TableId) -> Self {
        Self {
            id,
            reconciler: Reconciler::default(),
            store: Store::default(),
            witness: Witness::default(),
            endpoints: HashMap::new(),
            shared: HashMap::new(),
            marks: Marks::default(),
            generation: Generation::A,
            arriving: Arriving::default(),
            handed_over: HashMap::new(),
            snapshot: 0,
            version: None,
            was_away: false,
            held_back: None,
            in_flight: 0,
            names_version: 0,
            accounts_version: 0,
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
        let present = self.store.unknowns().filter(|(id, unknown)| self.store.is_present(*id, unknown));
        present.filter_map(|(_, unknown)| unknown.key.clone()).collect()
    }

    /// Whether all that endpoints' chains counted is charged: what is charged later is of packets that come later.
    pub fn is_level(&self) -> bool {
        self.store.open_rows().next().is_none()
    }

    /// Changes whenever [`Self::accounts`] may be others than before.
    pub fn accounts_version(&self) -> u64 {
        self.accounts_version
    }

    /// Takes a snapshot and says what it means.
    pub fn apply(&mut self, snapshot: &Snapshot, index: &Index) -> Attribution {
        self.snapshot += 1;
        self.in_flight = snapshot.in_flight;
        let mut attribution = Attribution::default();
        let blind = self.look_ahead(snapshot);
        for retired in &snapshot.retired {
            self.adopt([&retired.chain], Blind::default());
            let ids = retired.finals.iter().filter_map(|(index, _)| retired.chain.ids().get(*index).copied());
            self.handed_over.insert(retired.chain.name.clone(), ids.collect());
            let delta = self.reconciler.retire(retired);
            self.book(&delta, Blind::default(), &mut attribution);
        }
        self.adopt(snapshot.chains.iter().map(|reading| &reading.chain), blind);
        let may_hide = !blind.first && self.reconciler.may_hide(snapshot);
        let held_back = self.reconciler.holds_back(snapshot);
        let first_sight = blind.first || blind.gap;
        let circumstances = Circumstances { first_sight, may_hide, held_back };
        for reading in &snapshot.chains {
            match self.reconciler.read(reading, circumstances) {
                Some(delta) => self.book(&delta, blind, &mut attribution),
                None => attribution.wanted.push(reading.chain.name.clone()),
            }
        }
        for chain in snapshot.gone.iter().chain(&self.gone_while_away(snapshot)) {
            self.abandon(chain, blind);
        }
        self.version = snapshot.version.filter(|_| !held_back);
        self.was_away = false;
        self.held_back = held_back.then_some(blind);
        if blind.unseen {
            self.doubt_columns(blind);
        }
        if attribution.resets > 0 {
            self.doubt_all(Blame::Nobody(Cause::Reset));
        }
        self.handed_over.clear();
        self.name_unknowns(index);
        if blind.unseen && !blind.refutable {
            self.witness.lose();
        }
        self.witness.hear(snapshot.verdicts.as_ref(), self.snapshot);
        self.witness.follow(&self.store, self.accounts_version);
        settle::settle(self, &mut attribution);
        self.witness.rest(&self.store, snapshot.at, &mut attribution);
        attribution.unsettled |= self.reconciler.waits();
        attribution.wanted.retain(|chain| self.shared.contains_key(chain));
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
        let mut renamed = BTreeSet::new();
        let keys: Vec<_> = {
            let namer = Namer { table: self, index };
            self.store.unknowns().map(|(id, unknown)| (id, namer.key(unknown))).collect()
        };
        for (id, key) in keys {
            let old = std::mem::replace(&mut self.store[id].key, key.clone());
            if let (Some(old), Some(new)) = (old, key)
                && old != new
            {
                self.witness.rename(&old, &new);
                renamed.insert((old, new));
                self.accounts_version += 1;
            }
        }
        renamed.into_iter().collect()
    }

    /// What is not known of the time since the last snapshot, and what is known of the chains that come.
    fn look_ahead(&mut self, snapshot: &Snapshot) -> Blind {
        let first = self.snapshot == 1;
        let lost = self.reconciler.will_lose(snapshot);
        // Who only polls cannot know how many versions there were of what changed.
        let told_of_all = self.id.source != Source::IptablesLegacy || !snapshot.retired.is_empty();
        let changed = !told_of_all && self.reconciler.will_change(snapshot);
        // In nftables each rule that goes hands over its counter: messages were lost.
        let missed = !first && (snapshot.gap || (lost && self.id.source == Source::Nftables));
        // Rules that are of the same version were not touched while the agent was away.
        let unheard = self.was_away && (snapshot.version.is_none() || snapshot.version != self.version);
        let unseen = first || missed || unheard || lost || changed;
        let refutable = first || !(lost || missed);
        let blind = Blind { unseen, refutable, gap: missed || unheard, first };
        let blind = self.held_back.take().map_or(blind, |before| blind.and(before));
        self.arriving = Arriving::of(snapshot, &self.shared, self.marks);
        self.widen();
        blind
    }

    /// The chains that went while the agent was away. The first snapshot afterwards has all that are there.
    fn gone_while_away(&self, snapshot: &Snapshot) -> Vec<ChainName> {
        if !self.was_away {
            return Vec::new();
        }
        let present: HashSet<_> = snapshot.chains.iter().map(|reading| &reading.chain.name).collect();
        let known = self.endpoints.keys().chain(self.shared.keys());
        known.filter(|name| !present.contains(name)).cloned().collect()
    }

    /// Adds what the rules of a chain counted to the equations that they feed.
    fn book(&mut self, delta: &ChainDelta, blind: Blind, attribution: &mut Attribution) {
        attribution.resets += delta.resets;
        let name = &delta.chain.name;
        let (feeds, column) = match (self.endpoints.get(name), self.shared.get(name)) {
            (Some(program), _) => (&program.feeds, false),
            (None, Some(shared)) => (&shared.feeds, true),
            (None, None) => return,
        };
        for feed in feeds {
            let equation = &mut self.store[feed.equation];
            equation.begin_reading(self.snapshot, self.in_flight);
            if !column && feed.is_doubtful(delta, blind) {
                if feed.is_difference() {
                    equation.doubts(blind.blame(), blind.refutable, self.snapshot);
                } else if equation.is_helper() {
                    equation.misses(Amount::UNBOUNDED, blind.refutable);
                }
            }
            let (plus, minus) = (feed.sum(&feed.plus, delta), feed.sum(&feed.minus, delta));
            if plus != Amount::ZERO || minus != Amount::ZERO {
                let now = &mut equation.readings_mut().now;
                now.plus += plus;
                now.minus += minus;
                equation.moved_in = self.snapshot;
            }
        }
    }

    /// Endpoints can have come and gone, and rules can have counted and been lost, whose packets are in the sums.
    fn doubt_columns(&mut self, blind: Blind) {
        let snapshot = self.snapshot;
        for column in self.store.equations_mut().filter(|equation| equation.is_column()) {
            column.doubts(blind.blame(), blind.refutable, snapshot);
            if blind.gap {
                column.misses(Amount::UNBOUNDED, blind.refutable);
            }
        }
    }

    /// Counters were reset: others may have been too, and be past their old values again.
    fn doubt_all(&mut self, blame: Blame) {
        let snapshot = self.snapshot;
        for equation in self.store.equations_mut() {
            if equation.is_column() || equation.is_helper() || equation.is_difference {
                equation.misses(Amount::UNBOUNDED, false);
            }
            if equation.is_column() || equation.is_difference {
                equation.doubts(blame, false, snapshot);
            }
        }
    }

    fn name_unknowns(&mut self, index: &Index) {
        let fresh: Vec<_> = {
            let namer = Namer { table: self, index };
            let nameless = self.store.unknowns().filter(|(_, unknown)| unknown.key.is_none());
            nameless.filter_map(|(id, unknown)| Some((id, namer.key(unknown)?))).collect()
        };
        for (id, key) in fresh {
            self.accounts_version += 1;
            self.store[id].key = Some(key);
        }
    }
}

impl Feed {
    fn sum(&self, rules: &[u32], delta: &ChainDelta) -> Amount {
        rules.iter().filter_map(|&rule| delta.deltas.get(rule as usize)).map(|&d| Amount::from(d)).sum()
    }

    fn is_difference(&self) -> bool {
        !self.minus.is_empty()
    }

    /// Whether its rules can tell of different spans of time: some are new, and what was before them is not known.
    fn is_doubtful(&self, delta: &ChainDelta, blind: Blind) -> bool {
        let spans = self.plus.iter().chain(&self.minus).filter_map(|&rule| delta.spans.get(rule as usize));
        blind.unseen && (blind.gap || spans.into_iter().any(|&span| span != Span::SinceReading))
    }
}
