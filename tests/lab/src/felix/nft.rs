//! How Felix spells a rule for native nftables.
//!
//! After `felix/nftables/match_builder.go` and `actions.go`. Every rule that does something has a counter just before
//! what it does; chains and sets carry their iptables table as a prefix.

use super::dialect::Version;
use super::draft::{L4, Match, Rule, Table, Target, Way};
use super::iptables::sanitised;
use crate::policy::{Net, PortRange, Protocol};
use accountant_core::IpVersion;

/// The longest comment of a rule.
const COMMENT_LIMIT: usize = 128;

/// Where a rule stands; what its spelling depends on.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) table: Table,
    pub(crate) ip: IpVersion,
    pub(crate) version: Version,
}

/// The rule's body: without `add rule …`, without the comment. The rule's hash is over this text.
pub(crate) fn spell(rule: &Rule, place: Place) -> String {
    let mut words: Vec<String> = rule.matches.iter().map(|one| condition(one, place)).collect();
    match &rule.target {
        Target::Nothing => words.push("continue".to_string()),
        Target::Dispatch(way, map) => {
            words.push(format!("{}name vmap @{}", side(*way), name(place.table, map)))
        }
        other => words.extend(["counter".to_string(), target(other, place)]),
    }
    words.join(" ")
}

/// The comment: hash and texts, cut so that each text keeps its beginning.
pub(crate) fn comment(hash: &str, comments: &[String]) -> String {
    let head = format!("cali:{hash};");
    let texts: Vec<String> = comments.iter().map(|text| sanitised(text)).collect();
    let spaces = texts.len();
    let room = COMMENT_LIMIT - head.len() - spaces;
    let share = if texts.iter().map(String::len).sum::<usize>() > room { room / spaces } else { room };
    texts.iter().fold(head, |line, text| format!("{line} {}", &text[..text.len().min(share)]))
}

/// A chain's, set's or map's name with its table.
pub(crate) fn name(table: Table, name: &str) -> String {
    format!("{}-{name}", table.as_str())
}

fn side(way: Way) -> &'static str {
    match way {
        Way::In => "iif",
        Way::Out => "oif",
    }
}

fn condition(condition: &Match, place: Place) -> String {
    let ip = match place.ip {
        IpVersion::V4 => "ip",
        IpVersion::V6 => "ip6",
    };
    match condition {
        Match::Established => "ct state related,established".to_string(),
        Match::Invalid => "ct state invalid".to_string(),
        Match::Dnat(true) => "ct status dnat".to_string(),
        Match::Dnat(false) => "ct status != dnat".to_string(),
        Match::ReversePathFails => "fib saddr . mark . iif oif 0".to_string(),
        Match::In(interface) => format!("iifname {}", interface.replace('+', "*")),
        Match::Out(interface) => format!("oifname {}", interface.replace('+', "*")),
        Match::Protocol(protocol) => format!("meta l4proto {}", protocol_name(*protocol)),
        Match::ProtocolNumber(number) => format!("meta l4proto {number}"),
        Match::MarkSet(bits) => format!("meta mark & {bits:#x} == {bits:#x}"),
        Match::MarkNotSet(bits) => format!("meta mark & {bits:#x} != {bits:#x}"),
        Match::MarkClear(bits) => format!("meta mark & {bits:#x} == 0"),
        Match::MarkNotClear(bits) => format!("meta mark & {bits:#x} != 0"),
        Match::Source(net) => format!("{ip} saddr {net}"),
        Match::NotSource(net) => format!("{ip} saddr != {net}"),
        Match::Destination(net) => format!("{ip} daddr {net}"),
        Match::NotDestination(net) => format!("{ip} daddr != {net}"),
        Match::SourceSet(set) => format!("{ip} saddr @{set}"),
        Match::DestinationSet(set) => format!("{ip} daddr @{set}"),
        Match::DestinationPortSet(set) => format!("{ip} daddr . meta l4proto . th dport @{set}"),
        Match::SourcePorts(l4, list) => format!("{} sport {{ {} }}", l4_name(*l4), ports(list)),
        Match::Ports(l4, list) => format!("{} dport {{ {} }}", l4_name(*l4), ports(list)),
        Match::NotPorts(l4, list) => format!("{} dport != {{ {} }}", l4_name(*l4), ports(list)),
        Match::IcmpType(kind) => format!("icmp type {kind}"),
        Match::Icmpv6Type(kind) => format!("icmpv6 type {kind}"),
        Match::Within(rate, burst) => format!("limit rate {rate}/second burst {burst} packets"),
    }
}

fn l4_name(l4: L4) -> &'static str {
    match l4 {
        L4::Tcp => "tcp",
        L4::Udp => "udp",
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Any => "0-255",
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp(_) => "icmp",
        Protocol::Icmpv6(_) => "icmpv6",
    }
}

fn ports(list: &[PortRange]) -> String {
    let spell = |range: &PortRange| match range.first == range.last {
        true => range.first.to_string(),
        false => format!("{}-{}", range.first, range.last),
    };
    list.iter().map(spell).collect::<Vec<_>>().join(", ")
}

fn target(target: &Target, place: Place) -> String {
    match target {
        Target::Nothing | Target::Dispatch(..) => String::new(),
        Target::Accept => "accept".to_string(),
        Target::Drop => "drop".to_string(),
        Target::Reject => "reject".to_string(),
        // The counter stands before the limit, so it counts what is offered, not what is over.
        Target::LimitPackets(rate, burst) => {
            format!("limit rate over {rate}/second burst {burst} packets drop")
        }
        Target::LimitConnections(most) => format!("ct count over {most} reject with tcp reset"),
        Target::Return => "return".to_string(),
        Target::Jump(chain) => format!("jump {}", name(place.table, chain)),
        Target::Goto(chain) => format!("goto {}", name(place.table, chain)),
        Target::SetMark(bits) => format!("meta mark set mark or {bits:#x}"),
        Target::ClearMark(bits) => format!("meta mark set mark & {:#x}", !bits),
        Target::MaskMark(bits) => format!("meta mark set mark & {:#x} ^ 0x0", !bits),
        Target::Log if place.version < Version::V3_31 => "log prefix calico-packet level info".to_string(),
        Target::Log => "log prefix \"calico-packet: \" level info".to_string(),
        Target::Nflog { group, prefix } => format!("log prefix \"{prefix}\" snaplen 80 group {group}"),
        Target::NoTrack => "notrack".to_string(),
    }
}

/// A set's declaration and elements are typed by what they hold.
pub(crate) fn set_type(ip: IpVersion, with_ports: bool) -> &'static str {
    match (ip, with_ports) {
        (IpVersion::V4, false) => "type ipv4_addr; flags interval;",
        (IpVersion::V6, false) => "type ipv6_addr; flags interval;",
        (IpVersion::V4, true) => "type ipv4_addr . inet_proto . inet_service;",
        (IpVersion::V6, true) => "type ipv6_addr . inet_proto . inet_service;",
    }
}

/// A member of a set as its element.
pub(crate) fn element(net: &Net, port: Option<u16>) -> String {
    match port {
        Some(port) => format!("{} . tcp . {port}", net.address),
        None => net.to_string(),
    }
}
