//! The numbers that stand for rules in Calico's eBPF dataplane.
//!
//! A number is a hash of a text that says action, policy, direction and the rule's place, so it always means the same
//! policy and action, on every endpoint and node, whatever is edited. Source: `felix/rules/nflogprefix.go`,
//! `felix/bpf/polprog/pol_prog_builder.go`; the numbers were compared with those of Felix 3.29, 3.31 and 3.32. With flow logs on they are
//! another hash, of what was hashed before as well: such numbers can only be learnt from the programs ([`super::program`]).

use crate::Direction;
use crate::calico::policy::{Generation, PolicyId};
use crate::calico::shared::PolicyAction;
use crate::id::{ProfileName, TierName};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

/// A rule's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub u64);

impl RuleId {
    /// What is noted where no rule decided: no profile matched, and up to Calico 3.29 also the end of a tier.
    pub const NONE: Self = Self(0);

    /// The hash of a text: FNV-1a of 64 bits.
    pub fn of(text: &str) -> Self {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        Self(text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// What a rule's number means.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Meaning {
    /// Which traffic of the endpoint the rule is for.
    pub direction: Direction,
    /// What it decides.
    pub decision: Decision,
}

/// What a rule decides.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the fields are named after what they are")]
pub enum Decision {
    /// A rule of a policy.
    Policy { tier: TierName, policy: PolicyId, action: PolicyAction },
    /// A rule of a profile.
    Profile { profile: ProfileName, action: PolicyAction },
    /// No policy of the tier matched.
    EndOfTier { tier: TierName, action: PolicyAction },
}

impl Decision {
    /// What is done with the packet.
    pub fn action(&self) -> PolicyAction {
        let (Self::Policy { action, .. } | Self::Profile { action, .. } | Self::EndOfTier { action, .. }) =
            self;
        *action
    }
}

/// How many rules of a policy and direction are tried.
const MOST_RULES: usize = 256;
/// From how many characters on a text is shortened, and what is kept of it on both sides.
const LONG: usize = 63;
const KEPT: usize = 10;
const HASHED: usize = 41;

/// What policies, profiles and tiers of these names would have for numbers.
#[derive(Debug, Default)]
pub struct Formulas<'a> {
    /// Policies with their tiers.
    pub policies: Vec<(&'a PolicyId, &'a TierName)>,
    /// Profiles.
    pub profiles: BTreeSet<&'a ProfileName>,
}

impl Formulas<'_> {
    /// The meanings of those of these numbers that a formula explains.
    pub fn explain(&self, wanted: &HashSet<RuleId>) -> HashMap<RuleId, Meaning> {
        let mut found = HashMap::new();
        if wanted.is_empty() {
            return found;
        }
        let mut found_one = |id: RuleId, direction, decision: &dyn Fn() -> Decision| {
            if wanted.contains(&id) && id != RuleId::NONE {
                found.entry(id).or_insert_with(|| Meaning { direction, decision: decision() });
            }
        };
        let tiers: HashSet<_> = self.policies.iter().map(|(_, tier)| *tier).collect();
        let default = TierName::default_tier();
        for direction in [Direction::Ingress, Direction::Egress] {
            for tier in tiers.iter().copied().chain([&default]) {
                for action in [PolicyAction::Deny, PolicyAction::Pass] {
                    let text = format!("{}P{}|{tier}", letter(action), initial(direction));
                    let decision = || Decision::EndOfTier { tier: tier.clone(), action };
                    found_one(RuleId::of(&shortened(text)), direction, &decision);
                }
            }
            for action in PolicyAction::ALL {
                for (policy, tier) in &self.policies {
                    for hashed in policy.hashed_ids(tier) {
                        let decision = || {
                            let policy =
                                if hashed.bare { policy.spelt_bare(tier) } else { (*policy).clone() };
                            Decision::Policy { tier: (*tier).clone(), policy, action }
                        };
                        for id in rules(hashed.generation, action, 'P', direction, &hashed.text) {
                            found_one(id, direction, &decision);
                        }
                    }
                }
                for profile in &self.profiles {
                    let decision = || Decision::Profile { profile: (*profile).clone(), action };
                    for generation in [Generation::A, Generation::C] {
                        for id in rules(generation, action, 'R', direction, profile.as_str()) {
                            found_one(id, direction, &decision);
                        }
                    }
                }
            }
        }
        found
    }
}

/// The numbers of the rules of an owner. Two generations have two formulas: that of 3.25 to 3.29 goes with the stored
/// names of A, that of 3.30 and later with those of A (up to 3.31) and C. B is of chains only.
fn rules(
    generation: Generation,
    action: PolicyAction,
    owner: char,
    direction: Direction,
    name: &str,
) -> Vec<RuleId> {
    let (letter, initial) = (letter(action), initial(direction));
    let prefixed = (0..MOST_RULES)
        .filter(|_| generation != Generation::B)
        .map(|rule| RuleId::of(&shortened(format!("{letter}{owner}{initial}{rule}|{name}"))));
    let (word, whose) = (word(action), if owner == 'P' { "Policy" } else { "Profile" });
    let way = if direction == Direction::Ingress { "Ingress" } else { "Egress" };
    let plain = (0..MOST_RULES)
        .filter(|_| generation == Generation::A)
        .map(|rule| RuleId::of(&format!("{word}{whose}{way}{rule}{name}")));
    prefixed.chain(plain).collect()
}

/// A text that is too long keeps its ends, and a hash of all of it stands between.
fn shortened(text: String) -> String {
    if text.len() < LONG {
        return text;
    }
    let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(&text));
    let (Some(start), Some(end)) = (text.get(..KEPT), text.get(text.len() - KEPT..)) else {
        // Names of Kubernetes are ASCII; what is not has no number of Felix'.
        return text;
    };
    format!("{start}_{}_{end}", &hash[..HASHED])
}

fn letter(action: PolicyAction) -> char {
    match action {
        PolicyAction::Allow => 'A',
        PolicyAction::Deny => 'D',
        PolicyAction::Pass => 'P',
    }
}

fn word(action: PolicyAction) -> &'static str {
    match action {
        PolicyAction::Allow => "allow",
        PolicyAction::Deny => "deny",
        PolicyAction::Pass => "next-tier",
    }
}

fn initial(direction: Direction) -> char {
    match direction {
        Direction::Ingress => 'I',
        Direction::Egress => 'E',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calico::policy::PolicyKind;

    #[test]
    fn hashes_are_those_of_a_real_felix() {
        for (text, id) in [
            ("API0|default.allow-all", 0x34dd_5ea8_9ccd_df19),
            ("DPI|default", 0x3407_7695_0056_8619),
            ("DPE|default", 0x1573_2503_64eb_46b5),
            ("API0|gnp/allow-all", 0x6356_ae1b_65b1_b5ba),
            ("ARI0|kns.default", 0x37c6_f1a9_56dc_7aca),
            ("allowPolicyIngress0default.allow-all", 0x6874_ed44_e022_ab43),
        ] {
            assert_eq!(RuleId::of(text), RuleId(id), "{text}");
        }
    }

    #[test]
    fn numbers_of_all_versions_are_explained_by_one_policy() {
        let policy = PolicyId::new(PolicyKind::GlobalNetworkPolicy, "", "allow-all");
        let tier = TierName::default_tier();
        let profile = ProfileName::from("kns.default");
        let formulas = Formulas { policies: vec![(&policy, &tier)], profiles: BTreeSet::from([&profile]) };
        let ids = [
            0x34dd_5ea8_9ccd_df19,
            0x6874_ed44_e022_ab43,
            0x6356_ae1b_65b1_b5ba,
            0x37c6_f1a9_56dc_7aca,
            0x3407_7695_0056_8619,
            7,
            0,
        ];
        let found = formulas.explain(&ids.into_iter().map(RuleId).collect());
        let allow = PolicyAction::Allow;
        let want = Decision::Policy { tier: tier.clone(), policy: policy.clone(), action: allow };
        for id in &ids[..3] {
            assert_eq!(
                found[&RuleId(*id)],
                Meaning { direction: Direction::Ingress, decision: want.clone() }
            );
        }
        let profile = Decision::Profile { profile: profile.clone(), action: allow };
        assert_eq!(found[&RuleId(ids[3])].decision, profile);
        let end = Decision::EndOfTier { tier, action: PolicyAction::Deny };
        assert_eq!(found[&RuleId(ids[4])].decision, end);
        assert_eq!(found.len(), 5, "a number that nothing explains has no meaning, nor has none");
    }
}
