//! Counting packets: by path where it is known, else by verdict.
//!
//! Invariant: each packet that is between an endpoint's interface and this host is counted once for each of its chains.
//! Additions are atomic, because an interrupt's packet can come into a process'.

use crate::kernel::{Packet, place};
use crate::{path, roles};
use accountant_abi::Traffic;
use accountant_abi::verdict::{DROPPED, Interface, Note, PROBES, PathKey, ROLES, Totals, WENT_ON};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use core::intrinsics::AtomicOrdering::Relaxed;
use core::intrinsics::atomic_xadd;

/// `BPF_F_MMAPABLE`, as in [`path`].
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`: memory is taken as paths turn up.
const NO_PREALLOC: u32 = 1;
/// `BPF_NOEXIST`
const NEW: u64 = 1;

/// Endpoints' interfaces, each at the place that the lowest bits of its index tell or one of the next. The agent makes the
/// maps as big as it needs them.
#[map]
static INTERFACES: Array<Interface> = Array::with_max_entries(1, MMAPABLE);
/// Totals of all slots, processor by processor.
#[map]
static TOTALS: Array<Totals> = Array::with_max_entries(1, MMAPABLE);
#[map]
static PATHS: HashMap<PathKey, Traffic> = HashMap::with_max_entries(1, NO_PREALLOC);

/// The slots of the chains that a packet goes through; zero for none.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) from: u32,
    pub(crate) to: u32,
}

impl Way {
    #[inline(always)]
    pub(crate) fn of(packet: &Packet) -> Self {
        let (from, to) = roles(packet.hook);
        Self { from: slot(packet.from, from, packet.version), to: slot(packet.to, to, packet.version) }
    }

    #[inline(always)]
    pub(crate) fn is_watched(&self) -> bool {
        self.from | self.to != 0
    }
}

#[inline(always)]
fn slot(interface: u32, role: u32, version: u32) -> u32 {
    if interface == 0 {
        return 0;
    }
    let mask = place!(interface_mask) as u32;
    let mut probe = 0;
    while probe < PROBES {
        let Some(found) = INTERFACES.get(interface.wrapping_add(probe) & mask) else { return 0 };
        if found.index == interface {
            return found.slots[role as usize & (ROLES - 1)][version as usize & 1];
        }
        if found.index == 0 {
            return 0;
        }
        probe += 1;
    }
    0
}

/// The chain that dropped a packet, and how.
pub(crate) struct Dropped {
    pub(crate) slot: u32,
    /// Zero if the path is not known.
    pub(crate) generation: u32,
    pub(crate) moved: u64,
}

/// Counts a packet that was noted. Returns where a new one ended, if it did.
#[inline(always)]
pub(crate) fn settle(cpu: u32, offset: u64, note: &Note, verdict: u32) -> Option<Dropped> {
    let way = Way { from: note.sides[0].slot, to: note.sides[1].slot };
    if note.established != 0 || note.turn != note.own_turn {
        by_verdict(cpu, &way, note.established != 0, verdict, note.length);
        return None;
    }
    let to = path::moved(&note.sides[1], offset);
    // What the other endpoint's chain saw, this one let go on.
    let from_verdict = if to.is_some_and(|mask| mask != 0) { WENT_ON } else { verdict };
    let from = path::moved(&note.sides[0], offset);
    by_path(cpu, way.from, note.sides[0].generation, from, from_verdict, note.length);
    by_path(cpu, way.to, note.sides[1].generation, to, verdict, note.length);
    // What came into the later chain ended there; else in the earlier one, if there is one.
    let (side, moved) =
        if from_verdict != verdict || way.from == 0 { (&note.sides[1], to) } else { (&note.sides[0], from) };
    let generation = if moved.is_some() { side.generation } else { 0 };
    let dropped = Dropped { slot: side.slot, generation, moved: moved.unwrap_or(0) };
    (verdict == DROPPED).then_some(dropped)
}

#[inline(always)]
fn by_path(cpu: u32, slot: u32, generation: u32, moved: Option<u64>, verdict: u32, length: u32) {
    if slot == 0 {
        return;
    }
    let Some(moved) = moved else { return unresolved(cpu, slot, verdict, length) };
    let key = PathKey { moved, slot, generation, cpu, verdict };
    if let Some(traffic) = PATHS.get_ptr_mut(&key) {
        add(traffic, length);
    } else if PATHS.insert(&key, &Traffic { packets: 1, bytes: u64::from(length) }, NEW).is_err() {
        unresolved(cpu, slot, verdict, length);
    }
}

/// Counts a packet whose path is of no interest, or not known.
#[inline(always)]
pub(crate) fn by_verdict(cpu: u32, way: &Way, established: bool, verdict: u32, length: u32) {
    if !established {
        unresolved(cpu, way.from, verdict, length);
        unresolved(cpu, way.to, verdict, length);
        return;
    }
    if let Some(totals) = totals(cpu, way.from) {
        // SAFETY: a value of the map.
        add(unsafe { &raw mut (*totals).established[(verdict & 1) as usize] }, length);
    }
    if let Some(totals) = totals(cpu, way.to) {
        // SAFETY: the same.
        unsafe {
            add(&raw mut (*totals).established[(verdict & 1) as usize], length);
            if way.from != 0 && verdict != DROPPED {
                add(&raw mut (*totals).sheltered, length);
            }
        }
    }
}

#[inline(always)]
fn unresolved(cpu: u32, slot: u32, verdict: u32, length: u32) {
    if let Some(totals) = totals(cpu, slot) {
        // SAFETY: a value of the map.
        add(unsafe { &raw mut (*totals).unresolved[(verdict & 1) as usize] }, length);
    }
}

/// Counts a packet that was noted and not seen again.
#[inline(always)]
pub(crate) fn vanished(cpu: u32, note: &Note) {
    for side in &note.sides {
        if let Some(totals) = totals(cpu, side.slot) {
            // SAFETY: a value of the map.
            add(unsafe { &raw mut (*totals).vanished }, note.length);
        }
    }
}

#[inline(always)]
fn totals(cpu: u32, slot: u32) -> Option<*mut Totals> {
    let slots = place!(slots) as u32;
    if slot == 0 || slot >= slots {
        return None;
    }
    TOTALS.get_ptr_mut(cpu.wrapping_mul(slots).wrapping_add(slot))
}

#[inline(always)]
pub(crate) fn add(traffic: *mut Traffic, length: u32) {
    // SAFETY: the pointer is to a value of a map, which has two words there.
    unsafe {
        increase(&raw mut (*traffic).packets, 1);
        increase(&raw mut (*traffic).bytes, u64::from(length));
    }
}

/// Adds to a word of a map's value.
#[inline(always)]
pub(crate) fn increase(word: *mut u64, by: u64) {
    // SAFETY: the pointer is to an aligned word of a map's value.
    unsafe { atomic_xadd::<u64, u64, { Relaxed }>(word, by) };
}
