//! What the rules of one endpoint chain say, as equations: this counter less those counters is the sum of these
//! outcomes.
//!
//! The arithmetic (`J` enters a policy, `R` was accepted by it, `N` enters the next one or the end of the tier):
//!
//! ```text
//! R              = accepted                      by the policy, or the members of the group
//! J - R - N      = denied + passed               by it, for this endpoint
//! S - ΣR - E - W = denied                        by all policies of a tier (S enters it, E its drop, W goes on)
//! W              = passed (+ unmatched, where the tier has no drop)
//! ```
//!
//! Invariant: the equations hold for what was counted in one span of time, never for values of unknown history; who
//! uses them feeds them deltas.

use crate::ChainName;
use crate::calico::chain::ChainKind;
use crate::calico::endpoint::{EndpointChain, Item, RuleIndex, Tier, Verdict};
use crate::calico::shared::{PolicyAction, PolicyChain};
use crate::id::TierName;

/// What can become of a packet in an endpoint chain, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// A rule of the chain itself decided.
    Verdict(Verdict),
    /// Accepted by a chain of failsafe ports.
    Failsafe { chain: ChainName },
    /// A policy decided. `via` is the chain that the endpoint calls: the policy's own, or its group's.
    Policy { tier: TierName, via: ChainName, chain: ChainName, action: PolicyAction },
    /// No policy of the tier decided, and the tier let it go on. Not a verdict.
    Unmatched { tier: TierName },
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    /// Like `Decided`, but what no policy decided is in it too.
    DecidedOrNot {
        tier: TierName,
        via: ChainName,
    },
    TierDenied(TierName),
    WentOn(TierName),
    Unmatched(TierName),
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

/// Sum of the `plus` counters, less the `minus` counters, is the sum of the `outcomes`.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) relation: Relation,
    pub(crate) plus: Vec<RuleIndex>,
    pub(crate) minus: Vec<RuleIndex>,
    pub(crate) outcomes: Vec<Outcome>,
    /// How what stays undetermined in it is accounted for.
    pub(crate) remainder: Remainder,
}

/// Each packet is in exactly one equation whose remainder counts; the other equations only help to determine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remainder {
    /// It counts.
    Counts,
    /// What the other equations of the tier leave of it counts.
    CountsBeyondOthers,
    /// It is in other equations too.
    Ignored,
}

/// What the program of an endpoint needs to know of the chains that it calls.
pub(crate) trait SharedChains {
    /// The policies of a group chain in order; `None` if it is not known.
    fn members(&self, group: &ChainName) -> Option<Vec<ChainName>>;
    /// A policy or profile chain; `None` if it is not known.
    fn policy(&self, chain: &ChainName) -> Option<&PolicyChain>;
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
        let (plus, minus) = (plus.to_vec(), minus.to_vec());
        self.specs.push(Spec { relation, plus, minus, outcomes, remainder: Remainder::Counts });
    }

    fn helps_only(&mut self) {
        if let Some(spec) = self.specs.last_mut() {
            spec.remainder = Remainder::Ignored;
        }
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
            && !chain.hidden_connection_limit
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
            self.write(
                Relation::NoPolicy(name.clone()),
                &[drop],
                &[],
                vec![Outcome::NoPolicy { tier: name.clone() }],
            );
        }
        let Some(first) = tier.items.first() else { return };
        for (k, item) in tier.items.iter().enumerate() {
            let next = tier.items.get(k + 1).map(|next| next.jump).or(tier.unmatched);
            self.item(name, item, next);
        }

        let passed: Vec<_> =
            tier.items.iter().flat_map(|item| self.by(name, item, PolicyAction::Pass)).collect();
        if let Some(next) = tier.next {
            let mut minus: Vec<_> = tier.items.iter().filter_map(|item| item.accepted).collect();
            minus.extend(tier.drop);
            minus.push(next);
            let denied = tier.items.iter().flat_map(|item| self.by(name, item, PolicyAction::Deny)).collect();
            self.write(Relation::TierDenied(name.clone()), &[first.jump], &minus, denied);
            if tier.unmatched.is_some() {
                self.helps_only();
            } else if let Some(spec) = self.specs.last_mut() {
                spec.remainder = Remainder::CountsBeyondOthers;
            }
            let unmatched = tier.drop.is_none().then(|| Outcome::Unmatched { tier: name.clone() });
            let went_on = passed.into_iter().chain(unmatched).collect();
            self.write(Relation::WentOn(name.clone()), &[next], &[], went_on);
            self.helps_only();
        }
        if let (Some(unmatched), None) = (tier.unmatched, tier.drop) {
            let outcome = Outcome::Unmatched { tier: name.clone() };
            self.write(Relation::Unmatched(name.clone()), &[unmatched], &[], vec![outcome]);
            self.helps_only();
        }
    }

    fn item(&mut self, tier: &TierName, item: &Item, next: Option<RuleIndex>) {
        let names = || (tier.clone(), item.target.clone());
        let mut minus = Vec::new();
        if let Some(accepted) = item.accepted {
            minus.push(accepted);
            let (tier_name, via) = names();
            let outcomes = self.by(tier, item, PolicyAction::Allow);
            self.write(Relation::Accepted { tier: tier_name, via }, &[accepted], &[], outcomes);
        }
        let mut outcomes = self.by(tier, item, PolicyAction::Deny);
        outcomes.extend(self.by(tier, item, PolicyAction::Pass));
        let (tier_name, via) = names();
        match next {
            Some(next) => {
                minus.push(next);
                self.write(Relation::Decided { tier: tier_name, via }, &[item.jump], &minus, outcomes);
            }
            None => {
                outcomes.push(Outcome::Unmatched { tier: tier_name.clone() });
                self.write(Relation::DecidedOrNot { tier: tier_name, via }, &[item.jump], &minus, outcomes);
                self.helps_only();
            }
        }
    }

    /// The outcomes "decided so by" each policy behind an item that can decide so at all.
    fn by(&self, tier: &TierName, item: &Item, action: PolicyAction) -> Vec<Outcome> {
        let chains = match ChainKind::of(&item.target) {
            ChainKind::Group(_) => {
                self.shared.members(&item.target).unwrap_or_else(|| vec![item.target.clone()])
            }
            _ => vec![item.target.clone()],
        };
        let able = chains.into_iter().filter(|chain| self.can(chain, action));
        let outcome = |chain| Outcome::Policy { tier: tier.clone(), via: item.target.clone(), chain, action };
        able.map(outcome).collect()
    }

    /// A chain that is not known might do anything.
    fn can(&self, chain: &ChainName, action: PolicyAction) -> bool {
        self.shared.policy(chain).is_none_or(|policy| policy.can(action))
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
            let denied = if self.can(profile, PolicyAction::Deny) {
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
