//! The identity of a policy across the generations of Calico's naming.
//!
//! Felix hashed `NAME` (A: up to 3.28), `TIER/NAME` (B: 3.29 to 3.31), `KIND/NAMESPACE/NAME` (C: from 3.32) into the
//! chain names, and stored names with a `default.` prefix up to 3.31. Here a policy is what its user wrote: kind,
//! namespace and name, so that its account goes on under one identity whatever Calico calls its chain.

use super::names::{limited, policy_prefix};
use crate::id::TierName;
use crate::{ChainName, Direction};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The kind of a policy resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is the kind of the same name")]
pub enum PolicyKind {
    NetworkPolicy,
    GlobalNetworkPolicy,
    KubernetesNetworkPolicy,
    KubernetesClusterNetworkPolicy,
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
    StagedNetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
}

use PolicyKind::*;

/// Kind, full name, and short name as generation C hashes it (`felix/types/policy_id.go`).
const KINDS: [(PolicyKind, &str, &str); 9] = [
    (NetworkPolicy, "NetworkPolicy", "np"),
    (GlobalNetworkPolicy, "GlobalNetworkPolicy", "gnp"),
    (KubernetesNetworkPolicy, "KubernetesNetworkPolicy", "knp"),
    (KubernetesClusterNetworkPolicy, "KubernetesClusterNetworkPolicy", "kcnp"),
    (AdminNetworkPolicy, "AdminNetworkPolicy", "AdminNetworkPolicy"),
    (BaselineAdminNetworkPolicy, "BaselineAdminNetworkPolicy", "BaselineAdminNetworkPolicy"),
    (StagedNetworkPolicy, "StagedNetworkPolicy", "snp"),
    (StagedGlobalNetworkPolicy, "StagedGlobalNetworkPolicy", "sgnp"),
    (StagedKubernetesNetworkPolicy, "StagedKubernetesNetworkPolicy", "sknp"),
];

/// How a prefix of a stored name tells the kind: prefix, kind, tier (`libcalico-go/lib/names/policy.go`).
const STORED_PREFIXES: [(&str, PolicyKind, &str); 3] = [
    ("knp.default.", KubernetesNetworkPolicy, "default"),
    ("kanp.adminnetworkpolicy.", AdminNetworkPolicy, "adminnetworkpolicy"),
    ("kbanp.baselineadminnetworkpolicy.", BaselineAdminNetworkPolicy, "baselineadminnetworkpolicy"),
];

impl PolicyKind {
    /// The kind as the resource spells it.
    pub fn as_str(self) -> &'static str {
        KINDS.iter().find(|k| k.0 == self).map_or("", |k| k.1)
    }

    /// The kind of this full or short name.
    pub fn parse(text: &str) -> Option<Self> {
        KINDS.iter().find(|k| k.1 == text || k.2 == text).map(|k| k.0)
    }

    fn short(self) -> &'static str {
        KINDS.iter().find(|k| k.0 == self).map_or("", |k| k.2)
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A policy as its user knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyId {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its namespace; empty for cluster-wide kinds.
    pub namespace: Arc<str>,
    /// Its name without `default.`, `knp.default.` and the like. In another tier than `default` it begins with
    /// `TIER.`, because that is how Calico wants it written.
    pub name: Arc<str>,
    /// Felix up to 3.31 has it under this very name: it was made past Calico's own API (with kubectl in
    /// `crd.projectcalico.org/v1`), which would have put the tier in front. Only [`Self::old_label`] differs.
    pub bare: bool,
}

/// A policy by the name that Felix or a datastore gives it. Which policy that is, its tier tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spelling {
    /// Told by generation C alone.
    kind: Option<PolicyKind>,
    namespace: Arc<str>,
    name: Arc<str>,
}

impl Spelling {
    /// `[NAMESPACE/]NAME`: as generations A and B store it, and comments of 3.22 to 3.31 have it.
    pub fn stored(text: &str) -> Self {
        let (namespace, name) = text.split_once('/').unwrap_or(("", text));
        Self { kind: None, namespace: namespace.into(), name: name.into() }
    }

    /// Kind, namespace and stored name, as generation C has it: the name may still have its `default.` prefix and, in
    /// the etcd datastore, it is a NetworkPolicy `knp.default.NAME` for what was a Kubernetes policy.
    pub fn of_kind(kind: PolicyKind, namespace: &str, name: &str) -> Self {
        Self { kind: Some(kind), namespace: namespace.into(), name: name.into() }
    }

    /// Of the policy whose chain has this name, where the name was short enough not to be hashed.
    ///
    /// `generation` must come from the rules themselves: the same name means one policy up to 3.28 and another from
    /// 3.29 on.
    pub fn of_chain(chain: &str, generation: Generation) -> Option<Self> {
        let id = chain.strip_prefix("cali-pi-").or_else(|| chain.strip_prefix("cali-po-"))?;
        if id.starts_with('_') {
            return None;
        }
        match generation {
            Generation::A => Some(Self::stored(id)),
            Generation::B => id.split_once('/').map(|(_tier, stored)| Self::stored(stored)),
            Generation::C => {
                let (kind, rest) = id.split_once('/')?;
                let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
                Some(Self::of_kind(PolicyKind::parse(kind)?, namespace, name))
            }
        }
    }

    /// The policy that it is, being in this tier.
    ///
    /// `default.` belongs to the name in other tiers than that one, where Calico never put it in front.
    pub fn in_tier(&self, tier: &TierName) -> PolicyId {
        let Self { kind, namespace, name } = self;
        let calico = matches!(kind, None | Some(NetworkPolicy | GlobalNetworkPolicy));
        if calico && let Some((kind, name)) = strip_stored_prefix(name) {
            return PolicyId::new(kind, namespace, name);
        }
        let prefix = if calico && tier.as_str() == "default" { "default." } else { "" };
        let own = name.strip_prefix(prefix).unwrap_or(name);
        let by_scope = if namespace.is_empty() { GlobalNetworkPolicy } else { NetworkPolicy };
        let id = PolicyId::new(kind.unwrap_or(by_scope), namespace, own);
        if kind.is_none() && own == &**name { id.spelt_bare(tier) } else { id }
    }
}

impl PolicyId {
    /// The policy that its user calls so.
    pub fn new(kind: PolicyKind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into(), bare: false }
    }

    /// The same, where Felix of generation A or B has it by its own name in this tier: bare, unless that is how Calico's API
    /// stores it as well.
    pub fn spelt_bare(&self, tier: &TierName) -> Self {
        Self { bare: self.stored(tier) != self.namespaced(&self.name), ..self.clone() }
    }

    /// The name under which Calico's API of generations A and B stores it: `[NAMESPACE/]default.NAME`,
    /// `NAMESPACE/knp.default.NAME`.
    pub fn stored(&self, tier: &TierName) -> String {
        let prefix = STORED_PREFIXES.iter().find(|p| p.1 == self.kind).map(|p| p.0);
        let name = match prefix {
            Some(prefix) => format!("{prefix}{}", self.name),
            None if self.kind == KubernetesClusterNetworkPolicy => format!("kcnp.{}", self.name),
            None if self.name.starts_with("ossg.") => self.name.to_string(),
            None if self.name.starts_with(&format!("{tier}.")) && tier.as_str() != "default" => {
                self.name.to_string()
            }
            None => format!("{tier}.{}", self.name),
        };
        self.namespaced(&name)
    }

    /// The value that calico-accountant gave its `policy` label for this policy.
    pub fn old_label(&self, tier: &TierName) -> String {
        if self.bare { self.namespaced(&self.name) } else { self.stored(tier) }
    }

    /// All names that Felix of any version may have given this policy's chain in this direction.
    ///
    /// `tier` is the policy's tier, `max` the length limit of the table ([`super::names::MAX_IPTABLES`] or
    /// [`super::names::MAX_NFTABLES`]).
    pub fn chains(&self, tier: &TierName, direction: Direction, max: usize) -> Vec<(Generation, ChainName)> {
        let prefix = policy_prefix(direction);
        self.hashed_ids(tier)
            .into_iter()
            .map(|id| (id.generation, limited(prefix, &id.text, max).into()))
            .collect()
    }

    /// What each generation feeds into the hash.
    ///
    /// A and B have two spellings: with the tier in front, as Calico's own API stores it, and bare, as it is stored where it
    /// was made past that API (with kubectl in `crd.projectcalico.org/v1`). C has up to three: as stored, not yet renamed
    /// (`default.NAME`), and a Kubernetes policy in the etcd datastore.
    pub fn hashed_ids(&self, tier: &TierName) -> Vec<HashedId> {
        let stored = self.stored(tier);
        let name = stored.rsplit_once('/').map_or(&*stored, |(_, name)| name);
        let (short, own) = (self.kind.short(), self.namespaced(&self.name));
        let id = |generation, text: String| HashedId { generation, text, bare: false };
        let bare = |generation, text: String| HashedId { generation, text, bare: true };
        let as_stored = if stored == own { bare } else { id };
        let mut ids = vec![
            as_stored(Generation::A, stored.clone()),
            as_stored(Generation::B, format!("{}/{stored}", tier_of_stored(name))),
            id(Generation::C, format!("{short}/{own}")),
        ];
        if matches!(self.kind, NetworkPolicy | GlobalNetworkPolicy) {
            if tier.as_str() == "default" {
                let not_renamed = self.namespaced(&format!("default.{}", self.name));
                ids.push(id(Generation::C, format!("{short}/{not_renamed}")));
            }
            if own != stored {
                ids.push(bare(Generation::B, format!("{}/{own}", tier_of_stored(&self.name))));
                ids.push(bare(Generation::A, own));
            }
        }
        if self.kind == KubernetesNetworkPolicy {
            ids.push(id(Generation::C, format!("np/{stored}")));
        }
        ids
    }

    fn namespaced(&self, name: &str) -> String {
        if self.namespace.is_empty() { name.to_string() } else { format!("{}/{name}", self.namespace) }
    }
}

/// What a generation of Felix feeds into the hash of a policy's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashedId {
    /// The generation.
    pub generation: Generation,
    /// What it hashes.
    pub text: String,
    /// It is the policy's own name, with nothing before it ([`PolicyId::spelt_bare`]); of A and B.
    pub bare: bool,
}

/// Which of the three ways of naming chains a Felix uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Generation {
    /// Up to 3.28: the stored name.
    A,
    /// 3.29 to 3.31: the tier and the stored name.
    B,
    /// From 3.32 on: short kind, namespace, name.
    C,
}

fn strip_stored_prefix(name: &str) -> Option<(PolicyKind, &str)> {
    STORED_PREFIXES.iter().find_map(|(prefix, kind, _)| name.strip_prefix(prefix).map(|rest| (*kind, rest)))
}

/// Whether Calico itself made this stored name, of a policy of Kubernetes.
pub fn is_calicos_name(name: &str) -> bool {
    strip_stored_prefix(name).is_some()
}

/// The tier that generation B hashes: it comes from the stored name, not from the policy's tier field.
pub fn tier_of_stored(name: &str) -> &str {
    if let Some((_, _, tier)) = STORED_PREFIXES.iter().find(|(prefix, ..)| name.starts_with(prefix)) {
        return tier;
    }
    if name.starts_with("ossg.") {
        return "default";
    }
    name.split_once('.').map_or("default", |(tier, _)| tier)
}

#[cfg(test)]
mod tests;
