//! What the tests tell the stand-in for Calico's eBPF dataplane.

/// What it decides about packets to one port at one hook: the key of the map is port, plus hook times 65536.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Case {
    /// Numbers of the rules that they hit.
    pub rules: [u64; 4],
    /// How many of them.
    pub hits: u32,
    /// What policy says: 1 to accept, 2 to deny, `FAILED` where it cannot be asked.
    pub said: i32,
    /// `SKIP`, `LATE_DROP`, `NO_POLICY`, `QOS`.
    pub flags: u32,
    /// The mark that accepted packets get at the ingress hook.
    pub mark: u32,
    /// The interface that they are redirected to there, if not zero.
    pub redirect: u32,
    /// Nothing.
    pub padding: u32,
}

/// The policy program could not be called.
pub const FAILED: i32 = 10;
/// Accepted without asking policy.
pub const SKIP: u32 = 1;
/// Accepted by policy and then dropped.
pub const LATE_DROP: u32 = 2;
/// Dropped without asking policy.
pub const NO_POLICY: u32 = 4;
/// Looked at though its mark says that it need not be.
pub const QOS: u32 = 8;
/// The port of packets that somebody else's program drops.
pub const FOREIGN: u16 = 7007;
/// The entry of the state with the interface's constants.
pub const GLOBALS: u32 = 1;

const _: () = assert!(size_of::<Case>() == 56);

// SAFETY: integers; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Case {}
