//! Numbers of loaded programs, as the kernel hands them out (`BPF_PROG_QUERY`, `struct bpf_prog_info`).

use aya::programs::ProgramId;

/// The number of a program that the kernel has named, for attaching another in relation to it.
///
/// A number that is nobody's (any more) is refused by the kernel (`ENOENT`).
pub fn program_id(id: u32) -> ProgramId {
    // SAFETY: the number is only handed to the kernel, which checks it.
    unsafe { ProgramId::new(id) }
}
