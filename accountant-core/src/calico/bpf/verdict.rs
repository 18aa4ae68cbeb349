//! What was decided about a packet, as its state tells.
//!
//! Invariant: total. Any bytes give a state of a known layout or nothing, and a state has one outcome.

use super::layout::StateLayout;
use super::rule_id::RuleId;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What Calico's programs noted of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketState {
    /// `pol_rc`: what policy said.
    pub said: i32,
    /// `flags`.
    pub flags: u64,
    /// Numbers of the rules that it hit, in order.
    pub path: Path,
    /// More rules were hit than there is room for.
    pub cut: bool,
    /// Source address; which version it is, only the packet tells.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Source port.
    pub source_port: u16,
    /// Destination port, or ICMP type and code.
    pub destination_port: u16,
    /// IP protocol.
    pub protocol: u8,
}

/// The rules that a packet hit, in order: at most one in each tier, and the last one decided.
pub type Path = Box<[RuleId]>;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Policy accepted it.
    Allowed,
    /// Policy denied it.
    Denied,
    /// Policy accepted it, and it was dropped for another reason.
    AllowedThenDropped,
    /// It was dropped and policy was not asked.
    DroppedWithoutPolicy,
    /// The policy program could not be called.
    PolicyFailed,
}

impl Outcome {
    /// All of them; a record of the kernel has the index.
    pub const ALL: [Self; 5] = [
        Self::Allowed,
        Self::Denied,
        Self::AllowedThenDropped,
        Self::DroppedWithoutPolicy,
        Self::PolicyFailed,
    ];
}

/// What was decided, and by which rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Verdict {
    /// What became of the packet.
    pub outcome: Outcome,
    /// The rules that it hit.
    pub path: Path,
}

/// Policy was not asked: an established connection, a failsafe port, the host's own traffic.
pub const SKIP_POLICY: u64 = 0x20;
/// Values of `pol_rc`.
pub const ALLOW: i32 = 1;
/// Denied by a rule, or because none matched.
pub const DENY: i32 = 2;
/// The policy program could not be called.
pub const FAILED: i32 = 10;

impl PacketState {
    /// Reads the state of a packet.
    pub fn read(layout: StateLayout, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..layout.size)?;
        let hits = usize::from(*bytes.get(layout.hits)?);
        let rule = |hit| Some(RuleId(u64::from_ne_bytes(take(bytes, layout.rules + 8 * hit)?)));
        Some(Self {
            said: i32::from_ne_bytes(take(bytes, layout.verdict)?),
            flags: u64::from_ne_bytes(take(bytes, layout.flags)?),
            path: (0..hits.min(StateLayout::MAX_HITS)).map_while(rule).collect(),
            cut: hits >= StateLayout::MAX_HITS,
            source: take(bytes, layout.source)?,
            destination: take(bytes, layout.destination)?,
            source_port: u16::from_ne_bytes(take(bytes, layout.source_port)?),
            destination_port: u16::from_ne_bytes(take(bytes, layout.destination_port)?),
            protocol: *bytes.get(layout.protocol)?,
        })
    }

    /// What policy decided, if it was asked.
    pub fn verdict(&self) -> Option<Verdict> {
        let outcome = match self.said {
            ALLOW => Outcome::Allowed,
            DENY => Outcome::Denied,
            _ => return None,
        };
        (self.flags & SKIP_POLICY == 0).then(|| Verdict { outcome, path: self.path.clone() })
    }
}

/// An address of a packet of IPv4.
pub fn v4([a, b, c, d, ..]: [u8; 16]) -> IpAddr {
    Ipv4Addr::new(a, b, c, d).into()
}

/// An address of a packet of IPv6.
pub fn v6(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).into()
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(layout: StateLayout, said: i32, flags: u64, ids: &[u64], hits: u8) -> Vec<u8> {
        let mut bytes = vec![0; layout.size];
        bytes[layout.verdict..layout.verdict + 4].copy_from_slice(&said.to_ne_bytes());
        bytes[layout.flags..layout.flags + 8].copy_from_slice(&flags.to_ne_bytes());
        bytes[layout.hits] = hits;
        for (hit, id) in ids.iter().enumerate() {
            bytes[layout.rules + 8 * hit..][..8].copy_from_slice(&id.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn every_layout_gives_the_path_and_the_verdict() {
        for layout in StateLayout::ALL {
            let read = |said, flags, ids: &[u64], hits| {
                PacketState::read(layout, &state(layout, said, flags, ids, hits)).unwrap()
            };
            let path: Path = [RuleId(7), RuleId(9)].into();
            let verdict = |outcome| Some(Verdict { outcome, path: path.clone() });
            assert_eq!(read(1, 0, &[7, 9], 2).verdict(), verdict(Outcome::Allowed));
            assert_eq!(read(2, 1, &[7, 9], 2).verdict(), verdict(Outcome::Denied));
            assert_eq!(read(1, SKIP_POLICY, &[7, 9], 2).verdict(), None);
            assert_eq!(read(0, 0, &[], 0).verdict(), None);
            assert_eq!(read(FAILED, 0, &[], 0).verdict(), None);
            let many = read(2, 0, &[3; 32], 40);
            assert_eq!((many.path.len(), many.cut), (32, true));
            assert_eq!(PacketState::read(layout, &vec![0; layout.size - 1]), None);
        }
    }
}
