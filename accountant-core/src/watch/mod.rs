//! Which rules of an endpoint's chain tell what became of a packet, and what the programs in the kernel say of them.
//!
//! The programs see packet by packet which of the watched rules a packet hit: its *path*, a mask over the list.
//!
//! Invariant: a list is in the order in which packets come by its rules, and all of its rules have counters.

use crate::calico::chain::ChainKind;
use crate::calico::endpoint::{EndpointChain, Item, Verdict};
use crate::calico::shared::group_members;
use crate::rule::Chain;
use crate::{ChainName, Counter};
use std::sync::Arc;
use thiserror::Error;

/// How many rules can be watched: the bits of a mask.
pub const MAX_RULES: usize = 64;

/// A watched rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatchedRule {
    /// The chain that it is in: the endpoint's own, or that of a group.
    pub chain: ChainName,
    /// Its place there.
    pub rule: usize,
}

/// The watched rules of one endpoint chain. Bit `k` of a path is rule `k`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchList {
    /// The rules.
    pub rules: Vec<WatchedRule>,
}

/// A chain with more rules that tell than can be watched.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{0} rules tell what becomes of a packet, more than the {MAX_RULES} that can be watched")]
pub struct TooMany(pub usize);

/// The rules to watch of an endpoint's chain, given the chains of the groups that it calls.
pub fn list(chain: &Chain, group: &dyn Fn(&ChainName) -> Option<Arc<Chain>>) -> Result<WatchList, TooMany> {
    let read = EndpointChain::read(chain);
    let mut rules = Vec::new();
    let mut own = |rule: usize| rules.push(WatchedRule { chain: chain.name.clone(), rule });
    let verdicts = read.verdicts.iter().filter(|(_, verdict)| *verdict != Verdict::Established);
    verdicts.for_each(|(rule, _)| own(*rule));
    read.failsafe.iter().for_each(|item| own(item.jump));
    read.rate_limit_offered.into_iter().chain(read.entered).for_each(&mut own);
    let items = |item: &Item, own: &mut dyn FnMut(usize)| {
        own(item.jump);
        item.accepted.into_iter().for_each(own);
    };
    for tier in &read.tiers {
        tier.items.iter().for_each(|item| items(item, &mut own));
        tier.unmatched.into_iter().chain(tier.drop).chain(tier.next).for_each(&mut own);
    }
    read.profiles.iter().for_each(|item| items(item, &mut own));
    read.no_profile.into_iter().chain(read.unknown).for_each(&mut own);
    rules.sort_by_key(|watched| watched.rule);
    rules.dedup();
    let rules: Vec<_> = rules.into_iter().flat_map(|watched| with_members(watched, chain, group)).collect();
    if rules.len() > MAX_RULES { Err(TooMany(rules.len())) } else { Ok(WatchList { rules }) }
}

/// A rule, and behind the call of a group those that call its members.
fn with_members(
    watched: WatchedRule,
    chain: &Chain,
    group: &dyn Fn(&ChainName) -> Option<Arc<Chain>>,
) -> Vec<WatchedRule> {
    let target = match chain.rules().get(watched.rule).map(|rule| &rule.action) {
        Some(crate::rule::Action::Jump(target)) => Some(target),
        _ => None,
    };
    let target = target.filter(|target| matches!(ChainKind::of(target), ChainKind::Group(_)));
    let group = target.and_then(group);
    let members = group.iter().flat_map(|group| {
        let jumps = group_members(group).into_iter().map(|member| member.jump);
        jumps.map(|rule| WatchedRule { chain: group.name.clone(), rule }).collect::<Vec<_>>()
    });
    [watched].into_iter().chain(members).collect()
}

/// Whether a packet went on beyond an endpoint's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Went {
    /// It was seen behind the filter rules, or in the chain of the other endpoint.
    On,
    /// It was dropped in this hook, and no other endpoint's chain saw it later.
    Nowhere,
}

impl Went {
    /// Both, in the order in which counters of both are kept.
    pub const BOTH: [Self; 2] = [Self::On, Self::Nowhere];
}

/// What was counted by the paths of one list since it was installed.
#[derive(Clone, Debug)]
pub struct ListCounts {
    /// The list's number; no other list has it. Later ones have greater numbers.
    pub generation: u32,
    /// The rules that the bits of paths mean.
    pub list: Arc<WatchList>,
    /// Packets by path and by whether they went on.
    pub paths: Vec<(u64, Went, Counter)>,
    /// Whether another list was installed since and this one is told for the last time.
    pub closed: bool,
}

/// What the programs saw of one endpoint chain since they were attached. Nothing of it ever falls.
#[derive(Clone, Debug)]
pub struct ChainVerdicts {
    /// The chain.
    pub chain: ChainName,
    /// Packets of, or related to, answered connections, by [`Went::BOTH`].
    pub established: [Counter; 2],
    /// Those that came to this endpoint from another one of this host, whose chain can have accepted them for good before
    /// this one saw them: part of the first of `established`.
    pub sheltered: Counter,
    /// All other packets whose path is not known, by [`Went::BOTH`].
    pub unresolved: [Counter; 2],
    /// Packets that were neither seen again nor dropped: queued, or taken by somebody.
    pub vanished: Counter,
    /// The paths of the present list, and of those before it that were not told as closed yet.
    pub lists: Vec<ListCounts>,
}
