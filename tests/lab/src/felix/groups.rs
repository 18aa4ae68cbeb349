//! Policy groups: adjacent policies with one selector share a chain, `cali-gi-` or `cali-go-` (since 3.28).
//!
//! After `groupPolicies` of `felix/dataplane/linux/endpoint_mgr.go` and `PolicyGroup` of `felix/rules`.

use super::dialect::{Dialect, Version};
use super::draft::{Draft, Match, Rule, Table, Target};
use super::hash;
use crate::policy::{Policy, Tier, TierUse};
use accountant_core::Direction;
use accountant_core::calico::policy::Generation;

/// How many jumps of a group stand between two tests for a verdict.
const STRIDE: usize = 5;

/// What an endpoint chain jumps to.
pub(crate) enum Step<'a> {
    Policy(&'a Policy),
    /// At least two enforced policies, and staged ones among them.
    Group(Vec<&'a Policy>),
}

impl Step<'_> {
    pub(crate) fn is_staged(&self) -> bool {
        match self {
            Self::Policy(policy) => policy.is_staged(),
            Self::Group(_) => false,
        }
    }
}

/// The jumps that a tier's policies make. Staged policies are never jumped to.
pub(crate) fn steps<'a>(tier: &TierUse<'a>, dialect: Dialect) -> Vec<Step<'a>> {
    let grouped = dialect.since(Version::V3_28);
    let together = |a: &&Policy, b: &&Policy| grouped && a.canonical_selector() == b.canonical_selector();
    let mut steps = Vec::new();
    for run in tier.policies.chunk_by(together) {
        let enforced: Vec<&Policy> = run.iter().copied().filter(|policy| !policy.is_staged()).collect();
        if enforced.len() > 1 {
            steps.push(Step::Group(run.to_vec()));
        } else {
            steps.extend(enforced.into_iter().map(Step::Policy));
        }
    }
    steps
}

impl Draft<'_> {
    /// The chain of a group, which all endpoints with the same group share.
    pub(crate) fn group_chain(
        &mut self,
        table: Table,
        tier: &Tier,
        members: &[&Policy],
        direction: Direction,
    ) -> String {
        let name = self.group_name(tier, members, direction);
        if self.chains.contains_key(&(table, name.clone())) {
            return name;
        }
        let verdicts = self.marks.verdicts();
        let mut rules = Vec::new();
        for (position, member) in members.iter().filter(|member| !member.is_staged()).enumerate() {
            let chain = self.policy_chain(table, tier, member, direction);
            if position > 0 && position % STRIDE == 0 {
                let decided = [Match::MarkNotClear(verdicts)];
                rules.push(Rule::new(decided, Target::Return).comment("Return on verdict"));
            }
            let undecided = (position % STRIDE != 0).then_some(Match::MarkClear(verdicts));
            rules.push(Rule::new(Vec::from_iter(undecided), Target::Jump(chain)));
        }
        self.chain(table, name.clone(), rules);
        name
    }

    fn group_name(&self, tier: &Tier, members: &[&Policy], direction: Direction) -> String {
        let (prefix, word) = match direction {
            Direction::Ingress => ("cali-gi-", "inbound"),
            Direction::Egress => ("cali-go-", "outbound"),
        };
        let selector = members.first().map(|policy| policy.canonical_selector()).unwrap_or_default();
        let mut items = vec![selector, word.to_string(), members.len().to_string()];
        if self.dialect.generation() == Generation::C {
            items.extend(members.iter().map(|policy| {
                let id = &policy.id;
                format!("{{Name: {}, Namespace: {}, Kind: {}}}", id.name, id.namespace, id.kind)
            }));
        } else {
            items.insert(0, tier.name.to_string());
            items.extend(members.iter().map(|policy| stored_name(policy, tier)));
        }
        format!("{prefix}{}", hash::group(&items))
    }
}

/// The name that Felix sees up to 3.31; of a staged policy, with the word in it.
pub(crate) fn stored_name(policy: &Policy, tier: &Tier) -> String {
    let stored = policy.id.stored(&tier.name);
    if !policy.is_staged() {
        return stored;
    }
    match stored.split_once('/') {
        Some((namespace, name)) => format!("{namespace}/staged:{name}"),
        None => format!("staged:{stored}"),
    }
}
