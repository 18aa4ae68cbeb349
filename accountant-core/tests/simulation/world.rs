//! What Calico was told: tiers, policies and what they can do, which endpoint has which of them in which order.
//!
//! Layouts stand between the two, because endpoints with the same labels have the same policies and share groups.
//! Whatever is done to a world leaves a valid one: no policy is twice in a tier of a layout, no item is empty.

use accountant_core::Direction;
use accountant_core::calico::shared::PolicyAction;
use std::collections::BTreeMap;
use std::fmt;

/// How many policies a tier has to choose from.
pub(crate) const POLICIES: usize = 8;
/// How many profiles there are.
pub(crate) const PROFILES: usize = 2;

/// What a policy or profile can do, one bit an action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Abilities(pub(crate) u8);

impl Abilities {
    pub(crate) fn can(self, action: PolicyAction) -> bool {
        self.0 & (1 << action as u8) != 0
    }

    pub(crate) fn of(actions: &[PolicyAction]) -> Self {
        Self(actions.iter().map(|&action| 1 << action as u8).sum())
    }

    pub(crate) fn actions(self) -> impl Iterator<Item = PolicyAction> {
        PolicyAction::ALL.into_iter().filter(move |&action| self.can(action))
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What becomes of packets that no policy of a tier decided, and whether NFLOG rules show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TierEnd {
    Drop,
    DropLogged,
    Pass,
    PassLogged,
}

impl TierEnd {
    pub(crate) const ALL: [Self; 4] = [Self::Drop, Self::DropLogged, Self::Pass, Self::PassLogged];

    pub(crate) fn drops(self) -> bool {
        matches!(self, Self::Drop | Self::DropLogged)
    }

    pub(crate) fn logged(self) -> bool {
        matches!(self, Self::DropLogged | Self::PassLogged)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Tier {
    pub(crate) end: TierEnd,
    pub(crate) abilities: [Abilities; POLICIES],
}

/// Policies with the same selector that stand next to each other; one alone is called directly.
pub(crate) type Item = Vec<usize>;

/// The items of each tier.
pub(crate) type Layout = Vec<Vec<Item>>;

#[derive(Clone, Copy, Debug)]
pub(crate) struct EndpointSpec {
    pub(crate) ingress: usize,
    pub(crate) egress: Option<usize>,
    pub(crate) profiles: usize,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) tiers: Vec<Tier>,
    pub(crate) profiles: [Abilities; PROFILES],
    pub(crate) layouts: Vec<Layout>,
    /// By slot, which is their interface: `cali0`, `cali1`, ...
    pub(crate) endpoints: BTreeMap<usize, EndpointSpec>,
}

/// A change to a world. Numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Edit {
    /// The rules of a policy change.
    Policy {
        tier: usize,
        policy: usize,
        abilities: Abilities,
    },
    Insert {
        layout: usize,
        tier: usize,
        at: usize,
        policy: usize,
    },
    Remove {
        layout: usize,
        tier: usize,
        at: usize,
    },
    /// Two items change places.
    Swap {
        layout: usize,
        tier: usize,
        at: usize,
    },
    /// A policy becomes a member of the item, which is a group from then on.
    Join {
        layout: usize,
        tier: usize,
        at: usize,
        policy: usize,
    },
    Leave {
        layout: usize,
        tier: usize,
        at: usize,
        member: usize,
    },
    TierEnd {
        tier: usize,
        end: TierEnd,
    },
    Add {
        slot: usize,
        ingress: usize,
        egress: Option<usize>,
        profiles: usize,
    },
    Gone {
        slot: usize,
    },
}

impl World {
    pub(crate) fn layout(&self, endpoint: &EndpointSpec, direction: Direction) -> Option<&Layout> {
        let layout = match direction {
            Direction::Ingress => Some(endpoint.ingress),
            Direction::Egress => endpoint.egress,
        };
        layout.map(|layout| &self.layouts[layout])
    }

    /// All endpoint chains there have to be: slot, direction, layout.
    pub(crate) fn chains(&self) -> impl Iterator<Item = (usize, Direction, &Layout)> {
        self.endpoints.iter().flat_map(move |(&slot, endpoint)| {
            [Direction::Ingress, Direction::Egress]
                .into_iter()
                .filter_map(move |d| self.layout(endpoint, d).map(|layout| (slot, d, layout)))
        })
    }

    pub(crate) fn apply(&mut self, edit: Edit) {
        match edit {
            Edit::Policy { tier, policy, abilities } => {
                let tiers = self.tiers.len();
                self.tiers[tier % tiers].abilities[policy % POLICIES] = abilities;
            }
            Edit::TierEnd { tier, end } => {
                let tiers = self.tiers.len();
                self.tiers[tier % tiers].end = end;
            }
            Edit::Add { slot, ingress, egress, profiles } => {
                let layouts = self.layouts.len();
                let egress = egress.map(|egress| egress % layouts);
                let profiles = profiles % (PROFILES + 1);
                let endpoint = EndpointSpec { ingress: ingress % layouts, egress, profiles };
                self.endpoints.entry(slot).or_insert(endpoint);
            }
            Edit::Gone { slot } => {
                self.endpoints.remove(&slot);
            }
            Edit::Insert { layout, tier, at, policy } => {
                if let Some(policy) = self.unused(layout, tier, policy) {
                    let items = self.items(layout, tier);
                    items.insert(at % (items.len() + 1), vec![policy]);
                }
            }
            Edit::Remove { layout, tier, at } => {
                let items = self.items(layout, tier);
                if !items.is_empty() {
                    items.remove(at % items.len());
                }
            }
            Edit::Swap { layout, tier, at } => {
                let items = self.items(layout, tier);
                if items.len() > 1 {
                    let at = at % (items.len() - 1);
                    items.swap(at, at + 1);
                }
            }
            Edit::Join { layout, tier, at, policy } => {
                let unused = self.unused(layout, tier, policy);
                let items = self.items(layout, tier);
                if let (Some(policy), false) = (unused, items.is_empty()) {
                    let at = at % items.len();
                    items[at].push(policy);
                }
            }
            Edit::Leave { layout, tier, at, member } => {
                let items = self.items(layout, tier);
                if items.is_empty() {
                    return;
                }
                let at = at % items.len();
                let item = &mut items[at];
                if item.len() > 1 {
                    item.remove(member % item.len());
                }
            }
        }
    }

    fn items(&mut self, layout: usize, tier: usize) -> &mut Vec<Item> {
        let (layouts, tiers) = (self.layouts.len(), self.tiers.len());
        &mut self.layouts[layout % layouts][tier % tiers]
    }

    /// This policy or the next one that is not in the tier of the layout.
    fn unused(&mut self, layout: usize, tier: usize, policy: usize) -> Option<usize> {
        let items = self.items(layout, tier);
        let wanted = (policy..policy + POLICIES).map(|policy| policy % POLICIES);
        wanted.into_iter().find(|policy| !items.iter().flatten().any(|used| used == policy))
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let able = |able: Abilities| able.actions().map(|a| &a.as_str()[..1]).collect::<String>();
        for (slot, direction, layout) in self.chains() {
            write!(f, "\n    cali{slot} {direction}:")?;
            for (t, items) in layout.iter().enumerate().filter(|(_, items)| !items.is_empty()) {
                write!(f, " t{t}")?;
                for item in items {
                    let policy = |&p: &usize| format!("p{p}:{}", able(self.tiers[t].abilities[p]));
                    write!(f, " [{}]", item.iter().map(policy).collect::<Vec<_>>().join(" "))?;
                }
                write!(f, " {:?};", self.tiers[t].end)?;
            }
            let profiles = &self.profiles[..self.endpoints[&slot].profiles];
            write!(f, " profiles {:?}", profiles.iter().map(|&p| able(p)).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}
