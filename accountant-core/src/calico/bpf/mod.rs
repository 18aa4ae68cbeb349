//! Calico's eBPF dataplane: what its programs leave behind, and what that means.
//!
//! * [`layout`]: where things are in the state of a packet and in the counters of an interface, by the sizes of the maps;
//! * [`rule_id`]: the numbers that stand for rules, and the formulas that make them;
//! * [`program`]: what the comments that Felix writes beside a policy program say of these numbers;
//! * [`verdict`]: what was decided about a packet, and by whom;
//! * [`accountant`]: from counted verdicts to postings;
//! * [`totals`]: what Calico's own counters have beside those verdicts, for policies without workloads and workloads without
//!   policies.
//!
//! Nothing is decided by Calico's version: it is sizes and texts that tell.

pub mod accountant;
pub mod layout;
mod names;
pub mod program;
pub mod rule_id;
pub mod totals;
pub mod verdict;

pub use accountant::{Accountant, Reading};
pub use layout::{CounterLayout, StateLayout};
pub use program::{PolicyProgram, Step};
pub use rule_id::{Decision, Meaning, RuleId};
pub use totals::{Own, Totals};
pub use verdict::{Outcome, PacketState, Path, Verdict};
