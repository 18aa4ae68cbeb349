//! What all sources of rule counters have in common.

use crate::in_place::CannotHere;
use crate::kernel::{Flows, InterfaceCounts};
use accountant_core::ChainName;
use accountant_core::calico::bpf::{Own, Reading};
use accountant_core::snapshot::{Snapshot, Source, TableId};
use nix::unistd::{SysconfVar, sysconf};
use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Shared chains that a reading has to contain, by table.
pub type Wanted = HashSet<(TableId, ChainName)>;

/// A source of rule counters. It lives on a thread of its own, in the network namespace that it reads.
pub trait RuleSource: Send {
    /// Which source it is.
    fn source(&self) -> Source;

    /// Reads all tables that apply.
    fn read(&mut self, wanted: &Wanted) -> Result<Poll, SourceError>;

    /// Becomes readable when something happened that the source wants to look at at once.
    fn events(&self) -> Option<BorrowedFd<'_>>;

    /// Looks at what happened; may take a reading of its own.
    fn on_events(&mut self) -> Result<Option<Poll>, SourceError>;
}

/// What a source read.
#[derive(Debug, Default)]
pub struct Poll {
    /// The tables that were read.
    pub tables: Vec<TablePoll>,
    /// Verdicts of Calico's eBPF dataplane, by IP version.
    pub verdicts: Vec<(TableId, Reading)>,
    /// What Calico's eBPF dataplane counts itself, oldest first, each read before the verdicts.
    pub totals: Vec<Own>,
    /// Of how many rules it counts hits.
    pub rules: Option<usize>,
    /// Tables that no longer apply.
    pub gone: Vec<TableId>,
    /// What the reading cost.
    pub took: Duration,
    /// Things worth counting that happened since the last one.
    pub notes: Vec<Note>,
    /// The same, where many happen at once.
    pub happened: Vec<(Note, u64)>,
    /// How many packets Calico's own counters have more (or less) than ours, where there are two.
    pub difference: Option<i64>,
    /// Whether chains of endpoints came to a table that had none, or went: other sources may have them now, or have had them.
    pub moved: bool,
    /// How it was read.
    pub how: How,
    /// How often which program changed Calico's chains since the last one, where the kernel tells.
    pub writers: Vec<(String, u64)>,
    /// Flows, if there are programs in the kernel that see them.
    pub flows: Flows,
    /// What was counted at endpoints' interfaces, where that is done.
    pub interfaces: Option<InterfaceCounts>,
}

/// How counters are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// As everybody reads them, and why not in place.
    Whole(CannotHere),
    /// In place. Rewrites of the rules lose nothing, or here is why they can.
    InPlace(Option<CannotHere>),
    /// By programs beside Calico's, as it says; or here is why nothing is read.
    Beside(Result<Box<str>, Box<str>>),
    /// From Calico's counters alone: policies without workloads, and workloads without policies; and why.
    Totals(Box<str>),
}

impl How {
    /// Whether counters are read in place.
    pub fn is_in_place(&self) -> bool {
        matches!(self, Self::InPlace(_) | Self::Beside(Ok(_)))
    }

    /// Whether a source that is read so sees the last counters of rules that are rewritten. What nf_tables tells of its own
    /// accord lacks what is on its way at that moment.
    pub fn keeps_counts_over_rewrites(&self) -> bool {
        matches!(self, Self::InPlace(None) | Self::Beside(Ok(_)))
    }

    /// Why nothing is read, where the way of reading says so.
    pub fn why_absent(&self) -> Option<&str> {
        match self {
            Self::Beside(Err(reason)) => Some(reason),
            _ => None,
        }
    }

    /// Whether only totals are counted, which lack a part of their name.
    pub fn is_totals_only(&self) -> bool {
        matches!(self, Self::Totals(_))
    }

    /// In words, with the reasons for what cannot be.
    pub fn describe(&self, source: Source) -> String {
        let whole = match source {
            Source::IptablesLegacy => "as whole tables",
            Source::Nftables => "over netlink",
            Source::CalicoBpf => "from Calico's maps alone",
        };
        match self {
            Self::Whole(reason) => format!("counters are read {whole}, not in place: {reason}"),
            Self::Beside(Ok(text) | Err(text)) => text.to_string(),
            Self::Totals(reason) => format!(
                "totals only, from Calico's own counters: policies without workloads, workloads without policies: {reason}"
            ),
            Self::InPlace(None) => "counters are read in place; rewrites lose nothing".into(),
            Self::InPlace(Some(reason)) => {
                format!("counters are read in place; rewrites can lose a little: {reason}")
            }
        }
    }
}

impl Default for How {
    fn default() -> Self {
        Self::Whole(CannotHere::NotYet)
    }
}

/// One table as it was read.
#[derive(Debug)]
pub struct TablePoll {
    /// Which table.
    pub id: TableId,
    /// Its counters, or why they could not be read.
    pub snapshot: Result<Snapshot, SourceError>,
}

/// Something that happened to a source, as a value for a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Note {
    /// The xtables lock was not had in time; the table was read without.
    Unlocked,
    /// Rules were rewritten before the last look at them.
    MissedRewrite,
    /// The kernel dropped notifications of rule changes.
    LostNotifications,
    /// A dump was interrupted by a rule change and taken again.
    Interrupted,
    /// All rules were read anew, because notifications were lost or did not explain what was read.
    ReadAnew,
    /// A verdict found no room in the map that counts it.
    NoRoom,
    /// A verdict was overwritten by XDP before it was read.
    Overwritten,
    /// A program of ours found no verdict where it should be behind Calico's.
    Misplaced,
    /// A packet passed that Calico did not look at.
    Stale,
    /// A packet was dropped beside Calico's programs, by somebody else.
    ForeignDrop,
    /// Rules were deleted, and what their counters had last was not seen.
    Unconfirmed,
}

impl Note {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Unlocked,
        Self::MissedRewrite,
        Self::LostNotifications,
        Self::Interrupted,
        Self::ReadAnew,
        Self::NoRoom,
        Self::Overwritten,
        Self::Misplaced,
        Self::Stale,
        Self::ForeignDrop,
        Self::Unconfirmed,
    ];

    /// As labels print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unlocked => "unlocked",
            Self::MissedRewrite => "missed_rewrite",
            Self::LostNotifications => "lost_notifications",
            Self::Interrupted => "interrupted_dump",
            Self::ReadAnew => "read_anew",
            Self::NoRoom => "verdicts_full",
            Self::Overwritten => "verdict_overwritten",
            Self::Misplaced => "program_misplaced",
            Self::Stale => "verdict_of_another",
            Self::ForeignDrop => "foreign_drop",
            Self::Unconfirmed => "unconfirmed_last_values",
        }
    }
}

/// Why a source could not be read: what was tried, on what, and what to do.
#[derive(Debug, Error)]
pub enum SourceError {
    /// A system call failed.
    #[error("{operation} {object} failed: {error}{}", hint(error))]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// What the kernel handed out could not be understood.
    #[error("cannot understand {object}: {reason}; please report this with the kernel's version")]
    Decode {
        /// What it was.
        object: String,
        /// Why not.
        reason: String,
    },
    /// What the source needs cannot be had here.
    #[error("{0}")]
    Refused(String),
    /// Rules changed again and again while they were read.
    #[error("{object} changed {tries} times while it was read; the next poll tries again")]
    Unstable {
        /// What it was.
        object: String,
        /// How often it was tried.
        tries: u32,
    },
}

impl SourceError {
    pub(crate) fn io(
        operation: &'static str,
        object: impl Into<String>,
        error: impl Into<std::io::Error>,
    ) -> Self {
        Self::Io { operation, object: object.into(), error: error.into() }
    }

    pub(crate) fn decode(object: impl Into<String>, reason: impl ToString) -> Self {
        Self::Decode { object: object.into(), reason: reason.to_string() }
    }

    /// A word for the kind of failure, for metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied => "permission",
            Self::Io { .. } => "io",
            Self::Decode { .. } => "decode",
            Self::Refused(_) => "refused",
            Self::Unstable { .. } => "unstable",
        }
    }
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            " (give the agent CAP_NET_ADMIN in the node's network namespace)"
        }
        _ => "",
    }
}

/// Time since the process first asked, for snapshots.
pub(crate) fn now() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// How many packets can be between two rules while counters are read that nobody is kept out of: on each processor a packet
/// of a process and one of an interrupt can be on their way through a chain.
pub(crate) fn in_flight() -> u32 {
    const CONTEXTS: u32 = 2;
    // Whoever cannot tell the number of processors has few.
    let processors = sysconf(SysconfVar::_NPROCESSORS_CONF).ok().flatten().unwrap_or(1);
    u32::try_from(processors).unwrap_or(1).saturating_mul(CONTEXTS)
}
