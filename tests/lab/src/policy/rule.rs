//! Rules of policies and profiles: what they match, and what they do.

use crate::error::{Error, Result};
use crate::policy::Selector;
use accountant_core::IpVersion;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// The protocol it matches.
    pub protocol: Protocol,
    /// The destination ports; none means all.
    pub ports: Vec<PortRange>,
    /// The destination ports that it does not match.
    pub not_ports: Vec<PortRange>,
    /// An IP set of addresses with ports (named ports), by its id.
    pub port_set: Option<String>,
    /// Where the traffic comes from.
    pub source: Peer,
    /// Where the traffic goes to.
    pub destination: Peer,
    /// The annotations of the rule.
    pub annotations: Vec<(String, String)>,
}

/// What a rule does with a packet that it matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is Calico's action of the same name")]
pub enum Action {
    #[default]
    Allow,
    Deny,
    Pass,
    Log,
}

/// A protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Whatever.
    #[default]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, which is only IPv4, of this type or of any.
    Icmp(Option<u8>),
    /// ICMP of IPv6, of this type or of any.
    Icmpv6(Option<u8>),
}

/// One end of the traffic that a rule matches; without restrictions, everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Networks.
    pub nets: Vec<Net>,
    /// Networks that do not match.
    pub not_nets: Vec<Net>,
    /// An IP set, by its id.
    pub set: Option<String>,
}

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// A network, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Net {
    /// Its first address.
    pub address: IpAddr,
    /// The length of its prefix.
    pub length: u8,
}

/// A set of addresses that rules match by name, so that pods come and go without a change of rules.
#[derive(Clone, Debug)]
pub struct IpSet {
    /// What rules call it, as Calico does: `s:…` for a selector's addresses, `n:…` for named ports.
    pub id: String,
    /// Its members, of both IP versions.
    pub members: Vec<Net>,
    /// The TCP port that the members are listed with, in a set of named ports.
    pub port: Option<u16>,
    /// What the set stands for in a manifest: pods with these labels in this namespace.
    pub stands_for: Option<(String, Selector)>,
}

impl Rule {
    /// Allows what it matches; so far, everything.
    pub fn allow() -> Self {
        Self::default()
    }

    /// Denies what it matches.
    pub fn deny() -> Self {
        Self { action: Action::Deny, ..Self::default() }
    }

    /// Lets the next tier decide about what it matches.
    pub fn pass() -> Self {
        Self { action: Action::Pass, ..Self::default() }
    }

    /// Logs what it matches, and goes on.
    pub fn log() -> Self {
        Self { action: Action::Log, ..Self::default() }
    }

    /// This rule for TCP to these ports; none means all.
    pub fn tcp(self, ports: &[u16]) -> Self {
        Self { protocol: Protocol::Tcp, ports: ports.iter().copied().map(PortRange::one).collect(), ..self }
    }

    /// This rule for UDP to these ports; none means all.
    pub fn udp(self, ports: &[u16]) -> Self {
        Self { protocol: Protocol::Udp, ports: ports.iter().copied().map(PortRange::one).collect(), ..self }
    }

    /// This rule for another protocol.
    pub fn protocol(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }

    /// This rule for one more range of destination ports.
    pub fn ports(mut self, first: u16, last: u16) -> Self {
        self.ports.push(PortRange { first, last });
        self
    }

    /// This rule for traffic from one more network.
    pub fn from(mut self, net: Net) -> Self {
        self.source.nets.push(net);
        self
    }

    /// This rule for traffic to one more network.
    pub fn to(mut self, net: Net) -> Self {
        self.destination.nets.push(net);
        self
    }

    /// This rule for traffic from the members of a set.
    pub fn from_set(mut self, id: &str) -> Self {
        self.source.set = Some(id.to_string());
        self
    }

    /// This rule for traffic to the members of a set.
    pub fn to_set(mut self, id: &str) -> Self {
        self.destination.set = Some(id.to_string());
        self
    }

    /// This rule with one more annotation.
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_string(), value.to_string()));
        self
    }

    /// The part of this rule that matters to one IP version; nothing if it is all about the other.
    pub fn in_version(&self, version: IpVersion) -> Option<Self> {
        let other = match version {
            IpVersion::V4 => matches!(self.protocol, Protocol::Icmpv6(_)),
            IpVersion::V6 => matches!(self.protocol, Protocol::Icmp(_)),
        };
        let source = self.source.in_version(version)?;
        let destination = self.destination.in_version(version)?;
        (!other).then(|| Self { source, destination, ..self.clone() })
    }
}

impl Peer {
    fn in_version(&self, version: IpVersion) -> Option<Self> {
        let of = |nets: &[Net]| -> Vec<Net> {
            nets.iter().copied().filter(|net| net.version() == version).collect()
        };
        let kept = Self { nets: of(&self.nets), not_nets: of(&self.not_nets), set: self.set.clone() };
        let lost = |before: &[Net], after: &[Net]| !before.is_empty() && after.is_empty();
        let about_the_other = lost(&self.nets, &kept.nets) || lost(&self.not_nets, &kept.not_nets);
        (!about_the_other).then_some(kept)
    }
}

impl PortRange {
    /// A range of one port.
    pub fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl Net {
    /// The network of just this address.
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// The version of IP that it belongs to.
    pub fn version(&self) -> IpVersion {
        if self.address.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 }
    }
}

impl FromStr for Net {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || Error::syntax(text, "an address or a network like 10.0.0.0/8");
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let host = Self::host(address.parse().map_err(|_| refuse())?);
        let length = length.map_or(Ok(host.length), |l| l.parse().map_err(|_| refuse()))?;
        if length > host.length { Err(refuse()) } else { Ok(Self { length, ..host }) }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_about_the_other_version_is_no_rule() {
        let net = |text: &str| text.parse::<Net>().unwrap();
        let both = Rule::allow().from(net("10.0.0.0/8")).from(net("fd00::/8"));
        assert_eq!(both.in_version(IpVersion::V6).unwrap().source.nets, [net("fd00::/8")]);
        assert_eq!(Rule::allow().from(net("10.0.0.0/8")).in_version(IpVersion::V6), None);
        assert_eq!(Rule::allow().protocol(Protocol::Icmp(Some(8))).in_version(IpVersion::V6), None);
        assert_eq!(Rule::allow().in_version(IpVersion::V6), Some(Rule::allow()));
    }

    #[test]
    fn networks_are_read_and_printed() {
        for (text, printed) in
            [("10.0.0.0/8", "10.0.0.0/8"), ("10.0.0.1", "10.0.0.1/32"), ("fd00::/8", "fd00::/8")]
        {
            assert_eq!(text.parse::<Net>().unwrap().to_string(), printed);
        }
        for text in ["", "10.0.0.0/33", "10.0.0/8", "x"] {
            assert!(text.parse::<Net>().is_err(), "{text}");
        }
    }
}
