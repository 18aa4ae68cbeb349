//! The chains that Felix 3.32 would write for a world: order of rules, marks, comments and hashes.
//!
//! Rules are as `facts/calico-chains.md` 1.1, 2.5 and 2.7 have them. A rule's hash depends on the name of its chain and
//! on all rules up to it, so that a change at one place gives all rules behind it new hashes.

use crate::world::{Abilities, Layout, TierEnd, World};
use accountant_core::calico::shared::PolicyAction;
use accountant_core::rule::{Action, Chain, CtStates, MarkMatch, Matches, Rule};
use accountant_core::{ChainName, Direction};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

pub(crate) const ACCEPT: u32 = 0x10000;
pub(crate) const PASS: u32 = 0x20000;
pub(crate) const DROP: u32 = 0x40000;

/// By direction: ingress, egress.
pub(crate) fn by<T>(direction: Direction, ingress: T, egress: T) -> T {
    match direction {
        Direction::Ingress => ingress,
        Direction::Egress => egress,
    }
}

pub(crate) fn interface(slot: usize) -> String {
    format!("cali{slot}")
}

pub(crate) fn endpoint_chain(slot: usize, direction: Direction) -> ChainName {
    format!("cali-{}-{}", by(direction, "tw", "fw"), interface(slot)).into()
}

pub(crate) fn tier_name(tier: usize) -> String {
    format!("t{tier}")
}

pub(crate) fn policy_name(tier: usize, policy: usize) -> String {
    format!("t{tier}.p{policy}")
}

pub(crate) fn policy_chain(tier: usize, policy: usize, direction: Direction) -> ChainName {
    format!("cali-{}-gnp/{}", by(direction, "pi", "po"), policy_name(tier, policy)).into()
}

pub(crate) fn profile_name(profile: usize) -> String {
    format!("kns.n{profile}")
}

pub(crate) fn profile_chain(profile: usize, direction: Direction) -> ChainName {
    format!("cali-{}-{}", by(direction, "pri", "pro"), profile_name(profile)).into()
}

/// The chain that an item is called by.
pub(crate) fn item_chain(tier: usize, item: &[usize], direction: Direction) -> ChainName {
    match item {
        [policy] => policy_chain(tier, *policy, direction),
        members => {
            let digest = digest(&(tier, members, direction));
            format!("cali-{}-{digest:016x}", by(direction, "gi", "go")).into()
        }
    }
}

/// All chains that something refers to. `native` is Calico's own nftables table.
pub(crate) fn chains(world: &World, native: bool) -> BTreeMap<ChainName, Chain> {
    let mut chains = BTreeMap::new();
    let mut add = |name: ChainName, rules: Vec<Rule>| {
        chains.entry(name.clone()).or_insert_with(|| hashed(name, rules));
    };
    for (slot, direction, layout) in world.chains() {
        let profiles = world.endpoints[&slot].profiles;
        add(endpoint_chain(slot, direction), endpoint(world, layout, direction, profiles));
        for profile in 0..profiles {
            let named = format!("Profile {} {direction}", profile_name(profile));
            add(profile_chain(profile, direction), decider(world.profiles[profile], &named, native));
        }
        for (tier, items) in layout.iter().enumerate() {
            for item in items.iter().filter(|item| item.len() > 1) {
                add(item_chain(tier, item, direction), group(tier, item, direction));
            }
            for &policy in items.iter().flatten() {
                let named = format!("GlobalNetworkPolicy {} {direction}", policy_name(tier, policy));
                let abilities = world.tiers[tier].abilities[policy];
                add(policy_chain(tier, policy, direction), decider(abilities, &named, native));
            }
        }
    }
    chains
}

fn endpoint(world: &World, layout: &Layout, direction: Direction, profiles: usize) -> Vec<Rule> {
    let established = CtStates { established: true, related: true, ..CtStates::default() };
    let invalid = CtStates { invalid: true, ..CtStates::default() };
    let ct = |ct| Matches { ct: Some(ct), ..Matches::default() };
    let mut rules = vec![
        rule(ct(established), Action::Accept),
        rule(ct(invalid), Action::Drop),
        rule(Matches::default(), Action::SetMark { value: 0, mask: ACCEPT | PASS }),
    ];
    if direction == Direction::Egress {
        let ipip = "Drop IPinIP encapped packets originating in workloads";
        rules.push(commented(rule(matched(), Action::Drop), ipip));
    }
    for (tier, items) in layout.iter().enumerate().filter(|(_, items)| !items.is_empty()) {
        let start = rule(Matches::default(), Action::SetMark { value: 0, mask: PASS });
        rules.push(commented(start, &format!("Start of tier {}", tier_name(tier))));
        for item in items {
            let jump = Action::Jump(item_chain(tier, item, direction));
            rules.push(rule(mark(0, PASS, false), jump));
            rules.push(commented(returns(), "Return if policy accepted"));
        }
        rules.extend(end_of_tier(tier, world.tiers[tier].end, direction));
    }
    for profile in 0..profiles {
        rules.push(rule(Matches::default(), Action::Jump(profile_chain(profile, direction))));
        rules.push(commented(returns(), "Return if profile accepted"));
    }
    if world.tiers.first().is_some_and(|tier| tier.end.logged()) {
        let prefix = by(direction, "DRI", "DRE");
        rules.push(rule(Matches::default(), Action::NfLog(prefix.into())));
    }
    rules.push(commented(rule(Matches::default(), Action::Drop), "Drop if no profiles matched"));
    rules
}

fn end_of_tier(tier: usize, end: TierEnd, direction: Direction) -> Vec<Rule> {
    let name = tier_name(tier);
    let mut rules = Vec::new();
    if end.logged() {
        let verdict = if end.drops() { 'D' } else { 'P' };
        let prefix = format!("{verdict}P{}|{name}", by(direction, 'I', 'E'));
        rules.push(rule(mark(0, PASS, false), Action::NfLog(prefix.as_str().into())));
    }
    if end.drops() {
        let text = format!("End of tier {name}. Drop if no policies passed packet");
        rules.push(commented(rule(mark(0, PASS, false), Action::Drop), &text));
    }
    rules
}

fn group(tier: usize, members: &[usize], direction: Direction) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (k, &member) in members.iter().enumerate() {
        let mut matches = mark(0, ACCEPT | PASS, false);
        if k % 5 == 0 {
            if k > 0 {
                let verdict = rule(mark(0, ACCEPT | PASS, true), Action::Return);
                rules.push(commented(verdict, "Return on verdict"));
            }
            matches = Matches::default();
        }
        rules.push(rule(matches, Action::Jump(policy_chain(tier, member, direction))));
    }
    rules
}

/// A policy or profile chain: one rule of the user's an action, in the form of 3.30 and later.
fn decider(abilities: Abilities, named: &str, native: bool) -> Vec<Rule> {
    let mut rules = Vec::new();
    for action in abilities.actions() {
        let (bit, end) = match action {
            PolicyAction::Allow => (ACCEPT, Action::Return),
            PolicyAction::Deny => (DROP, Action::Drop),
            PolicyAction::Pass => (PASS, Action::Return),
        };
        rules.push(rule(matched(), Action::SetMark { value: bit, mask: bit }));
        rules.push(rule(mark(bit, bit, false), end));
    }
    if rules.last().is_some_and(|rule| rule.action == Action::Return) {
        rules.pop();
    }
    if rules.is_empty() {
        let mut empty = rule(Matches::default(), Action::None);
        empty.counted = !native;
        rules.push(empty);
    }
    rules[0].comments.push(named.into());
    rules
}

fn rule(matches: Matches, action: Action) -> Rule {
    Rule { hash: None, comments: vec![], matches, action, content: 0, counted: true }
}

fn commented(mut rule: Rule, text: &str) -> Rule {
    rule.comments.push(text.into());
    rule
}

fn returns() -> Rule {
    rule(mark(ACCEPT, ACCEPT, false), Action::Return)
}

fn mark(value: u32, mask: u32, invert: bool) -> Matches {
    Matches { mark: Some(MarkMatch { value, mask, invert }), ..Matches::default() }
}

/// Something about the packet that no mark tells.
fn matched() -> Matches {
    Matches { others: true, ..Matches::default() }
}

fn hashed(name: ChainName, mut rules: Vec<Rule>) -> Chain {
    let mut hash = digest(&name);
    for rule in &mut rules {
        hash = digest(&(hash, format!("{rule:?}")));
        rule.hash = Some(format!("{hash:016x}").into());
    }
    Chain::new(name, rules)
}

fn digest(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}
