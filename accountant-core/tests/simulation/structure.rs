//! What the rules can tell at all: which policy accounts follow from counters, whatever the numbers are.

use crate::truth::{account, policy_account};
use crate::world::{Abilities, Item, TierEnd, World};
use accountant_core::Direction;
use accountant_core::calico::shared::PolicyAction;
use accountant_core::ledger::Key;
use std::collections::{BTreeSet, HashMap};

/// Which accounts the structure of the rules determines, in all versions that there were.
#[derive(Debug, Default)]
pub(crate) struct Structure {
    able: HashMap<(usize, usize), Abilities>,
    /// Policy accounts that the numbers need not determine.
    open: BTreeSet<Key>,
    /// Some item could deny as well as pass.
    pub(crate) mixed: bool,
    /// Some tier shows nowhere what no policy decided.
    pub(crate) silent: bool,
}

impl Structure {
    pub(crate) fn is_open(&self, key: &Key) -> bool {
        self.open.contains(key)
    }

    /// Looks at a version of the world.
    pub(crate) fn learn(&mut self, world: &World) {
        for (t, tier) in world.tiers.iter().enumerate() {
            for (p, &abilities) in tier.abilities.iter().enumerate() {
                let able = self.able.entry((t, p)).or_default();
                *able = able.or(abilities);
            }
        }
        for (slot, direction, layout) in world.chains() {
            for (t, items) in layout.iter().enumerate() {
                let silent = world.tiers[t].end == TierEnd::Pass;
                self.silent |= silent;
                let clear = items.iter().all(|item| self.deciders(t, item).len() <= 1);
                for (k, item) in items.iter().enumerate() {
                    let last = silent && k + 1 == items.len();
                    self.learn_item((slot, direction), t, item, last, clear);
                }
            }
        }
    }

    fn learn_item(
        &mut self,
        (slot, d): (usize, Direction),
        tier: usize,
        item: &Item,
        last: bool,
        clear: bool,
    ) {
        let deciders = self.deciders(tier, item);
        let denies = deciders.iter().filter(|(_, action)| *action == PolicyAction::Deny).count();
        self.mixed |= denies > 0 && denies < deciders.len();
        for &policy in item {
            for action in PolicyAction::ALL {
                let determined = match action {
                    PolicyAction::Allow => {
                        item.iter().filter(|&&p| self.able[&(tier, p)].can(PolicyAction::Allow)).count() <= 1
                    }
                    PolicyAction::Deny if last => clear && denies <= 1,
                    PolicyAction::Pass if last => false,
                    _ => deciders.len() <= 1,
                };
                if !determined {
                    self.open.insert(account(slot, d, policy_account(tier, policy, action)));
                }
            }
        }
    }

    /// Who of an item can deny or pass, one entry each.
    fn deciders(&self, tier: usize, item: &Item) -> Vec<(usize, PolicyAction)> {
        let of = |&policy: &usize| {
            let able = self.able[&(tier, policy)].actions();
            able.filter(|&action| action != PolicyAction::Allow).map(move |action| (policy, action))
        };
        item.iter().flat_map(of).collect()
    }
}
