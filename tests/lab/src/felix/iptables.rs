//! How Felix spells a rule for `iptables-restore`.
//!
//! After `felix/iptables/match_builder.go`, `actions.go` and `rules.go`. The long options matter: the rule's hash is
//! over this text.

use super::draft::{Match, Rule, Target};
use crate::policy::{Net, PortRange, Protocol};

/// The longest comment that xt_comment holds, without its final zero.
const COMMENT_LIMIT: usize = 255;

/// The rule without `-A CHAIN` and without the comment that holds the hash.
pub(crate) fn spell(rule: &Rule) -> String {
    let mut words: Vec<String> =
        rule.comments.iter().map(|text| format!("-m comment --comment \"{}\"", comment(text))).collect();
    words.extend(rule.matches.iter().map(condition));
    words.extend(target(&rule.target));
    words.join(" ")
}

/// Characters that Felix trusts in a comment; all others become `_`.
pub(crate) fn sanitised(text: &str) -> String {
    let trusted = |c: char| c.is_ascii_alphanumeric() || "_ @%+=:,./-".contains(c);
    text.chars().map(|c| if trusted(c) { c } else { '_' }).collect()
}

fn comment(text: &str) -> String {
    let mut text = sanitised(text);
    text.truncate(COMMENT_LIMIT);
    text
}

fn condition(condition: &Match) -> String {
    match condition {
        Match::Established => "-m conntrack --ctstate RELATED,ESTABLISHED".to_string(),
        Match::Invalid => "-m conntrack --ctstate INVALID".to_string(),
        Match::Dnat(true) => "-m conntrack --ctstate DNAT".to_string(),
        Match::Dnat(false) => "-m conntrack ! --ctstate DNAT".to_string(),
        Match::ReversePathFails => "-m rpfilter --invert --validmark".to_string(),
        Match::In(interface) => format!("--in-interface {interface}"),
        Match::Out(interface) => format!("--out-interface {interface}"),
        Match::Protocol(protocol) => format!("-p {}", protocol_name(*protocol)),
        Match::ProtocolNumber(number) => format!("-p {number}"),
        Match::MarkSet(bits) => format!("-m mark --mark {bits:#x}/{bits:#x}"),
        Match::MarkNotSet(bits) => format!("-m mark ! --mark {bits:#x}/{bits:#x}"),
        Match::MarkClear(bits) => format!("-m mark --mark 0/{bits:#x}"),
        Match::MarkNotClear(bits) => format!("-m mark ! --mark 0/{bits:#x}"),
        Match::Source(net) => format!("--source {net}"),
        Match::NotSource(net) => format!("! --source {net}"),
        Match::Destination(net) => format!("--destination {net}"),
        Match::NotDestination(net) => format!("! --destination {net}"),
        Match::SourceSet(set) => format!("-m set --match-set {set} src"),
        Match::DestinationSet(set) => format!("-m set --match-set {set} dst"),
        Match::DestinationPortSet(set) => format!("-m set --match-set {set} dst,dst"),
        Match::SourcePorts(_, list) => format!("-m multiport --source-ports {}", ports(list)),
        Match::Ports(_, list) => format!("-m multiport --destination-ports {}", ports(list)),
        Match::NotPorts(_, list) => format!("-m multiport ! --destination-ports {}", ports(list)),
        Match::IcmpType(kind) => format!("-m icmp --icmp-type {kind}"),
        Match::Icmpv6Type(kind) => format!("-m icmp6 --icmpv6-type {kind}"),
        Match::Within(rate, burst) => format!("-m limit --limit {rate}/sec --limit-burst {burst}"),
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Any => "all",
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp(_) => "icmp",
        Protocol::Icmpv6(_) => "icmpv6",
    }
}

fn ports(list: &[PortRange]) -> String {
    let spell = |range: &PortRange| match range.first == range.last {
        true => range.first.to_string(),
        false => format!("{}:{}", range.first, range.last),
    };
    list.iter().map(spell).collect::<Vec<_>>().join(",")
}

fn target(target: &Target) -> Option<String> {
    Some(match target {
        Target::Nothing => return None,
        Target::Accept => "--jump ACCEPT".to_string(),
        Target::Drop => "--jump DROP".to_string(),
        Target::Reject => "--jump REJECT".to_string(),
        Target::LimitPackets(rate, burst) => {
            format!("-m limit ! --limit {rate}/sec --limit-burst {burst} --jump DROP")
        }
        Target::LimitConnections(most) => {
            let new = "-m tcp --tcp-flags FIN,SYN,RST,ACK SYN";
            let above = format!("-m connlimit --connlimit-above {most} --connlimit-mask 0");
            format!("{new} {above} -j REJECT --reject-with tcp-reset")
        }
        Target::Return => "--jump RETURN".to_string(),
        Target::Jump(chain) => format!("--jump {chain}"),
        Target::Goto(chain) | Target::Dispatch(_, chain) => format!("--goto {chain}"),
        Target::SetMark(bits) => format!("--jump MARK --set-mark {bits:#x}/{bits:#x}"),
        Target::ClearMark(bits) => format!("--jump MARK --set-mark 0/{bits:#x}"),
        Target::MaskMark(bits) => format!("--jump MARK --set-mark 0x0/{bits:#x}"),
        Target::Log => "--jump LOG --log-prefix \"calico-packet: \" --log-level 5".to_string(),
        Target::Nflog { group, prefix } => {
            format!("--jump NFLOG --nflog-group {group} --nflog-prefix {prefix} --nflog-size 80")
        }
        Target::NoTrack => "--jump NOTRACK".to_string(),
    })
}

/// A member of a set as `ipset` spells it.
pub(crate) fn member(net: &Net, port: Option<u16>) -> String {
    match port {
        Some(port) => format!("{},tcp:{port}", net.address),
        None => net.to_string(),
    }
}
