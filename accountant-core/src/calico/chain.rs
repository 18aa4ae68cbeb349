//! What a chain is for, read from its name.
//!
//! The prefixes are the same in every version (`felix/rules/rule_defs.go`).

use crate::id::{Endpoint, EndpointKind};
use crate::{ChainName, Direction, Interface};

/// The kind of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ChainKind {
    /// Decides on traffic to or from one endpoint.
    Endpoint {
        /// Whose chain it is. For a host endpoint with interface `*` the interface is `any-interface-at-all`.
        endpoint: Endpoint,
        /// Which traffic, as the endpoint sees it.
        direction: Direction,
        /// Traffic that the host forwards (`cali-thfw-`, `cali-fhfw-`).
        forward: bool,
    },
    /// The rules of one policy in one direction, shared by all endpoints.
    Policy(Direction),
    /// A group of policies with the same selector (3.28 and later), shared by the endpoints it selects.
    Group(Direction),
    /// The rules of one profile.
    Profile(Direction),
    /// Ports that host endpoints always leave open.
    Failsafe,
    /// Another chain of Calico's: dispatch, NAT, and so on.
    OtherCalico,
    /// Not Calico's.
    Foreign,
}

/// The pseudo interface of a host endpoint that covers all interfaces.
const ANY_INTERFACE: &str = "any-interface-at-all";
/// What its forward chains are called in iptables, where the full name is too long.
const ANY_INTERFACE_HASHED: &str = "_Nqh4HyA73udmyanQI";

impl ChainKind {
    /// Reads a chain's name.
    pub fn of(name: &ChainName) -> Self {
        let Some(rest) = name.as_str().strip_prefix("cali-") else { return Self::Foreign };
        if matches!(rest, "failsafe-in" | "failsafe-out") {
            return Self::Failsafe;
        }
        let Some((prefix, id)) = rest.split_once('-') else { return Self::OtherCalico };
        let endpoint = |kind, direction, forward| {
            let interface = if id == ANY_INTERFACE_HASHED { ANY_INTERFACE } else { id };
            let endpoint = Endpoint { kind, interface: Interface::from(interface) };
            Self::Endpoint { endpoint, direction, forward }
        };
        match prefix {
            "tw" => endpoint(EndpointKind::Workload, Direction::Ingress, false),
            "fw" => endpoint(EndpointKind::Workload, Direction::Egress, false),
            "fh" => endpoint(EndpointKind::Host, Direction::Ingress, false),
            "th" => endpoint(EndpointKind::Host, Direction::Egress, false),
            "fhfw" => endpoint(EndpointKind::Host, Direction::Ingress, true),
            "thfw" => endpoint(EndpointKind::Host, Direction::Egress, true),
            "pi" => Self::Policy(Direction::Ingress),
            "po" => Self::Policy(Direction::Egress),
            "gi" => Self::Group(Direction::Ingress),
            "go" => Self::Group(Direction::Egress),
            "pri" => Self::Profile(Direction::Ingress),
            "pro" => Self::Profile(Direction::Egress),
            _ => Self::OtherCalico,
        }
    }

    /// Whether the account needs this chain.
    pub fn matters(&self) -> bool {
        matches!(self, Self::Endpoint { .. }) || self.is_shared()
    }

    /// Whether endpoint chains call it, so that its counters are sums over endpoints.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Policy(_) | Self::Group(_) | Self::Profile(_) | Self::Failsafe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_chains_are_for() {
        let kind = |name: &str| ChainKind::of(&name.into());
        let endpoint = |kind, interface: &str, direction, forward| ChainKind::Endpoint {
            endpoint: Endpoint { kind, interface: interface.into() },
            direction,
            forward,
        };
        use Direction::{Egress, Ingress};
        use EndpointKind::{Host, Workload};
        for (name, want) in [
            ("cali-tw-eni12", endpoint(Workload, "eni12", Ingress, false)),
            ("cali-fw-tap-1-2", endpoint(Workload, "tap-1-2", Egress, false)),
            ("cali-fhfw-eth0", endpoint(Host, "eth0", Ingress, true)),
            ("cali-th-any-interface-at-all", endpoint(Host, "any-interface-at-all", Egress, false)),
            ("cali-thfw-_Nqh4HyA73udmyanQI", endpoint(Host, "any-interface-at-all", Egress, true)),
            ("cali-pi-default/foo-bar", ChainKind::Policy(Ingress)),
            ("cali-pro-kns.x", ChainKind::Profile(Egress)),
            ("cali-gi-27a-Jhy0ATiMvPTXUDzX", ChainKind::Group(Ingress)),
            ("cali-failsafe-in", ChainKind::Failsafe),
            ("cali-FORWARD", ChainKind::OtherCalico),
            ("cali-from-wl-dispatch-7", ChainKind::OtherCalico),
            ("KUBE-FORWARD", ChainKind::Foreign),
            ("CNI-1", ChainKind::Foreign),
            ("cali", ChainKind::Foreign),
        ] {
            assert_eq!(kind(name), want, "{name}");
        }
    }
}
