//! The comments that Felix puts on rules.
//!
//! Texts are matched by what stayed the same from 3.0 on: `Drop` may read `Reject`, `workloads` may read `pods`, and
//! from 3.30 on "End of tier T. " comes first. Nothing relies on a comment where the rule's own form can tell.

use super::policy::{PolicyKind, Spelling};
use crate::id::{ProfileName, TierName};
use crate::rule::Rule;
use serde::{Deserialize, Serialize};

/// What a policy or profile chain says about itself in its first rule (3.22 and later).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Naming {
    /// It is the chain of this policy, and a Felix of generation C says so.
    KindPolicy(Spelling),
    /// It is the chain of this policy, and a Felix of generation A or B says so.
    Policy(Spelling),
    /// It is the chain of this profile.
    Profile(ProfileName),
}

/// Reads the comment that names a chain.
///
/// The name is the last thing in the rule's last comment: annotations come first, as comments of their own in iptables
/// and in the same comment in native nftables. A comment that was cut short has lost its direction, and names nothing:
/// half a name is no name.
pub fn naming(rule: &Rule) -> Option<Naming> {
    let mut words = rule.comments.last()?.rsplit(' ');
    let (direction, name, kind) = (words.next()?, words.next()?, words.next()?);
    if !matches!(direction, "ingress" | "egress") || name.is_empty() {
        return None;
    }
    match kind {
        "Policy" => Some(Naming::Policy(Spelling::stored(name))),
        "Profile" => Some(Naming::Profile(name.into())),
        _ => {
            let kind = PolicyKind::parse(kind)?;
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            Some(Naming::KindPolicy(Spelling::of_kind(kind, namespace, name)))
        }
    }
}

/// The tier that a rule opens: `Start of tier T` (3.29 and later), `Start of policies` (up to 3.27).
pub fn tier_start(rule: &Rule) -> Option<TierName> {
    if let Some(comment) = rule.comment_with("Start of tier ") {
        let tier = comment.rsplit_once("Start of tier ").map(|(_, tier)| tier.trim())?;
        return Some(tier.into());
    }
    rule.comment_with("Start of policies").map(|_| TierName::default_tier())
}

/// The drop at the end of a tier, in the wording of any version.
pub fn is_end_of_tier(rule: &Rule) -> bool {
    rule.comment_with("if no policies passed packet").is_some()
}

/// The drop at the end of an endpoint that is administratively down.
pub fn is_admin_down(rule: &Rule) -> bool {
    rule.comment_with("Endpoint admin disabled").is_some()
}

/// Which encapsulation a rule forbids to workloads.
pub fn forbids_encapsulation(rule: &Rule) -> Option<Encapsulation> {
    if rule.comment_with("VXLAN encapped packets").is_some() {
        Some(Encapsulation::Vxlan)
    } else if rule.comment_with("IPinIP encapped packets").is_some() {
        Some(Encapsulation::IpInIp)
    } else {
        None
    }
}

/// Encapsulations that workloads may not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Encapsulation {
    /// VXLAN, UDP port 4789.
    Vxlan,
    /// IP in IP, protocol 4.
    IpInIp,
}

/// Which part of Calico's QoS controls a rule is (3.30 and later).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Qos {
    /// Sets or clears the mark that the packet-rate limit works with.
    Helper,
    /// Drops what is over the packet rate.
    PacketRate,
    /// Rejects connections over the limit.
    Connections,
}

/// Recognises rules of the QoS controls.
pub fn qos(rule: &Rule) -> Option<Qos> {
    let packet_rate = rule.comment_with("gress packet rate limit");
    match packet_rate {
        Some(text) if text.contains("packets over ") => Some(Qos::PacketRate),
        Some(_) => Some(Qos::Helper),
        None => rule.comment_with("gress connection limit").map(|_| Qos::Connections),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Action, Matches};

    fn commented(comments: &[&str]) -> Rule {
        Rule {
            hash: None,
            comments: comments.iter().map(|&c| c.into()).collect(),
            matches: Matches::default(),
            action: Action::None,
            content: 0,
            counted: true,
        }
    }

    #[test]
    fn the_first_rule_names_its_chain() {
        for (comments, want) in [
            (
                &["Policy shop/knp.default.web ingress"][..],
                Some(Naming::Policy(Spelling::stored("shop/knp.default.web"))),
            ),
            (&["owner=sec team", "Policy t.x egress"], Some(Naming::Policy(Spelling::stored("t.x")))),
            (&["ticket=1 owner=sec team Policy t.x egress"], Some(Naming::Policy(Spelling::stored("t.x")))),
            (
                &["NetworkPolicy n/default.x ingress"],
                Some(Naming::KindPolicy(Spelling::of_kind(PolicyKind::NetworkPolicy, "n", "default.x"))),
            ),
            (&["Profile kns.shop ingress"], Some(Naming::Profile("kns.shop".into()))),
            (&["Policy shop/knp.default.a-name-that-was-cut-sho"], None),
            (&["Policy  ingress"], None),
            (&["Something else ingress"], None),
            (&["Policy explicitly accepted packet."], None),
            (&[], None),
        ] {
            assert_eq!(naming(&commented(comments)), want, "{comments:?}");
        }
    }

    #[test]
    fn texts_of_all_versions() {
        assert_eq!(tier_start(&commented(&["Start of tier my.tier"])), Some("my.tier".into()));
        assert_eq!(tier_start(&commented(&["Start of policies"])), Some("default".into()));
        assert_eq!(tier_start(&commented(&["End of tier x. Drop if no policies passed packet"])), None);
        assert!(is_end_of_tier(&commented(&["End of tier x. Reject if no policies passed packet"])));
        assert!(is_end_of_tier(&commented(&["Drop if no policies passed packet"])));
        let vxlan = "Drop VXLAN encapped packets originating in pods";
        assert_eq!(forbids_encapsulation(&commented(&[vxlan])), Some(Encapsulation::Vxlan));
        assert_eq!(qos(&commented(&["Drop packets over ingress packet rate limit"])), Some(Qos::PacketRate));
        assert_eq!(qos(&commented(&["Mark packets within egress packet rate limit"])), Some(Qos::Helper));
        assert_eq!(qos(&commented(&["Clear egress packet rate limit mark"])), Some(Qos::Helper));
        let connections = "Reject connections over egress connection limit";
        assert_eq!(qos(&commented(&[connections])), Some(Qos::Connections));
    }
}
