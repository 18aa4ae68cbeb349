//! From the rules that a packet hit to what became of it.
//!
//! Invariant: a path that no packet can take is not resolved, whatever is most alike: every rule that was hit has to be
//! explained, and every rule that would have been hit.

use super::list::{Bits, HeadStep, ItemSteps, MemberSteps, Steps, TierSteps};
use super::{WatchList, Went};
use crate::ChainName;
use crate::calico::endpoint::{Place, Verdict};
use crate::calico::shared::PolicyAction;
use crate::id::TierName;

/// What one path says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// The packet did not come through this chain.
    Outside,
    /// No packet can take this path, or several rules could have decided.
    Unresolved,
    /// Who decided, in order: all but the last one passed. Empty where nobody did, and it went through.
    Decided(Vec<Decision>),
}

/// A decision about one packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the fields are named after what they are")]
pub enum Decision {
    /// A rule of the endpoint's chain itself decided.
    Verdict(Verdict),
    /// Accepted by the failsafe ports.
    Failsafe,
    /// A policy decided. `via` is the chain that the endpoint calls: the policy's own, or its group's.
    Policy { tier: TierName, via: ChainName, chain: ChainName, action: PolicyAction, place: Place },
    /// No policy of the tier decided, and the tier dropped it.
    NoPolicy { tier: TierName },
    /// A profile decided.
    Profile { chain: ChainName, action: PolicyAction },
    /// No profile decided, so it was dropped.
    NoProfile,
}

/// There is no packet that does this.
struct Impossible;

/// Whether a packet's way goes on.
enum Next {
    On,
    Ended,
}

impl WatchList {
    /// What became of a packet that hit these rules.
    pub fn decode(&self, moved: Bits, went: Went) -> Path {
        if moved == 0 {
            return Path::Outside;
        }
        let mut walk = Walk { steps: &self.steps, moved, explained: 0, went, decisions: Vec::new() };
        match walk.all() {
            Ok(()) if walk.explained == moved => Path::Decided(walk.decisions),
            _ => Path::Unresolved,
        }
    }
}

struct Walk<'a> {
    steps: &'a Steps,
    moved: Bits,
    explained: Bits,
    went: Went,
    decisions: Vec<Decision>,
}

impl Walk<'_> {
    fn all(&mut self) -> Result<(), Impossible> {
        let Steps { tiers, profiles, .. } = self.steps;
        if let Next::Ended = self.head()? {
            return Ok(());
        }
        for (k, tier) in tiers.iter().enumerate() {
            if let Next::Ended = self.tier(tier, self.behind(k))? {
                return Ok(());
            }
        }
        for (k, profile) in profiles.iter().enumerate() {
            let next = profiles.get(k + 1).map(|next| next.jump).or(self.steps.no_profile);
            if let Next::Ended = self.profile(profile, next)? {
                return Ok(());
            }
        }
        match self.steps.no_profile {
            Some(bits) if self.steps.final_drop => {
                self.must(bits)?;
                self.dropped(Decision::NoProfile)
            }
            Some(_) => Err(Impossible),
            None => Ok(()),
        }
    }

    fn hit(&mut self, bits: Bits) -> bool {
        let hit = bits != 0 && self.moved & bits == bits;
        self.explained |= if hit { bits } else { 0 };
        hit
    }

    fn any(&mut self, bits: Bits) -> bool {
        self.explained |= self.moved & bits;
        self.moved & bits != 0
    }

    fn must(&mut self, bits: Bits) -> Result<(), Impossible> {
        if self.hit(bits) { Ok(()) } else { Err(Impossible) }
    }

    /// A decision to drop. What was dropped went nowhere.
    fn dropped(&mut self, decision: Decision) -> Result<(), Impossible> {
        self.decisions.push(decision);
        if self.went == Went::Nowhere { Ok(()) } else { Err(Impossible) }
    }

    /// Rules before the policies.
    fn head(&mut self) -> Result<Next, Impossible> {
        let (mut offered, mut failsafe, mut kept_out) = (None, false, false);
        for step in &self.steps.head {
            match *step {
                HeadStep::Verdict(bits, verdict) if self.hit(bits) => {
                    let decision = Decision::Verdict(verdict);
                    match verdict {
                        Verdict::ForwardDefault => self.decisions.push(decision),
                        _ => self.dropped(decision)?,
                    }
                    return Ok(Next::Ended);
                }
                HeadStep::Offered(bits, verdict) if self.hit(bits) => offered = Some(verdict),
                HeadStep::Failsafe(bits) => {
                    self.must(bits)?;
                    failsafe = true;
                }
                HeadStep::Entered(bits) => {
                    if !self.hit(bits) {
                        kept_out = true;
                        break;
                    }
                    (offered, failsafe) = (None, false);
                }
                _ => {}
            }
        }
        match (failsafe, offered) {
            (true, _) => self.decisions.push(Decision::Failsafe),
            (false, Some(verdict)) => self.dropped(Decision::Verdict(verdict))?,
            (false, None) if kept_out => return Err(Impossible),
            (false, None) => return Ok(Next::On),
        }
        Ok(Next::Ended)
    }

    /// The rule that every packet hits that goes on from a tier.
    fn behind(&self, tier: usize) -> Option<Bits> {
        let Steps { tiers, profiles, no_profile, .. } = self.steps;
        let later = tiers[tier + 1..].iter().find_map(|tier| tier.items.first().map(|item| item.jump));
        later.or(profiles.first().map(|profile| profile.jump)).or(*no_profile)
    }

    fn tier(&mut self, tier: &TierSteps, behind: Option<Bits>) -> Result<Next, Impossible> {
        let decision = |item: &ItemSteps, member: &MemberSteps, action: PolicyAction| Decision::Policy {
            tier: tier.name.clone(),
            via: item.via.clone(),
            chain: member.chain.clone(),
            action,
            place: item.places[action as usize],
        };
        for (k, item) in tier.items.iter().enumerate() {
            self.must(item.jump)?;
            let (member, was_last) = self.last_member(item)?;
            if self.hit(item.accepted) {
                self.decisions.push(decision(item, member, PolicyAction::Allow));
                return Ok(Next::Ended);
            }
            let next = tier.items.get(k + 1).map(|next| next.jump);
            if next.is_some_and(|next| self.moved & next != 0) {
                if was_last {
                    continue;
                }
                return Err(Impossible);
            }
            if next.is_none() && was_last && self.is_unmatched(tier)? {
                return self.unmatched(tier);
            }
            let went_on = match behind {
                Some(behind) => self.moved & behind != 0,
                // Nothing shows it: who denied is seen in the policy's own rules.
                None => !self.any(member.denies.unwrap_or(0)),
            };
            if !went_on {
                self.dropped(decision(item, member, PolicyAction::Deny))?;
                return Ok(Next::Ended);
            }
            // Where no rule shows what nobody decided, the policy's own rules tell whether it passed.
            let is_hidden = next.is_none() && was_last && tier.unmatched.is_none();
            if !is_hidden || self.any(member.passes.unwrap_or(0)) {
                self.decisions.push(decision(item, member, PolicyAction::Pass));
            }
            return Ok(Next::On);
        }
        Ok(Next::On)
    }

    /// The member that was called last, and whether it is the last one there is.
    fn last_member<'i>(&mut self, item: &'i ItemSteps) -> Result<(&'i MemberSteps, bool), Impossible> {
        let mut called = 0_usize;
        for member in &item.members {
            if member.jump != 0 && !self.hit(member.jump) {
                break;
            }
            called += 1;
        }
        let last = item.members.get(called.checked_sub(1).ok_or(Impossible)?).ok_or(Impossible)?;
        Ok((last, called == item.members.len()))
    }

    fn is_unmatched(&mut self, tier: &TierSteps) -> Result<bool, Impossible> {
        match tier.unmatched {
            Some(bits) if self.moved & bits != 0 => self.must(bits).map(|()| true),
            _ => Ok(false),
        }
    }

    fn unmatched(&mut self, tier: &TierSteps) -> Result<Next, Impossible> {
        if tier.drops {
            self.dropped(Decision::NoPolicy { tier: tier.name.clone() })?;
            return Ok(Next::Ended);
        }
        Ok(Next::On)
    }

    fn profile(&mut self, item: &ItemSteps, next: Option<Bits>) -> Result<Next, Impossible> {
        self.must(item.jump)?;
        let decision = |action| Decision::Profile { chain: item.via.clone(), action };
        if self.hit(item.accepted) {
            self.decisions.push(decision(PolicyAction::Allow));
            return Ok(Next::Ended);
        }
        if next.is_some_and(|next| self.moved & next != 0) {
            return Ok(Next::On);
        }
        self.dropped(decision(PolicyAction::Deny))?;
        Ok(Next::Ended)
    }
}
