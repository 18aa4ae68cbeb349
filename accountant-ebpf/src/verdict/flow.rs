//! Flows that were dropped in the packet filter: who wanted to talk to whom, and by which rules that was not to be. Those that
//! were accepted too, where the agent wants it ([`ACCEPTED`]); else the verifier leaves that out of the programs.
//!
//! The first packet of a flow that is not in the table is also told at once ([`EVENTS`]), while somebody listens.
//!
//! Invariant: bounded. What there is no room for is counted ([`LOST`]).

use crate::count::Dropped;
use crate::kernel::{field, load, place};
use crate::path;
use accountant_abi::Traffic;
use accountant_abi::verdict::{
    ACCEPTED_LOST, EVENTS_LOST, FLOWS_LOST, Flow, FlowEvent, FlowKey, LOSSES, Note, Side,
};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf};

/// `BPF_F_NO_PREALLOC`, `BPF_F_MMAPABLE`
const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;
/// `BPF_NOEXIST`
const NEW: u64 = 1;
/// `IPPROTO_TCP`, `IPPROTO_UDP`, `IPPROTO_SCTP`
const WITH_PORTS: [u8; 3] = [6, 17, 132];

/// The flows. The agent makes it as big as it needs it, and takes out what is old.
#[map]
static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(1, NO_PREALLOC);
/// Flows that were accepted: packets that policy saw, for each chain that let them go on.
#[map]
static ACCEPTED: HashMap<FlowKey, Flow> = HashMap::with_max_entries(1, NO_PREALLOC);
/// The first packets of flows, as they are dropped. The agent makes it as big as it needs it.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// Whether somebody listens; the agent says so.
#[map]
static LISTENING: Array<u64> = Array::with_max_entries(1, MMAPABLE);
/// What there was no room for, by what it was.
#[map]
static LOST: Array<u64> = Array::with_max_entries(LOSSES, MMAPABLE);

/// Notes a packet that was dropped.
#[inline(always)]
pub(crate) fn note(skb: *const u8, dropped: &Dropped, length: u32) {
    // SAFETY: the helper takes nothing and returns a number.
    let at = unsafe { bpf_ktime_get_ns() };
    let mut event = FlowEvent { key: key(skb), at, length: u64::from(length) };
    let key = &mut event.key;
    key.moved = dropped.moved;
    key.slot = dropped.slot;
    key.generation = dropped.generation;
    key.elsewhere = u8::from(dropped.elsewhere);
    if add(&FLOWS, key, at, length, FLOWS_LOST) {
        tell(&event);
    }
}

/// Notes a packet that policy saw and that went on, for each chain that it came through.
#[inline(always)]
pub(crate) fn accepted(skb: *const u8, note: &Note) {
    if place!(accepted_flows) == 0 || note.established != 0 || note.turn != note.own_turn {
        return;
    }
    let mut key = key(skb);
    // SAFETY: as above.
    let now = unsafe { bpf_ktime_get_ns() };
    for side in &note.sides {
        accepted_by(side, &mut key, now, note.length);
    }
}

#[inline(always)]
fn accepted_by(side: &Side, key: &mut FlowKey, now: u64, length: u32) {
    let (moved, known) = (path::taken(&side.moved), path::taken(&side.known) != 0);
    if side.slot == 0 || (known && moved == 0) {
        return;
    }
    key.moved = if known { moved } else { 0 };
    key.slot = side.slot;
    key.generation = if known { side.generation } else { 0 };
    add(&ACCEPTED, key, now, length, ACCEPTED_LOST);
}

/// Adds a packet to a flow. Says whether that is new.
#[inline(always)]
fn add(flows: &HashMap<FlowKey, Flow>, key: &FlowKey, now: u64, length: u32, losses: u32) -> bool {
    if let Some(flow) = flows.get_ptr_mut(key) {
        // SAFETY: a value of the map.
        unsafe {
            crate::count::add(&raw mut (*flow).traffic, length);
            (*flow).last = now;
        }
        return false;
    }
    let flow = Flow { traffic: Traffic { packets: 1, bytes: u64::from(length) }, first: now, last: now };
    if flows.insert(key, &flow, NEW).is_err() {
        lost(losses);
    }
    true
}

/// The flow of a packet, so far without a chain.
#[inline(always)]
fn key(skb: *const u8) -> FlowKey {
    // SAFETY: the packet is the program's, and the fields are where the kernel says.
    let header: u64 = unsafe {
        let behind: u16 = field(skb, place!(skb_network_header));
        field::<u64>(skb, place!(skb_head)).wrapping_add(u64::from(behind))
    };
    let mut key = FlowKey {
        moved: 0,
        slot: 0,
        generation: 0,
        source: [0; 2],
        destination: [0; 2],
        ports: 0,
        protocol: 0,
        version: 0,
        elsewhere: 0,
        padding: 0,
    };
    let first = load(header);
    let ports_at =
        if first & 0xf0 == 0x60 { ipv6(&mut key, header, first) } else { ipv4(&mut key, header, first) };
    if ports_at != 0 && WITH_PORTS.contains(&key.protocol) {
        key.ports = load(ports_at) as u32;
    }
    key
}

/// Tells who listens of a packet. The kernel copies it: a loop over its bytes would be looked at by the verifier for each way
/// to it.
#[inline(always)]
fn tell(event: &FlowEvent) {
    if LISTENING.get(0).is_none_or(|&listening| listening == 0) {
        return;
    }
    // The kernel wakes who listens up if it has read all that was before.
    if EVENTS.output::<FlowEvent>(event, 0).is_err() {
        lost(EVENTS_LOST);
    }
}

#[inline(always)]
fn lost(what: u32) {
    if let Some(lost) = LOST.get_ptr_mut(what) {
        crate::count::increase(lost, 1);
    }
}

/// Takes the header's addresses; returns where ports would be, or zero.
#[inline(always)]
fn ipv4(key: &mut FlowKey, header: u64, first: u64) -> u64 {
    let second = load(header + 8);
    key.protocol = (second >> 8) as u8;
    key.source[0] = second >> 32;
    key.destination[0] = load(header + 16) & 0xffff_ffff;
    // Only the first fragment has ports: the low thirteen bits of bytes 6 and 7.
    let fragment = (first >> 48).swap_bytes() >> 48 & 0x1fff;
    if fragment == 0 { header + 4 * (first & 0xf) } else { 0 }
}

#[inline(always)]
fn ipv6(key: &mut FlowKey, header: u64, first: u64) -> u64 {
    key.version = 1;
    // The next header, which can be one that stands in front of the protocol's; then there are no ports.
    key.protocol = (first >> 48) as u8;
    key.source = [load(header + 8), load(header + 16)];
    key.destination = [load(header + 24), load(header + 32)];
    header + 40
}
