//! The least that a reading costs: the system calls that bring the counters, and not a look at what they bring.

mod legacy;
mod nftables;

use crate::rules::LoadedRules;
use accountant_lab::felix::Backend;
use anyhow::Result;

/// A reader that throws away what it reads.
pub(crate) trait BareReader {
    /// Reads all counters once, and says how many bytes came.
    fn read(&mut self) -> Result<usize>;
}

/// The reader for these rules, in the calling thread's network namespace.
pub(crate) fn reader(rules: &LoadedRules) -> Result<Box<dyn BareReader>> {
    Ok(match rules.backend() {
        Backend::Legacy => Box::new(legacy::Tables::open()?),
        _ => Box::new(nftables::Dumps::open(&rules.endpoint_chains()?)?),
    })
}
