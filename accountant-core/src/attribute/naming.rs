//! Which account an outcome belongs to, by the best name there is.

use super::program::Outcome;
use super::store::Unknown;
use super::{Attributor, Role as ChainRole};
use crate::ChainName;
use crate::calico::chain::ChainKind;
use crate::calico::comment::Naming;
use crate::calico::policy::Spelling;
use crate::id::TierName;
use crate::index::Index;
use crate::ledger::{AccountKey, Cause, Key, PolicyRef, ProfileRef, What};
use crate::watch::Decision;

impl Attributor {
    /// The account of what was decided about a packet in an endpoint's chain of this table.
    pub fn account_of(&self, chain: &ChainName, decision: &Decision, index: &Index) -> Option<AccountKey> {
        let namer = Namer { table: self, index };
        let what = match decision {
            Decision::Verdict(verdict) => What::Verdict(*verdict),
            Decision::Failsafe => What::Failsafe,
            Decision::Policy { tier, chain, action, .. } => {
                What::Policy { tier: tier.clone(), policy: namer.policy(chain, tier), action: *action }
            }
            Decision::NoPolicy { tier } => What::NoPolicy { tier: tier.clone() },
            Decision::Profile { chain, action } => {
                What::Profile { profile: namer.profile(chain), action: *action }
            }
            Decision::NoProfile => What::NoProfile,
        };
        let ChainKind::Endpoint { endpoint, direction, .. } = ChainKind::of(chain) else { return None };
        Some(AccountKey { endpoint, direction, ip_version: self.id.ip_version, what })
    }
}

/// Finds the account of an unknown.
pub(super) struct Namer<'a> {
    pub(super) table: &'a Attributor,
    pub(super) index: &'a Index,
}

impl Namer<'_> {
    pub(super) fn key(&self, unknown: &Unknown) -> Option<Key> {
        let what = match &unknown.outcome {
            Outcome::Unknown => return Some(Key::Unattributed(self.table.id.source, Cause::UnknownRule)),
            Outcome::Verdict(verdict) => What::Verdict(*verdict),
            Outcome::Failsafe { .. } => What::Failsafe,
            Outcome::Policy { tier, chain, action, .. } => {
                What::Policy { tier: tier.clone(), policy: self.policy(chain, tier), action: *action }
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
        // All keys of an endpoint share its name.
        let endpoint = self.table.endpoints.get(&unknown.chain).map_or(endpoint, |p| p.endpoint.clone());
        Some(AccountKey { endpoint, direction, ip_version: self.table.id.ip_version, what }.into())
    }

    fn naming(&self, chain: &ChainName) -> Option<&Naming> {
        match &self.table.shared.get(chain)?.role {
            ChainRole::Policy(policy) => policy.naming.as_ref(),
            ChainRole::Group(_) => None,
        }
    }

    /// The rules' own word first, then the datastore's, then the chain's name.
    fn policy(&self, chain: &ChainName, tier: &TierName) -> PolicyRef {
        if let Some(Naming::Policy(spelling) | Naming::KindPolicy(spelling)) = self.naming(chain) {
            return PolicyRef::Known(spelling.in_tier(tier));
        }
        let generation = self.table.generation;
        let known = self.index.policy(chain, generation, tier);
        let plain = || Some(Spelling::of_chain(chain.as_str(), generation)?.in_tier(tier));
        match known.or_else(plain) {
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
