//! What our programs beside those of Calico's eBPF dataplane share with the agent.

/// Where things are in Calico's maps and in the kernel's structures; set by the agent before the programs are loaded. All
/// offsets and sizes in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Size of the state of a packet.
    pub state: u32,
    /// `pol_rc` in it.
    pub verdict: u32,
    /// `rules_hit` in it.
    pub hits: u32,
    /// `rule_ids` in it.
    pub rules: u32,
    /// `flags` in it.
    pub flags: u32,
    /// The interface's name in entry 1; zero if it is not known where.
    pub name: u32,
    /// Size of the counters of an interface; zero if there are none by interface and hook.
    pub counters: u32,
    /// The kernel's `SKB_DROP_REASON_TC_INGRESS`.
    pub reason_ingress: u32,
    /// The kernel's `SKB_DROP_REASON_TC_EGRESS`.
    pub reason_egress: u32,
    /// `sk_buff.dev`
    pub skb_dev: u32,
    /// `sk_buff.mark`
    pub skb_mark: u32,
    /// `net_device.ifindex`
    pub dev_ifindex: u32,
}

const _: () = assert!(size_of::<Layout>() == 48);

/// Sizes that a packet's state can have.
pub const STATE_SIZES: [usize; 5] = [416, 464, 480, 488, 512];
/// Sizes that the counters of an interface can have.
pub const COUNTER_SIZES: [usize; 5] = [112, 136, 200, 208, 216];
/// How many rules a state can name.
pub const MAX_HITS: usize = 32;

/// Hooks, as Calico numbers them.
pub const INGRESS: u8 = 0;
/// What the host sends out of the interface.
pub const EGRESS: u8 = 1;

/// A packet that Calico's programs may be about to decide on, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Address of its `sk_buff`; used again by other packets later.
    pub skb: u64,
    /// Index of the interface.
    pub interface: u32,
    /// `skb->len`.
    pub length: u32,
    /// `INGRESS` or `EGRESS`.
    pub hook: u8,
    /// 4, 6, or 0 for anything else.
    pub ip_version: u8,
    /// `SETTLED`, `PENDING` or `BYPASSED`.
    pub pending: u8,
    /// Nothing.
    pub padding: [u8; 5],
}

const _: () = assert!(size_of::<Slot>() == 24);

/// Nothing more is to be learnt of the packet.
pub const SETTLED: u8 = 0;
/// Its verdict was not read yet.
pub const PENDING: u8 = 1;
/// Its mark says that Calico lets it pass without looking; Calico may change its mind.
pub const BYPASSED: u8 = 2;

/// What was decided about packets of an interface and hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VerdictKey {
    /// The rules that they hit.
    pub path: PathKey,
    /// Index of the interface.
    pub interface: u32,
    /// `INGRESS` or `EGRESS`.
    pub hook: u8,
    /// 4, 6, or 0 for anything else.
    pub ip_version: u8,
    /// One of the outcomes below.
    pub outcome: u8,
    /// Nothing.
    pub padding: u8,
}

const _: () = assert!(size_of::<VerdictKey>() == 24);

/// A path by its hash, its length and its last rule: no two have all three in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PathKey {
    /// Hash of the numbers of its rules, but for the lowest byte, which says how many there are.
    pub hash: u64,
    /// Number of the last one.
    pub last: u64,
}

impl PathKey {
    /// With its length.
    pub fn of_length(self, hits: u8) -> Self {
        Self { hash: self.hash & !0xff | u64::from(hits), ..self }
    }

    /// How many rules it has.
    pub fn hits(&self) -> usize {
        (self.hash & 0xff) as usize
    }
}

/// Outcomes, in the order of `accountant_core::calico::bpf::Outcome`.
pub const ALLOWED: u8 = 0;
/// Policy denied it.
pub const DENIED: u8 = 1;
/// Policy accepted it, and it was dropped for another reason.
pub const ALLOWED_THEN_DROPPED: u8 = 2;
/// Dropped without asking policy.
pub const DROPPED_WITHOUT_POLICY: u8 = 3;
/// The policy program could not be called.
pub const POLICY_FAILED: u8 = 4;

/// An interface and hook, as Calico's counters have them for a key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HookKey {
    /// Index of the interface.
    pub interface: u32,
    /// `INGRESS` or `EGRESS`.
    pub hook: u32,
}

const _: () = assert!(size_of::<HookKey>() == 8);

/// An interface and hook, as a CPU knows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hook {
    /// The interface's name, as Calico writes it.
    pub name: [u32; 4],
    /// What Calico's counters last were on this CPU.
    pub last: Last,
}

const _: () = assert!(size_of::<Hook>() == 32);

/// What Calico's counters of an interface and hook last were on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Last {
    /// Packets that policy decided on.
    pub decided: u64,
    /// Packets that were dropped for other reasons.
    pub dropped: u64,
}

/// Indexes of the programs' own counters.
pub mod notes {
    /// Verdicts that found no room in the map.
    pub const FULL: u32 = 0;
    /// States that were of another interface when they were looked at: XDP came between.
    pub const OVERWRITTEN: u32 = 1;
    /// States that a program behind Calico's found to be those of earlier packets: it is not behind Calico's, or Calico did not
    /// look at the packet.
    pub const MISPLACED: u32 = 2;
    /// States of earlier packets: Calico did not look at this one.
    pub const STALE: u32 = 3;
    /// Packets that somebody else dropped.
    pub const FOREIGN: u32 = 4;
    /// How many there are.
    pub const COUNT: u32 = 5;
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers; every bit pattern is a value, and no padding is implied.
    unsafe impl aya::Pod for super::Layout {}
    // SAFETY: the same.
    unsafe impl aya::Pod for super::Slot {}
    // SAFETY: the same.
    unsafe impl aya::Pod for super::VerdictKey {}
    // SAFETY: the same.
    unsafe impl aya::Pod for super::PathKey {}
    // SAFETY: the same.
    unsafe impl aya::Pod for super::HookKey {}
    // SAFETY: the same.
    unsafe impl aya::Pod for super::Hook {}
}
