//! Two backends that hold Calico's chains at once, while Felix changes from one to the other or where it left old ones
//! behind.
//!
//! A packet goes through both, so both count it, unless the first drops it; which of them is the first is not known. Drops
//! ([`take_drops`]) are of packets that the other did not see later, whoever drops: all of them are posted. What
//! is posted of any other account is the most that any posting backend has counted since the overlap began. One of them
//! posts at a time, and another takes its place when it is ahead: it saw what this one did not. Where one charged a group of
//! policies and the other its members, they make up for each other.
//!
//! When the one that posts goes, what the other counts from then on is new, also where it had counted less: packets that
//! passed before it was there. How much less is taken when it has charged all that it read, and was read after the one
//! that posts ([`Overlap::level`]) or nothing moved: what it tells late is not new, nor what passed between two readings.
//!
//! Invariant: no packet is posted twice, and whoever takes over posts what its predecessor missed.

use accountant_core::Counter;
use accountant_core::ledger::{AccountKey, Key, PolicyRef, Posting, What};
use accountant_core::snapshot::TableId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};

/// How many ticks another backend must be ahead before it takes over: two readings are never of the same moment.
const AHEAD: u32 = 3;

/// What the backends of one table counted since there are several.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Overlap {
    counted: BTreeMap<TableId, Counted>,
    posted: HashMap<Key, Counter>,
    /// Accounts that anybody counted for in this tick.
    #[serde(skip)]
    moved: HashSet<Key>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Counted {
    accounts: HashMap<Key, Counter>,
    /// What was posted and it has not counted, nor will.
    never: HashMap<Key, Counter>,
    packets: u64,
    /// For how many ticks it has been ahead of the one that posts.
    ahead: u32,
}

impl Overlap {
    /// Begins a tick.
    pub(super) fn begin_tick(&mut self) {
        self.moved.clear();
    }

    /// Takes what a backend counted.
    pub(super) fn count(&mut self, id: TableId, postings: Vec<Posting>) {
        let counted = self.counted.entry(id).or_default();
        for Posting { key, amount } in postings {
            counted.packets = counted.packets.saturating_add(amount.packets);
            self.moved.insert(key.clone());
            *counted.accounts.entry(key).or_default() += amount;
        }
    }

    /// What is to be posted if this backend posts: what it counted and nobody posted yet.
    pub(super) fn post(&mut self, id: TableId) -> Vec<Posting> {
        let Some(Counted { accounts, .. }) = self.counted.get(&id) else { return Vec::new() };
        let postings = missing(accounts, &self.posted);
        for Posting { key, amount } in &postings {
            *self.posted.entry(key.clone()).or_default() += *amount;
        }
        postings
    }

    /// Notes that a backend has told of all that it read: what was posted beside that it will not count. If it was not read last,
    /// that is known only of accounts that rest.
    pub(super) fn level(&mut self, id: TableId, read_last: bool) {
        let counted = self.counted.entry(id).or_default();
        let lacking = by_account(&missing(&self.posted, &counted.accounts));
        let is_known = |key: &Key| read_last || !self.moved.contains(key);
        counted.never.retain(|key, _| !is_known(key));
        counted.never.extend(lacking.into_iter().filter(|(key, _)| is_known(key)));
    }

    /// Takes what only others counted for counted by this backend, as they are gone.
    pub(super) fn inherit(&mut self, id: TableId) {
        let counted = self.counted.entry(id).or_default();
        for (key, amount) in counted.never.drain() {
            *counted.accounts.entry(key).or_default() += amount;
        }
    }

    /// Ends a tick in which this backend posted; says who should take its place.
    pub(super) fn successor(&mut self, present: TableId) -> Option<TableId> {
        let packets = self.counted.get(&present).map_or(0, |counted| counted.packets);
        for counted in self.counted.values_mut() {
            counted.ahead = if counted.packets > packets { counted.ahead + 1 } else { 0 };
        }
        let ahead = self.counted.iter().filter(|(_, counted)| counted.ahead >= AHEAD);
        ahead.max_by_key(|(_, counted)| counted.packets).map(|(id, _)| *id)
    }

    /// Follows an account to its new name.
    pub(super) fn rename(&mut self, old: &Key, new: &Key) {
        let accounts =
            self.counted.values_mut().flat_map(|counted| [&mut counted.accounts, &mut counted.never]);
        for accounts in accounts.chain([&mut self.posted]) {
            if let Some(counter) = accounts.remove(old) {
                *accounts.entry(new.clone()).or_default() += counter;
            }
        }
    }
}

/// Takes the drops out of what a backend counted.
pub(super) fn take_drops(postings: &mut Vec<Posting>) -> Vec<Posting> {
    let is_drop = |posting: &mut Posting| matches!(&posting.key, Key::Account(key) if key.what.is_drop());
    postings.extract_if(.., is_drop).collect()
}

fn by_account(postings: &[Posting]) -> HashMap<Key, Counter> {
    let mut accounts: HashMap<Key, Counter> = HashMap::new();
    for Posting { key, amount } in postings {
        *accounts.entry(key.clone()).or_default() += *amount;
    }
    accounts
}

/// What `posted` lacks of `counted`. Where one has charged a group and the other its members, they make up for each other.
fn missing(counted: &HashMap<Key, Counter>, posted: &HashMap<Key, Counter>) -> Vec<Posting> {
    let keys: HashSet<&Key> = counted.keys().chain(posted.keys()).collect();
    let of = |accounts: &HashMap<Key, Counter>, key| accounts.get(key).copied().unwrap_or_default();
    let (mut lacks, mut exceeds) = (HashMap::new(), HashMap::new());
    for key in keys {
        let (counted, posted) = (of(counted, key), of(posted, key));
        lacks.insert(key.clone(), less(counted, posted));
        exceeds.insert(key.clone(), less(posted, counted));
    }
    let groups: Vec<(Key, Vec<Key>)> =
        lacks.keys().filter_map(|key| Some((key.clone(), members(key)?))).collect();
    for (group, members) in groups {
        for member in members {
            for (one, other) in [(&group, &member), (&member, &group)] {
                if let (Some(lack), Some(exceed)) = (lacks.get_mut(one), exceeds.get_mut(other)) {
                    let made_up = least(*lack, *exceed);
                    (*lack, *exceed) = (less(*lack, made_up), less(*exceed, made_up));
                }
            }
        }
    }
    let postings = lacks.into_iter().map(|(key, amount)| Posting { key, amount });
    postings.filter(|posting| !posting.amount.is_zero()).collect()
}

/// The accounts of a group's members, if it is the account of a group.
fn members(key: &Key) -> Option<Vec<Key>> {
    let Key::Account(account) = key else { return None };
    let What::Group { tier, members, action } = &account.what else { return None };
    let of_member = |policy: &PolicyRef| {
        let what = What::Policy { tier: tier.clone(), policy: policy.clone(), action: *action };
        AccountKey { what, ..AccountKey::clone(account) }.into()
    };
    Some(members.iter().map(of_member).collect())
}

fn less(of: Counter, without: Counter) -> Counter {
    Counter::new(of.packets.saturating_sub(without.packets), of.bytes.saturating_sub(without.bytes))
}

fn least(one: Counter, other: Counter) -> Counter {
    Counter::new(one.packets.min(other.packets), one.bytes.min(other.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use accountant_core::ledger::Cause;
    use accountant_core::snapshot::Source;
    use accountant_core::{IpVersion, Table};

    fn id(source: Source) -> TableId {
        TableId { source, native: false, ip_version: IpVersion::V4, table: Table::Filter }
    }

    fn key(cause: Cause) -> Key {
        Key::Unattributed(Source::Nftables, cause)
    }

    fn posting(cause: Cause, packets: u64) -> Posting {
        Posting { key: key(cause), amount: Counter::new(packets, 10 * packets) }
    }

    #[test]
    fn what_both_count_is_posted_once_and_what_one_missed_by_its_successor() {
        let (old, new) = (id(Source::IptablesLegacy), id(Source::Nftables));
        let [both, first] = [Cause::Reset, Cause::Rewrite];
        let mut overlap = Overlap::default();
        let mut posted: HashMap<Key, u64> = HashMap::new();
        let mut present = old;
        for _ in 0..AHEAD {
            // The new one drops packets that the old one never sees.
            overlap.count(old, vec![posting(both, 5)]);
            overlap.count(new, vec![posting(both, 5), posting(first, 2)]);
            for Posting { key, amount } in overlap.post(present) {
                *posted.entry(key).or_default() += amount.packets;
            }
            present = overlap.successor(present).unwrap_or(present);
        }
        assert_eq!(present, new);
        assert_eq!(posted, HashMap::from([(key(both), 15)]));
        assert_eq!(overlap.post(new), [posting(first, 6)]);
        assert_eq!(overlap.post(old), []);
    }

    #[test]
    fn whoever_is_ahead_for_a_moment_does_not_take_over() {
        let (old, new) = (id(Source::IptablesLegacy), id(Source::Nftables));
        let mut overlap = Overlap::default();
        for round in 0..10 {
            let (late, early) = if round % 2 == 0 { (old, new) } else { (new, old) };
            overlap.count(late, vec![posting(Cause::Reset, 5)]);
            overlap.count(early, vec![posting(Cause::Reset, 6)]);
            assert_eq!(overlap.successor(old), None);
        }
    }

    #[test]
    fn whoever_stays_posts_what_is_new_and_nothing_that_it_tells_late() {
        let (old, new) = (id(Source::Nftables), id(Source::IptablesLegacy));
        let [before, late] = [Cause::Reset, Cause::Rewrite];
        let mut overlap = Overlap::default();
        overlap.count(old, vec![posting(before, 5)]);
        assert_eq!(overlap.post(old), [posting(before, 5)]);
        overlap.level(new, true);
        // Both count these, and the new one has yet to find out which policy it was.
        overlap.count(old, vec![posting(late, 6)]);
        assert_eq!(overlap.post(old), [posting(late, 6)]);
        overlap.inherit(new);
        overlap.count(new, vec![posting(late, 6), posting(before, 2)]);
        assert_eq!(overlap.post(new), [posting(before, 2)]);
    }

    #[test]
    fn what_passes_between_two_readings_is_not_new() {
        let (old, new) = (id(Source::Nftables), id(Source::IptablesLegacy));
        let [at_rest, moves] = [Cause::Reset, Cause::Rewrite];
        let mut overlap = Overlap::default();
        overlap.count(old, vec![posting(at_rest, 5)]);
        overlap.post(old);
        overlap.begin_tick();
        // The new one was read before these passed.
        overlap.count(old, vec![posting(moves, 3)]);
        overlap.post(old);
        overlap.level(new, false);
        overlap.inherit(new);
        overlap.count(new, vec![posting(moves, 3), posting(at_rest, 1)]);
        assert_eq!(overlap.post(new), [posting(at_rest, 1)]);
    }

    #[test]
    fn accounts_keep_their_counts_under_a_new_name() {
        let old = id(Source::IptablesLegacy);
        let mut overlap = Overlap::default();
        overlap.count(old, vec![posting(Cause::Reset, 5)]);
        overlap.post(old);
        overlap.rename(&key(Cause::Reset), &key(Cause::Rewrite));
        assert_eq!(overlap.post(old), []);
        overlap.count(old, vec![posting(Cause::Rewrite, 1)]);
        assert_eq!(overlap.post(old), [posting(Cause::Rewrite, 1)]);
    }
}
