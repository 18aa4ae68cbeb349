//! What the programs at endpoints' interfaces share with the agent.

use crate::Traffic;

/// Version of [`AtInterface`]: what an earlier agent left of another one is not gone on with.
pub const ABI: u32 = 1;

/// IP versions, as indices of what is counted.
pub const V4: usize = 0;
/// IPv6.
pub const V6: usize = 1;

/// What passed an endpoint's interface on one CPU: the value of the interface's index. The agent writes whose it is, on all
/// CPUs alike, before any program counts; programs only count.
///
/// Bytes are the lengths of packets as their IP headers say it, which is what rules of the packet filter count.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtInterface {
    /// The interface's name, filled up with zeros (`IFNAMSIZ`).
    pub name: [u8; 16],
    /// [`WORKLOAD`] or [`HOST`].
    pub kind: u32,
    pub padding: u32,
    /// What came in by the interface, by IP version.
    pub received: [Traffic; 2],
    /// What the host sent out of it, by IP version.
    pub sent: [Traffic; 2],
}

/// The interface of a workload.
pub const WORKLOAD: u32 = 0;
/// An interface of the host.
pub const HOST: u32 = 1;

const _: () = assert!(size_of::<AtInterface>() == 88 && core::mem::offset_of!(AtInterface, sent) == 56);

// SAFETY: integers without padding between them; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for AtInterface {}
