//! Books of the truth: what each pod's accounts should hold after known traffic, in packets and bytes.

use super::decide::{End, Packet};
use super::{Endpoint, Model};
use accountant_core::calico::PolicyId;
use accountant_core::{Counter, Direction, IpVersion};
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
    accounts: BTreeMap<Account, Counter>,
}

impl Truth {
    /// Books packets like this one, so many and with so many bytes from the IP header on: with the pod that sends them,
    /// and if they may go on with the pod that gets them. Says whether they arrive, as far as the pods' policies go; host
    /// endpoints are not asked.
    pub fn book(&mut self, model: &Model, packet: &Packet, sent: Counter) -> bool {
        let ends = [(packet.source, Direction::Egress), (packet.destination, Direction::Ingress)];
        ends.into_iter().all(|(address, direction)| {
            let endpoint = model.endpoints.iter().find(|endpoint| endpoint.addresses.contains(&address));
            endpoint.is_none_or(|endpoint| self.book_at(model, endpoint, direction, packet, sent))
        })
    }

    fn book_at(
        &mut self,
        model: &Model,
        pod: &Endpoint,
        direction: Direction,
        packet: &Packet,
        sent: Counter,
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
            let held = self.accounts.entry(account).or_default();
            held.packets += sent.packets;
            held.bytes += sent.bytes;
        }
        decision.is_allowed()
    }

    /// The accounts and the packets that they hold, in order.
    pub fn accounts(&self) -> impl Iterator<Item = (&Account, u64)> {
        self.balances().map(|(account, held)| (account, held.packets))
    }

    /// The accounts and what they hold, in order.
    pub fn balances(&self) -> impl Iterator<Item = (&Account, Counter)> {
        self.accounts.iter().map(|(account, held)| (account, *held))
    }

    /// The packets that an account holds.
    pub fn packets(&self, account: &Account) -> u64 {
        self.accounts.get(account).map_or(0, |held| held.packets)
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
