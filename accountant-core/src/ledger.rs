//! The accounts and their balances.
//!
//! Invariant: a balance only grows. An account that is no longer in use is not shown after a grace period, but its
//! balance is kept (for the last few thousand of them), so that a pod that comes back under its name goes on counting
//! where it stopped.

use crate::calico::endpoint::Verdict;
use crate::calico::policy::PolicyId;
use crate::calico::shared::PolicyAction;
use crate::id::{Endpoint, ProfileName, TierName};
use crate::snapshot::Source;
use crate::watch::Fate;
use crate::{ChainName, Counter, Direction, IpVersion};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// A policy as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PolicyRef {
    /// By the name that its user gave it.
    Known(PolicyId),
    /// By the name of its chain: no comment and no datastore names it.
    Chain(ChainName),
}

/// A profile as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProfileRef {
    /// By its name.
    Known(ProfileName),
    /// By the name of its chain.
    Chain(ChainName),
}

/// What an account of an endpoint is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are named after what they are")]
pub enum What {
    /// Decided so by a policy.
    Policy { tier: TierName, policy: PolicyRef, action: PolicyAction },
    /// Decided so by one of several policies of a group; the numbers do not tell by which.
    Group { tier: TierName, members: Vec<PolicyRef>, action: PolicyAction },
    /// Dropped at the end of a tier because none of its policies decided.
    NoPolicy { tier: TierName },
    /// Decided so by a profile.
    Profile { profile: ProfileRef, action: PolicyAction },
    /// Dropped because no profile accepted.
    NoProfile,
    /// Decided by a rule of the endpoint's chain itself.
    Verdict(Verdict),
    /// Accepted by the failsafe ports of a host endpoint.
    Failsafe,
    /// Seen by the programs in the kernel, whatever the chain counted: whether it was part of, or related to, an answered
    /// connection, and what became of it.
    Seen { established: bool, fate: Fate },
    /// Counted at the endpoint's interface, whatever the chain counted: sent out of it by the host, after all rules, or come in
    /// by it, before any.
    AtInterface { sent: bool },
}

impl What {
    /// Whether it is of packets that went no further.
    pub fn is_drop(&self) -> bool {
        match self {
            Self::Policy { action, .. } | Self::Group { action, .. } | Self::Profile { action, .. } => {
                *action == PolicyAction::Deny
            }
            Self::NoPolicy { .. } | Self::NoProfile => true,
            Self::Verdict(verdict) => !matches!(verdict, Verdict::Established | Verdict::ForwardDefault),
            Self::Failsafe | Self::AtInterface { .. } => false,
            Self::Seen { fate, .. } => *fate != Fate::Accepted,
        }
    }
}

/// An account of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AccountKey {
    /// Whose traffic.
    pub endpoint: Endpoint,
    /// Its direction as the endpoint sees it.
    pub direction: Direction,
    /// Its IP version.
    pub ip_version: IpVersion,
    /// What became of it.
    pub what: What,
}

/// An account of which the source tells a part only: counters of Calico's eBPF dataplane are of a rule on the whole node, or
/// of all rules at an endpoint, and of both IP versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TotalKey {
    /// Whose traffic; none for that of all endpoints of the node.
    pub endpoint: Option<Endpoint>,
    /// Its direction as the endpoint sees it.
    pub direction: Direction,
    /// What became of it.
    pub what: What,
}

/// Why packets could not be charged to an endpoint's account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cause {
    /// They were counted before the agent started, and the rules' counters do not agree on what they were.
    History,
    /// Rules were rewritten, and what was counted around that moment does not add up.
    Rewrite,
    /// Counters were reset, and what was counted around that moment does not add up.
    Reset,
    /// A policy denied or passed them, and the numbers do not tell which.
    Undetermined,
    /// They went into a policy, and no counter says what became of them.
    Unexplained,
    /// A rule decided that no version of Felix writes, or whose number nothing explains.
    UnknownRule,
    /// Policy decided, and Felix has its programs not say by which rule (`bpfPolicyDebugEnabled` is off).
    NotRecorded,
}

impl Cause {
    /// All causes, for metrics that are there from the start.
    pub const ALL: [Self; 7] = [
        Self::History,
        Self::Rewrite,
        Self::Reset,
        Self::Undetermined,
        Self::Unexplained,
        Self::UnknownRule,
        Self::NotRecorded,
    ];

    /// As labels print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::History => "history",
            Self::Rewrite => "rewrite",
            Self::Reset => "reset",
            Self::Undetermined => "undetermined",
            Self::Unexplained => "unexplained",
            Self::UnknownRule => "unknown_rule",
            Self::NotRecorded => "not_recorded",
        }
    }
}

/// Where a posting goes. Who keeps a key shares it: there are thousands, and several keep each.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// To an account of an endpoint.
    Account(Arc<AccountKey>),
    /// To the unattributed account of a source.
    Unattributed(Source, Cause),
    /// To an account that lacks a part of its name, because it was not told.
    Total(Arc<TotalKey>),
}

impl From<AccountKey> for Key {
    fn from(key: AccountKey) -> Self {
        Self::Account(Arc::new(key))
    }
}

impl From<TotalKey> for Key {
    fn from(key: TotalKey) -> Self {
        Self::Total(Arc::new(key))
    }
}

/// An addition to an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posting {
    /// The account.
    pub key: Key,
    /// How much; zero opens the account.
    pub amount: Counter,
}

/// How many accounts that are no longer shown are remembered.
const REMEMBERED: usize = 8192;

/// Index of an account in the ledger; accounts keep theirs while they are shown.
pub type Slot = usize;

/// The book of all accounts.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Ledger {
    slots: HashMap<Key, Slot>,
    accounts: Vec<Account>,
    free: Vec<Slot>,
    /// Balances of accounts that are no longer shown, and since when.
    retired: HashMap<Key, (Counter, Duration)>,
    version: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Account {
    key: Option<Key>,
    balance: Counter,
    /// Since when nothing can post to it any more.
    unused_since: Option<Duration>,
}

impl Ledger {
    /// Adds a posting to its account, which is opened if need be.
    pub fn post(&mut self, posting: Posting) {
        let slot = self.open(posting.key);
        self.accounts[slot].balance += posting.amount;
    }

    /// Opens an account, with the balance that it had if there was one before.
    pub fn open(&mut self, key: Key) -> Slot {
        if let Some(&slot) = self.slots.get(&key) {
            return slot;
        }
        self.version += 1;
        let balance = self.retired.remove(&key).map_or(Counter::ZERO, |(balance, _)| balance);
        let account = Account { key: Some(key.clone()), balance, unused_since: None };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.accounts[slot] = account;
                slot
            }
            None => {
                self.accounts.push(account);
                self.accounts.len() - 1
            }
        };
        self.slots.insert(key, slot);
        slot
    }

    /// Moves the balance of an account whose better name is known by now.
    pub fn rename(&mut self, old: &Key, new: Key) {
        let balance = self.close(old);
        self.post(Posting { key: new, amount: balance });
    }

    /// Notes which accounts can still be posted to.
    pub fn keep(&mut self, in_use: &HashSet<Key>, now: Duration) {
        for account in &mut self.accounts {
            let Some(key) = &account.key else { continue };
            match is_in_use(key, in_use) {
                true => account.unused_since = None,
                false => _ = account.unused_since.get_or_insert(now),
            }
        }
    }

    /// Shows the accounts that nothing can post to for a while, so that their last balance is seen, and then no more. Those
    /// that are shown as one sum go together.
    pub fn retire<'a>(&mut self, now: Duration, grace: Duration, sums: impl IntoIterator<Item = &'a [Slot]>) {
        let is_over =
            |account: &Account| account.unused_since.is_some_and(|since| now.saturating_sub(since) >= grace);
        let mut over: BTreeSet<Slot> =
            (0..self.accounts.len()).filter(|&slot| is_over(&self.accounts[slot])).collect();
        if over.is_empty() {
            return;
        }
        for sum in sums {
            if !sum.iter().all(|slot| over.contains(slot)) {
                sum.iter().for_each(|slot| _ = over.remove(slot));
            }
        }
        let keys: Vec<_> = over.into_iter().filter_map(|slot| self.accounts[slot].key.clone()).collect();
        for key in keys {
            let balance = self.close(&key);
            self.retired.insert(key, (balance, now));
        }
        while self.retired.len() > REMEMBERED {
            let oldest = self.retired.iter().min_by_key(|(_, (_, since))| *since).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            self.retired.remove(&oldest);
        }
    }

    /// All accounts that are shown.
    pub fn accounts(&self) -> impl Iterator<Item = (Slot, &Key)> {
        self.accounts.iter().enumerate().filter_map(|(slot, account)| Some((slot, account.key.as_ref()?)))
    }

    /// The balances by slot.
    pub fn balances(&self) -> Vec<Counter> {
        self.accounts.iter().map(|account| account.balance).collect()
    }

    /// The balance of an account that is shown.
    pub fn balance(&self, key: &Key) -> Option<Counter> {
        self.slots.get(key).map(|&slot| self.accounts[slot].balance)
    }

    /// Changes whenever an account is opened or closed.
    pub fn version(&self) -> u64 {
        self.version
    }

    fn close(&mut self, key: &Key) -> Counter {
        let Some(slot) = self.slots.remove(key) else { return Counter::ZERO };
        self.version += 1;
        self.free.push(slot);
        self.accounts[slot].key = None;
        std::mem::take(&mut self.accounts[slot].balance)
    }
}

/// A group is in use as long as its members are.
fn is_in_use(key: &Key, in_use: &HashSet<Key>) -> bool {
    let Key::Account(account) = key else {
        return matches!(key, Key::Unattributed(..)) || in_use.contains(key);
    };
    let What::Group { tier, members, action } = &account.what else { return in_use.contains(key) };
    members.iter().all(|member| {
        let what = What::Policy { tier: tier.clone(), policy: member.clone(), action: *action };
        in_use.contains(&AccountKey { what, ..AccountKey::clone(account) }.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EndpointKind;

    fn key(interface: &str) -> Key {
        let endpoint = Endpoint { kind: EndpointKind::Workload, interface: interface.into() };
        let what = What::NoProfile;
        AccountKey { endpoint, direction: Direction::Egress, ip_version: IpVersion::V4, what }.into()
    }

    fn post(ledger: &mut Ledger, key: Key, packets: u64) {
        ledger.post(Posting { key, amount: Counter::new(packets, 0) });
    }

    #[test]
    fn an_account_goes_after_its_grace_and_comes_back_with_its_balance() {
        let mut ledger = Ledger::default();
        post(&mut ledger, key("a"), 5);
        let none = HashSet::new();
        let (grace, at) = (Duration::from_secs(60), Duration::from_secs);
        ledger.keep(&none, at(10));
        ledger.retire(at(10), grace, []);
        assert_eq!(ledger.balance(&key("a")), Some(Counter::new(5, 0)));
        ledger.retire(at(70), grace, []);
        assert_eq!(ledger.balance(&key("a")), None);
        post(&mut ledger, key("a"), 2);
        assert_eq!(ledger.balance(&key("a")), Some(Counter::new(7, 0)));
    }

    #[test]
    fn accounts_that_are_shown_as_one_go_together() {
        let mut ledger = Ledger::default();
        let [a, b] = ["a", "b"].map(|interface| ledger.open(key(interface)));
        let at = Duration::from_secs;
        ledger.keep(&HashSet::from([key("b")]), at(10));
        ledger.retire(at(10), Duration::ZERO, [&[a, b][..]]);
        assert!(ledger.balance(&key("a")).is_some());
        ledger.keep(&HashSet::new(), at(10));
        ledger.retire(at(10), Duration::ZERO, [&[a, b][..]]);
        assert_eq!([key("a"), key("b")].map(|key| ledger.balance(&key)), [None, None]);
    }

    #[test]
    fn a_better_name_takes_the_balance_along() {
        let mut ledger = Ledger::default();
        post(&mut ledger, key("old"), 5);
        post(&mut ledger, key("new"), 1);
        ledger.rename(&key("old"), key("new"));
        assert_eq!(ledger.balance(&key("new")), Some(Counter::new(6, 0)));
        assert_eq!(ledger.balance(&key("old")), None);
    }

    #[test]
    fn a_group_is_shown_as_long_as_its_members_are() {
        let mut ledger = Ledger::default();
        let Key::Account(account) = key("a") else { panic!() };
        let of = |what| Key::from(AccountKey { what, ..AccountKey::clone(&account) });
        let (tier, action) = (TierName::default_tier(), PolicyAction::Deny);
        let members = ["x", "y"].map(|chain| PolicyRef::Chain(chain.into()));
        let policy = |policy| of(What::Policy { tier: tier.clone(), policy, action });
        let group = of(What::Group { tier: tier.clone(), members: members.to_vec(), action });
        post(&mut ledger, group.clone(), 3);
        let mut in_use: HashSet<_> = members.map(policy).into();
        ledger.keep(&in_use, Duration::ZERO);
        ledger.retire(Duration::ZERO, Duration::ZERO, []);
        assert!(ledger.balance(&group).is_some());
        in_use.remove(&policy(PolicyRef::Chain("x".into())));
        ledger.keep(&in_use, Duration::ZERO);
        ledger.retire(Duration::ZERO, Duration::ZERO, []);
        assert!(ledger.balance(&group).is_none());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ledger = Ledger::default();
        for i in 0..REMEMBERED + 10 {
            post(&mut ledger, key(&i.to_string()), 1);
        }
        ledger.keep(&HashSet::new(), Duration::ZERO);
        ledger.retire(Duration::ZERO, Duration::ZERO, []);
        assert_eq!(ledger.retired.len(), REMEMBERED);
        assert_eq!(ledger.accounts().count(), 0);
    }
}
