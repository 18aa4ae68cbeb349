//! What became of each packet in an endpoint's chain, and by which rules: programs just before and just after the rules of a
//! table, and at the drop. Those of the filter table are always there, the others where a host endpoint has chains.
//!
//! Rule counters are per CPU, and a packet goes through its hook on one processor without another packet of that hook in
//! between. So the counters that moved between [`before`] and [`after`] (or [`dropped`]) are those of the rules that this
//! packet hit. Where that cannot be relied on (the list is another one, the rules are, somebody came in between) the packet
//! is counted by its verdict alone.
//!
//! Established packets are most of all: they cost a look-up of the interface and an addition, and no list.
//!
//! Invariants: the packet always goes on ([`ACCEPT`]); memory is only read; a path is counted only if each of its rules was
//! proven to be the one that the list says.

#![no_std]
#![no_main]
// The library has no additions to atomics for this target, which knows nothing else of them.
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod count;
mod flow;
mod kernel;
mod path;

use accountant_abi::verdict::{
    DROPPED, FROM_BEFORE_NAT, FROM_FORWARDED, FROM_TO_HOST, FROM_UNTRACKED, HOOKS, Processor, TO_AFTER_NAT,
    TO_FORWARDED, TO_FROM_HOST, TO_UNTRACKED, WENT_ON,
};
use aya_ebpf::helpers::generated::{bpf_map_lookup_percpu_elem, bpf_probe_read_kernel};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use count::Way;
use kernel::{Packet, load, place};

/// `NF_ACCEPT`: the next program or rule has its turn.
const ACCEPT: u32 = 1;
/// `NF_INET_LOCAL_IN`, `NF_INET_FORWARD`, `NF_INET_LOCAL_OUT`, `NF_INET_POST_ROUTING`. `NF_INET_PRE_ROUTING` is 0.
const LOCAL_IN: u32 = 1;
const FORWARD: u32 = 2;
const LOCAL_OUT: u32 = 3;
const POST_ROUTING: u32 = 4;

/// Whose rules a program is in front of or behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Filter,
    Raw,
    Mangle,
}

#[map]
static PROCESSORS: PerCpuArray<Processor> = PerCpuArray::with_max_entries(1, 0);

/// A program in front of a table's rules, which notes the packet and the counters of the rules that it may hit, and one behind
/// them: the packet went on.
macro_rules! around {
    ($table:ident, $before:ident in $before_section:literal, $after:ident in $after_section:literal) => {
        #[unsafe(no_mangle)]
        #[unsafe(link_section = $before_section)]
        pub fn $before(context: *const u64) -> u32 {
            let packet = Packet::at_hook(context, Table::$table);
            if let Some(processor) = this_processor() {
                note(processor, &packet);
            }
            ACCEPT
        }

        #[unsafe(no_mangle)]
        #[unsafe(link_section = $after_section)]
        pub fn $after(context: *const u64) -> u32 {
            let packet = Packet::at_hook(context, Table::$table);
            if let Some(processor) = this_processor() {
                // SAFETY: the second of the context's pointers is the packet.
                let skb = unsafe { *context.cast::<*const u8>().add(1) };
                went_on(processor, &packet, skb);
            }
            ACCEPT
        }
    };
}

around!(Filter, before in "iter/before", after in "iter/after");
around!(Raw, raw_before in "iter/raw_before", raw_after in "iter/raw_after");
around!(Mangle, mangle_before in "iter/mangle_before", mangle_after in "iter/mangle_after");

/// A packet is dropped: if it is one that was noted, it is known where.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/dropped")]
pub fn dropped(context: *const u64) -> u32 {
    // SAFETY: `kfree_skb` has the packet, the place and the reason as its first arguments.
    let (skb, reason) = unsafe { (*context.cast::<*const u8>(), *context.add(2) as u32) };
    if u64::from(reason) != place!(netfilter_drop) {
        return 0;
    }
    let Some(processor) = this_processor() else { return 0 };
    // The hook that has a note of it, or the first one. It is read like memory of others, behind which the verifier does not know
    // how it came about: it looks at what follows once, and not for each hook (that of Linux 7.2 gave up at that).
    let mut hook = 0u64;
    for candidate in [LOCAL_IN, LOCAL_OUT, FORWARD, POST_ROUTING] {
        if processor.notes[candidate as usize].skb == skb as u64 {
            path::put(&mut hook, u64::from(candidate));
        }
    }
    let hook = load(&raw const hook as u64);
    let note = &mut processor.notes[hook as usize & (HOOKS - 1)];
    if note.skb == skb as u64 {
        note.skb = 0;
        if let Some(end) = count::settle(processor.cpu, processor.offset, note, DROPPED) {
            flow::note(skb, &end, note.length);
        }
    }
    0
}

#[inline(always)]
fn note(processor: &mut Processor, packet: &Packet) {
    let note = &mut processor.notes[packet.hook as usize & (HOOKS - 1)];
    if note.skb != 0 {
        // Neither seen again nor dropped.
        note.skb = 0;
        count::vanished(processor.cpu, note);
    }
    let turn = note.turn.wrapping_add(1);
    // Volatile: in a process' context an interrupt's packet can take its turn anywhere below, and has to be seen.
    // SAFETY: fields of the map's value.
    unsafe { core::ptr::write_volatile(&raw mut note.turn, turn) };
    let way = Way::of(packet);
    note.length = packet.length;
    note.established = u32::from(packet.is_established());
    (note.sides[0].slot, note.sides[1].slot) = (way.from, way.to);
    if !packet.is_established() {
        path::look(&mut note.sides[0], processor.offset);
        path::look(&mut note.sides[1], processor.offset);
    }
    note.own_turn = turn;
    // SAFETY: as above.
    if unsafe { core::ptr::read_volatile(&raw const note.turn) } == turn && way.is_watched() {
        note.skb = packet.skb;
    }
}

#[inline(always)]
fn went_on(processor: &mut Processor, packet: &Packet, skb: *const u8) {
    let note = &mut processor.notes[packet.hook as usize & (HOOKS - 1)];
    if note.skb == packet.skb {
        note.skb = 0;
        count::settle(processor.cpu, processor.offset, note, WENT_ON);
        flow::accepted(skb, note);
        return;
    }
    // It was not noted: another one came in between, or this program was attached before the other.
    let way = Way::of(packet);
    count::went_on(processor.cpu, &way, packet.is_established(), packet.length);
}

/// Whose chains of an interface a hook calls: the role of where a packet comes from, and of where it goes.
#[inline(always)]
fn roles(table: Table, hook: u32) -> (u32, u32) {
    match (table, hook) {
        (Table::Raw, _) => (FROM_UNTRACKED, TO_UNTRACKED),
        (Table::Mangle, _) => (FROM_BEFORE_NAT, TO_AFTER_NAT),
        (Table::Filter, LOCAL_IN) => (FROM_TO_HOST, 0),
        (Table::Filter, FORWARD) => (FROM_FORWARDED, TO_FORWARDED),
        (Table::Filter, _) => (0, TO_FROM_HOST),
    }
}

#[inline(always)]
fn this_processor() -> Option<&'static mut Processor> {
    // SAFETY: this CPU's value of the map, which is a Processor and stays where it is. What interrupts a program on its
    // processor uses other notes, or is seen by its turn.
    unsafe { PROCESSORS.get_ptr_mut(0)?.as_mut() }
}

/// Tells a processor its number and what has to be added to per-CPU pointers. Run by the agent, once for each, before the
/// others are attached: `argument 0` is the processor.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub fn learn(context: *const u64) -> u32 {
    let key = 0u32;
    let map = &raw const PROCESSORS;
    // SAFETY: the map lives as long as the program. Pointers go through the memory of a map value, behind which the
    // verifier takes them for plain numbers, which is all that they are used as.
    unsafe {
        let cpu = *context as u32;
        let value = bpf_map_lookup_percpu_elem(map as *mut _, (&raw const key).cast(), cpu);
        let Some(processor) = value.cast::<Processor>().as_mut() else { return 1 };
        let slot = &raw mut processor.offset;
        core::ptr::write_volatile(slot, map as u64);
        let array = core::ptr::read_volatile(slot);
        core::ptr::write_volatile(slot, value as u64);
        let address = core::ptr::read_volatile(slot);
        let mut pointer = 0u64;
        let at = array + place!(array_pptrs);
        if bpf_probe_read_kernel((&raw mut pointer).cast(), 8, at as *const _) != 0 {
            return 1;
        }
        processor.cpu = cpu;
        core::ptr::write_volatile(slot, address.wrapping_sub(pointer));
    }
    0
}

accountant_ebpf::licensed_object!();
