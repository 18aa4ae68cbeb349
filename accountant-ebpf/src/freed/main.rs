//! Sees per-CPU memory freed, and hands over what a counter of nf_tables in it had last.
//!
//! The kernel tells of a deleted rule, with its counter, as soon as new packets meet the new rules. A packet that a
//! processor has in the old ones at that moment still counts there, and nobody is told. The memory is freed when no packet
//! can be in the old rules any more (`nf_tables_trans_destroy_work` waits for that), so what is in it then is the last word.
//!
//! Attached to `percpu_free_percpu` (`include/trace/events/percpu.h`, Linux 6.18; its arguments are the same since 4.14).
//! The kernel holds the lock of its per-CPU memory meanwhile, so nobody gets that memory anew before it is read. It frees
//! such memory for many reasons, each end of a process among them: the agent says which pointers are of interest.
//!
//! Invariant: only reads.

#![no_std]
#![no_main]

use accountant_abi::freed::Freed;
use accountant_abi::in_place::{CpuOffsets, MAX_CPUS, MAX_RULES, Sum};
use accountant_ebpf::memory::read;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use aya_ebpf::programs::RawTracePointContext;

/// `BPF_RB_NO_WAKEUP`: the agent looks when it has to know.
const QUIETLY: u64 = 1;
/// `BPF_F_NO_PREALLOC`: memory only for what is in the map.
const NO_PREALLOC: u32 = 1;

/// The pointers that the agent wants to be told of, and whether it was: once each.
#[map]
static KNOWN: HashMap<u64, u64> = HashMap::with_max_entries(MAX_RULES, NO_PREALLOC);
/// The agent makes it as big as it needs it.
#[map]
static NEWS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// How many found no room.
#[map]
static LOST: Array<u64> = Array::with_max_entries(1, 1 << 10);
/// Where each processor has its per-CPU memory.
#[map]
static CPU_OFFSETS: Array<CpuOffsets> = Array::with_max_entries(1, 0);

/// How many processors there can be; set by the agent.
#[unsafe(no_mangle)]
static CPUS: aya_ebpf::Global<u32> = aya_ebpf::Global::new(0);

/// When per-CPU memory is freed: `arg 2` is the pointer to it.
#[raw_tracepoint]
pub fn per_cpu_freed(ctx: RawTracePointContext) -> i32 {
    tell(ctx.arg(2));
    0
}

#[inline(always)]
fn tell(pointer: u64) -> Option<()> {
    let told = KNOWN.get_ptr_mut(&pointer)?;
    // SAFETY: a value of the map; the kernel calls this under a lock.
    unsafe {
        if *told != 0 {
            return None;
        }
        *told = 1;
    }
    let offsets = CPU_OFFSETS.get(0)?;
    let mut freed = Freed { pointer, ..Freed::default() };
    let (cpus, mut cpu) = (CPUS.load(), 0);
    while cpu < MAX_CPUS && cpu < cpus {
        let offset = offsets.offsets[(cpu & (MAX_CPUS - 1)) as usize];
        let counter: Sum = read(pointer.wrapping_add(offset))?;
        freed.bytes = freed.bytes.wrapping_add(counter.first);
        freed.packets = freed.packets.wrapping_add(counter.second);
        cpu += 1;
    }
    // SAFETY: the helper takes nothing and returns a number.
    freed.at = unsafe { bpf_ktime_get_ns() };
    match NEWS.reserve::<Freed>(0) {
        Some(mut room) => {
            room.write(freed);
            room.submit(QUIETLY);
        }
        None => {
            let lost = LOST.get_ptr_mut(0)?;
            // SAFETY: as above.
            unsafe { *lost += 1 };
        }
    }
    Some(())
}

accountant_ebpf::licensed_object!();
