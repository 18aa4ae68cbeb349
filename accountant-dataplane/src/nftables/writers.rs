//! Who changes Calico's chains: the programs that the kernel names with each commit.
//!
//! Invariant: bounded, whatever programs are called.

use netlink_bindings::nftables::IterableGenAttrs;
use std::collections::BTreeMap;

/// How many programs are told apart between two readings.
const MOST: usize = 16;
const OTHERS: &str = "others";

/// Commits by program, since they were last taken.
#[derive(Debug, Default)]
pub(crate) struct Writers(BTreeMap<String, u64>);

impl Writers {
    /// Notes a commit.
    pub(crate) fn note(&mut self, commit: &IterableGenAttrs<'_>) {
        let name = commit.get_proc_name().ok().and_then(|name| name.to_str().ok()).unwrap_or(OTHERS);
        let known = self.0.len() < MOST || self.0.contains_key(name);
        *self.0.entry(if known { name } else { OTHERS }.into()).or_default() += 1;
    }

    /// Hands them over.
    pub(crate) fn take(&mut self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.0).into_iter().collect()
    }
}
