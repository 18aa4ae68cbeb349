//! Which of the watched rules a packet hit.
//!
//! Invariant: a mask is given out only if the list is the same before and after, each table and chain is in use as the list
//! has it, each rule stands where the list says with the counter that the list says, and no counter moved by more than one.

use crate::kernel::{load, place};
use accountant_abi::verdict::{MAX_PROOFS, MAX_RULES, Side, WatchList};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;

/// `BPF_F_MMAPABLE`: the agent reads and writes the map's values as its own memory.
const MMAPABLE: u32 = 1 << 10;

/// The place of each slot's list; zero for none. The agent makes it as big as it needs it.
#[map]
static LISTS: Array<u32> = Array::with_max_entries(1, MMAPABLE);
/// The lists; the first place stays empty.
#[map]
static WATCH: Array<WatchList> = Array::with_max_entries(1, 0);

/// Notes this processor's counters of the rules of a slot's list.
#[inline(always)]
pub(crate) fn look(side: &mut Side, offset: u64) {
    side.list = 0;
    side.length = 0;
    let slot = side.slot;
    if slot == 0 {
        return;
    }
    let Some(&place) = LISTS.get(slot) else { return };
    let Some(list) = WATCH.get(place) else { return };
    if place == 0 || !is_current(list, slot) || !is_in_use(list) {
        return;
    }
    (side.list, side.generation) = (place, list.generation);
    let at = offset.wrapping_add(u64::from(list.packets_at));
    let mut rule = 0;
    while rule < MAX_RULES && rule < list.length as usize {
        side.before[rule & (MAX_RULES - 1)] =
            load(list.rule[rule & (MAX_RULES - 1)].counter.wrapping_add(at));
        rule += 1;
    }
    side.length = rule as u32;
}

/// Notes the rules that moved since, if that is known.
#[inline(always)]
pub(crate) fn look_again(side: &mut Side, offset: u64) {
    let moved = moved(side, offset);
    put(&mut side.known, u32::from(moved.is_some()));
    put(&mut side.moved, moved.unwrap_or(0));
}

/// Puts a number where the verifier forgets how it came about: what follows is looked at once, and not for each way to it.
#[inline(always)]
pub(crate) fn put<T>(place: &mut T, value: T) {
    // SAFETY: a reference.
    unsafe { core::ptr::write_volatile(place, value) };
}

/// Takes it from there.
#[inline(always)]
pub(crate) fn taken<T: Copy>(place: &T) -> T {
    // SAFETY: a reference.
    unsafe { core::ptr::read_volatile(place) }
}

#[inline(always)]
fn moved(side: &Side, offset: u64) -> Option<u64> {
    let list = WATCH.get(side.list)?;
    if side.list == 0
        || list.generation != side.generation
        || !is_current(list, side.slot)
        || !is_in_use(list)
    {
        return None;
    }
    let at = offset.wrapping_add(u64::from(list.packets_at));
    let mut mask = 0u64;
    let mut wrong = 0u64;
    let mut index = 0;
    while index < MAX_RULES && index < list.length as usize {
        let rule = &list.rule[index & (MAX_RULES - 1)];
        let now = load(rule.counter.wrapping_add(at));
        let more = now.wrapping_sub(side.before[index & (MAX_RULES - 1)]);
        wrong |= u64::from(more > 1);
        if rule.place != 0 {
            wrong |= load(rule.place) ^ rule.counter;
        }
        wrong |= load(rule.mark_at) ^ rule.mark;
        mask |= (more & 1) << (index & (MAX_RULES - 1));
        index += 1;
    }
    let is_same = list.generation == side.generation && index == side.length as usize;
    (wrong == 0 && is_same).then_some(mask)
}

/// Whether the chain accepted a packet that hit these rules of its list.
#[inline(always)]
pub(crate) fn is_accepted(side: &Side, moved: u64) -> bool {
    let Some(list) = WATCH.get(side.list) else { return false };
    moved & list.accepting != 0 || (moved != 0 && moved & !list.accepting_alone == 0)
}

/// Whether no chain that a packet of an answered connection came to can have dropped it.
#[inline(always)]
pub(crate) fn spares_established(sides: &[Side; 2]) -> bool {
    spares(sides[0].slot) && spares(sides[1].slot)
}

#[inline(always)]
fn spares(slot: u32) -> bool {
    if slot == 0 {
        return true;
    }
    let Some(&place) = LISTS.get(slot) else { return false };
    let Some(list) = WATCH.get(place) else { return false };
    place != 0 && list.spares_established != 0 && is_current(list, slot) && is_in_use(list)
}

/// Whether the list is one, and of this slot.
#[inline(always)]
fn is_current(list: &WatchList, slot: u32) -> bool {
    list.generation != 0 && list.slot == slot && place!(slots) > u64::from(slot)
}

/// Whether all tables and chains are in use as the list has them.
#[inline(always)]
fn is_in_use(list: &WatchList) -> bool {
    // With nf_tables, the generation bit chooses between two words.
    let second = if list.cursor == 0 { 0 } else { load(list.cursor) >> (list.cursor_shift & 63) & 1 };
    let mut wrong = 0;
    let mut index = 0;
    while index < MAX_PROOFS && index < list.proofs as usize {
        let proof = &list.proof[index & (MAX_PROOFS - 1)];
        wrong |= load(proof.at.wrapping_add(8 * second)) ^ proof.value;
        index += 1;
    }
    wrong == 0
}
