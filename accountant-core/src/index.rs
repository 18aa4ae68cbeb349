//! Names: which pod is behind an interface, which policy behind a chain.
//!
//! Three verbs change it (apply, delete, reset); one task owns it. It holds what the datastore told, nothing derived
//! from rules.

use crate::calico::names::{MAX_IPTABLES, MAX_NFTABLES, profile_chain};
use crate::calico::policy::{Generation, PolicyId};
use crate::id::{Endpoint, EndpointKind, ProfileName, TierName};
use crate::{ChainName, Direction, Interface};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

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

/// What tells objects of one datastore apart: kind, namespace and name as they are there.
pub type ObjectKey = (Box<str>, Box<str>, Box<str>);

/// The cache of names.
#[derive(Debug, Default)]
pub struct Index {
    objects: BTreeMap<ObjectKey, Object>,
    workloads: HashMap<Interface, Workload>,
    policies: HashMap<ChainName, Vec<(Generation, PolicyId)>>,
    tiers: HashMap<PolicyId, TierName>,
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

    /// The workload behind an interface.
    pub fn workload(&self, interface: &Interface) -> Option<&Workload> {
        self.workloads.get(interface)
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

    /// The policy behind a chain whose rules do not name it, if exactly one policy explains the name.
    pub fn policy(&self, chain: &ChainName, generation: Generation) -> Option<&PolicyId> {
        let known = self.policies.get(chain)?;
        let mut fitting = known.iter().filter(|(g, _)| *g == generation).map(|(_, id)| id);
        match (fitting.next(), fitting.next()) {
            (Some(id), None) => Some(id),
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
                self.workloads.insert(interface.clone(), workload.clone());
            }
            Object::HostEndpoint(_) => {}
            Object::Policy(id, tier) => {
                self.tiers.insert(id.clone(), tier.clone());
                for (generation, chain) in policy_chains(id, tier) {
                    let known = self.policies.entry(chain).or_default();
                    if !known.contains(&(generation, id.clone())) {
                        known.push((generation, id.clone()));
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

    /// Removes an object and what was learnt of it, unless another object says the same.
    fn unlearn(&mut self, key: &ObjectKey) -> bool {
        let Some(object) = self.objects.remove(key) else { return false };
        match &object {
            Object::Workload(interface, workload) => {
                if self.workloads.get(interface) == Some(workload) {
                    self.workloads.remove(interface);
                }
            }
            Object::HostEndpoint(_) => {}
            Object::Policy(id, tier) => {
                self.tiers.remove(id);
                for (_, chain) in policy_chains(id, tier) {
                    if let Some(known) = self.policies.get_mut(&chain) {
                        known.retain(|(_, other)| other != id);
                        if known.is_empty() {
                            self.policies.remove(&chain);
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
        let twins: Vec<_> =
            self.objects.values().filter(|other| same_thing(other, &object)).cloned().collect();
        for twin in twins {
            self.learn(&twin);
        }
        true
    }
}

/// Two objects that teach about the same thing: one policy under two names while it is being renamed.
fn same_thing(one: &Object, other: &Object) -> bool {
    match (one, other) {
        (Object::Workload(a, _), Object::Workload(b, _)) => a == b,
        (Object::Policy(a, _), Object::Policy(b, _)) => a == b,
        (Object::Profile(a), Object::Profile(b)) => a == b,
        _ => false,
    }
}

fn policy_chains(id: &PolicyId, tier: &TierName) -> Vec<(Generation, ChainName)> {
    let mut chains = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        for max in [MAX_IPTABLES, MAX_NFTABLES] {
            chains.extend(id.chains(tier, direction, max));
        }
    }
    chains
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
