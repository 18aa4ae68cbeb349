//! What several of the programs have in common: reading kernel memory, and the way to a table of iptables-legacy.
//!
//! Invariant: only reads, and what is gone gives nothing instead of a fault.

#![no_std]

pub mod memory;
pub mod xt_table;
