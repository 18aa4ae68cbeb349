//! Where numbers come from: the rule counters of the packet filter, and what BIRD says, without any external command.
//!
//! One folder a source, each of the same shape: facts about the host and the decision whether the source applies (pure),
//! decoding of what the kernel hands out (pure), and the I/O. A source hands over whole snapshots or errors.
//!
//! Invariants: decoders are total; a source only observes; one table that cannot be read never stops the others.

#![forbid(unsafe_code)]

pub mod bird;
mod bytes;
pub mod calico_bpf;
pub mod census;
pub mod clsact;
pub mod in_place;
pub mod iptables_legacy;
pub mod kernel;
pub mod nftables;
pub mod source;
mod xtables;

pub use accountant_sys::memory::give_back as give_back_memory;
pub use source::{Poll, RuleSource, SourceError, TablePoll, Wanted};
