//! The brain of the packet accountant, and nothing but the brain.
//!
//! In go snapshots of rule counters (from `accountant-dataplane`) and updates of names (from
//! `accountant-datastore`); out come balances per endpoint, policy and verdict that never fall.
//!
//! ```text
//! Snapshot --reconcile--> deltas --attribute(index)--> postings --> Ledger --> View
//! ```
//!
//! Invariants:
//! * no I/O, no clock, no randomness: time and bytes are arguments;
//! * balances sum to deltas, and no balance falls;
//! * what has no name or does not fit goes to an explicit unattributed account with its cause.

#![forbid(unsafe_code)]

pub mod attribute;
pub mod calico;
pub mod counter;
pub mod id;
pub mod index;
pub mod ledger;
pub mod reconcile;
pub mod rule;
pub mod snapshot;
pub mod view;
pub mod watch;

pub use counter::Counter;
pub use id::{ChainName, Direction, Interface, IpVersion, Table};
