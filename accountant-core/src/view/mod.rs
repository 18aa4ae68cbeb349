//! The accounts as they are shown: what every output reads.
//!
//! A view is immutable and shared. Its labels change only when accounts come, go or are named; its values are copied at
//! every tick, so outputs can keep what they rendered of the labels.
//!
//! Invariant: no two accounts of a family have the same labels. Balances of one name are summed.

mod compat;
mod labels;

pub use compat::{CompatAccount, CompatFamily};
pub use labels::labels;

use crate::Counter;
use crate::index::Index;
use crate::ledger::{Ledger, Slot};
use smallvec::SmallVec;
use std::collections::HashSet;
use std::sync::Arc;

/// The families of accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Decided by a policy.
    Policy,
    /// Dropped because no policy, or no profile, decided.
    DefaultDeny,
    /// Decided by a profile.
    Profile,
    /// Decided by a rule of the endpoint's own chain.
    EndpointChain,
    /// Seen by the programs in the kernel.
    Endpoint,
    /// Could not be charged to anything.
    Unattributed,
}

impl Family {
    /// All families in the order in which they are shown.
    pub const ALL: [Self; 6] = [
        Self::Policy,
        Self::DefaultDeny,
        Self::Profile,
        Self::EndpointChain,
        Self::Endpoint,
        Self::Unattributed,
    ];

    /// The name without prefix and unit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::DefaultDeny => "default_deny",
            Self::Profile => "profile",
            Self::EndpointChain => "endpoint_chain",
            Self::Endpoint => "endpoint",
            Self::Unattributed => "unattributed",
        }
    }
}

/// A label and its value. A label without a value is left out.
pub type Label = (&'static str, Arc<str>);

/// Mostly one account of the ledger; several where their names are the same.
type Slots = SmallVec<[Slot; 2]>;

/// Texts that are kept once, however many accounts have them.
#[derive(Default)]
struct Texts(HashSet<Arc<str>>);

impl Texts {
    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let new: Arc<str> = text.into();
        self.0.insert(new.clone());
        new
    }
}

/// One account as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownAccount {
    /// Its family.
    pub family: Family,
    /// Its labels in the family's order.
    pub labels: Box<[Label]>,
    /// The interfaces of its endpoints, mostly one: a pod or a host endpoint can have several under one name. None for
    /// unattributed accounts.
    pub interfaces: SmallVec<[Arc<str>; 1]>,
    /// Where in the ledger its balances are.
    slots: Slots,
}

/// Everything about the accounts but their balances.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Our own families, sorted by family and labels.
    pub own: Vec<ShownAccount>,
    /// The families of calico-accountant, sorted by family and labels.
    pub compat: Vec<CompatAccount>,
}

/// All accounts at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The accounts; the same `Arc` as in the view before when none came, went or was named.
    pub accounts: Arc<Accounts>,
    balances: Vec<Counter>,
}

impl View {
    /// The balance of an account of this view.
    pub fn balance(&self, account: &ShownAccount) -> Counter {
        self.sum(&account.slots)
    }

    /// The balance of an account of the compatible families.
    pub fn compat_balance(&self, account: &CompatAccount) -> Counter {
        self.sum(&account.slots)
    }

    fn sum(&self, slots: &[Slot]) -> Counter {
        slots.iter().filter_map(|&slot| self.balances.get(slot)).copied().sum()
    }
}

/// Makes views of a ledger.
#[derive(Debug, Default)]
pub struct Viewer {
    accounts: Arc<Accounts>,
    /// Versions of ledger and index that the accounts were made of.
    made_of: Option<(u64, u64)>,
}

impl Viewer {
    /// Accounts of the ledger that are shown as one, where there are several: their sum must not lose a part.
    pub fn sums(&self) -> impl Iterator<Item = &[Slot]> {
        let own = self.accounts.own.iter().map(|account| &account.slots[..]);
        let compat = self.accounts.compat.iter().map(|account| &account.slots[..]);
        own.chain(compat).filter(|slots| slots.len() > 1)
    }

    /// The ledger as it stands, with the names that the index knows.
    pub fn view(&mut self, ledger: &Ledger, index: &Index) -> View {
        let versions = (ledger.version(), index.version());
        if self.made_of != Some(versions) {
            self.made_of = Some(versions);
            let mut texts = Texts::default();
            let own = labels::accounts(ledger, index, &mut texts);
            let compat = compat::accounts(ledger, index, &mut texts);
            let accounts = Accounts { own, compat };
            if *self.accounts != accounts {
                self.accounts = Arc::new(accounts);
            }
        }
        View { accounts: self.accounts.clone(), balances: ledger.balances() }
    }
}
