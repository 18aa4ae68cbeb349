//! What the model says about a packet, without any rule: the truth that counters are compared with.
//!
//! It is Calico's documented order: tiers, in each the policies, in each the rules; the first rule that matches decides
//! or passes to the next tier; where a tier ends undecided its default action counts; where no tier decided, profiles
//! do. Versions before 3.29 have one tier, so ask them only about models with one.

use super::{Action, Endpoint, IpSet, Model, Net, Peer, Policy, PortRange, Protocol, Rule, Tier, TierEnd};
use accountant_core::Direction;
use std::net::IpAddr;

/// A packet that is new to connection tracking: the only kind that policy decides.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes to.
    pub destination: IpAddr,
    /// Its protocol; an echo request is of type 8 or 128.
    pub protocol: Protocol,
    /// Its destination port, if its protocol has ports.
    pub port: u16,
}

/// Who decided about a packet, and how.
#[derive(Clone, Debug)]
pub struct Decision<'a> {
    /// The policies that passed it on.
    pub passed: Vec<(&'a Tier, &'a Policy)>,
    /// The end.
    pub end: End<'a>,
}

/// What decided at last.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// A rule of a policy, which allowed it or not.
    Policy(&'a Tier, &'a Policy, bool),
    /// No policy of the tier: it is denied.
    NoPolicy(&'a Tier),
    /// A rule of a profile, which allowed it or not.
    Profile(&'a str, bool),
    /// No profile: it is denied.
    NoProfile,
    /// The endpoint is down: it is denied.
    Down,
}

impl Decision<'_> {
    /// Whether the packet goes on.
    pub fn is_allowed(&self) -> bool {
        matches!(self.end, End::Policy(.., true) | End::Profile(_, true))
    }
}

impl Model {
    /// What becomes of a packet to or from this pod.
    pub fn decide<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        direction: Direction,
        packet: &Packet,
    ) -> Decision<'a> {
        let mut passed = Vec::new();
        if endpoint.admin_down {
            return Decision { passed, end: End::Down };
        }
        for used in self.uses(endpoint, direction) {
            let enforced = used.policies.into_iter().filter(|policy| !policy.is_staged());
            let mut said = enforced.clone().filter_map(|policy| {
                let rules = policy.rules(direction).unwrap_or_default();
                self.first_verdict(rules, packet).map(|action| (policy, action))
            });
            match said.next() {
                Some((policy, Action::Pass)) => passed.push((used.tier, policy)),
                Some((policy, action)) => {
                    return Decision { passed, end: End::Policy(used.tier, policy, action == Action::Allow) };
                }
                None if used.tier.end == TierEnd::Deny && enforced.count() > 0 => {
                    return Decision { passed, end: End::NoPolicy(used.tier) };
                }
                None => {}
            }
        }
        Decision { passed, end: self.decide_by_profile(endpoint, direction, packet) }
    }

    fn decide_by_profile<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        direction: Direction,
        packet: &Packet,
    ) -> End<'a> {
        for name in &endpoint.profiles {
            let profile = self.profiles.iter().find(|profile| profile.name == *name);
            let rules = profile.map_or(&[][..], |profile| profile.rules(direction));
            if let Some(action) = self.first_verdict(rules, packet) {
                return End::Profile(name, action == Action::Allow);
            }
        }
        End::NoProfile
    }

    fn first_verdict(&self, rules: &[Rule], packet: &Packet) -> Option<Action> {
        let mut matching = rules.iter().filter(|rule| self.matches(rule, packet)).map(|rule| rule.action);
        matching.find(|action| *action != Action::Log)
    }

    fn matches(&self, rule: &Rule, packet: &Packet) -> bool {
        let in_ranges =
            |ranges: &[PortRange]| ranges.iter().any(|r| (r.first..=r.last).contains(&packet.port));
        let named = rule.port_set.as_ref().map(|id| {
            let set = self.set(id);
            set.is_some_and(|set| set.port == Some(packet.port) && contains(&set.members, packet.destination))
        });
        let any_port = rule.ports.is_empty() && named.is_none();
        covers(rule.protocol, packet.protocol)
            && (any_port || in_ranges(&rule.ports) || named == Some(true))
            && !in_ranges(&rule.not_ports)
            && self.is_peer(&rule.source, packet.source)
            && self.is_peer(&rule.destination, packet.destination)
    }

    fn is_peer(&self, peer: &Peer, address: IpAddr) -> bool {
        let in_set = |id: &String| self.set(id).is_some_and(|set| contains(&set.members, address));
        // A network that only the other version of IP has makes a rule for that version alone.
        let only_other = |nets: &[Net]| {
            !nets.is_empty() && nets.iter().all(|net| net.address.is_ipv4() != address.is_ipv4())
        };
        !only_other(&peer.not_nets)
            && (peer.nets.is_empty() || contains(&peer.nets, address))
            && !contains(&peer.not_nets, address)
            && peer.set.as_ref().is_none_or(in_set)
    }

    fn set(&self, id: &str) -> Option<&IpSet> {
        self.sets.iter().find(|set| set.id == id)
    }
}

fn covers(rule: Protocol, packet: Protocol) -> bool {
    match (rule, packet) {
        (Protocol::Any | Protocol::Icmp(None), Protocol::Icmp(_))
        | (Protocol::Any | Protocol::Icmpv6(None), Protocol::Icmpv6(_))
        | (Protocol::Any, _) => true,
        (rule, packet) => rule == packet,
    }
}

fn contains(nets: &[Net], address: IpAddr) -> bool {
    nets.iter().any(|net| match (net.address, address) {
        (IpAddr::V4(net_address), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(net.length)).unwrap_or(0);
            net_address.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V6(net_address), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(net.length)).unwrap_or(0);
            net_address.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_what_they_say() {
        for (net, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "11.0.0.1", true),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("fd00::/16", "fd00:1::1", true),
            ("::/0", "10.0.0.1", false),
        ] {
            assert_eq!(
                contains(&[net.parse().unwrap()], address.parse().unwrap()),
                inside,
                "{net} {address}"
            );
        }
    }
}
