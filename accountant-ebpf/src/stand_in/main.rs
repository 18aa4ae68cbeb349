//! A stand-in for Calico's eBPF dataplane, for tests: programs of the same shape, which decide what the test tells them to.
//!
//! A preamble for each interface and direction, tail calls to the main program, the policy and the verdict, the state of the
//! packet and the interface's constants in a per-CPU entry, counters of interfaces and rules; in each of the layouts that
//! Calico has had. What is decided depends on the destination port: [`CASES`] says how. Written from the description of the
//! layouts in `accountant_core::calico::bpf::layout`; never part of the agent.

#![no_std]
#![no_main]

use accountant_abi::calico::{EGRESS, HookKey, INGRESS, Layout};
use accountant_abi::stand_in::{Case, FAILED, FOREIGN, GLOBALS, LATE_DROP, NO_POLICY, QOS, SKIP};
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::{classifier, map, raw_tracepoint, xdp};
use aya_ebpf::maps::{HashMap, PerCpuArray, PerCpuHashMap, ProgramArray};
use aya_ebpf::programs::{RawTracePointContext, TcContext, XdpContext};
use core::ptr::{read_volatile, write_volatile};

const BYPASS: u32 = 0x0300_0000;
const SEEN: u32 = 0x0100_0000;
const SKIP_POLICY: u64 = 0x20;
/// Length of an Ethernet header, and where ports and addresses are behind it.
const ETHERNET: usize = 14;
const UDP: u8 = 17;

/// The sizes here are the largest; the tests make the maps, and make them as they are to be.
#[map(name = "cali_state")]
static STATE: PerCpuArray<[u8; 512]> = PerCpuArray::with_max_entries(2, 0);
#[map(name = "cali_counters")]
static COUNTERS: PerCpuHashMap<HookKey, [u64; 27]> = PerCpuHashMap::with_max_entries(20000, 0);
#[map(name = "cali_rule_ctrs2")]
static RULES: PerCpuHashMap<u64, u64> = PerCpuHashMap::with_max_entries(10000, 0);
#[map(name = "cali_progs")]
static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(8, 0);
#[map(name = "cases")]
static CASES: HashMap<u32, Case> = HashMap::with_max_entries(256, 0);

#[unsafe(no_mangle)]
static LAYOUT: Layout = {
    // SAFETY: integers.
    unsafe { core::mem::zeroed() }
};
/// The interface's name, padded.
#[unsafe(no_mangle)]
static NAME: [u32; 4] = [0; 4];

macro_rules! layout {
    ($name:ident) => {
        field(&LAYOUT.$name)
    };
}

/// What the test has set.
#[inline(always)]
fn field(field: &u32) -> usize {
    // SAFETY: a reference. Volatile, because the compiler must not take the zeros for the values.
    unsafe { read_volatile(field) as usize }
}

/// What is attached.
#[classifier]
pub fn cali_tc_preamble_in(ctx: TcContext) -> i32 {
    preamble(&ctx, INGRESS)
}

/// The same for what is sent.
#[classifier]
pub fn cali_tc_preamble_eg(ctx: TcContext) -> i32 {
    preamble(&ctx, EGRESS)
}

#[inline(always)]
fn preamble(ctx: &TcContext, hook: u8) -> i32 {
    name_interface();
    // SAFETY: the context is the kernel's.
    let skb = unsafe { &mut *ctx.skb.skb };
    skb.cb[0] = u32::from(hook);
    if hook == EGRESS && skb.mark == BYPASS {
        if case(ctx).is_some_and(|case| case.flags & QOS != 0) {
            skb.mark = SEEN;
        } else {
            return TC_ACT_UNSPEC;
        }
    }
    // SAFETY: it does not return, or it fails and we go on.
    unsafe { PROGRAMS.tail_call(ctx, 0) };
    TC_ACT_SHOT
}

#[inline(always)]
fn name_interface() {
    if layout!(name) == 0 {
        return;
    }
    if let Some(globals) = STATE.get_ptr_mut(GLOBALS) {
        let mut word = 0;
        while word < 4 {
            // SAFETY: within the entry, which the verifier checks.
            unsafe {
                let name = read_volatile(&raw const NAME[word]);
                write_volatile(globals.cast::<u8>().add(layout!(name) + 4 * word).cast::<u32>(), name);
            }
            word += 1;
        }
    }
}

/// Parses the packet into a fresh state.
#[classifier]
pub fn cali_main(ctx: TcContext) -> i32 {
    let Some(state) = STATE.get_ptr_mut(0) else { return TC_ACT_SHOT };
    let mut word = 0;
    while word < 52 {
        // SAFETY: the smallest state has so many words.
        unsafe { write_volatile(state.cast::<u64>().add(word), 0) };
        word += 1;
    }
    // SAFETY: within the state, which the verifier checks.
    unsafe { write_volatile(state.cast::<u8>().add(layout!(flags)).cast::<u64>(), 0) };
    bump(&ctx, 0);
    let case = case(&ctx);
    if case.is_some_and(|case| case.flags & NO_POLICY != 0) {
        bump(&ctx, 11);
        return TC_ACT_SHOT;
    }
    if case.is_none_or(|case| case.flags & SKIP != 0) {
        put(state, layout!(verdict), 1_i32);
        put(state, layout!(flags), SKIP_POLICY);
        // SAFETY: as above.
        unsafe { PROGRAMS.tail_call(&ctx, 2) };
    } else {
        // SAFETY: as above.
        unsafe { PROGRAMS.tail_call(&ctx, 1) };
    }
    TC_ACT_SHOT
}

/// Decides.
#[classifier]
pub fn p4_policy(ctx: TcContext) -> i32 {
    let (Some(state), Some(case)) = (STATE.get_ptr_mut(0), case(&ctx)) else { return TC_ACT_SHOT };
    let mut hit = 0;
    while hit < 4 {
        put(state, layout!(rules) + 8 * hit, case.rules[hit]);
        hit += 1;
    }
    put(state, layout!(hits), case.hits);
    put(state, layout!(verdict), case.said);
    if case.said == FAILED {
        bump(&ctx, 10);
        return TC_ACT_SHOT;
    }
    // SAFETY: as above.
    unsafe { PROGRAMS.tail_call(&ctx, if case.said == 1 { 2 } else { 3 }) };
    TC_ACT_SHOT
}

/// Lets through what was accepted.
#[classifier]
pub fn cali_accepted(ctx: TcContext) -> i32 {
    let Some(case) = case(&ctx) else { return TC_ACT_UNSPEC };
    if case.flags & SKIP == 0 {
        bump(&ctx, 2);
        count_rules(case);
    }
    if case.flags & LATE_DROP != 0 {
        bump(&ctx, 12);
        return TC_ACT_SHOT;
    }
    // SAFETY: the context is the kernel's.
    let skb = unsafe { &mut *ctx.skb.skb };
    if skb.cb[0] == u32::from(INGRESS) {
        skb.mark = case.mark;
        if case.redirect != 0 {
            // SAFETY: the helper takes plain numbers.
            return unsafe { bpf_redirect(case.redirect, 0) as i32 };
        }
    }
    TC_ACT_UNSPEC
}

/// Drops what was denied.
#[classifier]
pub fn cali_drop(ctx: TcContext) -> i32 {
    bump(&ctx, 4);
    if let Some(case) = case(&ctx) {
        count_rules(case);
    }
    TC_ACT_SHOT
}

/// Untracked policy: notes of its own in the same entries.
#[xdp]
pub fn cali_xdp_preamb(_: XdpContext) -> u32 {
    name_interface();
    if let Some(state) = STATE.get_ptr_mut(0) {
        put(state, layout!(verdict), 1_i32);
        put(state, layout!(hits), 1_u32);
        put(state, layout!(rules), 0xbad_u64);
        put(state, layout!(flags), 0_u64);
    }
    xdp_action::XDP_PASS
}

/// Somebody else's program: drops what is for one port.
#[classifier]
pub fn foreign(ctx: TcContext) -> i32 {
    match port(&ctx) {
        Some(FOREIGN) => TC_ACT_SHOT,
        _ => TC_ACT_UNSPEC,
    }
}

/// Nothing, beside which others are measured.
#[classifier]
pub fn empty_tc(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// The same at a tracepoint.
#[raw_tracepoint]
pub fn empty_raw(_: RawTracePointContext) -> i32 {
    0
}

#[inline(always)]
fn put<T>(state: *mut [u8; 512], at: usize, value: T) {
    // SAFETY: within the state, which the verifier checks.
    unsafe { write_volatile(state.cast::<u8>().add(at).cast::<T>(), value) }
}

/// The case of the packet's destination port.
#[inline(always)]
fn case(ctx: &TcContext) -> Option<&'static Case> {
    let port = port(ctx)?;
    // SAFETY: the test does not change a case while packets of it are under way.
    let hook = unsafe { (*ctx.skb.skb).cb[0] };
    let key = u32::from(port) | hook << 16;
    // SAFETY: as above.
    unsafe { CASES.get(&key) }
}

/// The destination port of a packet of UDP.
#[inline(always)]
fn port(ctx: &TcContext) -> Option<u16> {
    let version = ctx.load::<u8>(ETHERNET).ok()? >> 4;
    let (protocol, header) = if version == 4 { (9, 20) } else { (6, 40) };
    if ctx.load::<u8>(ETHERNET + protocol).ok()? != UDP {
        return None;
    }
    Some(u16::from_be(ctx.load::<u16>(ETHERNET + header + 2).ok()?))
}

#[inline(always)]
fn bump(ctx: &TcContext, reason: usize) {
    if layout!(counters) == 0 {
        return;
    }
    // SAFETY: the context is the kernel's.
    let key = unsafe { HookKey { interface: (*ctx.skb.skb).ifindex, hook: (*ctx.skb.skb).cb[0] } };
    if let Some(counters) = COUNTERS.get_ptr_mut(&key) {
        // SAFETY: this CPU's value of the map; all sizes have these reasons.
        unsafe { *counters.cast::<u64>().add(reason) += 1 };
    }
}

#[inline(always)]
fn count_rules(case: &Case) {
    let mut hit = 0;
    while hit < 4 {
        if hit >= case.hits as usize {
            break;
        }
        let rule = case.rules[hit];
        match RULES.get_ptr_mut(&rule) {
            // SAFETY: this CPU's value of the map.
            Some(count) => unsafe { *count += 1 },
            None => {
                let _ = RULES.insert(&rule, &1, 0);
            }
        }
        hit += 1;
    }
}

accountant_ebpf::licensed_object!();
