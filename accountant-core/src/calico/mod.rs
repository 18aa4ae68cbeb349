//! What Calico writes, and how to read it: names, comments, marks and the dialects of its chains.
//!
//! One file per kind of thing. Everything here is about one chain at a time; how the counters of several chains are
//! put together is in [`crate::attribute`].

pub mod bpf;
pub mod chain;
pub mod comment;
pub mod endpoint;
pub mod names;
pub mod policy;
pub mod selector;
pub mod shared;

pub use chain::ChainKind;
pub use policy::{PolicyId, PolicyKind};
