//! Packets: what is meant to become of one, decided from the world alone, never from rules.

use crate::felix::{endpoint_chain, policy_chain, profile_chain, profile_name, tier_name};
use crate::kernel::Packet;
use crate::truth::{account, policy_account, text};
use crate::world::{Item, Tier, TierEnd, World};
use accountant_core::Direction;
use accountant_core::calico::endpoint::Verdict;
use accountant_core::calico::shared::PolicyAction;
use accountant_core::ledger::{Key, ProfileRef, What};
use std::collections::HashMap;

/// A packet as it is drawn; each number is a choice among what there is when it is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    pub(crate) chain: usize,
    pub(crate) tiers: [usize; 3],
    pub(crate) profile: usize,
    pub(crate) established: bool,
    pub(crate) size: u64,
}

/// What packets are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    Anything,
    /// Only packets that nothing denies or passes.
    Accepted,
}

/// A packet and who matches it: at most one policy of a tier, and one profile.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) slot: usize,
    pub(crate) direction: Direction,
    pub(crate) tiers: Vec<Option<(usize, PolicyAction)>>,
    pub(crate) profile: Option<(usize, PolicyAction)>,
    pub(crate) established: bool,
    pub(crate) size: u64,
}

/// What becomes of a packet: the accounts that it belongs in, and the packet.
#[derive(Clone, Debug)]
pub(crate) struct Fate {
    pub(crate) packet: Packet,
    pub(crate) accounts: Vec<Key>,
    pub(crate) accepted: bool,
    /// How often it was denied or passed by the last item of a Pass tier without NFLOG rules: where that item can do
    /// both, no counter need tell the one from the other, nor from "no policy decided".
    pub(crate) silent: u64,
}

impl Draw {
    /// The packet, if there is one of the wanted kind.
    pub(crate) fn plan(self, world: &World, aim: Aim) -> Option<Plan> {
        let chains: Vec<_> = world.chains().collect();
        let &(slot, direction, layout) = chains.get(self.chain % chains.len().max(1))?;
        let mut tiers = Vec::new();
        let mut goes_on = !self.established;
        for (tier, items) in layout.iter().enumerate() {
            let choices = choices(&world.tiers[tier], items, aim);
            let choice = match goes_on && !items.is_empty() {
                true => *choices.get(self.tiers[tier] % choices.len().max(1))?,
                false => None,
            };
            goes_on &= match choice {
                Some((_, action)) => action == PolicyAction::Pass,
                None => items.is_empty() || !world.tiers[tier].end.drops(),
            };
            tiers.push(choice);
        }
        let profiles = &world.profiles[..world.endpoints[&slot].profiles];
        let mut choices: Vec<_> = (aim == Aim::Anything).then_some(None).into_iter().collect();
        for (profile, abilities) in profiles.iter().enumerate() {
            let fits = |action: &PolicyAction| match action {
                PolicyAction::Allow => true,
                PolicyAction::Deny => aim == Aim::Anything,
                PolicyAction::Pass => false,
            };
            choices.extend(abilities.actions().filter(fits).map(|action| Some((profile, action))));
        }
        let profile = match goes_on {
            true => *choices.get(self.profile % choices.len().max(1))?,
            false => None,
        };
        Some(Plan { slot, direction, tiers, profile, established: self.established, size: self.size })
    }
}

/// What can become of a packet in a tier.
fn choices(tier: &Tier, items: &[Item], aim: Aim) -> Vec<Option<(usize, PolicyAction)>> {
    let mut choices = Vec::new();
    if aim == Aim::Anything || !tier.end.drops() {
        choices.push(None);
    }
    for &policy in items.iter().flatten() {
        let able = tier.abilities[policy].actions();
        let able = able.filter(|&action| aim == Aim::Anything || action == PolicyAction::Allow);
        choices.extend(able.map(|action| Some((policy, action))));
    }
    choices
}

impl Plan {
    /// What becomes of the packet in this world.
    pub(crate) fn fate(&self, world: &World) -> Fate {
        let Self { slot, direction, established, size, .. } = *self;
        let entry = endpoint_chain(slot, direction);
        let packet = Packet { entry, verdicts: HashMap::new(), established, size };
        let mut fate = Fate { packet, accounts: vec![], accepted: true, silent: 0 };
        let mut what = Vec::new();
        fate.accepted = self.decide(world, &mut fate, &mut what);
        fate.accounts = what.into_iter().map(|what| account(slot, direction, what)).collect();
        fate
    }

    /// Notes each decision; says whether the last one is to accept.
    fn decide(&self, world: &World, fate: &mut Fate, what: &mut Vec<What>) -> bool {
        if self.established {
            what.push(What::Verdict(Verdict::Established));
            return true;
        }
        let endpoint = &world.endpoints[&self.slot];
        let layout = world.layout(endpoint, self.direction).expect("it has a chain");
        for (tier, items) in layout.iter().enumerate().filter(|(_, items)| !items.is_empty()) {
            let end = world.tiers[tier].end;
            let Some((policy, action)) = self.tiers.get(tier).copied().flatten() else {
                if end.drops() {
                    what.push(What::NoPolicy { tier: tier_name(tier).as_str().into() });
                    return false;
                }
                continue;
            };
            fate.packet.verdicts.insert(policy_chain(tier, policy, self.direction), action);
            what.push(policy_account(tier, policy, action));
            let last = items.last().is_some_and(|item| item.contains(&policy));
            fate.silent += u64::from(end == TierEnd::Pass && last && action != PolicyAction::Allow);
            if action != PolicyAction::Pass {
                return action == PolicyAction::Allow;
            }
        }
        let Some((profile, action)) = self.profile else {
            what.push(What::NoProfile);
            return false;
        };
        fate.packet.verdicts.insert(profile_chain(profile, self.direction), action);
        let profile = ProfileRef::Known(profile_name(profile).as_str().into());
        what.push(What::Profile { profile, action });
        action == PolicyAction::Allow
    }
}

impl Fate {
    pub(crate) fn text(&self) -> String {
        self.accounts.iter().map(text).collect::<Vec<_>>().join(", ")
    }
}
