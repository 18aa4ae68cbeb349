//! What the programs at the packet filter's hooks and the agent say to each other.
//!
//! A program just before the filter rules notes this processor's counters of the *watched* rules of an endpoint's chain;
//! one just after it, or at the drop, sees which of them moved: the path of this packet. A path is a mask over the watch
//! list; what it means is the agent's business.
//!
//! All numbers are in host byte order. Lengths are `skb->len` at the hook: the IP packet from its header on, without the
//! link layer, which is what rule counters count.

use crate::Traffic;

/// The version of all this. Maps of another version than the agent's are of no use to it: whoever changes a record, a map or
/// its meaning makes it one more.
pub const ABI: u32 = 4;

/// How many rules a list can watch: the bits of a mask.
pub const MAX_RULES: usize = 64;
/// How many chains or tables can be proven to be in use as the list has them.
pub const MAX_PROOFS: usize = 16;
/// How many places an interface can be at, from the one on that its number tells.
pub const PROBES: u32 = 8;

/// Chains of an interface in the forward hook, of what comes from it.
pub const FROM_FORWARDED: u32 = 0;
/// Of what comes from it for this host.
pub const FROM_TO_HOST: u32 = 1;
/// Of what is forwarded to it.
pub const TO_FORWARDED: u32 = 2;
/// Of what this host sends to it.
pub const TO_FROM_HOST: u32 = 3;
/// Chains of a host endpoint's interface in the raw table, before connections are tracked: of what comes from it.
pub const FROM_UNTRACKED: u32 = 4;
/// Of what this host sends to it.
pub const TO_UNTRACKED: u32 = 5;
/// In the mangle table: of what comes from it, before its destination is changed.
pub const FROM_BEFORE_NAT: u32 = 6;
/// Of what leaves by it, after its destination was changed.
pub const TO_AFTER_NAT: u32 = 7;
/// How many of them there are.
pub const ROLES: usize = 8;

/// How many hooks notes are kept for: a power of two that is greater than `NF_INET_POST_ROUTING`.
pub const HOOKS: usize = 8;

macro_rules! places {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Byte offsets in structures of the running kernel, and numbers of its own.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Places {
            $($(#[$doc])* pub $name: u32,)*
        }
    };
}

places! {
    /// `nf_hook_state.hook`, one byte.
    state_hook,
    /// `nf_hook_state.pf`, one byte.
    state_family,
    /// `nf_hook_state.in`
    state_in,
    /// `nf_hook_state.out`
    state_out,
    /// `net_device.ifindex`, four bytes.
    device_index,
    /// `sk_buff._nfct`: pointer and, in the lowest three bits, the conntrack state.
    skb_conntrack,
    /// `sk_buff.len`, four bytes.
    skb_length,
    /// `sk_buff.head`
    skb_head,
    /// `sk_buff.network_header`, two bytes: where the IP header is behind `head`.
    skb_network_header,
    /// `bpf_array.pptrs`: where a per-CPU array map keeps its per-CPU pointers.
    array_pptrs,
    /// The number of a type that begins with two numbers of eight bytes (`timespec64`).
    two_words,
    /// `SKB_DROP_REASON_NETFILTER_DROP`
    netfilter_drop,
    /// How many interfaces there is room for, less one: a power of two less one.
    interface_mask,
    /// How many slots there are.
    slots,
    /// Whether flows that are accepted are noted too.
    accepted_flows,
}

/// An interface and the slots of its chains.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its index; zero if nobody is here.
    pub index: u32,
    /// Nothing.
    pub padding: u32,
    /// A slot for each role and IP version (4, 6); zero for none.
    pub slots: [[u32; 2]; ROLES],
}

const _: () = assert!(size_of::<Interface>() == 72);

/// A watched rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The per-CPU pointer to its counter.
    pub counter: u64,
    /// Where that pointer stands in the rule; zero if it stands nowhere.
    pub place: u64,
    /// Where the rule has something that no other rule has.
    pub mark_at: u64,
    /// What that is.
    pub mark: u64,
}

const _: () = assert!(size_of::<Rule>() == 32);

/// What shows that a table or chain still is the one that the list was made of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Where.
    pub at: u64,
    /// What has to be there.
    pub value: u64,
}

/// The watched rules of a chain.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchList {
    /// The list's number: no other list ever had it. Zero while it is written.
    pub generation: u32,
    /// The slot of the chain.
    pub slot: u32,
    /// How many rules.
    pub length: u32,
    /// How many proofs.
    pub proofs: u32,
    /// How far the number of packets is behind a counter's pointer, in bytes.
    pub packets_at: u32,
    /// How far the generation bit is from the lowest of the eight bytes that `cursor` is.
    pub cursor_shift: u32,
    /// Address of eight bytes with nf_tables' generation bit, which says which of two words behind a proof's address has
    /// to be its value; zero if there is only one.
    pub cursor: u64,
    /// Rules that only a packet hits which the chain accepts.
    pub accepting: u64,
    /// Rules that accept a packet which hits no other.
    pub accepting_alone: u64,
    /// Whether the chain accepts packets of answered connections whatever they are.
    pub spares_established: u64,
    /// The proofs.
    pub proof: [Proof; MAX_PROOFS],
    /// The rules.
    pub rule: [Rule; MAX_RULES],
}

const _: () = assert!(size_of::<WatchList>() == 56 + 16 * MAX_PROOFS + 32 * MAX_RULES);

/// The packet went on beyond the chain.
pub const WENT_ON: u32 = 0;
/// The packet was dropped in this hook, and no other endpoint's chain saw it later.
pub const DROPPED: u32 = 1;

/// Packets of one path, seen on one processor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathKey {
    /// The rules that the packet hit.
    pub moved: u64,
    /// The slot of the chain.
    pub slot: u32,
    /// The number of the list.
    pub generation: u32,
    /// The processor.
    pub cpu: u32,
    /// `WENT_ON` or `DROPPED`.
    pub verdict: u32,
}

const _: () = assert!(size_of::<PathKey>() == 24);

/// A flow that was dropped, or accepted, by an endpoint's chain.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The rules that its packets hit, if `generation` is not zero.
    pub moved: u64,
    /// The slot of the chain.
    pub slot: u32,
    /// The number of the list; zero if the path is not known.
    pub generation: u32,
    /// Where it comes from, in the order of the packet; an IPv4 address has the first four bytes.
    pub source: [u64; 2],
    /// Where it goes.
    pub destination: [u64; 2],
    /// Source and destination port in the order of the packet; zero for protocols without.
    pub ports: u32,
    /// Number of the protocol.
    pub protocol: u8,
    /// 0 for IPv4, 1 for IPv6.
    pub version: u8,
    /// Whether no endpoint's chain dropped it, but something else in the packet filter.
    pub elsewhere: u8,
    /// Nothing.
    pub padding: u8,
}

const _: () = assert!(size_of::<FlowKey>() == 56);

/// What was dropped of it, or accepted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Packets and bytes.
    pub traffic: Traffic,
    /// When the first was, in nanoseconds of the monotonic clock.
    pub first: u64,
    /// When the last was.
    pub last: u64,
}

const _: () = assert!(size_of::<Flow>() == 32);

/// The first packet of a flow, as it is dropped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEvent {
    /// The flow.
    pub key: FlowKey,
    /// When, in nanoseconds of the monotonic clock.
    pub at: u64,
    /// The packet's length.
    pub length: u64,
}

const _: () = assert!(size_of::<FlowEvent>() == 72);

/// What there is no room for: packets of flows in the table of flows.
pub const FLOWS_LOST: u32 = 0;
/// Flows in the ring buffer that tells of each at once.
pub const EVENTS_LOST: u32 = 1;
/// Packets of flows in the table of accepted flows.
pub const ACCEPTED_LOST: u32 = 2;
/// How many of them there are.
pub const LOSSES: u32 = 3;

/// What became of a packet: it went on beyond the chain.
pub const ACCEPTED: usize = 0;
/// It was dropped by the chain, by that of the other endpoint before this one saw it, or it is not known by whom.
pub const DENIED: usize = 1;
/// It was dropped between the two programs of a hook, and no endpoint's chain did that.
pub const ELSEWHERE: usize = 2;
/// How many of them there are.
pub const FATES: usize = 3;

/// What is counted of a slot on one processor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets of, or related to, answered connections, by what became of them.
    pub established: [Traffic; FATES],
    /// All others.
    pub new: [Traffic; FATES],
    /// What went on to this endpoint from another one of this host, whose chain can have accepted it for good: part of
    /// `established`.
    pub sheltered: Traffic,
    /// Packets whose path is not known: part of `new`.
    pub unresolved: u64,
    /// Packets that neither went on nor were dropped: queued, or taken by somebody.
    pub vanished: u64,
}

// Whole cache lines.
const _: () = assert!(size_of::<Totals>() == 128);

/// Length of a chain's name that can be told to the next agent.
pub const MAX_NAME: usize = 56;

/// Whose slot it is: what an agent leaves to the next one. The programs do not look at it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The chain's table, and how long its name is; zero if the slot is nobody's. That of slot 0, which never is
    /// anybody's, is the greatest number that a list ever had.
    pub head: u64,
    /// The chain's name.
    pub name: [u8; MAX_NAME],
}

const _: () = assert!(size_of::<Owner>() == 64);

/// Before-and-after of one side of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// The slot; zero for none.
    pub slot: u32,
    /// The place of its list; zero for none.
    pub list: u32,
    /// The list's number.
    pub generation: u32,
    /// How many rules it has.
    pub length: u32,
    /// The rules that the packet hit.
    pub moved: u64,
    /// Whether they are known.
    pub known: u32,
    /// What the chain did with a packet that was dropped: the programs' own business.
    pub did: u32,
    /// This processor's counters before.
    pub before: [u64; MAX_RULES],
}

/// A packet that is between the two programs of a hook.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Note {
    /// Address of the packet; zero for none.
    pub skb: u64,
    /// How many packets came to this hook on this processor.
    pub turn: u64,
    /// The turn of the packet that the note is of.
    pub own_turn: u64,
    /// Its length.
    pub length: u32,
    /// Whether it is of, or related to, an answered connection.
    pub established: u32,
    /// The chain that it is from, and the chain that it is to.
    pub sides: [Side; 2],
}

/// What the programs keep for each processor.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Processor {
    /// What has to be added to a per-CPU pointer.
    pub offset: u64,
    /// The processor's number.
    pub cpu: u32,
    /// Nothing.
    pub padding: u32,
    /// By hook.
    pub notes: [Note; HOOKS],
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers without padding; every bit pattern is a value.
    unsafe impl aya::Pod for super::Places {}
    // SAFETY: the same.
    unsafe impl aya::Pod for super::WatchList {}
    // SAFETY: the same.
    unsafe impl aya::Pod for super::PathKey {}
    // SAFETY: the same.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: the same.
    unsafe impl aya::Pod for super::Flow {}
}
