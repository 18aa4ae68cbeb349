//! What is in the packet filter beside counts: chains and rules of each table, Calico's and others', and how full Calico's IP
//! sets are. Felix tells the like only where its metrics are switched on, and only of itself.
//!
//! A census costs as much as listing all rules, so it is taken rarely, by a thread of its own. It asks only what is loaded:
//! asking for more would have the kernel load modules.

pub mod ipset;
mod legacy;
mod nftables;

use crate::SourceError;
use accountant_core::IpVersion;
use accountant_core::snapshot::Source;
use std::collections::BTreeMap;

/// What Calico's chains begin with.
pub(crate) const CALICO: &str = "cali-";

/// Chains and rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Chains, built-in ones included.
    pub chains: u64,
    /// Rules in them.
    pub rules: u64,
}

/// A table by backend, IP version and name.
pub type TableName = (Source, IpVersion, String);

/// What is in a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Calico's chains.
    pub calico: Extent,
    /// All others.
    pub others: Extent,
}

impl Table {
    pub(crate) fn of(&mut self, is_calico: bool) -> &mut Extent {
        if is_calico { &mut self.calico } else { &mut self.others }
    }
}

/// An IP set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// The addresses in it.
    pub ip_version: IpVersion,
    /// Members.
    pub entries: u32,
    /// How many there can be; then its writer is told `Hash is full, cannot add more elements`.
    pub most: u32,
}

/// What was found. A part that could not be looked at is empty, and its error is told.
#[derive(Debug, Default)]
pub struct Census {
    /// Tables.
    pub tables: BTreeMap<TableName, Table>,
    /// Calico's IP sets.
    pub sets: Vec<Set>,
    /// What could not be looked at.
    pub errors: Vec<(&'static str, SourceError)>,
}

/// Takes a census of the calling thread's network namespace.
pub fn take() -> Census {
    let mut census = Census::default();
    for (what, counted) in [("iptables-legacy", legacy::count()), ("nftables", nftables::count())] {
        match counted {
            Ok(tables) => census.tables.extend(tables),
            Err(error) => census.errors.push((what, error)),
        }
    }
    match ipset::list() {
        Ok(sets) => census.sets = sets,
        Err(error) => census.errors.push(("ip sets", error)),
    }
    census
}
