//! Counting packets: by path where it is known, else by verdict.
//!
//! Invariant: each packet that is between an endpoint's interface and this host is counted once for each of its chains.
//! Additions are atomic, because an interrupt's packet can come into a process'.

use crate::kernel::{Packet, place};
use crate::{path, roles};
use accountant_abi::Traffic;
use accountant_abi::verdict::{
    ACCEPTED, DENIED, DROPPED, ELSEWHERE, FATES, Interface, Note, Owner, PROBES, PathKey, ROLES, Side,
    Totals, WENT_ON,
};
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
/// Whose each slot is: for the agent alone.
#[map]
static OWNERS: Array<Owner> = Array::with_max_entries(1, MMAPABLE);
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
        let (from, to) = roles(packet.table, packet.hook);
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

/// What dropped a packet.
pub(crate) struct Dropped {
    /// The chain that did, or that of the endpoint.
    pub(crate) slot: u32,
    /// Zero if the path is not known.
    pub(crate) generation: u32,
    pub(crate) moved: u64,
    /// Whether it was no endpoint's chain.
    pub(crate) elsewhere: bool,
}

/// What a chain did with a packet that was dropped: nothing, because there is none, the packet did not come to it, or it was
/// accepted there.
const NOTHING: u32 = 0;
/// The packet ended there.
const END: u32 = 1;
/// Nobody knows.
const UNKNOWN: u32 = 2;

#[inline(always)]
fn did(side: &Side) -> u32 {
    let moved = path::taken(&side.moved);
    if side.slot == 0 {
        NOTHING
    } else if path::taken(&side.known) == 0 {
        UNKNOWN
    } else if moved == 0 || path::is_accepted(side, moved) {
        NOTHING
    } else {
        END
    }
}

/// Counts a packet that was noted. Returns what dropped a new one, if it was dropped.
#[inline(always)]
pub(crate) fn settle(cpu: u32, offset: u64, note: &mut Note, verdict: u32) -> Option<Dropped> {
    let way = Way { from: note.sides[0].slot, to: note.sides[1].slot };
    if note.established != 0 || note.turn != note.own_turn {
        let fate = &mut note.sides[0].did;
        path::put(fate, if verdict == DROPPED { DENIED as u32 } else { ACCEPTED as u32 });
        // A chain that spares them did not drop it.
        if verdict == DROPPED && note.established != 0 && path::spares_established(&note.sides) {
            path::put(&mut note.sides[0].did, ELSEWHERE as u32);
        }
        let fate = path::taken(&note.sides[0].did);
        count_without_path(cpu, &way, note.established != 0, fate, note.length);
        return None;
    }
    let [from, to] = &mut note.sides;
    path::look_again(to, offset);
    path::look_again(from, offset);
    // What the other endpoint's chain saw, this one let go on.
    let came_to = path::taken(&to.moved) != 0;
    by_path(cpu, from, if came_to { WENT_ON } else { verdict }, note.length);
    by_path(cpu, to, verdict, note.length);
    if verdict != DROPPED {
        count(cpu, way.from, ACCEPTED as u32, note.length);
        count(cpu, way.to, ACCEPTED as u32, note.length);
        return None;
    }
    let from_did = if path::taken(&to.moved) != 0 { NOTHING } else { did(from) };
    path::put(&mut from.did, from_did);
    let to_did = did(to);
    path::put(&mut to.did, to_did);
    let (from_did, to_did) = (path::taken(&from.did), path::taken(&to.did));
    let elsewhere = from_did | to_did == NOTHING;
    let fate = if elsewhere { ELSEWHERE as u32 } else { DENIED as u32 };
    count(cpu, way.to, fate, note.length);
    count(cpu, way.from, if to_did == END { ACCEPTED as u32 } else { fate }, note.length);
    let is_to = to_did == END || (from_did != END && way.to != 0);
    let side = if is_to { to } else { from };
    let is_known = side.known != 0 && (elsewhere || side.did == END);
    let generation = if is_known { side.generation } else { 0 };
    Some(Dropped { slot: side.slot, generation, moved: side.moved, elsewhere })
}

#[inline(always)]
fn by_path(cpu: u32, side: &Side, verdict: u32, length: u32) {
    if side.slot == 0 {
        return;
    }
    if path::taken(&side.known) == 0 {
        return unresolved(cpu, side.slot);
    }
    let (moved, slot, generation) = (path::taken(&side.moved), side.slot, side.generation);
    let key = PathKey { moved, slot, generation, cpu, verdict };
    if let Some(traffic) = PATHS.get_ptr_mut(&key) {
        add(traffic, length);
    } else if PATHS.insert(&key, &Traffic { packets: 1, bytes: u64::from(length) }, NEW).is_err() {
        unresolved(cpu, slot);
    }
}

/// Counts a packet that went on and whose path is of no interest, or not known.
#[inline(always)]
pub(crate) fn went_on(cpu: u32, way: &Way, established: bool, length: u32) {
    count_without_path(cpu, way, established, ACCEPTED as u32, length);
}

#[inline(always)]
fn count_without_path(cpu: u32, way: &Way, established: bool, fate: u32, length: u32) {
    if !established {
        for slot in [way.from, way.to] {
            count(cpu, slot, fate, length);
            unresolved(cpu, slot);
        }
        return;
    }
    if let Some(totals) = totals(cpu, way.from) {
        // SAFETY: a value of the map.
        add(unsafe { of(&raw mut (*totals).established, fate) }, length);
    }
    if let Some(totals) = totals(cpu, way.to) {
        // SAFETY: the same.
        unsafe {
            add(of(&raw mut (*totals).established, fate), length);
            if way.from != 0 && fate == ACCEPTED as u32 {
                add(&raw mut (*totals).sheltered, length);
            }
        }
    }
}

#[inline(always)]
fn count(cpu: u32, slot: u32, fate: u32, length: u32) {
    if let Some(totals) = totals(cpu, slot) {
        // SAFETY: a value of the map.
        add(unsafe { of(&raw mut (*totals).new, fate) }, length);
    }
}

/// The counter of what became of a packet.
///
/// # Safety
/// The counters have to be there.
#[inline(always)]
unsafe fn of(counters: *mut [Traffic; FATES], fate: u32) -> *mut Traffic {
    let fate = if fate < FATES as u32 { fate } else { DENIED as u32 };
    // SAFETY: as the caller says, and within them.
    unsafe { counters.cast::<Traffic>().add(fate as usize) }
}

#[inline(always)]
fn unresolved(cpu: u32, slot: u32) {
    if let Some(totals) = totals(cpu, slot) {
        // SAFETY: a value of the map.
        increase(unsafe { &raw mut (*totals).unresolved }, 1);
    }
}

/// Counts a packet that was noted and not seen again.
#[inline(always)]
pub(crate) fn vanished(cpu: u32, note: &Note) {
    for side in &note.sides {
        if let Some(totals) = totals(cpu, side.slot) {
            // SAFETY: a value of the map.
            increase(unsafe { &raw mut (*totals).vanished }, 1);
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
