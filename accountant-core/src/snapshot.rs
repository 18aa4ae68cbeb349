//! What a source reads of one table at one moment.
//!
//! Invariant: a snapshot is complete for what it claims or it is not made at all. Every endpoint chain of the table is
//! in it; a shared chain is in it when the source read it this time.

use crate::rule::Chain;
use crate::watch::ChainVerdicts;
use crate::{ChainName, Counter, IpVersion, Table};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Which of the agent's sources a number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Source {
    /// Rules of iptables-legacy.
    IptablesLegacy,
    /// Rules in nftables, written by iptables-nft or by Felix itself.
    Nftables,
    /// Verdicts of Calico's eBPF dataplane.
    CalicoBpf,
}

impl Source {
    /// As labels print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IptablesLegacy => "iptables-legacy",
            Self::Nftables => "nftables",
            Self::CalicoBpf => "calico-bpf",
        }
    }
}

/// The table that a snapshot is of. Two backends of one table never share accounts' history, but share accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableId {
    /// Who reads it.
    pub source: Source,
    /// Whether it is Calico's own nftables table (`ip calico`) and not iptables' (`ip filter`).
    pub native: bool,
    /// Its IP version.
    pub ip_version: IpVersion,
    /// Which table.
    pub table: Table,
}

/// The counters of one chain.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The chain as it stood when it was read. The same `Arc` as before when its rules did not change.
    pub chain: Arc<Chain>,
    /// One counter a rule, in order; zero for a rule without a counter.
    pub counters: Vec<Counter>,
}

/// Rules that were deleted or replaced since the last snapshot, with the last values of their counters, as the kernel
/// handed them over.
#[derive(Clone, Debug)]
pub struct Retired {
    /// The chain as it stood before.
    pub chain: Arc<Chain>,
    /// Index in that chain and last value.
    pub finals: Vec<(usize, Counter)>,
    /// Indices of rules that went and whose last values are lost. A rule that says the same may stand there again; its
    /// counter started at zero, whatever it has reached since.
    pub lost: Vec<usize>,
}

/// What the programs in the kernel saw of a table's chains, read before and after its counters.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// Before the first counter was read.
    pub before: Vec<ChainVerdicts>,
    /// After the last one was.
    pub after: Vec<ChainVerdicts>,
}

/// One reading of a table.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Rules that went since the last snapshot, oldest first.
    pub retired: Vec<Retired>,
    /// The chains that were read.
    pub chains: Vec<Reading>,
    /// Chains that are gone since the last snapshot.
    pub gone: Vec<ChainName>,
    /// What tells this version of the rules from others, where something does: nftables' generation, or where iptables-legacy's table
    /// is in the kernel's memory. Another version has another one; that table's can come again when it was replaced twice.
    pub version: Option<u64>,
    /// Whether rules may have been rewritten since the last snapshot without the source having seen each version.
    pub gap: bool,
    /// Whether counters may show a moment in which the kernel has them at zero (iptables-legacy without the lock).
    pub may_dip: bool,
    /// How many packets at most can be between two rules of a chain while its counters are read: none where the kernel
    /// keeps readers out while a packet passes (iptables-legacy), else one a CPU and context.
    pub in_flight: u32,
    /// When it was taken, on any monotonic clock.
    pub at: Duration,
    /// What the programs in the kernel saw, if there are any.
    pub verdicts: Option<Around>,
}
