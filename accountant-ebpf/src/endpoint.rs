//! Traffic of one endpoint's interface, for kernels without netfilter programs: two classifiers for clsact or tcx.
//!
//! What the host sends out of the interface goes to the endpoint, what comes in at it comes from the endpoint. Both always
//! let the packet go on to the next program (`TC_ACT_UNSPEC`, which tcx calls `TCX_NEXT`), on every path.

#![no_std]
#![no_main]

use accountant_abi::{DIRECTIONS, FROM_ENDPOINT, TO_ENDPOINT, Traffic};
use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::TcContext;

#[map]
static TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(DIRECTIONS, 0);

/// Counts what the endpoint sends.
#[classifier]
pub fn from_endpoint(ctx: TcContext) -> i32 {
    count(&ctx, FROM_ENDPOINT);
    TC_ACT_UNSPEC
}

/// Counts what the host sends to the endpoint.
#[classifier]
pub fn to_endpoint(ctx: TcContext) -> i32 {
    count(&ctx, TO_ENDPOINT);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn count(ctx: &TcContext, direction: u32) {
    if let Some(traffic) = TRAFFIC.get_ptr_mut(direction) {
        // SAFETY: the kernel gave this CPU's slot of the map, which is a Traffic and is not moved; a classifier is not
        // preempted by another on its CPU.
        unsafe {
            (*traffic).packets += 1;
            (*traffic).bytes += u64::from(ctx.len());
        }
    }
}

accountant_ebpf::licensed_object!();
