//! What Calico's eBPF programs decide, read beside them from what they leave behind.
//!
//! Calico's programs note in a per-CPU entry what they decide on the packet at hand (`cali_state*`), and overwrite it with the
//! next packet on that CPU. A program *before* Calico's notes which packet comes; the verdict is read at the first of these:
//! *after* Calico's program, where the packet gets there; at `kfree_skb`, if it is dropped; at the end of a NAPI poll, where
//! XDP would overwrite it next; before the next packet on the CPU; or when the agent asks. A verdict is believed if Calico's
//! own counters of the interface have moved since the last one, and if the entry is of that interface: so a packet that
//! Calico did not look at is not charged with an older one's verdict.
//!
//! Invariants: packets always go on (`TC_ACT_UNSPEC`, which tcx calls `TCX_NEXT`); Calico's maps are only read; each verdict is
//! counted once.

#![no_std]
#![no_main]

mod maps;
mod settle;

use accountant_abi::calico::{BYPASSED, EGRESS, INGRESS, PENDING, SETTLED, Slot};
use accountant_ebpf::memory::read;
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::{classifier, raw_tracepoint};
use aya_ebpf::programs::{RawTracePointContext, TcContext};
use maps::{layout, slot};
use settle::{Place, settle};

/// The mark of packets that Calico has approved at both of their ends.
const BYPASS: u32 = 0x0300_0000;
/// `ETH_P_IP` and `ETH_P_IPV6` in network order, as the packet has them.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// In front of Calico's program, for what the interface receives.
#[classifier]
pub fn before_ingress(ctx: TcContext) -> i32 {
    before(&ctx, INGRESS)
}

/// In front of Calico's program, for what is sent out of the interface.
#[classifier]
pub fn before_egress(ctx: TcContext) -> i32 {
    before(&ctx, EGRESS)
}

/// Behind Calico's program, for what the interface receives.
#[classifier]
pub fn after_ingress(ctx: TcContext) -> i32 {
    after(&ctx, INGRESS)
}

/// Behind Calico's program, for what is sent out of the interface.
#[classifier]
pub fn after_egress(ctx: TcContext) -> i32 {
    after(&ctx, EGRESS)
}

/// Settles what is pending on the CPU that runs it. Run by the agent, never attached.
#[classifier]
pub fn settle_now(_: TcContext) -> i32 {
    settle_pending();
    TC_ACT_UNSPEC
}

/// At the end of a NAPI poll: the next one may begin with XDP.
#[raw_tracepoint]
pub fn napi_poll(_: RawTracePointContext) -> i32 {
    settle_pending();
    0
}

/// When a packet is dropped: `arg 0` is the packet, `arg 2` the reason.
#[raw_tracepoint]
pub fn kfree_skb(ctx: RawTracePointContext) -> i32 {
    dropped(ctx.arg(0), ctx.arg::<u64>(2) as u32);
    0
}

#[inline(always)]
fn before(ctx: &TcContext, hook: u8) -> i32 {
    let Some(slot) = slot() else { return TC_ACT_UNSPEC };
    if slot.pending == PENDING {
        settle(slot, Place::Later);
    }
    // SAFETY: the context is the kernel's, and the verifier turns these reads into those of the packet's fields.
    let (mark, protocol, interface, length) = unsafe {
        let skb = &*ctx.skb.skb;
        (skb.mark, skb.protocol, skb.ifindex, skb.len)
    };
    let ip_version = match protocol {
        IPV4 => 4,
        IPV6 => 6,
        _ => 0,
    };
    let pending = if hook == EGRESS && mark == BYPASS { BYPASSED } else { PENDING };
    *slot = Slot { skb: ctx.as_ptr() as u64, interface, length, hook, ip_version, pending, padding: [0; 5] };
    TC_ACT_UNSPEC
}

#[inline(always)]
fn after(ctx: &TcContext, hook: u8) -> i32 {
    let Some(slot) = slot() else { return TC_ACT_UNSPEC };
    // SAFETY: as above.
    let (mark, interface) = unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).ifindex) };
    if slot.skb == ctx.as_ptr() as u64 && slot.interface == interface && slot.hook == hook {
        let open = slot.pending == PENDING || slot.pending == BYPASSED && mark != BYPASS;
        slot.pending = SETTLED;
        // Should Calico's program be behind this one it has not decided yet: its counters tell, where it has any.
        if open && !settle(slot, Place::Behind) && layout!(counters) != 0 {
            slot.pending = PENDING;
        }
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn settle_pending() {
    if let Some(slot) = slot()
        && slot.pending == PENDING
    {
        settle(slot, Place::Later);
    }
}

#[inline(always)]
fn dropped(skb: u64, reason: u32) -> Option<()> {
    let hook = if reason == layout!(reason_ingress) {
        INGRESS
    } else if reason == layout!(reason_egress) {
        EGRESS
    } else {
        return None;
    };
    let slot = slot()?;
    if slot.pending == SETTLED || slot.skb != skb || slot.hook != hook {
        return None;
    }
    let device: u64 = read(skb + u64::from(layout!(skb_dev)))?;
    if read::<u32>(device + u64::from(layout!(dev_ifindex)))? != slot.interface {
        return None;
    }
    let bypassed = slot.pending == BYPASSED && read::<u32>(skb + u64::from(layout!(skb_mark)))? == BYPASS;
    if bypassed {
        slot.pending = SETTLED;
    } else {
        settle(slot, Place::Dropped);
    }
    Some(())
}

accountant_ebpf::licensed_object!();
