//! What the program that watches rewrites of iptables-legacy tells the agent, through a ring buffer.
//!
//! First the counters in pieces, and the rules themselves if they are few, then one [`Head`] that ends them. Records are
//! told apart by their size; those of several writers can be mixed, and are told apart by `writer`.

use crate::in_place::Sum;

/// How many counters a piece holds.
pub const PIECE: u32 = 255;
/// How many bytes of rules a piece holds.
pub const RULES_PIECE: u32 = 4064;

/// `SET_REPLACE`: the table was replaced; the counters are the last ones of the old rules, in their order.
pub const REPLACED: u32 = 1;
/// `SET_ADD_COUNTERS`: the counters were added to those of the rules, in their order.
pub const ADDED: u32 = 2;
/// A 32-bit program did either; its counters are not looked at.
pub const COMPAT: u32 = 3;

/// What happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Thread and process of the writer.
    pub writer: u64,
    /// The table's name, zeros behind it.
    pub name: u64,
    /// Address of the table's `private` now.
    pub private: u64,
    /// Number of the table's rules now.
    pub number: u32,
    /// `REPLACED`, `ADDED` or `COMPAT`.
    pub kind: u32,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub family: u32,
    /// How many counters the writer was given, or gave.
    pub count: u32,
    /// How many of them could not be told.
    pub failed: u32,
    /// Bytes of the new table's rules, where `REPLACED`.
    pub size: u32,
}

const _: () = assert!(size_of::<Head>() == 48);

/// Some of the counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Whose.
    pub writer: u64,
    /// Index of the first.
    pub first: u32,
    /// How many of the room below are used.
    pub count: u32,
    /// The counters: packets, bytes.
    pub counters: [Sum; PIECE as usize],
}

const _: () = assert!(size_of::<Piece>() == 4096);

/// Some of the new table's rules, as the writer handed them to the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RulesPiece {
    /// Whose.
    pub writer: u64,
    /// Where the first of the bytes is among all.
    pub first: u32,
    /// How many of the room below are used.
    pub count: u32,
    /// `struct ipt_entry` or `struct ip6t_entry`, one behind the other.
    pub bytes: [u8; RULES_PIECE as usize],
}

const _: () = assert!(size_of::<RulesPiece>() == 4080);
