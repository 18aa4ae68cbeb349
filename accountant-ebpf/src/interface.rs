//! Traffic at endpoints' interfaces, for kernels whose packet filter takes no programs: two classifiers for clsact.
//!
//! What the host sends out of a workload's interface goes to it, what comes in by it comes from it. Both always let the packet go
//! on to the next program (`TC_ACT_UNSPEC`), on every path.

#![no_std]
#![no_main]

use accountant_abi::Traffic;
use accountant_abi::interface::{AtInterface, V4, V6};
use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::bpf_skb_load_bytes_relative;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::PerCpuHashMap;
use aya_ebpf::programs::TcContext;

/// `BPF_F_NO_PREALLOC`: memory is taken as interfaces turn up.
const NO_PREALLOC: u32 = 1;
/// `BPF_HDR_START_NET`
const NETWORK_HEADER: u32 = 1;
/// `ETH_P_IP` and `ETH_P_IPV6`
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// Where an IP header says how long the packet is (`iphdr.tot_len`, `ipv6hdr.payload_len`; network byte order).
const TOTAL_LENGTH: u32 = 2;
const PAYLOAD_LENGTH: u32 = 4;
/// Length of an IPv6 header, which is not in that.
const IPV6_HEADER: u64 = 40;
/// Length of an Ethernet header.
const ETHERNET: u64 = 14;

/// Interfaces by index. The agent makes the map as big as it needs it, and puts them in.
#[map]
static INTERFACES: PerCpuHashMap<u32, AtInterface> = PerCpuHashMap::with_max_entries(1, NO_PREALLOC);

/// Counts what comes in by the interface.
#[classifier]
pub fn acct_received(ctx: TcContext) -> i32 {
    if let Some((at, version)) = find(&ctx) {
        add(&mut at.received[version & 1], length(&ctx, version));
    }
    TC_ACT_UNSPEC
}

/// Counts what the host sends out of it.
#[classifier]
pub fn acct_sent(ctx: TcContext) -> i32 {
    if let Some((at, version)) = find(&ctx) {
        add(&mut at.sent[version & 1], length(&ctx, version));
    }
    TC_ACT_UNSPEC
}

/// The interface of a packet, if it is one that matters and the packet is of IP.
#[inline(always)]
fn find(ctx: &TcContext) -> Option<(&'static mut AtInterface, usize)> {
    // SAFETY: the context that the kernel gave, of which these are fields.
    let (protocol, index) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).ifindex) };
    let version = match u16::from_be(protocol as u16) {
        IPV4 => V4,
        IPV6 => V6,
        _ => return None,
    };
    // SAFETY: this CPU's value of the map, which stays where it is while a program runs. Classifiers do not interrupt each
    // other on a CPU: they run with softirqs held off.
    Some((unsafe { INTERFACES.get_ptr_mut(&index)?.as_mut()? }, version))
}

/// The packet's length as its IP header says it: what rules count, whatever the interface puts around it.
#[inline(always)]
fn length(ctx: &TcContext, version: usize) -> u64 {
    let mut said = [0u8; 2];
    let at = if version == V4 { TOTAL_LENGTH } else { PAYLOAD_LENGTH };
    // SAFETY: two bytes are written to where two bytes are; of a packet that is shorter, zeros.
    unsafe {
        bpf_skb_load_bytes_relative(ctx.skb.skb as *const _, at, said.as_mut_ptr().cast(), 2, NETWORK_HEADER)
    };
    match u64::from(u16::from_be_bytes(said)) {
        // Longer than an IP header can say (BIG TCP), or nothing that can be read.
        0 => u64::from(ctx.len()).saturating_sub(ETHERNET),
        said if version == V4 => said,
        said => said + IPV6_HEADER,
    }
}

#[inline(always)]
fn add(traffic: &mut Traffic, length: u64) {
    traffic.packets += 1;
    traffic.bytes += length;
}

accountant_ebpf::licensed_object!();
