//! What the programs in the kernel saw, packet by packet, as evidence of who decided.
//!
//! The rules' counters stay what is posted: each packet is in one of an endpoint's equations. A path proves that one packet
//! of them was decided so; so what was told of an account, and not posted to it since, can be posted at once, as long as
//! there is that much in the equation. Nothing is ever concluded from a path that is *not* there: packets without one
//! (rules being replaced, programs that come or go) stay in the equations, for the arithmetic of counters.
//!
//! Where counters were lost (a rewrite that nobody saw), what was told and is in no counter is posted once all traffic of the
//! chain has come to rest: then nothing that was told can still be about to be counted. Less what was charged to a group or to
//! nobody meanwhile, which can be the same packets.
//!
//! Invariant: of an account no more is posted than the greater of what was told of it and what the counters prove.
//! For that all postings to it are counted from a moment on before which nothing was told.

use super::amount::Amount;
use super::equation::Role;
use super::program::Outcome;
use super::settle::Settler;
use super::store::{EquationId, Store, UnknownId};
use super::{Attribution, Compared};
use crate::calico::chain::ChainKind;
use crate::calico::endpoint::Verdict;
use crate::id::EndpointKind;
use crate::ledger::{Key, Posting};
use crate::snapshot::Around;
use crate::watch::{ChainVerdicts, Decision, Path, Went};
use crate::{ChainName, Counter};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Evidence of one table.
#[derive(Debug, Default)]
pub(super) struct Witness {
    state: State,
    /// The number of the current snapshot.
    snapshot: u64,
    chains: HashMap<ChainName, Told>,
    /// The greatest number that any list had after the last reading: new lists have greater ones.
    greatest: u32,
    /// The accounts of these chains.
    accounts: HashMap<Key, Account>,
    /// What these accounts were taken from.
    accounts_version: Option<u64>,
}

impl Compared {
    fn take(&mut self, Account { told, posted, .. }: Account, repaired: Counter) {
        let packets = |amount: Amount| amount.positive().packets;
        self.agreed += packets(told.min(posted));
        self.rules_only += packets(posted - told);
        self.programs_only += packets(told - posted) - repaired.packets;
        self.repaired += repaired.packets;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// No program tells anything.
    #[default]
    Silent,
    /// They have just come, or the agent has: what they counted up to now was counted by rules, nobody knows when.
    Begins,
    /// What they tell is of packets that came since they are followed.
    Followed,
}

/// What was told of one endpoint chain.
#[derive(Debug, Default)]
struct Told {
    /// How often each path of a list was told.
    lists: HashMap<u32, HashMap<(u64, Went), Counter>>,
    decisions: HashMap<Decision, Tally>,
    /// Whether anything was told since it was last looked whether it rests.
    moved: bool,
    /// Since when nothing moves.
    still_since: Option<Duration>,
    /// Whether it has rested since it is followed: what is posted from then on is of packets that are told.
    is_level: bool,
    /// Whether counters may have been lost since it rested.
    has_lost: bool,
    /// How much was charged to a group or to nobody since it rested.
    blurred: Amount,
    /// At which snapshot last.
    blurred_in: u64,
}

/// No packet takes so long from one rule to the next.
const AT_REST: Duration = Duration::from_secs(1);

/// Packets that were decided so.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    told: Amount,
    /// How much of that is in the account's sum.
    summed: Amount,
    /// What was posted for that.
    claimed: Amount,
}

/// An account, since the chains that post to it are followed.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// What was told of it.
    told: Amount,
    /// What was posted to it, for whatever reason.
    posted: Amount,
    /// At which snapshot something was posted last.
    posted_in: u64,
}

impl Witness {
    /// Takes what was told around a reading. What was told before it began is in the counters that it found, and was
    /// there at the moment before that equations are solved for.
    pub(super) fn hear(&mut self, around: Option<&Around>, snapshot: u64) {
        self.snapshot = snapshot;
        let Some(Around { before, after }) = around else {
            *self = Self::default();
            return;
        };
        match self.state {
            State::Silent => self.state = State::Begins,
            State::Begins => {
                // What was on its way at the last reading has passed by now.
                before.iter().for_each(|chain| self.told(chain).know(chain));
                self.state = State::Followed;
            }
            State::Followed => self.hear_all(before),
        }
        let numbers = after.iter().flat_map(|chain| &chain.lists).map(|list| list.generation);
        self.greatest = numbers.max().unwrap_or(0).max(self.greatest);
    }

    fn hear_all(&mut self, told: &[ChainVerdicts]) {
        let names: HashSet<_> = told.iter().map(|chain| &chain.chain).collect();
        self.chains.retain(|name, _| names.contains(name));
        let greatest = self.greatest;
        told.iter().for_each(|chain| self.told(chain).hear(chain, greatest));
    }

    fn told(&mut self, chain: &ChainVerdicts) -> &mut Told {
        self.chains.entry(chain.chain.clone()).or_insert_with(|| {
            self.accounts_version = None;
            Told::default()
        })
    }

    /// Counts postings to all accounts of the chains that are followed, from now on.
    pub(super) fn follow(&mut self, store: &Store, accounts_version: u64) {
        if self.state != State::Followed || self.accounts_version == Some(accounts_version) {
            return;
        }
        self.accounts_version = Some(accounts_version);
        let Self { chains, accounts, .. } = self;
        for (_, unknown) in store.unknowns().filter(|(_, unknown)| chains.contains_key(&unknown.chain)) {
            if let Some(key) = &unknown.key {
                accounts.entry(key.clone()).or_default();
            }
        }
    }

    /// Counters may have been lost.
    pub(super) fn lose(&mut self) {
        self.chains.values_mut().for_each(|told| told.has_lost = true);
    }

    /// Packets of this chain were charged to a group, or to nobody: they can be those that are told.
    pub(super) fn blur(&mut self, chain: &ChainName, amount: Amount) {
        if !amount.any_positive() {
            return;
        }
        let snapshot = self.snapshot;
        let blur = |told: &mut Told| {
            told.blurred += amount.at_least_zero();
            told.blurred_in = snapshot;
        };
        match self.chains.get_mut(chain) {
            Some(told) => blur(told),
            // A sum over endpoints: any of them.
            None => self.chains.values_mut().for_each(blur),
        }
    }

    /// Notes a posting.
    pub(super) fn note(&mut self, key: &Key, amount: Counter) {
        if let Some(account) = self.accounts.get_mut(key) {
            account.posted += amount.into();
            account.posted_in = self.snapshot;
        }
    }

    /// An account has another name from now on.
    pub(super) fn rename(&mut self, old: &Key, new: &Key) {
        if let Some(Account { told, posted, posted_in }) = self.accounts.remove(old) {
            let account = self.accounts.entry(new.clone()).or_default();
            account.told += told;
            account.posted += posted;
            account.posted_in = account.posted_in.max(posted_in);
        }
    }

    /// Starts anew for chains that have rested for so long that no packet can be on its way: what was counted and is not
    /// told by then will not be, and what is told from now on is of packets that nothing was posted for. Says how both
    /// compare, and posts what counters have lost.
    pub(super) fn rest(&mut self, store: &Store, now: Duration, attribution: &mut Attribution) {
        if self.state != State::Followed
            || self.chains.values().all(|told| told.is_level && told.decisions.is_empty())
        {
            return;
        }
        let mut resting = self.at_rest(store, now);
        // No path is told of packets of established connections.
        let is_told = |outcome: &Outcome| !matches!(outcome, Outcome::Verdict(Verdict::Established));
        let accounts = store.unknowns().map(|(_, unknown)| unknown);
        let accounts = accounts.filter(|u| resting.contains(&u.chain) && is_told(&u.outcome));
        let accounts: Vec<_> = accounts.filter_map(|u| Some((&u.chain, u.key.as_ref()?))).collect();
        for (chain, key) in &accounts {
            // A packet that was counted just now is told next time.
            if self.accounts.get(key).is_some_and(|account| account.posted_in == self.snapshot) {
                resting.remove(*chain);
            }
        }
        for (chain, key) in accounts {
            let Some(told) = self.chains.get(chain).filter(|_| resting.contains(chain)) else { continue };
            let account = self.accounts.get_mut(key).map(std::mem::take).unwrap_or_default();
            if told.is_level {
                let lost = account.told - account.posted - told.blurred;
                let is_sure = told.has_lost && lost.packets > 0;
                let repaired = if is_sure { lost.positive() } else { Counter::ZERO };
                attribution.compared.take(account, repaired);
                if is_sure {
                    attribution.postings.push(Posting { key: key.clone(), amount: repaired });
                }
            }
        }
        for chain in resting {
            if let Some(told) = self.chains.get_mut(&chain) {
                told.decisions.clear();
                (told.has_lost, told.blurred, told.is_level) = (false, Amount::ZERO, true);
            }
        }
    }

    /// Chains to start anew for, as far as what is told of them says.
    fn at_rest(&mut self, store: &Store, now: Duration) -> HashSet<ChainName> {
        let busy: HashSet<_> = store.open_rows().map(|row| &row.chain).collect();
        let mut resting = HashSet::new();
        for (chain, told) in &mut self.chains {
            let is_still =
                !std::mem::take(&mut told.moved) && told.blurred_in != self.snapshot && !busy.contains(chain);
            told.still_since = is_still.then(|| told.still_since.unwrap_or(now));
            // A host endpoint has several chains, which post to the same accounts.
            let kind = ChainKind::of(chain);
            let is_alone = matches!(kind, ChainKind::Endpoint { endpoint, .. } if endpoint.kind == EndpointKind::Workload);
            let is_rested = told.still_since.is_some_and(|since| now.saturating_sub(since) >= AT_REST);
            if is_alone && is_rested && !(told.is_level && told.decisions.is_empty()) {
                resting.insert(chain.clone());
            }
        }
        resting
    }
}

impl Told {
    /// Takes what was told up to now as known.
    fn know(&mut self, chain: &ChainVerdicts) {
        for list in &chain.lists {
            let paths = list.paths.iter().map(|&(moved, went, count)| ((moved, went), count));
            self.lists.insert(list.generation, paths.collect());
        }
    }

    /// `greatest` is the greatest number that a list had up to the last reading.
    fn hear(&mut self, chain: &ChainVerdicts, greatest: u32) {
        self.lists.retain(|known, _| chain.lists.iter().any(|list| list.generation == *known));
        for list in &chain.lists {
            let is_new = list.generation > greatest;
            // One that was there and was not told meanwhile: when its packets came is not known.
            let is_known = is_new || self.lists.contains_key(&list.generation);
            let paths = self.lists.entry(list.generation).or_default();
            for &(moved, went, count) in &list.paths {
                let before = paths.insert((moved, went), count).unwrap_or_default();
                if !is_known || count == before || count.fell_below(before) {
                    continue;
                }
                self.moved = true;
                if let Path::Decided(decisions) = list.list.decode(moved, went) {
                    for decision in decisions {
                        self.decisions.entry(decision).or_default().told += count.since(before).into();
                    }
                }
            }
        }
    }
}

impl Settler<'_> {
    /// Posts what was told and was not posted yet.
    pub(super) fn post_told(&mut self) {
        let mut open = Vec::new();
        let Witness { chains, accounts, .. } = &mut *self.witness;
        for (chain, told) in chains {
            for (decision, tally) in &mut told.decisions {
                let known = unknown(self.store, chain, decision);
                let Some((id, key)) = known.and_then(|id| Some((id, self.store[id].key.as_ref()?))) else {
                    continue;
                };
                accounts.entry(key.clone()).or_default().told += tally.told - tally.summed;
                tally.summed = tally.told;
                if (tally.told - tally.claimed).any_positive() {
                    open.push((chain.clone(), decision.clone(), id, tally.told - tally.claimed));
                }
            }
        }
        for (chain, decision, id, most) in open {
            let claimed = self.post_decided(id, most).unwrap_or_default();
            let told = self.witness.chains.get_mut(&chain);
            if let Some(tally) = told.and_then(|told| told.decisions.get_mut(&decision)) {
                tally.claimed += claimed;
            }
        }
    }

    /// Posts packets that were decided so, as far as nothing was posted for them and its equation has them; says how many.
    fn post_decided(&mut self, id: UnknownId, most: Amount) -> Option<Amount> {
        let Account { told, posted, .. } = *self.witness.accounts.get(self.store[id].key.as_ref()?)?;
        let amount = most.min(told - posted).min(self.left_for(id)?).at_least_zero();
        if amount.any_positive() {
            let claim = self.store[id].posted + amount;
            self.claim(id, claim);
            self.store.settle_posted(id);
        }
        Some(amount)
    }

    /// What is not accounted for in the best equation that an unknown is in; nothing where one says by itself how much it is,
    /// or none can tell.
    fn left_for(&self, id: UnknownId) -> Option<Amount> {
        if self.is_lone(id) {
            // No equation has it as a part.
            return Some(Amount::UNBOUNDED);
        }
        let rows = &self.store[id].rows;
        if rows.iter().any(|&row| self.store.is_direct(row)) {
            return None;
        }
        // One that misses something is asked last.
        let tells = |row: &&EquationId| match self.store[**row].role {
            _ if self.store[**row].unusable => false,
            Role::Counts => true,
            Role::Helps => self.stands_in(**row) && !self.is_nobodys(**row),
            Role::AtMost | Role::Column => false,
        };
        let helps =
            |row: &&EquationId| (self.store[**row].missing().is_some(), self.store[**row].is_helper());
        let row = rows.iter().filter(tells).min_by_key(helps)?;
        Some(self.store[*row].rest() - self.claimed(*row))
    }

    /// All that is in an equation is accounted for, by whatever account: so is what was told of its terms up to now.
    pub(super) fn forget_told(&mut self, row: EquationId) {
        let row = &self.store[row];
        let Some(told) = self.witness.chains.get_mut(&row.chain) else { return };
        for (decision, tally) in &mut told.decisions {
            let known = unknown(self.store, &row.chain, decision);
            if let Some(id) = known.filter(|id| row.terms.contains(id)) {
                tally.claimed = tally.told;
                let account = self.store[id].key.as_ref().and_then(|key| self.witness.accounts.get_mut(key));
                if let Some(account) = account {
                    account.posted = account.posted.max(account.told);
                }
            }
        }
    }
}

/// The unknown that a decision of a chain is of. For a few ports that are always open there is one for all.
fn unknown(store: &Store, chain: &ChainName, decision: &Decision) -> Option<UnknownId> {
    let outcome = match decision.clone() {
        Decision::Verdict(verdict) => Outcome::Verdict(verdict),
        Decision::Failsafe => return None,
        Decision::Policy { tier, via, chain, action, place } => {
            Outcome::Policy { tier, via, chain, action, place }
        }
        Decision::NoPolicy { tier } => Outcome::NoPolicy { tier },
        Decision::Profile { chain, action } => Outcome::Profile { chain, action },
        Decision::NoProfile => Outcome::NoProfile,
    };
    store.find_unknown(chain, &outcome)
}
