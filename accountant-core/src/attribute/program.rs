//! What the rules of one endpoint chain say, as equations: this counter less those counters is the sum of these
//! outcomes.
//!
//! The arithmetic (`J` enters a policy, `R` was accepted by it, `N` enters the next one or the end of the tier, `W` is
//! what goes on from the tier):
//!
//! ```text
//! R         = accepted          by the policy, or the members of the group
//! J - R - N = denied + passed   by it, for this endpoint
//! J - R - W = denied by it - passed by those before it    where it is the last one, and the tier shows no `N` for it
//! S - ΣR - E - W = denied       by all policies of a tier (`S` enters it, `E` is its drop)
//! W        >= passed            by all policies of a tier
//! ```
//!
//! Every decision is an outcome in exactly one equation of the first three kinds, but for what the last policy of a tier
//! without an end passes: only its own chain tells that. The other two only help.
//!
//! Invariant: the equations hold for what was counted in one span of time, never for values of unknown history; who
//! uses them feeds them deltas.

use super::equation::Role;
use crate::ChainName;
use crate::calico::chain::ChainKind;
use crate::calico::endpoint::{EndpointChain, Item, Place, RuleIndex, Tier, Verdict};
use crate::calico::shared::PolicyAction;
use crate::id::TierName;
use serde::{Deserialize, Serialize};

/// What can become of a packet in an endpoint chain, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// A rule of the chain itself decided.
    Verdict(Verdict),
    /// Accepted by a chain of failsafe ports.
    Failsafe { chain: ChainName },
    /// A policy decided. `via` is the chain that the endpoint calls: the policy's own, or its group's.
    Policy { tier: TierName, via: ChainName, chain: ChainName, action: PolicyAction, place: Place },
    /// No policy of the tier decided, and the tier dropped it.
    NoPolicy { tier: TierName },
    /// A profile decided.
    Profile { chain: ChainName, action: PolicyAction },
    /// No profile decided, so it was dropped.
    NoProfile,
    /// A rule decided that no version of Felix writes.
    Unknown,
}

/// Which equation of a chain it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Relation {
    Verdict(Verdict),
    Failsafe,
    Accepted {
        tier: TierName,
        via: ChainName,
    },
    Decided {
        tier: TierName,
        via: ChainName,
    },
    /// What the last policy of a tier denied, where what no policy decided goes on with what policies passed.
    LastDenied(TierName),
    /// Like `Decided`, where no counter shows what no policy decided.
    LastDecided {
        tier: TierName,
        via: ChainName,
    },
    TierDenied(TierName),
    WentOn(TierName),
    NoPolicy(TierName),
    ProfileAccepted(ChainName),
    ProfileDenied(ChainName),
    NoProfile,
    Unknown,
    /// Sum over all endpoints: what the rules of a shared chain decided so.
    Shared(PolicyAction),
    /// Sum over the endpoints of a group: what its member decided.
    Member(ChainName),
}

/// The `plus` counters, less the `minus` counters, are the outcomes, less the `minus_outcomes`.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) relation: Relation,
    pub(crate) role: Role,
    pub(crate) plus: Vec<RuleIndex>,
    pub(crate) minus: Vec<RuleIndex>,
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) minus_outcomes: Vec<Outcome>,
}

/// What the program of an endpoint needs to know of the chains that it calls.
pub(crate) trait SharedChains {
    /// The policies of a group chain in order; `None` if it is not known.
    fn members(&self, group: &ChainName) -> Option<Vec<ChainName>>;
    /// Whether a policy or profile can decide so.
    fn can(&self, chain: &ChainName, action: PolicyAction) -> bool;
}

/// Writes down the equations of an endpoint chain.
pub(crate) fn equations(chain: &EndpointChain, shared: &dyn SharedChains) -> Vec<Spec> {
    let mut writer = Writer { specs: Vec::new(), shared };
    writer.verdicts(chain);
    for tier in &chain.tiers {
        writer.tier(tier);
    }
    writer.profiles(chain);
    writer.specs
}

struct Writer<'a> {
    specs: Vec<Spec>,
    shared: &'a dyn SharedChains,
}

impl Writer<'_> {
    fn write(&mut self, relation: Relation, plus: &[RuleIndex], minus: &[RuleIndex], outcomes: Vec<Outcome>) {
        self.write_as(Role::Counts, relation, plus, minus, outcomes);
    }

    fn write_as(
        &mut self,
        role: Role,
        relation: Relation,
        plus: &[RuleIndex],
        minus: &[RuleIndex],
        outcomes: Vec<Outcome>,
    ) {
        let (plus, minus) = (plus.to_vec(), minus.to_vec());
        self.specs.push(Spec { relation, role, plus, minus, outcomes, minus_outcomes: Vec::new() });
    }

    fn verdicts(&mut self, chain: &EndpointChain) {
        for &(rule, verdict) in &chain.verdicts {
            self.write(Relation::Verdict(verdict), &[rule], &[], vec![Outcome::Verdict(verdict)]);
        }
        if !chain.unknown.is_empty() {
            self.write(Relation::Unknown, &chain.unknown, &[], vec![Outcome::Unknown]);
        }
        let Some(entered) = chain.entered else { return };
        if let Some(failsafe) = &chain.failsafe {
            let outcome = Outcome::Failsafe { chain: failsafe.target.clone() };
            self.write(Relation::Failsafe, &[failsafe.jump], &[entered], vec![outcome]);
        }
        if let Some(offered) = chain.rate_limit_offered
            && chain.connection_limit_offered.is_none()
        {
            let mut kept = vec![entered];
            kept.extend(chain.verdicts.iter().map(|v| v.0).filter(|&rule| rule > offered && rule < entered));
            let verdict = Verdict::PacketRate;
            self.write(Relation::Verdict(verdict), &[offered], &kept, vec![Outcome::Verdict(verdict)]);
        }
    }

    fn tier(&mut self, tier: &Tier) {
        let name = &tier.name;
        if let Some(drop) = tier.drop {
            let outcome = Outcome::NoPolicy { tier: name.clone() };
            self.write(Relation::NoPolicy(name.clone()), &[drop], &[], vec![outcome]);
        }
        let (mut denied, mut passed) = (Vec::new(), Vec::new());
        for (k, item) in tier.items.iter().enumerate() {
            // The drop rather than the NFLOG rule before it: a packet that a reading finds between the two is charged to
            // nobody's policy by the one, and must not be missing in the other.
            let end = tier.drop.or(tier.unmatched);
            let next = tier.items.get(k + 1).map(|next| next.jump).or(end);
            let by = |action| self.by(name, item, action, tier.place(k, action));
            let [accepted, item_denied, item_passed] = PolicyAction::ALL.map(by);
            let names = || (name.clone(), item.target.clone());
            let mut minus: Vec<_> = item.accepted.into_iter().collect();
            if item.accepted.is_some() {
                let (tier, via) = names();
                self.write(Relation::Accepted { tier, via }, &minus, &[], accepted);
            }
            let (tier_name, via) = names();
            if let Some(next) = next {
                minus.push(next);
                let decided = [&item_denied[..], &item_passed].concat();
                self.write(Relation::Decided { tier: tier_name, via }, &[item.jump], &minus, decided);
            } else if let Some(next) = tier.next {
                minus.push(next);
                let relation = Relation::LastDenied(tier_name);
                self.write(relation, &[item.jump], &minus, item_denied.clone());
                if let Some(spec) = self.specs.last_mut() {
                    spec.minus_outcomes.clone_from(&passed);
                }
            } else {
                // Nothing stands behind the policies that are before NAT or untracked.
                let relation = Relation::LastDecided { tier: tier_name, via };
                let decided = [&item_denied[..], &item_passed].concat();
                self.write_as(Role::AtMost, relation, &[item.jump], &minus, decided);
            }
            denied.extend(item_denied);
            passed.extend(item_passed);
        }
        if let (Some(first), Some(next)) = (tier.items.first(), tier.next) {
            let mut minus: Vec<_> = tier.items.iter().filter_map(|item| item.accepted).collect();
            minus.extend(tier.drop);
            minus.push(next);
            self.write_as(Role::Helps, Relation::TierDenied(name.clone()), &[first.jump], &minus, denied);
            self.write_as(Role::AtMost, Relation::WentOn(name.clone()), &[next], &[], passed);
        }
    }

    /// The outcomes "decided so by" each policy behind an item that can decide so at all.
    fn by(&self, tier: &TierName, item: &Item, action: PolicyAction, place: Place) -> Vec<Outcome> {
        let chains = match ChainKind::of(&item.target) {
            ChainKind::Group(_) => {
                self.shared.members(&item.target).unwrap_or_else(|| vec![item.target.clone()])
            }
            _ => vec![item.target.clone()],
        };
        let able = chains.into_iter().filter(|chain| self.shared.can(chain, action));
        let outcome =
            |chain| Outcome::Policy { tier: tier.clone(), via: item.target.clone(), chain, action, place };
        able.map(outcome).collect()
    }

    fn profiles(&mut self, chain: &EndpointChain) {
        for (k, item) in chain.profiles.iter().enumerate() {
            let profile = &item.target;
            let outcome = |action| Outcome::Profile { chain: profile.clone(), action };
            let Some(accepted) = item.accepted else { continue };
            let relation = Relation::ProfileAccepted(profile.clone());
            self.write(relation, &[accepted], &[], vec![outcome(PolicyAction::Allow)]);
            let Some(next) = chain.profiles.get(k + 1).map(|next| next.jump).or(chain.no_profile) else {
                continue;
            };
            let denied = if self.shared.can(profile, PolicyAction::Deny) {
                vec![outcome(PolicyAction::Deny)]
            } else {
                vec![]
            };
            self.write(Relation::ProfileDenied(profile.clone()), &[item.jump], &[accepted, next], denied);
        }
        if let (Some(rule), true) = (chain.no_profile, chain.final_drop) {
            self.write(Relation::NoProfile, &[rule], &[], vec![Outcome::NoProfile]);
        }
    }
}
