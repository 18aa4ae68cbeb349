//! Records that the in-kernel programs and the agent share.
//!
//! Plain data in host byte order: fixed-width integers, explicit padding, sizes and offsets asserted. Programs and agent
//! are built together and the objects are embedded, so both sides always have the same layout.

#![no_std]

pub mod calico;
pub mod freed;
pub mod in_place;
pub mod interface;
pub mod rewrites;
pub mod stand_in;
pub mod verdict;

/// Stands in programs for the number of the kernel function `bpf_rdonly_cast` (Linux 6.2). The agent puts in what it is in this
/// kernel, or zero, which the verifier lets stand where it is never reached.
pub const CAST: u32 = 0x0acc_0001;

/// Packets and bytes, host byte order. Each user says of which length the bytes are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Number of packets.
    pub packets: u64,
    /// Sum of their lengths.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Traffic>() == 16 && core::mem::offset_of!(Traffic, bytes) == 8);

// SAFETY: two integers without padding; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Traffic {}
