//! What the listing of a policy program says of the numbers of its rules.
//!
//! Felix writes one for each endpoint and direction (`calico/bpf/policy/<interface>_<direction>_v<4|6>.json`): the program's
//! instructions, each with comments on what begins there. A rule's number is in a comment; that of the end of a tier is in
//! no comment, but it is a constant that an instruction loads behind the comment of the tier's end.
//! Source: `felix/bpf/polprog/pol_prog_builder.go` of 3.25 to 3.33.
//!
//! Invariant: total. Comments that are not understood are skipped; a number is learnt only with its whole meaning.

use super::rule_id::{Decision, Meaning, RuleId};
use crate::Direction;
use crate::calico::policy::{PolicyKind, Spelling};
use crate::calico::shared::PolicyAction;
use crate::id::{ProfileName, TierName};
use std::collections::BTreeMap;

/// One instruction: eight bytes, and what is commented at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The instruction, `struct bpf_insn`.
    pub instruction: [u8; 8],
    /// Its comments in order.
    pub comments: Vec<Box<str>>,
}

/// What a policy program can decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyProgram {
    /// What its rules' numbers mean.
    pub meanings: BTreeMap<RuleId, Meaning>,
    /// Its tiers in order.
    pub tiers: Vec<TierName>,
}

/// `BPF_LD | BPF_IMM | BPF_DW` into register 2, of a plain number: how a rule's number is loaded.
const LOAD: [u8; 2] = [0x18, 0x02];

impl PolicyProgram {
    /// Reads a listing.
    pub fn read(direction: Direction, steps: &[Step]) -> Self {
        let mut reader =
            Reader { program: Self::default(), direction, tier: None, policy: None, at: At::Else };
        for (number, step) in steps.iter().enumerate() {
            for comment in &step.comments {
                reader.comment(comment);
            }
            if step.instruction[..2] == LOAD {
                let upper = steps.get(number + 1).map_or([0; 8], |next| next.instruction);
                reader.load(constant(step.instruction, upper));
            }
        }
        reader.program
    }
}

/// The constant that two instructions load.
fn constant(lower: [u8; 8], upper: [u8; 8]) -> RuleId {
    let half = |[.., a, b, c, d]: [u8; 8]| u64::from(u32::from_le_bytes([a, b, c, d]));
    RuleId(half(upper) << 32 | half(lower))
}

/// Where in the listing the reader is.
enum At {
    /// In a rule that decides so.
    Rule(Decision),
    /// Behind the end of a tier.
    EndOfTier(Decision),
    /// Anywhere else.
    Else,
}

struct Reader {
    program: PolicyProgram,
    direction: Direction,
    tier: Option<TierName>,
    policy: Option<Spelling>,
    at: At,
}

impl Reader {
    fn comment(&mut self, comment: &str) {
        if let Some(tier) = comment.strip_prefix("Start of tier ") {
            let tier = TierName::from(tier);
            self.program.tiers.push(tier.clone());
            (self.tier, self.policy, self.at) = (Some(tier), None, At::Else);
        } else if let Some(rest) = comment.strip_prefix("End of tier ") {
            self.end_of_tier(rest);
        } else if let Some(rule) = comment.strip_prefix("Start of rule ") {
            self.at = self.rule(rule).map_or(At::Else, At::Rule);
        } else if let Some(id) = comment.strip_prefix("Rule MatchID: ") {
            if let (Ok(id), At::Rule(decision)) = (id.trim().parse(), &self.at) {
                let decision = decision.clone();
                self.learn(RuleId(id), decision);
            }
        } else if comment.starts_with("End of rule ") {
            self.at = At::Else;
        } else if let Some(name) = comment.strip_prefix("Start of policy ") {
            self.policy = Some(Spelling::stored(name.trim()));
        } else if let Some(policy) = comment.strip_prefix("Start of ") {
            self.policy = policy_of_kind(policy).or(self.policy.take());
        } else if comment.starts_with("End of ") {
            self.policy = None;
        }
    }

    /// `TIER` up to 3.29, `TIER: deny` or `TIER: pass` from 3.30 on.
    fn end_of_tier(&mut self, rest: &str) {
        let (tier, action) = rest.split_once(": ").unwrap_or((rest, ""));
        let action = match action {
            "deny" => Some(PolicyAction::Deny),
            "pass" => Some(PolicyAction::Pass),
            _ => None,
        };
        let decision = action.map(|action| Decision::EndOfTier { tier: tier.into(), action });
        self.at = decision.map_or(At::Else, At::EndOfTier);
        (self.tier, self.policy) = (None, None);
    }

    /// `[OWNER] action:"ACTION" …`; without the owner up to 3.31.
    fn rule(&self, rule: &str) -> Option<Decision> {
        let (owner, rest) = rule.split_once("action:\"")?;
        let action = match rest.split_once('"')?.0 {
            "allow" => PolicyAction::Allow,
            "deny" => PolicyAction::Deny,
            "next-tier" | "pass" => PolicyAction::Pass,
            _ => return None,
        };
        if let (Some(tier), Some(policy)) = (&self.tier, &self.policy) {
            return Some(Decision::Policy { tier: tier.clone(), policy: policy.in_tier(tier), action });
        }
        // Profiles are behind all tiers, and only their rules say whose they are.
        let profile = owner.trim();
        let named = self.tier.is_none() && !profile.is_empty() && !profile.contains(char::is_whitespace);
        named.then(|| Decision::Profile { profile: ProfileName::from(profile), action })
    }

    fn load(&mut self, id: RuleId) {
        match std::mem::replace(&mut self.at, At::Else) {
            At::EndOfTier(decision) => self.learn(id, decision),
            at => self.at = at,
        }
    }

    fn learn(&mut self, id: RuleId, decision: Decision) {
        if id != RuleId::NONE {
            self.program.meanings.insert(id, Meaning { direction: self.direction, decision });
        }
    }
}

/// `KIND [NAMESPACE/]NAME NUMBER`, from 3.32 on.
fn policy_of_kind(text: &str) -> Option<Spelling> {
    let mut words = text.split_whitespace();
    let kind = PolicyKind::parse(words.next()?)?;
    let name = words.next()?;
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Some(Spelling::of_kind(kind, namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(instruction: [u8; 8], comments: &[&str]) -> Step {
        Step { instruction, comments: comments.iter().map(|&comment| comment.into()).collect() }
    }

    fn load(id: u64) -> [[u8; 8]; 2] {
        let [a, b, c, d, e, f, g, h] = id.to_le_bytes();
        [[0x18, 2, 0, 0, a, b, c, d], [0, 0, 0, 0, e, f, g, h]]
    }

    fn read(steps: &[Step]) -> Vec<(u64, String)> {
        let program = PolicyProgram::read(Direction::Ingress, steps);
        let text = |decision: &Decision| match decision {
            Decision::Policy { tier, policy, action } => {
                format!("{tier} {} {}/{} {}", policy.kind, policy.namespace, policy.name, action.as_str())
            }
            Decision::Profile { profile, action } => format!("{profile} {}", action.as_str()),
            Decision::EndOfTier { tier, action } => format!("end of {tier} {}", action.as_str()),
        };
        program.meanings.iter().map(|(id, meaning)| (id.0, text(&meaning.decision))).collect()
    }

    #[test]
    fn rules_ends_of_tiers_and_profiles_of_a_new_felix() {
        let [low, high] = load(0x1122_3344_5566_7788);
        let steps = [
            step([0; 8], &["Start of tier t", "Start of NetworkPolicy n/p 0"]),
            step([0; 8], &["Start of rule n/p action:\"next-tier\" rule_id:\"x\"", "Rule MatchID: 5"]),
            step(load(5)[0], &[]),
            step([0; 8], &["End of rule n/p x", "End of NetworkPolicy n/p 0", "End of tier t: pass"]),
            step(low, &[]),
            step(high, &[]),
            step([0; 8], &["Start of rule kns.n action:\"deny\"", "Rule MatchID: 6"]),
            step([0; 8], &["End of rule kns.n y"]),
            step(load(0)[0], &[]),
        ];
        let want =
            [(5, "t NetworkPolicy n/p pass"), (6, "kns.n deny"), (0x1122_3344_5566_7788, "end of t pass")];
        assert_eq!(read(&steps), want.map(|(id, text)| (id, text.to_string())));
        assert_eq!(PolicyProgram::read(Direction::Egress, &steps).tiers, [TierName::from("t")]);
    }

    #[test]
    fn an_old_felix_names_policies_as_they_are_stored_and_profiles_not_at_all() {
        let steps = [
            step([0; 8], &["Start of tier default", "Start of policy n/knp.default.web"]),
            step([0; 8], &["Start of rule action:\"allow\" ", "Rule MatchID: 5", "End of rule z"]),
            step([0; 8], &["End of policy n/knp.default.web", "End of tier default"]),
            step(load(0)[0], &[]),
            step([0; 8], &["Start of rule action:\"allow\" ", "Rule MatchID: 6"]),
        ];
        assert_eq!(read(&steps), [(5, "default KubernetesNetworkPolicy n/web allow".to_string())]);
    }

    #[test]
    fn what_a_rule_says_of_itself_is_not_taken_for_its_action() {
        let rule = "Start of rule p action:\"deny\" original_src_selector:\"action:\\\"allow\\\"\"";
        let start = ["Start of tier t", "Start of GlobalNetworkPolicy p 3", rule, "Rule MatchID: 9"];
        assert_eq!(read(&[step([0; 8], &start)]), [(9, "t GlobalNetworkPolicy /p deny".to_string())]);
        // A number that is no number, a rule that only logs, a rule of nobody's.
        for odd in ["Rule MatchID: x", "Rule MatchID: 99999999999999999999", "Start of rule p action:\"log\""]
        {
            let odd = [start[0], start[1], odd, "Rule MatchID: 9"];
            assert_eq!(read(&[step([0; 8], &odd)]), []);
        }
    }
}
