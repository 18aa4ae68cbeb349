//! System calls that no safe library offers.
//!
//! The one place for `unsafe` in user space. Each module is one kernel interface, small enough to be read beside the
//! kernel header that it cites; bytes are handed out raw and are decoded, bounds checked, in `accountant-dataplane`.

pub mod bpf;
pub mod mapping;
pub mod memory;
pub mod netns;
pub mod program;
pub mod scratch;
pub mod xtables;
