//! Sees tables of iptables-legacy replaced, and hands over the last counters of the rules that went.
//!
//! The kernel gives them to whoever replaces a table: when the system call returns, they are in that process' memory, at
//! `counters` of the `struct ipt_replace` (`ip6t_replace` has the same head) that the option's value is. A second call adds
//! counters to the new rules, which tells rules that were kept from those that begin at zero. The new rules are told, too, if
//! they are few: of a small table the next writer can be done before anybody reads them.
//!
//! Attached to the end of all system calls, and only while somebody has the lock file of the xtables tools open: it costs
//! every call of every process a few nanoseconds. Source: `include/uapi/linux/netfilter_ipv4/ip_tables.h`,
//! `.../netfilter/x_tables.h` (Linux 6.18; unchanged since 2.6).
//!
//! Invariant: only reads; writers in other network namespaces are not told of.

#![no_std]
#![no_main]

use accountant_abi::in_place::Sum;
use accountant_abi::rewrites::{ADDED, COMPAT, Head, PIECE, Piece, REPLACED, RULES_PIECE, RulesPiece};
use accountant_ebpf::field;
use accountant_ebpf::memory::read;
use accountant_ebpf::xt_table::{self, Which};
use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_loop, bpf_probe_read_user,
};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{Array, RingBuf};
use aya_ebpf::programs::RawTracePointContext;

/// `IPT_SO_SET_REPLACE`, `IPT_SO_SET_ADD_COUNTERS` and their twins of IPv6.
const SET_REPLACE: u32 = 64;
const SET_ADD_COUNTERS: u32 = 65;
/// `IPPROTO_IP`, `IPPROTO_IPV6`
const LEVEL_IP: u32 = 0;
const LEVEL_IPV6: u32 = 41;
/// `SYS_SETSOCKOPT` of socketcall(2).
const SOCKETCALL_SETSOCKOPT: u32 = 14;
/// In `struct ipt_replace`: `size` of the rules, `num_counters`, the pointer `counters`, and the rules.
const REPLACE_SIZE: u64 = 40;
const REPLACE_COUNT: u64 = 84;
const REPLACE_COUNTERS: u64 = 88;
const REPLACE_RULES: u64 = 96;
/// In `struct xt_counters_info`: `num_counters` and the counters.
const ADD_COUNT: u64 = 32;
const ADD_COUNTERS: u64 = 40;
/// More rules than any table has that could be handed over.
const MAX_COUNTERS: u32 = 1 << 22;

/// The tables that can have Calico's policies, by the begin of their names. Others are not told: kube-proxy has tens of
/// thousands of rules in nat.
const TABLES: [u64; 3] = [
    u64::from_ne_bytes(*b"filter\0\0"),
    u64::from_ne_bytes(*b"mangle\0\0"),
    u64::from_ne_bytes(*b"raw\0\0\0\0\0"),
];

/// `BPF_RB_NO_WAKEUP`, `BPF_RB_FORCE_WAKEUP`
const QUIETLY: u64 = 1;
const LOUDLY: u64 = 2;

/// The agent makes it as big as the tables need it.
#[map]
static NEWS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
/// How many heads found no room.
#[map]
static LOST: Array<u64> = Array::with_max_entries(1, 1 << 10);

/// Address of the network namespace that is watched; set by the agent.
#[unsafe(no_mangle)]
static NET: aya_ebpf::Global<u64> = aya_ebpf::Global::new(0);
/// Rules of more bytes are not told; set by the agent.
#[unsafe(no_mangle)]
static MOST_RULES: aya_ebpf::Global<u32> = aya_ebpf::Global::new(0);

/// What is copied: so many counters, or bytes.
struct Copying {
    from: u64,
    writer: u64,
    count: u32,
    failed: u32,
}

/// A function that copies the piece of this number.
type CopyPiece = unsafe extern "C" fn(u32, *mut Copying) -> i64;

/// At the end of a system call: `arg 0` are the registers, `arg 1` is what it returns.
#[raw_tracepoint]
pub fn system_call_ends(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<u64>(1) == 0 {
        look(ctx.arg(0));
    }
    0
}

#[inline(always)]
fn look(regs: u64) -> Option<()> {
    let call = read::<u32>(regs + field!(regs_call))?;
    let native = field!(call_setsockopt) as u32;
    let (compat, socketcall) = (field!(call_compat) as u32, field!(call_socketcall) as u32);
    if call != native && call != compat && call != socketcall {
        return None;
    }
    // SAFETY: the helper takes nothing and returns a number.
    let task = unsafe { bpf_get_current_task() };
    let status = read::<u32>(task + field!(task_compat))?;
    if u64::from(status) & field!(task_compat_bits) != 0 {
        return look_at_compat(regs, call);
    }
    let level = read::<u32>(regs + field!(regs_level))?;
    let option = read::<u32>(regs + field!(regs_option))?;
    if call != native || !is_rewrite(level, option) {
        return None;
    }
    let socket = read::<u32>(regs + field!(regs_socket))?;
    let net = net_of(task, socket)?;
    if net != NET.load() {
        return None;
    }
    tell(net, if level == LEVEL_IPV6 { 10 } else { 2 }, option, read(regs + field!(regs_value))?)
}

#[inline(always)]
fn is_rewrite(level: u32, option: u32) -> bool {
    (level == LEVEL_IP || level == LEVEL_IPV6) && (option == SET_REPLACE || option == SET_ADD_COUNTERS)
}

/// A 32-bit program: that it may have rewritten rules is all that is told.
#[inline(always)]
fn look_at_compat(regs: u64, call: u32) -> Option<()> {
    let level = read::<u32>(regs + field!(regs_compat_level))?;
    let option = read::<u32>(regs + field!(regs_compat_option))?;
    let direct = call == field!(call_compat) as u32 && is_rewrite(level, option);
    // The first argument of socketcall is in the register before the level's.
    let multiplexed = call == field!(call_socketcall) as u32
        && read::<u32>(regs + field!(regs_compat_first))? == SOCKETCALL_SETSOCKOPT;
    if direct || multiplexed {
        submit(Head { kind: COMPAT, ..NOTHING });
    }
    None
}

const NOTHING: Head =
    Head { writer: 0, name: 0, private: 0, number: 0, kind: 0, family: 0, count: 0, failed: 0, size: 0 };

/// The network namespace of a socket: what counts for the kernel, wherever the process is by now.
#[inline(always)]
fn net_of(task: u64, socket: u32) -> Option<u64> {
    let files: u64 = read(task + field!(task_files))?;
    let table: u64 = read(files + field!(files_fdt))?;
    let descriptors: u64 = read(table + field!(fdt_fd))?;
    let file: u64 = read(descriptors + 8 * u64::from(socket))?;
    let socket: u64 = read(file + field!(file_private))?;
    let sock: u64 = read(socket + field!(socket_sk))?;
    read(sock + field!(sk_net))
}

#[inline(always)]
fn tell(net: u64, family: u8, option: u32, value: u64) -> Option<()> {
    let name: u64 = read_user(value)?;
    if !TABLES.contains(&name) {
        return None;
    }
    let (kind, count, from) = if option == SET_REPLACE {
        let from: u64 = read_user(value + REPLACE_COUNTERS)?;
        (REPLACED, read_user::<u32>(value + REPLACE_COUNT)?, from)
    } else {
        (ADDED, read_user::<u32>(value + ADD_COUNT)?, value + ADD_COUNTERS)
    };
    // SAFETY: the helper takes nothing and returns a number.
    let writer = unsafe { bpf_get_current_pid_tgid() };
    let mut counters = Copying { from, writer, count, failed: 0 };
    if count <= MAX_COUNTERS {
        copy(&mut counters, count.div_ceil(PIECE), copy_counters);
    } else {
        counters.failed = count;
    }
    let size = if kind == REPLACED { read_user::<u32>(value + REPLACE_SIZE)? } else { 0 };
    if size <= MOST_RULES.load() {
        let mut rules = Copying { from: value + REPLACE_RULES, writer, count: size, failed: 0 };
        copy(&mut rules, size.div_ceil(RULES_PIECE), copy_rules);
    }
    // Filter is called from FORWARD, mangle and raw from PREROUTING.
    let hook = if name == TABLES[0] { 2 } else { 0 };
    let (private, number) = match xt_table::stamp_in(net, &Which { name, family, hook }) {
        Some(stamp) => (stamp.private, stamp.number),
        None => (0, 0),
    };
    let (family, failed) = (u32::from(family), counters.failed);
    submit(Head { writer, name, private, number, kind, family, count, failed, size });
    Some(())
}

#[inline(always)]
fn copy(what: &mut Copying, pieces: u32, piece: CopyPiece) {
    // SAFETY: the callback has the type that the kernel calls, and what is copied outlives the loop.
    unsafe { bpf_loop(pieces, piece as *mut _, core::ptr::from_mut(what).cast(), 0) };
}

#[inline(always)]
fn submit(head: Head) {
    match NEWS.reserve::<Head>(0) {
        Some(mut room) => {
            room.write(head);
            room.submit(LOUDLY);
        }
        None => {
            if let Some(lost) = LOST.get_ptr_mut(0) {
                // SAFETY: a value of the map. Two processors can count one loss for two: that there was one is enough.
                unsafe { *lost += 1 };
            }
        }
    }
}

/// How many of the next `most` there are to copy.
#[inline(always)]
fn here(count: u32, first: u32, most: u32) -> u32 {
    let left = count.wrapping_sub(first);
    if left > most { most } else { left }
}

unsafe extern "C" fn copy_counters(index: u32, what: *mut Copying) -> i64 {
    // SAFETY: it is the caller's.
    let Copying { from, writer, count, .. } = unsafe { core::ptr::read(what) };
    let first = index * PIECE;
    let here = here(count, first, PIECE);
    let Some(mut room) = NEWS.reserve::<Piece>(0) else {
        // SAFETY: as above.
        unsafe { (*what).failed += here };
        return 0;
    };
    let piece = room.as_mut_ptr();
    let size = (here * core::mem::size_of::<Sum>() as u32) & 0xfff;
    // SAFETY: the room is ours until it is submitted, and as big as a piece; the helper writes no more than `size` bytes,
    // of at most 4080 that there are, and what it does not write is not looked at.
    let read = unsafe {
        (*piece).writer = writer;
        (*piece).first = first;
        (*piece).count = here;
        let counters = (&raw mut (*piece).counters).cast();
        let address = from + u64::from(first) * core::mem::size_of::<Sum>() as u64;
        bpf_probe_read_user(counters, size, address as *const _)
    };
    if read == 0 {
        room.submit(QUIETLY);
    } else {
        // SAFETY: as above.
        unsafe { (*what).failed += here };
        room.discard(QUIETLY);
    }
    0
}

/// A piece that cannot be told is missing, and whoever puts them together sees that.
unsafe extern "C" fn copy_rules(index: u32, what: *mut Copying) -> i64 {
    // SAFETY: it is the caller's.
    let Copying { from, writer, count, .. } = unsafe { core::ptr::read(what) };
    let first = index * RULES_PIECE;
    let here = here(count, first, RULES_PIECE);
    let Some(mut room) = NEWS.reserve::<RulesPiece>(0) else { return 1 };
    let piece = room.as_mut_ptr();
    // SAFETY: as above: at most 4064 bytes.
    let read = unsafe {
        (*piece).writer = writer;
        (*piece).first = first;
        (*piece).count = here;
        let bytes = (&raw mut (*piece).bytes).cast();
        bpf_probe_read_user(bytes, here & 0xfff, (from + u64::from(first)) as *const _)
    };
    if read == 0 {
        room.submit(QUIETLY);
        0
    } else {
        room.discard(QUIETLY);
        1
    }
}

#[inline(always)]
fn read_user<T: Copy>(address: u64) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes the whole value, zeros if the address cannot be read; T is plain data.
    unsafe {
        let size = core::mem::size_of::<T>() as u32;
        let read = bpf_probe_read_user(value.as_mut_ptr().cast(), size, address as *const _);
        if read == 0 { Some(value.assume_init()) } else { None }
    }
}

accountant_ebpf::licensed_object!();
