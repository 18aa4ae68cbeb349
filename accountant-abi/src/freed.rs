//! What the program that sees per-CPU memory freed tells the agent, through a ring buffer.

/// Per-CPU memory that was freed, with what a counter of nf_tables in it would have had last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// The per-CPU pointer to it.
    pub pointer: u64,
    /// The sum of the first words of all processors: bytes.
    pub bytes: u64,
    /// The sum of the second ones: packets.
    pub packets: u64,
}

const _: () = assert!(size_of::<Freed>() == 32);
