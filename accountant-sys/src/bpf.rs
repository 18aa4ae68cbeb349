//! `bpf(2)`, as far as no safe library has it: programs of the type `netfilter` and their links, tracepoints without a
//! second look at the kernel's types, pins of anything, how often programs ran, and many values of a map in
//! one call.
//!
//! Source: `include/uapi/linux/bpf.h` (Linux 6.18), `union bpf_attr`. Each command takes a structure of which only the
//! beginning is filled; the kernel takes what is missing as zero. Host byte order.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// `BPF_OBJ_NAME_LEN`, with its terminating zero.
const NAME_LENGTH: usize = 16;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;
const LINK_CREATE: libc::c_long = 28;
const ENABLE_STATS: libc::c_long = 32;
const LINK_DETACH: libc::c_long = 34;
/// Words of `struct bpf_prog_info`, and which of them are `run_time_ns` and `run_cnt` (Linux 5.1).
const PROG_INFO: usize = 32;
const RUN_TIME: usize = 24;
const RUN_COUNT: usize = 25;
/// `BPF_NETFILTER`, an attach type.
const NETFILTER: u32 = 45;

/// What a program is, and what it is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `BPF_PROG_TYPE_NETFILTER`: a hook of the packet filter (Linux 6.4).
    Netfilter,
    /// `BPF_PROG_TYPE_TRACING` with `BPF_TRACE_RAW_TP`: a tracepoint, by the number of its type in the kernel's BTF.
    Tracepoint(u32),
}

impl Kind {
    /// `prog_type`, `expected_attach_type`, `attach_btf_id`.
    fn numbers(self) -> (u32, u32, u32) {
        match self {
            Self::Netfilter => (32, NETFILTER, 0),
            Self::Tracepoint(id) => (26, 23, id),
        }
    }
}

/// `struct { … }` of `BPF_PROG_LOAD`, up to `attach_btf_id`.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_LENGTH],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

const _: () = assert!(size_of::<ProgLoad>() == 112);

/// Loads a program: its instructions, eight bytes each. What the verifier says goes to `log`, if there is any room in it.
pub fn load_program(kind: Kind, name: &str, instructions: &[u8], log: &mut [u8]) -> io::Result<OwnedFd> {
    let license = CString::from(c"Dual MIT/GPL");
    let (prog_type, expected_attach_type, attach_btf_id) = kind.numbers();
    let mut attr = ProgLoad {
        prog_type,
        insn_cnt: (instructions.len() / 8) as u32,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type,
        attach_btf_id,
        ..ProgLoad::default()
    };
    for (to, from) in attr.prog_name[..NAME_LENGTH - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    if !log.is_empty() {
        attr.log_level = 1;
        attr.log_size = u32::try_from(log.len()).unwrap_or(u32::MAX);
        attr.log_buf = log.as_mut_ptr() as u64;
    }
    // SAFETY: all pointers are to memory that outlives the call: instructions and licence are read, the log is written
    // within its length.
    let fd = unsafe { bpf(PROG_LOAD, &raw mut attr) }?;
    // SAFETY: the descriptor is fresh, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `link_create` with its `netfilter` part.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    pf: u32,
    hooknum: u32,
    priority: i32,
    netfilter_flags: u32,
}

/// Attaches a netfilter program to a hook of the calling thread's network namespace, for as long as the link lives.
///
/// `family` is `NFPROTO_IPV4` or `NFPROTO_IPV6`, `hook` one of `NF_INET_*`. Programs with lower priorities come first.
pub fn link_netfilter(program: BorrowedFd<'_>, family: u32, hook: u32, priority: i32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: raw(program),
        attach_type: NETFILTER,
        pf: family,
        hooknum: hook,
        priority,
        ..LinkCreate::default()
    };
    // SAFETY: numbers only.
    let fd = unsafe { bpf(LINK_CREATE, &raw mut attr) }?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
#[derive(Default)]
struct RawTracepointOpen {
    name: u64,
    prog_fd: u32,
    padding: u32,
}

/// Attaches a tracepoint's program to it, for as long as the link lives.
pub fn link_tracepoint(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = RawTracepointOpen { prog_fd: raw(program), ..RawTracepointOpen::default() };
    // SAFETY: numbers only; the program says itself which tracepoint it is for.
    let fd = unsafe { bpf(RAW_TRACEPOINT_OPEN, &raw mut attr) }?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a link's program away from its place, whoever holds the link, as `bpftool link detach` does.
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = raw(link);
    // SAFETY: a number.
    unsafe { bpf(LINK_DETACH, &raw mut attr) }.map(drop)
}

/// `struct { … }` of `BPF_OBJ_*`.
#[repr(C)]
#[derive(Default)]
struct Obj {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Gives a program, map or link a name in a BPF file system, which keeps it for as long as it is there.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_string(path)?;
    let mut attr = Obj { pathname: path.as_ptr() as u64, bpf_fd: raw(object), ..Obj::default() };
    // SAFETY: the path is read, and outlives the call.
    unsafe { bpf(OBJ_PIN, &raw mut attr) }.map(drop)
}

/// What has this name in a BPF file system.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    let mut attr = Obj { pathname: path.as_ptr() as u64, ..Obj::default() };
    // SAFETY: the path is read, and outlives the call.
    let fd = unsafe { bpf(OBJ_GET, &raw mut attr) }?;
    // SAFETY: the descriptor is fresh, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How often a program ran, and how long that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How often.
    pub count: u64,
    /// How long in all, with the kernel's two looks at the clock.
    pub time: Duration,
}

/// `struct { … } info` of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
#[derive(Default)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// How often a program ran while the kernel kept statistics; nothing until it does.
pub fn runs(program: BorrowedFd<'_>) -> io::Result<Runs> {
    let mut info = [0u64; PROG_INFO];
    let mut attr =
        Info { bpf_fd: raw(program), info_len: size_of_val(&info) as u32, info: info.as_mut_ptr() as u64 };
    // SAFETY: the kernel writes at most `info_len` bytes, which is what there is room for, and nothing behind the pointers
    // in it, because all lengths are zero.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &raw mut attr) }?;
    Ok(Runs { count: info[RUN_COUNT], time: Duration::from_nanos(info[RUN_TIME]) })
}

/// Has the kernel keep statistics of programs for as long as the descriptor is open (Linux 5.8; `CAP_SYS_ADMIN`).
pub fn keep_statistics() -> io::Result<OwnedFd> {
    // `BPF_STATS_RUN_TIME`
    let mut kind = 0u32;
    // SAFETY: a number.
    let fd = unsafe { bpf(ENABLE_STATS, &raw mut kind) }?;
    // SAFETY: the descriptor is fresh, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// All keys of a map and all values, one behind the other.
pub type Entries = (Vec<u8>, Vec<u8>);

/// Reads all keys and values of a hash map that is not per CPU (Linux 5.6), `at_once` in a call. The sizes have to be those
/// that the map has.
pub fn read_hash(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    at_once: u32,
) -> io::Result<Entries> {
    batches(MAP_LOOKUP_BATCH, map, key_size, value_size, at_once)
}

/// The same, and takes them out of the map.
pub fn drain_hash(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    at_once: u32,
) -> io::Result<Entries> {
    batches(MAP_LOOKUP_AND_DELETE_BATCH, map, key_size, value_size, at_once)
}

fn batches(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    at_once: u32,
) -> io::Result<Entries> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut room = at_once.max(16) as usize;
    // Where to go on is a number of a bucket for the kernel, and a key's size of memory for us.
    let (mut from, mut to) = (vec![0u8; key_size.max(8)], vec![0u8; key_size.max(8)]);
    let mut first = true;
    loop {
        let (had_keys, had_values) = (keys.len(), values.len());
        keys.resize(had_keys + room * key_size, 0);
        values.resize(had_values + room * value_size, 0);
        let mut attr = Batch {
            in_batch: if first { 0 } else { from.as_ptr() as u64 },
            out_batch: to.as_mut_ptr() as u64,
            keys: keys[had_keys..].as_mut_ptr() as u64,
            values: values[had_values..].as_mut_ptr() as u64,
            count: room as u32,
            map_fd: raw(map),
            ..Batch::default()
        };
        // SAFETY: the kernel writes at most `count` keys and values of the map's sizes, which is what there is room for,
        // and less than a key's size to `out_batch`. All memory outlives the call.
        let result = unsafe { bpf(command, &raw mut attr) };
        let error = result.err().and_then(|error| error.raw_os_error());
        let read = if matches!(error, None | Some(libc::ENOENT)) { attr.count as usize } else { 0 };
        keys.truncate(had_keys + read * key_size);
        values.truncate(had_values + read * value_size);
        match error {
            None => {
                first = false;
                std::mem::swap(&mut from, &mut to);
            }
            Some(libc::ENOENT) => return Ok((keys, values)),
            // One bucket has more than there is room for.
            Some(libc::ENOSPC) if room < 1 << 20 => room *= 2,
            Some(error) => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// # Safety
/// The attributes have to be those of the command, and all memory that they name has to be there for it.
unsafe fn bpf<T>(command: libc::c_long, attr: *mut T) -> io::Result<i32> {
    // SAFETY: as the caller says; the kernel reads and writes no more of the attributes than their size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
