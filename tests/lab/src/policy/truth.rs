//! Books of the truth: what each pod's accounts should hold after known traffic.

use super::decide::{End, Packet};
use super::{Endpoint, Model};
use accountant_core::calico::PolicyId;
use accountant_core::{Direction, IpVersion};
use std::collections::BTreeMap;
use std::fmt;

/// An account of a pod, in packets that are new to connection tracking.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Account {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// To the pod or from it.
    pub direction: Direction,
    /// The version of IP.
    pub ip_version: IpVersion,
    /// What decided.
    pub by: By,
}

/// What an account is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// A policy of a tier, and what it did.
    Policy {
        /// The tier.
        tier: String,
        /// The policy.
        policy: PolicyId,
        /// What it did.
        did: Did,
    },
    /// No policy of a tier.
    NoPolicy {
        /// The tier.
        tier: String,
    },
    /// A profile, and what it did.
    Profile {
        /// The profile.
        profile: String,
        /// What it did.
        did: Did,
    },
    /// No profile.
    NoProfile,
    /// The endpoint is down.
    Down,
}

/// What a policy or profile did with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the action of the same name")]
pub enum Did {
    Allow,
    Deny,
    Pass,
}

/// All accounts that anything was booked to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    accounts: BTreeMap<Account, u64>,
}

impl Truth {
    /// Books so many packets like this one: with the pod that sends it, and if it may go on with the pod that gets it.
    /// Says whether it arrives, as far as the pods' policies go; host endpoints are not asked.
    pub fn book(&mut self, model: &Model, packet: &Packet, packets: u64) -> bool {
        let ends = [(packet.source, Direction::Egress), (packet.destination, Direction::Ingress)];
        ends.into_iter().all(|(address, direction)| {
            let endpoint = model.endpoints.iter().find(|endpoint| endpoint.addresses.contains(&address));
            endpoint.is_none_or(|endpoint| self.book_at(model, endpoint, direction, packet, packets))
        })
    }

    fn book_at(
        &mut self,
        model: &Model,
        pod: &Endpoint,
        direction: Direction,
        packet: &Packet,
        packets: u64,
    ) -> bool {
        let decision = model.decide(pod, direction, packet);
        let passed = decision.passed.iter().map(|(tier, policy)| By::Policy {
            tier: tier.name.to_string(),
            policy: policy.id.clone(),
            did: Did::Pass,
        });
        let did = if decision.is_allowed() { Did::Allow } else { Did::Deny };
        let end = match decision.end {
            End::Policy(tier, policy, _) => {
                By::Policy { tier: tier.name.to_string(), policy: policy.id.clone(), did }
            }
            End::NoPolicy(tier) => By::NoPolicy { tier: tier.name.to_string() },
            End::Profile(profile, _) => By::Profile { profile: profile.to_string(), did },
            End::NoProfile => By::NoProfile,
            End::Down => By::Down,
        };
        for by in passed.chain([end]) {
            let account = Account {
                namespace: pod.namespace.clone(),
                pod: pod.pod.clone(),
                direction,
                ip_version: if packet.source.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 },
                by,
            };
            *self.accounts.entry(account).or_default() += packets;
        }
        decision.is_allowed()
    }

    /// The accounts and what they hold, in order.
    pub fn accounts(&self) -> impl Iterator<Item = (&Account, u64)> {
        self.accounts.iter().map(|(account, packets)| (account, *packets))
    }

    /// What an account holds.
    pub fn packets(&self, account: &Account) -> u64 {
        self.accounts.get(account).copied().unwrap_or(0)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {} v{} ", self.namespace, self.pod, self.direction, self.ip_version)?;
        match &self.by {
            By::Policy { tier, policy, did } => {
                write!(f, "{did:?} by {} {}/{} of tier {tier}", policy.kind, policy.namespace, policy.name)
            }
            By::NoPolicy { tier } => write!(f, "Deny, no policy of tier {tier}"),
            By::Profile { profile, did } => write!(f, "{did:?} by profile {profile}"),
            By::NoProfile => write!(f, "Deny, no profile"),
            By::Down => write!(f, "Deny, down"),
        }
    }
}
