//! Which rules are watched, and the steps of a packet's way that they mark.
//!
//! Only rules that *prove* something are relied on: that a policy cannot pass, say, is never taken as proof that a packet
//! was not passed. So a list stays true when a policy's rules change, until another one takes its place.

use super::{MAX_RULES, Unwatchable, WatchList, WatchedRule};
use crate::ChainName;
use crate::calico::chain::ChainKind;
use crate::calico::endpoint::{EndpointChain, Item, Marks, Place, RuleIndex, Tier, Verdict};
use crate::calico::shared::{PolicyAction, PolicyChain, group_members};
use crate::id::TierName;
use crate::rule::{Action, Chain};
use std::sync::Arc;

/// A set of watched rules: bit `k` is rule `k` of the list.
pub(super) type Bits = u64;

/// The ways through one endpoint chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Steps {
    /// Rules before the policies, in order.
    pub(super) head: Vec<HeadStep>,
    pub(super) tiers: Vec<TierSteps>,
    pub(super) profiles: Vec<ItemSteps>,
    /// What no profile decided.
    pub(super) no_profile: Option<Bits>,
    /// Whether that is dropped here.
    pub(super) final_drop: bool,
    /// Rules of others.
    pub(super) unknown: Bits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HeadStep {
    /// The rule's counter is a verdict by itself.
    Verdict(Bits, Verdict),
    /// It counts what is offered to a limit behind it, which drops some.
    Offered(Bits, Verdict),
    Failsafe(Bits),
    /// What comes here goes on to the policies, but for what rules behind it drop.
    Entered(Bits),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TierSteps {
    pub(super) name: TierName,
    pub(super) items: Vec<ItemSteps>,
    /// All rules that a packet hits which no policy decided.
    pub(super) unmatched: Option<Bits>,
    /// Whether such a packet is dropped.
    pub(super) drops: bool,
}

/// A policy, group or profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ItemSteps {
    pub(super) via: ChainName,
    /// By action.
    pub(super) places: [Place; 3],
    pub(super) jump: Bits,
    pub(super) accepted: Bits,
    pub(super) members: Vec<MemberSteps>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemberSteps {
    pub(super) chain: ChainName,
    /// The call within the group; nothing where the endpoint calls the policy itself.
    pub(super) jump: Bits,
    /// Its rules that pass, where nothing else tells.
    pub(super) passes: Option<Bits>,
    /// Its rules that deny, where nothing else tells.
    pub(super) denies: Option<Bits>,
}

impl Steps {
    /// The rules that only a packet hits which is accepted.
    pub(super) fn accepting(&self) -> Bits {
        let items = self.tiers.iter().flat_map(|tier| &tier.items).chain(&self.profiles);
        let accepted = items.fold(0, |bits, item| bits | item.accepted);
        self.head.iter().fold(accepted, |bits, step| match step {
            HeadStep::Verdict(bit, Verdict::ForwardDefault) => bits | bit,
            _ => bits,
        })
    }

    /// The rules that accept a packet which hits no other: the call of the failsafe ports.
    pub(super) fn accepting_alone(&self) -> Bits {
        self.head.iter().fold(0, |bits, step| match step {
            HeadStep::Failsafe(bit) => bits | bit,
            _ => bits,
        })
    }
}

/// Whether packets of answered connections are accepted before any rule that could drop them.
fn spares_established(chain: &Chain, read: &EndpointChain) -> bool {
    let accepts = read.verdicts.iter().find(|(_, verdict)| *verdict == Verdict::Established);
    accepts.is_some_and(|(accepts, _)| chain.rules()[..*accepts].iter().all(goes_on))
}

/// Whether a packet goes on to the next rule, whatever it is.
fn goes_on(rule: &crate::rule::Rule) -> bool {
    matches!(
        rule.action,
        Action::None | Action::SetMark { .. } | Action::NfLog(_) | Action::Log | Action::NoTrack
    )
}

/// The rules to watch of an endpoint's chain, given the chains that it calls.
pub fn list(
    chain: &Chain,
    called: &dyn Fn(&ChainName) -> Option<Arc<Chain>>,
) -> Result<WatchList, Unwatchable> {
    let read = EndpointChain::read(chain);
    all_counted(chain)?;
    let mut writer = Writer { chain, marks: read.marks, called, rules: Vec::new(), depends_on: Vec::new() };
    let steps = writer.steps(&read)?;
    let Writer { rules, depends_on, .. } = writer;
    match rules.len() {
        0 => Err(Unwatchable::Nothing),
        1..=MAX_RULES => {
            Ok(WatchList { rules, depends_on, steps, spares_established: spares_established(chain, &read) })
        }
        many => Err(Unwatchable::TooMany(many)),
    }
}

/// A rule that ends a packet's way and has no counter hides what becomes of it.
fn all_counted(chain: &Chain) -> Result<(), Unwatchable> {
    let hides = |rule: &crate::rule::Rule| !rule.counted && !goes_on(rule);
    match chain.rules().iter().position(hides) {
        Some(rule) => Err(Unwatchable::Uncounted { chain: chain.name.clone(), rule }),
        None => Ok(()),
    }
}

struct Writer<'a> {
    chain: &'a Chain,
    marks: Marks,
    called: &'a dyn Fn(&ChainName) -> Option<Arc<Chain>>,
    rules: Vec<WatchedRule>,
    depends_on: Vec<Arc<Chain>>,
}

impl Writer<'_> {
    fn steps(&mut self, read: &EndpointChain) -> Result<Steps, Unwatchable> {
        let head = self.head(read);
        let behind = read.profiles.first().map(|profile| profile.jump).or(read.no_profile);
        let mut tiers = Vec::new();
        for (k, tier) in read.tiers.iter().enumerate() {
            let goes_on = behind.is_some() || read.tiers[k + 1..].iter().any(|tier| !tier.items.is_empty());
            tiers.push(self.tier(tier, goes_on)?);
        }
        let profiles = read.profiles.iter().map(|item| {
            let (jump, accepted) = self.call(item)?;
            let member = MemberSteps { chain: item.target.clone(), jump: 0, passes: None, denies: None };
            Ok(ItemSteps {
                via: item.target.clone(),
                places: [Place::Closed; 3],
                jump,
                accepted,
                members: vec![member],
            })
        });
        let profiles = profiles.collect::<Result<_, _>>()?;
        let no_profile = read.no_profile.map(|rule| self.own(rule));
        let unknown = read.unknown.iter().fold(0, |bits, &rule| bits | self.own(rule));
        Ok(Steps { head, tiers, profiles, no_profile, final_drop: read.final_drop, unknown })
    }

    fn head(&mut self, read: &EndpointChain) -> Vec<HeadStep> {
        let mut steps: Vec<(RuleIndex, HeadStep)> = Vec::new();
        // Packets of answered connections take no path.
        for &(rule, verdict) in read.verdicts.iter().filter(|(_, verdict)| *verdict != Verdict::Established) {
            steps.push((rule, HeadStep::Verdict(0, verdict)));
        }
        let offered = [
            (read.rate_limit_offered, Verdict::PacketRate),
            (read.connection_limit_offered, Verdict::Connections),
        ];
        for (rule, verdict) in offered {
            steps.extend(rule.map(|rule| (rule, HeadStep::Offered(0, verdict))));
        }
        steps.extend(read.failsafe.as_ref().map(|failsafe| (failsafe.jump, HeadStep::Failsafe(0))));
        steps.extend(read.entered.map(|rule| (rule, HeadStep::Entered(0))));
        steps.sort_by_key(|(rule, _)| *rule);
        let with_bit = |(rule, mut step): (RuleIndex, HeadStep)| {
            match &mut step {
                HeadStep::Verdict(bits, _) | HeadStep::Offered(bits, _) => *bits = self.own(rule),
                HeadStep::Failsafe(bits) | HeadStep::Entered(bits) => *bits = self.own(rule),
            }
            step
        };
        steps.into_iter().map(with_bit).collect()
    }

    fn tier(&mut self, tier: &Tier, goes_on: bool) -> Result<TierSteps, Unwatchable> {
        let mut items = Vec::new();
        for (k, item) in tier.items.iter().enumerate() {
            let is_last = k + 1 == tier.items.len();
            let (jump, accepted) = self.call(item)?;
            let mut members = self.members(item)?;
            let count = members.len();
            for (l, member) in members.iter_mut().enumerate() {
                // Behind all others, where nothing shows what no policy decided.
                if is_last && l + 1 == count && tier.unmatched.is_none() {
                    member.passes = Some(self.deciding(&member.chain, PolicyAction::Pass)?);
                }
                // Where nothing shows what went on, what is dropped later looks as if it was denied.
                if !goes_on {
                    member.denies = Some(self.deciding(&member.chain, PolicyAction::Deny)?);
                }
            }
            let places = PolicyAction::ALL.map(|action| tier.place(k, action));
            items.push(ItemSteps { via: item.target.clone(), places, jump, accepted, members });
        }
        let unmatched = [tier.unmatched, tier.drop].into_iter().flatten();
        let unmatched = unmatched.map(|rule| self.own(rule)).reduce(|bits, bit| bits | bit);
        Ok(TierSteps { name: tier.name.clone(), items, unmatched, drops: tier.drop.is_some() })
    }

    /// The policies behind an item, in order.
    fn members(&mut self, item: &Item) -> Result<Vec<MemberSteps>, Unwatchable> {
        let member = |chain, jump| MemberSteps { chain, jump, passes: None, denies: None };
        let ChainKind::Group(_) = ChainKind::of(&item.target) else {
            return Ok(vec![member(item.target.clone(), 0)]);
        };
        let group = self.depend_on(&item.target)?;
        all_counted(&group)?;
        let members = group_members(&group).into_iter();
        let members: Vec<_> = members.map(|m| member(m.chain, self.bit(&group.name, m.jump))).collect();
        if members.is_empty() { Err(Unwatchable::NotKnown(group.name.clone())) } else { Ok(members) }
    }

    /// The rules of a policy that decide so.
    fn deciding(&mut self, policy: &ChainName, action: PolicyAction) -> Result<Bits, Unwatchable> {
        let chain = self.depend_on(policy)?;
        let read = PolicyChain::read(&chain, self.marks);
        Ok(read.rules(action).iter().fold(0, |bits, &rule| bits | self.bit(policy, rule)))
    }

    fn depend_on(&mut self, name: &ChainName) -> Result<Arc<Chain>, Unwatchable> {
        if let Some(known) = self.depends_on.iter().find(|chain| chain.name == *name) {
            return Ok(known.clone());
        }
        let chain = (self.called)(name).ok_or_else(|| Unwatchable::NotKnown(name.clone()))?;
        self.depends_on.push(chain.clone());
        Ok(chain)
    }

    /// The rule that calls, and the one that shows what was accepted: without it nothing is proven.
    fn call(&mut self, item: &Item) -> Result<(Bits, Bits), Unwatchable> {
        let jump = self.own(item.jump);
        let Some(accepted) = item.accepted else {
            return Err(Unwatchable::Uncounted { chain: self.chain.name.clone(), rule: item.jump });
        };
        Ok((jump, self.own(accepted)))
    }

    fn own(&mut self, rule: RuleIndex) -> Bits {
        self.bit(&self.chain.name.clone(), rule)
    }

    /// The bit of a rule, which is watched from now on. More than there are bits are counted, and refused in the end.
    fn bit(&mut self, chain: &ChainName, rule: RuleIndex) -> Bits {
        let known = self.rules.iter().position(|watched| watched.rule == rule && watched.chain == *chain);
        let place = known.unwrap_or_else(|| {
            self.rules.push(WatchedRule { chain: chain.clone(), rule });
            self.rules.len() - 1
        });
        u32::try_from(place).ok().and_then(|place| 1u64.checked_shl(place)).unwrap_or(0)
    }
}
