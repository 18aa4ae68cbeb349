//! Reading the chains that endpoints share: policies, profiles and groups.
//!
//! Their counters are sums over all endpoints of the node; what they are good for is knowing which verdicts a policy
//! can give at all, and as constraints on what single endpoints may be charged with.

use super::comment::{Naming, naming};
use super::endpoint::{Marks, RuleIndex};
use crate::ChainName;
use crate::rule::{Action, Chain};
use serde::{Deserialize, Serialize};

/// What a policy (or profile) can do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PolicyAction {
    /// Accept it.
    Allow,
    /// Drop or reject it.
    Deny,
    /// Leave it to the next tier.
    Pass,
}

impl PolicyAction {
    /// All three, for loops.
    pub const ALL: [Self; 3] = [Self::Allow, Self::Deny, Self::Pass];

    /// As labels print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Pass => "pass",
        }
    }
}

/// The rules of a policy or profile chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyChain {
    /// What it says it is.
    pub naming: Option<Naming>,
    rules: [Vec<RuleIndex>; 3],
}

impl PolicyChain {
    /// Reads a policy, profile or failsafe chain, given the mark bits of its table.
    ///
    /// The rule that sets the bit is the one to count for allow and pass: the RETURN behind it can be missing (3.28 and
    /// later, at the end of the chain). For deny it is the DROP or REJECT: up to 3.29 there is no bit.
    pub fn read(chain: &Chain, marks: Marks) -> Self {
        let mut rules: [Vec<RuleIndex>; 3] = Default::default();
        for (index, rule) in chain.rules().iter().enumerate().filter(|(_, rule)| rule.counted) {
            match rule.action {
                Action::Drop | Action::Reject => rules[PolicyAction::Deny as usize].push(index),
                // Only failsafe chains accept at once.
                Action::Accept => rules[PolicyAction::Allow as usize].push(index),
                Action::SetMark { value, mask } if value == mask && value != 0 => {
                    if Some(value) == marks.accept {
                        rules[PolicyAction::Allow as usize].push(index);
                    } else if Some(value) == marks.pass {
                        rules[PolicyAction::Pass as usize].push(index);
                    }
                }
                _ => {}
            }
        }
        Self { naming: chain.rules().first().and_then(naming), rules }
    }

    /// The rules whose counters sum to what this chain decided so, over all endpoints.
    pub fn rules(&self, action: PolicyAction) -> &[RuleIndex] {
        &self.rules[action as usize]
    }

    /// Whether any of its rules can decide so.
    pub fn can(&self, action: PolicyAction) -> bool {
        !self.rules(action).is_empty()
    }
}

/// A member of a policy group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Counts packets that reached it, over all endpoints of the group.
    pub jump: RuleIndex,
    /// Its policy chain.
    pub chain: ChainName,
}

/// The members of a group chain in order of evaluation.
///
/// Before every sixth jump Felix puts a RETURN for what has a verdict, and that jump is then unconditional: jump
/// counters mean the same all along.
pub fn group_members(chain: &Chain) -> Vec<Member> {
    let jumps = chain.rules().iter().enumerate().filter(|(_, rule)| rule.counted);
    jumps
        .filter_map(|(jump, rule)| match &rule.action {
            Action::Jump(target) => Some(Member { jump, chain: target.clone() }),
            _ => None,
        })
        .collect()
}
