//! Reads rule counters where the kernel keeps them. Never attached: the agent runs these programs by a system call, and
//! between two runs they do not exist for anybody.
//!
//! Counters are per CPU: a rule has a per-CPU pointer, and a processor's counter is at the pointer and that processor's
//! offset. First the pointers are looked up ([`resolve_legacy`], [`walk_nft`]), once for as long as the rules stay the
//! same; then a poll sums what is behind them ([`read_legacy`], [`read_nft`]).
//!
//! Invariant: only reads; what is gone meanwhile gives an [`Outcome`] other than done, never a fault.

#![no_std]
#![no_main]

use accountant_abi::in_place::{
    CAPACITY, ChainKeyName, CpuOffsets, MAX_CPUS, Outcome, Reads, Stamp, Sum, WalkedRule,
};
use accountant_ebpf::field;
use accountant_ebpf::memory::{load_two, read};
use accountant_ebpf::xt_table::{self, Which};
use aya_ebpf::helpers::generated::{bpf_loop, bpf_map_lookup_percpu_elem};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::RawTracePointContext;

/// A program that is run by a system call and whose outcome is what it returns; aya's macro returns zero whatever the
/// function returns.

macro_rules! program {
    ($(#[$doc:meta])* $name:ident, $with:path) => {
        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "raw_tp")]
        pub fn $name(ctx: *mut core::ffi::c_void) -> u32 {
            $with(&RawTracePointContext::new(ctx)) as u32
        }
    };
}

mod nft;
mod packed;

/// `BPF_F_MMAPABLE`: the agent reads and writes the map's values as its own memory.
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`: memory only for what is in the map.
const NO_PREALLOC: u32 = 1;

/// In: offsets of counters in a table. Out of [`resolve_legacy`], and in for reading: their per-CPU pointers.
#[map]
static ADDRESSES: Array<u64> = Array::with_max_entries(CAPACITY, MMAPABLE);
/// Out: the sums, in the same order.
#[map]
static SUMS: Array<Sum> = Array::with_max_entries(CAPACITY, MMAPABLE);
/// Out: what the table is; in: what it has to be.
#[map]
static STAMP: Array<Stamp> = Array::with_max_entries(1, MMAPABLE);
/// In: the chains that a walk is to look into, with numbers of the agent's. The agent makes it as big as it needs it.
#[map]
static WANTED: HashMap<ChainKeyName, u32> = HashMap::with_max_entries(1, NO_PREALLOC);
/// The name of the chain that a walk is at: it is too long for the stack.
#[map]
static NAME: Array<ChainKeyName> = Array::with_max_entries(1, 0);
/// Out of a walk: the rules of those chains.
#[map]
static WALKED: Array<WalkedRule> = Array::with_max_entries(1, MMAPABLE);
#[map]
static CPU_OFFSETS: Array<CpuOffsets> = Array::with_max_entries(1, 0);
/// Only its addresses are of interest.
#[map]
static PER_CPU: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

struct Reading {
    cpus: u32,
    failed: u32,
}

program!(
    /// Learns the per-CPU offset of a processor: `arg 0`. It is what its address of a per-CPU value is beyond the pointer.
    learn_cpu, learn_cpu_outcome
);

#[inline(always)]
fn learn_cpu_outcome(ctx: &RawTracePointContext) -> Outcome {
    let cpu = ctx.arg::<u64>(0) as u32;
    let Some(all) = CPU_OFFSETS.get_ptr_mut(0) else { return Outcome::Unreadable };
    if cpu >= MAX_CPUS {
        return Outcome::Full;
    }
    let key = 0u32;
    let pptrs = field!(array_pptrs);
    let map = &raw const PER_CPU;
    // SAFETY: the map lives as long as the program. The pointers go through the memory of a map value, behind which the
    // verifier takes them for plain numbers, which is all that they are used as.
    unsafe {
        let value = bpf_map_lookup_percpu_elem(map as *mut _, (&raw const key).cast(), cpu);
        if value.is_null() {
            return Outcome::Unreadable;
        }
        let slot = (&raw mut (*all).offsets).cast::<u64>().add(cpu as usize);
        core::ptr::write_volatile(slot, value as u64);
        let address = core::ptr::read_volatile(slot);
        core::ptr::write_volatile(slot, map as u64);
        let array = core::ptr::read_volatile(slot);
        let Some(pointer) = read::<u64>(array + pptrs) else {
            return Outcome::Unreadable;
        };
        core::ptr::write_volatile(slot, address.wrapping_sub(pointer));
    }
    Outcome::Done
}

program!(
    /// The table of `args 0..3` (name, family, hook): what is it now?
    find_legacy, find_legacy_outcome
);

#[inline(always)]
fn find_legacy_outcome(ctx: &RawTracePointContext) -> Outcome {
    let Some(found) = xt_table::stamp(&which(ctx)) else { return Outcome::NoTable };
    let Some(stamp) = STAMP.get_ptr_mut(0) else { return Outcome::Unreadable };
    // SAFETY: a value of the map, which only the caller of this program looks at.
    unsafe { *stamp = found };
    Outcome::Done
}

program!(
    /// Where does the table of `args 0..3` say what it is? The answer goes to `ADDRESSES`.
    locate_legacy, locate_legacy_outcome
);

#[inline(always)]
fn locate_legacy_outcome(ctx: &RawTracePointContext) -> Outcome {
    let Some(place) = xt_table::place(&which(ctx)) else { return Outcome::NoTable };
    let Some(address) = ADDRESSES.get_ptr_mut(0) else { return Outcome::Unreadable };
    // SAFETY: a value of the map, which only the caller of this program looks at.
    unsafe { *address = place };
    Outcome::Done
}

struct Resolving {
    entries: u64,
    size: u32,
    failed: u32,
}

program!(
    /// Turns `arg 3` offsets of counters in that table into their per-CPU pointers.
    resolve_legacy, resolve_legacy_outcome
);

#[inline(always)]
fn resolve_legacy_outcome(ctx: &RawTracePointContext) -> Outcome {
    let Some(wanted) = STAMP.get(0) else { return Outcome::Unreadable };
    let wanted = *wanted;
    let which = which(ctx);
    if xt_table::stamp(&which) != Some(wanted) {
        return Outcome::Changed;
    }
    let count = ctx.arg::<u64>(3) as u32;
    let entries = wanted.private + field!(info_entries);
    let mut state = Resolving { entries, size: wanted.size, failed: 0 };
    // SAFETY: the callback has the type that the kernel calls, and the state outlives the loop.
    unsafe { bpf_loop(count, resolve_one as *mut _, (&raw mut state).cast(), 0) };
    finish(state.failed, &which, &wanted)
}

unsafe extern "C" fn resolve_one(index: u32, state: *mut Resolving) -> i64 {
    let Some(address) = ADDRESSES.get_ptr_mut(index) else { return 1 };
    // SAFETY: the state is the caller's, the address a value of the map.
    unsafe {
        let offset = *address;
        let at = (*state).entries + offset;
        let fits = offset <= u64::from((*state).size).saturating_sub(16);
        // Kernels that know one processor only do not allocate per-CPU counters: the counter is in the rule. Reading
        // will add the offset of that processor.
        *address = if PER_CPU_RULES.load() == 0 {
            let Some(all) = CPU_OFFSETS.get(0) else { return 1 };
            at.wrapping_sub(all.offsets[0])
        } else {
            read::<u64>(at).unwrap_or(0)
        };
        if !fits || *address == 0 {
            (*state).failed += 1;
        }
    }
    0
}

/// Whether rules have per-CPU pointers: set by the agent.
#[unsafe(no_mangle)]
static PER_CPU_RULES: aya_ebpf::Global<u64> = aya_ebpf::Global::new(1);

program!(
    /// Sums `arg 3` counters over `arg 4` processors, if the table is what it was when their pointers were looked up. `arg 5`
    /// are [`Reads`].
    read_legacy, read_legacy_outcome
);

#[inline(always)]
fn read_legacy_outcome(ctx: &RawTracePointContext) -> Outcome {
    let Some(wanted) = STAMP.get(0) else { return Outcome::Unreadable };
    let wanted = *wanted;
    let which = which(ctx);
    if xt_table::stamp(&which) != Some(wanted) {
        return Outcome::Changed;
    }
    let failed = read_all(ctx.arg::<u64>(3) as u32, ctx.arg::<u64>(4) as u32, ctx.arg(5));
    finish(failed, &which, &wanted)
}

program!(
    /// Sums `arg 0` counters over `arg 1` processors. `arg 2` are [`Reads`].
    read_nft, read_nft_outcome
);

#[inline(always)]
fn read_nft_outcome(ctx: &RawTracePointContext) -> Outcome {
    match read_all(ctx.arg::<u64>(0) as u32, ctx.arg::<u64>(1) as u32, ctx.arg(2)) {
        0 => Outcome::Done,
        _ => Outcome::Unreadable,
    }
}

#[inline(always)]
fn read_all(count: u32, cpus: u32, reads: u64) -> u32 {
    let mut state = Reading { cpus, failed: 0 };
    // SAFETY: as above.
    unsafe {
        let state = (&raw mut state).cast();
        if field!(two_words) != 0 && reads == Reads::Again as u64 {
            bpf_loop(count, load_one as *mut _, state, 0);
        } else {
            bpf_loop(count, read_one as *mut _, state, 0);
        }
    }
    state.failed
}

/// A counter that may not be readable.
unsafe extern "C" fn read_one(index: u32, state: *mut Reading) -> i64 {
    // SAFETY: the state is the caller's.
    let state = unsafe { &mut *state };
    let failed = &mut state.failed;
    sum(index, state.cpus, |at| match read::<Sum>(at) {
        Some(counter) => counter,
        None => {
            *failed += 1;
            Sum { first: 0, second: 0 }
        }
    })
}

/// A counter that was read before, without a call for each processor.
unsafe extern "C" fn load_one(index: u32, state: *mut Reading) -> i64 {
    // SAFETY: the state is the caller's.
    let cpus = unsafe { (*state).cpus };
    sum(index, cpus, |at| {
        let [first, second] = load_two(at, field!(two_words));
        Sum { first, second }
    })
}

#[inline(always)]
fn sum(index: u32, cpus: u32, mut counter: impl FnMut(u64) -> Sum) -> i64 {
    let Some(sum) = SUMS.get_ptr_mut(index) else { return 1 };
    let (Some(address), Some(all)) = (ADDRESSES.get(index), CPU_OFFSETS.get(0)) else { return 1 };
    let address = *address;
    let mut total = Sum { first: 0, second: 0 };
    let mut cpu = 0;
    while cpu < MAX_CPUS && cpu < cpus {
        let counter = counter(address.wrapping_add(all.offsets[(cpu & (MAX_CPUS - 1)) as usize]));
        total.first = total.first.wrapping_add(counter.first);
        total.second = total.second.wrapping_add(counter.second);
        cpu += 1;
    }
    // SAFETY: a value of the map.
    unsafe { *sum = total };
    0
}

#[inline(always)]
fn which(ctx: &RawTracePointContext) -> Which {
    Which { name: ctx.arg(0), family: ctx.arg::<u64>(1) as u8, hook: ctx.arg::<u64>(2) as u32 }
}

/// What was read counts if the table still is what it was.
#[inline(always)]
fn finish(failed: u32, which: &Which, wanted: &Stamp) -> Outcome {
    if xt_table::stamp(which).as_ref() != Some(wanted) {
        Outcome::Changed
    } else if failed > 0 {
        Outcome::Unreadable
    } else {
        Outcome::Done
    }
}

accountant_ebpf::licensed_object!();
