//! What really happened: a book of its own, kept packet by packet from the world and never from rules or counters.

use crate::fate::Fate;
use crate::felix::{by, interface, policy_name, tier_name};
use accountant_core::calico::policy::{PolicyId, PolicyKind};
use accountant_core::calico::shared::PolicyAction;
use accountant_core::id::{Endpoint, EndpointKind};
use accountant_core::ledger::{AccountKey, Key, PolicyRef, What};
use accountant_core::{Counter, Direction, IpVersion};
use std::collections::BTreeMap;

/// Balances by account.
pub(crate) type Book = BTreeMap<Key, Counter>;

/// Everything that happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    pub(crate) accounts: Book,
    /// Sum over all accounts.
    pub(crate) decisions: Counter,
    /// What the last items of Pass tiers without NFLOG rules denied or passed.
    pub(crate) silent: Counter,
}

impl Truth {
    pub(crate) fn add(&mut self, fate: &Fate) {
        let size = fate.packet.size;
        for key in &fate.accounts {
            add(&mut self.accounts, key.clone(), Counter::new(1, size));
            self.decisions += Counter::new(1, size);
        }
        self.silent += Counter::new(fate.silent, fate.silent * size);
    }
}

pub(crate) fn add(book: &mut Book, key: Key, amount: Counter) {
    *book.entry(key).or_insert(Counter::ZERO) += amount;
}

pub(crate) fn account(slot: usize, direction: Direction, what: What) -> Key {
    let endpoint = Endpoint { kind: EndpointKind::Workload, interface: interface(slot).into() };
    AccountKey { endpoint, direction, ip_version: IpVersion::V4, what }.into()
}

pub(crate) fn policy_account(tier: usize, policy: usize, action: PolicyAction) -> What {
    let id = PolicyId::new(PolicyKind::GlobalNetworkPolicy, "", &policy_name(tier, policy));
    What::Policy { tier: tier_name(tier).as_str().into(), policy: PolicyRef::Known(id), action }
}

/// As text, for messages.
pub(crate) fn text(key: &Key) -> String {
    let Key::Account(key) = key else { return format!("{key:?}") };
    let AccountKey { endpoint, direction, what, .. } = &**key;
    let policy = |policy: &PolicyRef| match policy {
        PolicyRef::Known(id) => id.name.to_string(),
        PolicyRef::Chain(chain) => chain.to_string(),
    };
    let what = match what {
        What::Policy { policy: p, action, .. } => format!("{} {}", policy(p), action.as_str()),
        What::Group { members, action, .. } => {
            format!("{:?} {}", members.iter().map(policy).collect::<Vec<_>>(), action.as_str())
        }
        other => format!("{other:?}"),
    };
    format!("{} {} {what}", endpoint.interface, by(*direction, "in", "out"))
}
