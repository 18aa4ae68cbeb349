//! The identity of a policy across the generations of Calico's naming.
//!
//! Felix hashed `NAME` (A: up to 3.28), `TIER/NAME` (B: 3.29 to 3.31), `KIND/NAMESPACE/NAME` (C: from 3.32) into the
//! chain names, and stored names with a `default.` prefix up to 3.31. Here a policy is what its user wrote: kind,
//! namespace and name, so that its account goes on under one identity whatever Calico calls its chain.

use super::names::{limited, policy_prefix};
use crate::id::TierName;
use crate::{ChainName, Direction};
use std::fmt;
use std::sync::Arc;

/// The kind of a policy resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyId {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its namespace; empty for cluster-wide kinds.
    pub namespace: Arc<str>,
    /// Its name without `default.`, `knp.default.` and the like. In another tier than `default` it begins with
    /// `TIER.`, because that is how Calico wants it written.
    pub name: Arc<str>,
}

impl PolicyId {
    /// The policy that is stored under `[NAMESPACE/]NAME` (generations A and B, comments of 3.22 to 3.31).
    pub fn from_stored(stored: &str) -> Self {
        let (namespace, name) = stored.split_once('/').unwrap_or(("", stored));
        Self::from_parts(None, namespace, name)
    }

    /// The policy of generation C: kind, namespace and stored name, which may still have its `default.` prefix and,
    /// in the etcd datastore, is a NetworkPolicy `knp.default.NAME` for what was a Kubernetes policy.
    pub fn from_kind(kind: PolicyKind, namespace: &str, name: &str) -> Self {
        Self::from_parts(Some(kind), namespace, name)
    }

    fn from_parts(kind: Option<PolicyKind>, namespace: &str, name: &str) -> Self {
        let calico = matches!(kind, None | Some(NetworkPolicy | GlobalNetworkPolicy));
        if calico && let Some((kind, name)) = strip_stored_prefix(name) {
            return Self { kind, namespace: namespace.into(), name: name.into() };
        }
        let name = if calico { name.strip_prefix("default.").unwrap_or(name) } else { name };
        let by_scope = if namespace.is_empty() { GlobalNetworkPolicy } else { NetworkPolicy };
        Self { kind: kind.unwrap_or(by_scope), namespace: namespace.into(), name: name.into() }
    }

    /// The policy whose chain has this name, where the name was short enough not to be hashed.
    ///
    /// `generation` must come from the rules themselves: the same name means one policy up to 3.28 and another from
    /// 3.29 on.
    pub fn from_chain(chain: &str, generation: Generation) -> Option<Self> {
        let id = chain.strip_prefix("cali-pi-").or_else(|| chain.strip_prefix("cali-po-"))?;
        if id.starts_with('_') {
            return None;
        }
        match generation {
            Generation::A => Some(Self::from_stored(id)),
            Generation::B => id.split_once('/').map(|(_tier, stored)| Self::from_stored(stored)),
            Generation::C => {
                let (kind, rest) = id.split_once('/')?;
                let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
                Some(Self::from_kind(PolicyKind::parse(kind)?, namespace, name))
            }
        }
    }

    /// The name under which generations A and B store it: `[NAMESPACE/]default.NAME`, `NAMESPACE/knp.default.NAME`.
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
        self.stored(tier)
    }

    /// All names that Felix of any version may have given this policy's chain in this direction.
    ///
    /// `tier` is the policy's tier, `max` the length limit of the table ([`super::names::MAX_IPTABLES`] or
    /// [`super::names::MAX_NFTABLES`]).
    pub fn chains(&self, tier: &TierName, direction: Direction, max: usize) -> Vec<(Generation, ChainName)> {
        let prefix = policy_prefix(direction);
        self.hashed_ids(tier)
            .into_iter()
            .map(|(generation, id)| (generation, limited(prefix, &id, max).into()))
            .collect()
    }

    /// What each generation feeds into the hash.
    ///
    /// A and B have two spellings: with the tier in front, as Calico's own API stores it, and without, as it is stored where
    /// it was made past that API (with kubectl in `crd.projectcalico.org/v1`). C has up to three: as stored, not yet renamed
    /// (`default.NAME`), and a Kubernetes policy in the etcd datastore.
    pub fn hashed_ids(&self, tier: &TierName) -> Vec<(Generation, String)> {
        let stored = self.stored(tier);
        let name = stored.rsplit_once('/').map_or(&*stored, |(_, name)| name);
        let short = self.kind.short();
        let mut ids = vec![
            (Generation::A, stored.clone()),
            (Generation::B, format!("{}/{stored}", tier_of_stored(name))),
            (Generation::C, format!("{short}/{}", self.namespaced(&self.name))),
        ];
        if matches!(self.kind, NetworkPolicy | GlobalNetworkPolicy) {
            if tier.as_str() == "default" {
                let not_renamed = self.namespaced(&format!("default.{}", self.name));
                ids.push((Generation::C, format!("{short}/{not_renamed}")));
            }
            let plain = self.namespaced(&self.name);
            if plain != stored {
                ids.push((Generation::B, format!("{}/{plain}", tier_of_stored(&self.name))));
                ids.push((Generation::A, plain));
            }
        }
        if self.kind == KubernetesNetworkPolicy {
            ids.push((Generation::C, format!("np/{stored}")));
        }
        ids
    }

    fn namespaced(&self, name: &str) -> String {
        if self.namespace.is_empty() { name.to_string() } else { format!("{}/{name}", self.namespace) }
    }
}

/// Which of the three ways of naming chains a Felix uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
mod tests {
    use super::*;
    use crate::calico::names::MAX_IPTABLES;

    fn id(kind: PolicyKind, namespace: &str, name: &str) -> PolicyId {
        PolicyId { kind, namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn one_policy_whatever_generation_names_it() {
        for (stored, kind, kind_ns, kind_name, want) in [
            ("n/default.foo", NetworkPolicy, "n", "foo", id(NetworkPolicy, "n", "foo")),
            ("n/default.foo", NetworkPolicy, "n", "default.foo", id(NetworkPolicy, "n", "foo")),
            ("n/knp.default.x", KubernetesNetworkPolicy, "n", "x", id(KubernetesNetworkPolicy, "n", "x")),
            ("n/knp.default.x", NetworkPolicy, "n", "knp.default.x", id(KubernetesNetworkPolicy, "n", "x")),
            ("default.g", GlobalNetworkPolicy, "", "g", id(GlobalNetworkPolicy, "", "g")),
            ("t.g", GlobalNetworkPolicy, "", "t.g", id(GlobalNetworkPolicy, "", "t.g")),
        ] {
            assert_eq!(PolicyId::from_stored(stored), want);
            assert_eq!(PolicyId::from_kind(kind, kind_ns, kind_name), want);
        }
    }

    #[test]
    fn chains_of_every_generation() {
        let chains = |id: PolicyId, tier: &str| -> Vec<String> {
            let tier = TierName::from(tier);
            id.chains(&tier, Direction::Ingress, MAX_IPTABLES).iter().map(|c| c.1.to_string()).collect()
        };
        assert_eq!(
            chains(id(KubernetesNetworkPolicy, "default", "foo"), "default")[..3],
            ["cali-pi-_ye-Z83fcSj35vkNHhEv", "cali-pi-_9tjSCz6Yv0P45r-9ylU", "cali-pi-knp/default/foo"]
        );
        assert_eq!(
            chains(id(NetworkPolicy, "default", "foo"), "default"),
            [
                "cali-pi-default/default.foo",
                "cali-pi-_z7xoIjNr3UYzlqszrHj",
                "cali-pi-np/default/foo",
                "cali-pi-_kqoeN6Z7AHVWsiBmNgW",
                "cali-pi-default/default/foo",
                "cali-pi-default/foo"
            ]
        );
        // What kubectl made past Calico's API, whose tier is then that of its name.
        assert_eq!(
            chains(id(GlobalNetworkPolicy, "", "a.b"), "default")[4..],
            ["cali-pi-a/a.b", "cali-pi-a.b"]
        );
        assert_eq!(
            chains(id(GlobalNetworkPolicy, "", "tier1.foo"), "tier1"),
            ["cali-pi-tier1.foo", "cali-pi-tier1/tier1.foo", "cali-pi-gnp/tier1.foo"]
        );
        assert_eq!(
            chains(id(AdminNetworkPolicy, "", "foo"), "adminnetworkpolicy")[1],
            "cali-pi-_wKHgR68sWmHadUmyakG"
        );
    }

    #[test]
    fn plain_chain_names_are_read_by_generation() {
        let read = |chain, generation| PolicyId::from_chain(chain, generation);
        assert_eq!(
            read("cali-pi-default/default.foo", Generation::A),
            Some(id(NetworkPolicy, "default", "foo"))
        );
        assert_eq!(
            read("cali-pi-default/default.foo", Generation::B),
            Some(id(GlobalNetworkPolicy, "", "foo"))
        );
        assert_eq!(
            read("cali-po-knp/shop/web", Generation::C),
            Some(id(KubernetesNetworkPolicy, "shop", "web"))
        );
        assert_eq!(read("cali-po-_qhRePlGqjuVVTnxus0f", Generation::B), None);
    }

    #[test]
    fn the_old_label_is_what_generation_a_stored() {
        let label = |id: PolicyId, tier: &str| id.old_label(&tier.into());
        assert_eq!(
            label(id(KubernetesNetworkPolicy, "default", "foo"), "default"),
            "default/knp.default.foo"
        );
        assert_eq!(label(id(NetworkPolicy, "n", "foo"), "default"), "n/default.foo");
        assert_eq!(label(id(NetworkPolicy, "n", "t.foo"), "t"), "n/t.foo");
        assert_eq!(label(id(NetworkPolicy, "n", "foo"), "t"), "n/t.foo");
        assert_eq!(label(id(KubernetesClusterNetworkPolicy, "", "x"), "kube-admin"), "kcnp.x");
    }
}
