//! Names: which pod is behind an interface, which policy behind a chain.
//!
//! Three verbs change it (apply, delete, reset); one task owns it. It holds what the datastore told, nothing derived
//! from rules.

use crate::calico::names::{MAX_IPTABLES, MAX_NFTABLES, limited, policy_prefix, profile_chain};
use crate::calico::policy::{Generation, HashedId, PolicyId};
use crate::id::{Endpoint, EndpointKind, ProfileName, TierName};
use crate::{ChainName, Direction, Interface};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// A pod (or another workload) with an interface on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub pod: Box<str>,
    /// The value of its `app` label; empty if it has none.
    pub app: Box<str>,
    /// Its networks, as the datastore spells them, without `/32` and `/128`.
    pub ips: Vec<Box<str>>,
}

/// An interface of the host that Calico polices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostEndpoint {
    /// Its name in the datastore.
    pub name: Box<str>,
    /// The interface; `*` for all; empty if the addresses tell.
    pub interface: Box<str>,
    /// Addresses that tell the interface.
    pub expected_ips: Vec<IpAddr>,
}

/// An object of the datastore, as far as names need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A workload and its interface.
    Workload(Interface, Workload),
    /// A host endpoint of this node.
    HostEndpoint(HostEndpoint),
    /// A policy and its tier.
    Policy(PolicyId, TierName),
    /// A profile.
    Profile(ProfileName),
}

/// A policy that explains a chain's name.
#[derive(Debug, PartialEq, Eq)]
struct Explains {
    generation: Generation,
    id: Arc<PolicyId>,
    /// By its own name alone ([`HashedId::bare`]).
    bare: bool,
}

/// What tells objects of one datastore apart: kind, namespace and name as they are there.
pub type ObjectKey = (Box<str>, Box<str>, Box<str>);

/// How many workloads that are gone are remembered by name.
const REMEMBERED: usize = 8192;

/// The cache of names.
#[derive(Debug, Default)]
pub struct Index {
    objects: BTreeMap<ObjectKey, Object>,
    /// Which objects tell of the same thing: two names of one policy while it is being renamed.
    tellers: HashMap<Thing, Vec<ObjectKey>>,
    workloads: HashMap<Interface, Workload>,
    /// Workloads that are gone; their accounts are still shown for a while.
    former: HashMap<Interface, Workload>,
    /// By what stands behind the prefix of a chain's name: both directions have the same there.
    policies: HashMap<Box<str>, Vec<Explains>>,
    tiers: HashMap<Arc<PolicyId>, TierName>,
    profiles: HashMap<ChainName, ProfileName>,
    addresses: HashMap<Interface, Vec<IpAddr>>,
    version: u64,
}

impl Index {
    /// Adds or replaces an object. Returns whether anything changed.
    pub fn apply(&mut self, key: ObjectKey, object: Object) -> bool {
        if self.objects.get(&key) == Some(&object) {
            return false;
        }
        self.unlearn(&key);
        self.learn(&object);
        self.tellers.entry(thing(&object)).or_insert_with(|| Vec::with_capacity(1)).push(key.clone());
        self.objects.insert(key, object);
        self.version += 1;
        true
    }

    /// Removes an object. Returns whether it was there.
    pub fn delete(&mut self, key: &ObjectKey) -> bool {
        let there = self.unlearn(key);
        self.version += u64::from(there);
        there
    }

    /// Makes `objects` all there is.
    pub fn reset(&mut self, objects: BTreeMap<ObjectKey, Object>) -> bool {
        let gone: Vec<_> = self.objects.keys().filter(|key| !objects.contains_key(*key)).cloned().collect();
        let mut changed = !gone.is_empty();
        for key in gone {
            self.delete(&key);
        }
        for (key, object) in objects {
            changed |= self.apply(key, object);
        }
        changed
    }

    /// Tells the addresses of the host's interfaces, for host endpoints that are known by address.
    pub fn set_addresses(&mut self, addresses: HashMap<Interface, Vec<IpAddr>>) {
        if self.addresses != addresses {
            self.addresses = addresses;
            self.version += 1;
        }
    }

    /// Whether a host endpoint is known by its addresses only.
    pub fn wants_addresses(&self) -> bool {
        self.objects
            .values()
            .any(|object| matches!(object, Object::HostEndpoint(h) if h.interface.is_empty()))
    }

    /// Changes with every change of the index.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many objects of each kind there are, by the first part of their keys.
    pub fn objects_by_kind(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for (kind, ..) in self.objects.keys() {
            *counts.entry(&**kind).or_default() += 1;
        }
        counts
    }

    /// The workload behind an interface, or the last one that was.
    pub fn workload(&self, interface: &Interface) -> Option<&Workload> {
        self.workloads.get(interface).or_else(|| self.former.get(interface))
    }

    /// The host endpoint that an interface's chains belong to.
    pub fn host_endpoint(&self, interface: &Interface) -> Option<&HostEndpoint> {
        let hosts = || {
            self.objects.values().filter_map(|object| match object {
                Object::HostEndpoint(host) => Some(host),
                _ => None,
            })
        };
        let wildcard = interface.as_str() == "any-interface-at-all";
        let named = hosts()
            .find(|host| &*host.interface == interface.as_str() || (wildcard && &*host.interface == "*"));
        named.or_else(|| {
            let local = self.addresses.get(interface)?;
            hosts().find(|host| {
                host.interface.is_empty() && host.expected_ips.iter().any(|ip| local.contains(ip))
            })
        })
    }

    /// The policy behind a chain whose rules do not name it, if exactly one policy explains the name. `tier` is the one that
    /// the chain is called in.
    pub fn policy(&self, chain: &ChainName, generation: Generation, tier: &TierName) -> Option<PolicyId> {
        let known = self.policies.get(behind_prefix(chain)?)?;
        let mut fitting = known.iter().filter(|explains| explains.generation == generation);
        match (fitting.next(), fitting.next()) {
            (Some(Explains { id, bare: true, .. }), None) => Some(id.spelt_bare(tier)),
            (Some(Explains { id, bare: false, .. }), None) => Some((**id).clone()),
            _ => None,
        }
    }

    /// The tier of a policy.
    pub fn tier(&self, policy: &PolicyId) -> Option<&TierName> {
        self.tiers.get(policy)
    }

    /// The profile behind a chain whose rules do not name it.
    pub fn profile(&self, chain: &ChainName) -> Option<&ProfileName> {
        self.profiles.get(chain)
    }

    /// All policies with their tiers.
    pub fn policies(&self) -> impl Iterator<Item = (&PolicyId, &TierName)> {
        self.tiers.iter().map(|(id, tier)| (&**id, tier))
    }

    /// All profiles.
    pub fn profiles(&self) -> impl Iterator<Item = &ProfileName> {
        self.profiles.values()
    }

    /// Whether an endpoint has a name.
    pub fn knows(&self, endpoint: &Endpoint) -> bool {
        match endpoint.kind {
            EndpointKind::Workload => self.workload(&endpoint.interface).is_some(),
            EndpointKind::Host => self.host_endpoint(&endpoint.interface).is_some(),
        }
    }

    fn learn(&mut self, object: &Object) {
        match object {
            Object::Workload(interface, workload) => {
                self.former.remove(interface);
                self.workloads.insert(interface.clone(), workload.clone());
            }
            Object::HostEndpoint(_) => {}
            Object::Policy(id, tier) => {
                let shared = Arc::new(id.clone());
                self.tiers.insert(shared.clone(), tier.clone());
                for (name, HashedId { generation, bare, .. }) in policy_names(id, tier) {
                    let known = self.policies.entry(name).or_insert_with(|| Vec::with_capacity(1));
                    let explains = Explains { generation, id: shared.clone(), bare };
                    if !known.contains(&explains) {
                        known.push(explains);
                    }
                }
            }
            Object::Profile(profile) => {
                for chain in profile_chains(profile) {
                    self.profiles.insert(chain, profile.clone());
                }
            }
        }
    }

    fn remember(&mut self, interface: &Interface, workload: &Workload) {
        if self.former.len() >= REMEMBERED {
            // Which one goes matters little: all of them are gone, and most are not shown any more.
            let some = self.former.keys().next().cloned();
            some.and_then(|interface| self.former.remove(&interface));
        }
        self.former.insert(interface.clone(), workload.clone());
    }

    /// Removes an object and what was learnt of it, unless another object says the same.
    fn unlearn(&mut self, key: &ObjectKey) -> bool {
        let Some(object) = self.objects.remove(key) else { return false };
        match &object {
            Object::Workload(interface, workload) => {
                if self.workloads.get(interface) == Some(workload) {
                    self.workloads.remove(interface);
                    self.remember(interface, workload);
                }
            }
            Object::HostEndpoint(_) => {}
            Object::Policy(id, tier) => {
                self.tiers.remove(id);
                for (name, _) in policy_names(id, tier) {
                    if let Some(known) = self.policies.get_mut(&name) {
                        known.retain(|explains| *explains.id != *id);
                        if known.is_empty() {
                            self.policies.remove(&name);
                        }
                    }
                }
            }
            Object::Profile(profile) => {
                for chain in profile_chains(profile) {
                    self.profiles.remove(&chain);
                }
            }
        }
        let tellers = self.tellers.get_mut(&thing(&object));
        let twin = tellers.and_then(|keys| {
            keys.retain(|other| other != key);
            keys.last().cloned()
        });
        match twin.and_then(|twin| self.objects.get(&twin).cloned()) {
            Some(twin) => self.learn(&twin),
            None => {
                self.tellers.remove(&thing(&object));
            }
        }
        true
    }
}

/// What an object tells of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Thing {
    Workload(Interface),
    HostEndpoint(Box<str>),
    Policy(PolicyId),
    Profile(ProfileName),
}

fn thing(object: &Object) -> Thing {
    match object {
        Object::Workload(interface, _) => Thing::Workload(interface.clone()),
        Object::HostEndpoint(host) => Thing::HostEndpoint(host.name.clone()),
        Object::Policy(id, _) => Thing::Policy(id.clone()),
        Object::Profile(name) => Thing::Profile(name.clone()),
    }
}

/// What a policy's chains are called behind their prefix: in ingress and egress the same, because both prefixes are of one
/// length and the hash is of what is behind them.
fn policy_names(id: &PolicyId, tier: &TierName) -> impl Iterator<Item = (Box<str>, HashedId)> {
    let prefix = policy_prefix(Direction::Ingress);
    let names = move |id: HashedId| {
        let name = |max| Some((limited(prefix, &id.text, max).strip_prefix(prefix)?.into(), id.clone()));
        [MAX_IPTABLES, MAX_NFTABLES].map(name).into_iter().flatten()
    };
    id.hashed_ids(tier).into_iter().flat_map(names)
}

/// What stands behind the prefix of a policy's chain.
fn behind_prefix(chain: &ChainName) -> Option<&str> {
    let prefixes = [Direction::Ingress, Direction::Egress].map(policy_prefix);
    prefixes.into_iter().find_map(|prefix| chain.as_str().strip_prefix(prefix))
}

fn profile_chains(profile: &ProfileName) -> Vec<ChainName> {
    let mut chains = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        for max in [MAX_IPTABLES, MAX_NFTABLES] {
            chains.push(profile_chain(profile.as_str(), direction, max));
        }
    }
    chains
}

#[cfg(test)]
mod tests;
