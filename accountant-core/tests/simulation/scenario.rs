//! What can happen, and how it is drawn. Everything is a number taken modulo what there is, so that a failing scenario
//! shrinks to few and small ones.

use crate::fate::{Aim, Draw};
use crate::kernel::{Backend, CPUS};
use crate::laws::Law;
use crate::programs::Change;
use crate::world::{Abilities, Edit, Item, Layout, POLICIES, TierEnd, World};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// A packet that comes while counters are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LateDraw {
    pub(crate) draw: Draw,
    pub(crate) cpu: usize,
    pub(crate) at: i64,
    pub(crate) stride: i64,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Send(Draw, usize),
    /// The agent reads, and again up to two times while it says that this would tell more.
    Read {
        late: Vec<LateDraw>,
        /// Whether packets come during the readings that follow, too.
        flood: bool,
    },
    Edit(Edit),
    /// Counters of a chain or of all are zeroed, without notice.
    Wipe(Option<usize>),
    /// The next one or two readings find all counters at zero; the third does not, so short is the moment.
    Dip(u32),
    /// nftables notifications are lost, and the source notices or does not.
    Lose {
        noticed: bool,
    },
    /// The agent starts anew.
    Restart,
    /// The agent goes, and comes back with what it kept when it read last.
    Away,
    /// The programs in the kernel come, go, or have no path for some packets.
    Programs(Change),
}

/// How often which kind of operation comes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mix {
    pub(crate) edits: u32,
    pub(crate) wipes: u32,
    pub(crate) dips: u32,
    pub(crate) losses: u32,
    pub(crate) restarts: u32,
    pub(crate) absences: u32,
    /// Whether packets pass while counters are read.
    pub(crate) late: bool,
    pub(crate) programs: u32,
    /// Whether there are programs in the kernel from the start.
    pub(crate) witnessed: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) backend: Backend,
    pub(crate) aim: Aim,
    pub(crate) laws: Vec<Law>,
    /// Whether the reader of iptables-legacy goes without the lock.
    pub(crate) may_dip: bool,
    pub(crate) witnessed: bool,
    pub(crate) world: World,
    pub(crate) ops: Vec<Op>,
}

pub(crate) fn scenario(
    backends: &[Backend],
    aim: Aim,
    mix: Mix,
    laws: Vec<Law>,
) -> impl Strategy<Value = Scenario> + use<> {
    let backend = prop::sample::select(backends.to_vec());
    (backend, world(), vec(op(mix), 1..24)).prop_map(move |(backend, world, ops)| {
        let may_dip = backend.is_legacy() && mix.dips > 0;
        Scenario { backend, aim, laws: laws.clone(), may_dip, witnessed: mix.witnessed, world, ops }
    })
}

fn world() -> impl Strategy<Value = World> {
    let abilities = || prop::sample::select((0..8).map(Abilities).collect::<Vec<_>>());
    let tier = (tier_end(), prop::array::uniform8(abilities()), vec(item(), 2..6));
    let profile = prop::sample::select(vec![Abilities(1), Abilities(3), Abilities(2), Abilities(0)]);
    let layouts = vec(vec(vec(any::<prop::sample::Index>(), 1..5), 3), 1..4);
    let endpoints = vec((0..8usize, option::of(0..8usize), 0..3usize), 1..5);
    (vec(tier, 1..4), prop::array::uniform2(profile), layouts, endpoints).prop_map(
        |(tiers, profiles, layouts, endpoints)| {
            let mut world = World { profiles, ..World::default() };
            for layout in layouts {
                let tiers = tiers.iter().zip(layout);
                let tiers = tiers.map(|((_, _, items), chosen)| lay_out(items, &chosen));
                world.layouts.push(tiers.collect::<Layout>());
            }
            world.tiers =
                tiers.into_iter().map(|(end, abilities, _)| crate::world::Tier { end, abilities }).collect();
            for (slot, (ingress, egress, profiles)) in endpoints.into_iter().enumerate() {
                world.apply(Edit::Add { slot, ingress, egress, profiles });
            }
            world
        },
    )
}

/// One policy, or two to seven.
fn item() -> impl Strategy<Value = Item> {
    let one = (0..POLICIES).prop_map(|policy| vec![policy]);
    let few = vec(0..POLICIES, 2..4);
    let many = vec(0..POLICIES, 4..8);
    prop_oneof![3 => one, 3 => few, 1 => many].prop_map(|mut item| {
        let mut seen = [false; POLICIES];
        item.retain(|&policy| !std::mem::replace(&mut seen[policy], true));
        item
    })
}

/// The chosen items, without those that have a policy twice.
fn lay_out(items: &[Item], chosen: &[prop::sample::Index]) -> Vec<Item> {
    let mut laid: Vec<Item> = Vec::new();
    for item in chosen.iter().map(|index| index.get(items)) {
        if !laid.iter().flatten().any(|policy| item.contains(policy)) {
            laid.push(item.clone());
        }
    }
    laid
}

fn tier_end() -> impl Strategy<Value = TierEnd> {
    prop::sample::select(TierEnd::ALL.to_vec())
}

/// Sizes do not shrink: that they differ is what keeps sums from being right by chance.
fn draw() -> impl Strategy<Value = Draw> {
    let established = prop::bool::weighted(0.05);
    (0..8usize, prop::array::uniform3(0..24usize), 0..6usize, established, (40..1500u64).no_shrink())
        .prop_map(|(chain, tiers, profile, established, size)| Draw {
            chain,
            tiers,
            profile,
            established,
            size,
        })
}

fn late() -> impl Strategy<Value = LateDraw> {
    (draw(), 0..CPUS, -20..150i64, 0..6i64).prop_map(|(draw, cpu, at, stride)| LateDraw {
        draw,
        cpu,
        at,
        stride,
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = || (0..4usize, 0..3usize, 0..5usize);
    let policy = 0..POLICIES;
    let abilities = (0..8u8).prop_map(Abilities);
    prop_oneof![
        3 => (0..3usize, policy.clone(), abilities)
            .prop_map(|(tier, policy, abilities)| Edit::Policy { tier, policy, abilities }),
        3 => (place(), policy.clone())
            .prop_map(|((layout, tier, at), policy)| Edit::Insert { layout, tier, at, policy }),
        2 => place().prop_map(|(layout, tier, at)| Edit::Remove { layout, tier, at }),
        1 => place().prop_map(|(layout, tier, at)| Edit::Swap { layout, tier, at }),
        2 => (place(), policy)
            .prop_map(|((layout, tier, at), policy)| Edit::Join { layout, tier, at, policy }),
        2 => (place(), 0..8usize)
            .prop_map(|((layout, tier, at), member)| Edit::Leave { layout, tier, at, member }),
        1 => (0..3usize, tier_end()).prop_map(|(tier, end)| Edit::TierEnd { tier, end }),
        2 => (0..4usize, 0..4usize, option::of(0..4usize), 0..3usize)
            .prop_map(|(slot, ingress, egress, profiles)| Edit::Add { slot, ingress, egress, profiles }),
        2 => (0..4usize).prop_map(|slot| Edit::Gone { slot }),
    ]
}

fn op(mix: Mix) -> impl Strategy<Value = Op> {
    let late = if mix.late { vec(late(), 0..6).boxed() } else { Just(vec![]).boxed() };
    let read = (late, any::<bool>()).prop_map(|(late, flood)| Op::Read { late, flood });
    let changes = prop::sample::select(vec![Change::Attach, Change::Detach, Change::Falter, Change::Recover]);
    let kinds: Vec<(u32, BoxedStrategy<Op>)> = vec![
        (8, (draw(), 1..4usize).prop_map(|(draw, times)| Op::Send(draw, times)).boxed()),
        (8, read.boxed()),
        (mix.edits, edit().prop_map(Op::Edit).boxed()),
        (mix.wipes, option::of(0..24usize).prop_map(Op::Wipe).boxed()),
        (mix.dips, (1..3u32).prop_map(Op::Dip).boxed()),
        (mix.losses, any::<bool>().prop_map(|noticed| Op::Lose { noticed }).boxed()),
        (mix.restarts, Just(Op::Restart).boxed()),
        (mix.absences, Just(Op::Away).boxed()),
        (mix.programs, changes.prop_map(Op::Programs).boxed()),
    ];
    proptest::strategy::Union::new_weighted(kinds.into_iter().filter(|(weight, _)| *weight > 0).collect())
}
