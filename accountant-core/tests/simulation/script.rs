//! Small words for scenes that are written down one by one.

use crate::fate::Plan;
use crate::kernel::Backend;
use crate::laws::Verdict;
use crate::session::{LatePlan, Session};
use crate::truth::{Book, account, policy_account};
use crate::world::{Abilities, Edit, POLICIES, Tier, TierEnd, World};
use accountant_core::calico::shared::PolicyAction::{self, Allow, Deny, Pass};
use accountant_core::ledger::{Cause, Key};
use accountant_core::{Counter, Direction};

/// What a policy of a tier does with a packet.
pub(crate) type Choice = Option<(usize, PolicyAction)>;

pub(crate) fn allow(policy: usize) -> Choice {
    Some((policy, Allow))
}

pub(crate) fn deny(policy: usize) -> Choice {
    Some((policy, Deny))
}

pub(crate) fn pass(policy: usize) -> Choice {
    Some((policy, Pass))
}

/// A packet to an endpoint and who of which tier decides about it.
pub(crate) fn packet(slot: usize, tiers: &[Choice], size: u64) -> Plan {
    let (direction, tiers) = (Direction::Ingress, tiers.to_vec());
    Plan { slot, direction, tiers, profile: None, established: false, size }
}

/// The same, from the endpoint.
pub(crate) fn packet_from(slot: usize, tiers: &[Choice], size: u64) -> Plan {
    Plan { direction: Direction::Egress, ..packet(slot, tiers, size) }
}

/// A packet that comes when so many counters are read, and meets its next rule when `stride` more are.
pub(crate) fn late(plan: Plan, at: i64, stride: i64) -> LatePlan {
    LatePlan { plan, cpu: 0, at, stride }
}

/// A world with one endpoint a line: `p0:ad [p1:d p2:p] Drop | p0:a Pass`, tiers with policies and what they are able to,
/// groups in brackets. Endpoints with the same line share a layout, and have it in both directions.
pub(crate) fn world(lines: &[&str]) -> World {
    let mut world = World::default();
    let mut known: Vec<&str> = Vec::new();
    for (slot, line) in lines.iter().enumerate() {
        if !known.contains(line) {
            known.push(line);
            let layout = line.split('|').enumerate().map(|(t, text)| tier(&mut world.tiers, t, text));
            let layout = layout.collect();
            world.layouts.push(layout);
        }
        let ingress = known.iter().position(|known| known == line).expect("just added");
        world.apply(Edit::Add { slot, ingress, egress: Some(ingress), profiles: 0 });
    }
    world
}

fn tier(tiers: &mut Vec<Tier>, tier: usize, text: &str) -> Vec<Vec<usize>> {
    while tiers.len() <= tier {
        tiers.push(Tier { end: TierEnd::Drop, abilities: [Abilities::default(); POLICIES] });
    }
    let mut items: Vec<Vec<usize>> = Vec::new();
    let mut grouped = false;
    for word in text.split_whitespace() {
        let policy = word.trim_matches(['[', ']']);
        let Some(policy) = policy.strip_prefix('p') else {
            tiers[tier].end = *TierEnd::ALL.iter().find(|end| format!("{end:?}") == word).expect("an end");
            continue;
        };
        let (number, abilities) = policy.split_once(':').unwrap_or((policy, ""));
        let number: usize = number.parse().expect("a number");
        tiers[tier].abilities[number] = able(abilities).or(tiers[tier].abilities[number]);
        match items.last_mut().filter(|_| grouped) {
            Some(item) => item.push(number),
            None => items.push(vec![number]),
        }
        grouped = (grouped || word.starts_with('[')) && !word.ends_with(']');
    }
    items
}

pub(crate) fn able(text: &str) -> Abilities {
    let actions = [Allow, Deny, Pass].into_iter().filter(|action| text.contains(&action.as_str()[..1]));
    Abilities::of(&actions.collect::<Vec<_>>())
}

/// The rules of a policy change.
pub(crate) fn edit(tier: usize, policy: usize, abilities: &str) -> Edit {
    Edit::Policy { tier, policy, abilities: able(abilities) }
}

/// A policy comes into the only layout.
pub(crate) fn insert(tier: usize, at: usize, policy: usize) -> Edit {
    Edit::Insert { layout: 0, tier, at, policy }
}

/// A policy becomes a member of an item of the only layout.
pub(crate) fn join(tier: usize, at: usize, policy: usize) -> Edit {
    Edit::Join { layout: 0, tier, at, policy }
}

/// Plays a scene with endpoints that come when the agent is there. Panics with the whole story if a law is broken.
pub(crate) fn scene(backend: Backend, lines: &[&str], play: impl FnOnce(&mut Session) -> Verdict) -> Session {
    let mut world = world(lines);
    let endpoints = std::mem::take(&mut world.endpoints);
    play_in(Session::new(backend, world), |session| {
        session.read(&[], false)?;
        session.world.endpoints = endpoints;
        session.program();
        session.read(&[], false)?;
        play(session)
    })
}

/// Plays a scene with endpoints that the agent finds; nothing has passed yet.
pub(crate) fn found(backend: Backend, lines: &[&str], play: impl FnOnce(&mut Session) -> Verdict) -> Session {
    play_in(Session::new(backend, world(lines)), |session| {
        session.read(&[], false)?;
        play(session)
    })
}

/// Plays in a session. Panics with the whole story if a law is broken.
pub(crate) fn play_in(mut session: Session, play: impl FnOnce(&mut Session) -> Verdict) -> Session {
    session.tell(play).unwrap_or_else(|law| panic!("{law}"));
    session
}

/// Packets charged to a policy of tier 0.
pub(crate) fn charged(book: &Book, slot: usize, choice: Choice) -> u64 {
    let (policy, action) = choice.expect("somebody decides");
    let key = account(slot, Direction::Ingress, policy_account(0, policy, action));
    book.get(&key).map_or(0, |balance| balance.packets)
}

/// What could not be charged, by cause.
pub(crate) fn unattributed(book: &Book) -> Vec<(Cause, Counter)> {
    let of = |(key, balance): (&Key, &Counter)| match key {
        Key::Unattributed(_, cause) => Some((*cause, *balance)).filter(|_| !balance.is_zero()),
        Key::Account(_) | Key::Total(_) => None,
    };
    book.iter().filter_map(of).collect()
}
