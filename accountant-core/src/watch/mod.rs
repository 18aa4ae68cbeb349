//! Which rules of an endpoint's chain tell what became of a packet, and what the programs in the kernel say of them.
//!
//! The programs see packet by packet which of the watched rules a packet hit: its *path*, a mask over the list.
//!
//! * [`list()`] says which rules are watched; [`WatchList::decode`] says what a path means.
//!
//! Invariant: all rules of a list have counters; what a path says is proven by the rules that were hit.

mod list;
mod path;

pub use list::list;
pub use path::{Decision, Path};

use crate::rule::Chain;
use crate::{ChainName, Counter};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use thiserror::Error;

/// How many rules can be watched: the bits of a mask.
pub const MAX_RULES: usize = 64;

/// A watched rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatchedRule {
    /// The chain that it is in: the endpoint's own, that of a group, or of a policy.
    pub chain: ChainName,
    /// Its place there.
    pub rule: usize,
}

/// The watched rules of one endpoint chain. Bit `k` of a path is rule `k`.
///
/// A bit says that the rule counted *one* packet while the packet passed; a packet for which any rule counted more went
/// through a shared chain twice, and has no path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchList {
    /// The rules.
    pub rules: Vec<WatchedRule>,
    /// The chains that it was made from, beside the endpoint's own: when one of them changes another list is due.
    pub depends_on: Vec<Arc<Chain>>,
    steps: list::Steps,
    spares_established: bool,
}

impl WatchList {
    /// The rules that only a packet hits which the chain accepts.
    pub fn accepting(&self) -> u64 {
        self.steps.accepting()
    }

    /// The rules that accept a packet which hits no other.
    pub fn accepting_alone(&self) -> u64 {
        self.steps.accepting_alone()
    }

    /// Whether the chain accepts packets of answered connections, whatever they are.
    pub fn spares_established(&self) -> bool {
        self.spares_established
    }
}

/// Why the paths through a chain cannot be told from its rules' counters. The rules' own counters have to do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Unwatchable {
    /// More rules tell than can be watched.
    #[error("{0} rules tell what becomes of a packet, more than the {MAX_RULES} that can be watched")]
    TooMany(usize),
    /// A chain that it calls was not read.
    #[error("the chain {0}, which it calls, is not known")]
    NotKnown(ChainName),
    /// A rule decides and has no counter, or the counter of what it decided is missing.
    #[error("rule {rule} of chain {chain} decides, and no counter tells")]
    Uncounted {
        /// The chain.
        chain: ChainName,
        /// The rule's place in it.
        rule: usize,
    },
    /// None of its rules decides anything.
    #[error("it has no rule that decides")]
    Nothing,
}

/// Whether a packet went on beyond an endpoint's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Went {
    /// It was seen behind the filter rules, or in the chain of the other endpoint.
    On,
    /// It was dropped in this hook, and no other endpoint's chain saw it later.
    Nowhere,
}

impl Went {
    /// Both, in the order in which counters of both are kept.
    pub const BOTH: [Self; 2] = [Self::On, Self::Nowhere];
}

/// What became of a packet from or to an endpoint, whatever its chain counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fate {
    /// It went on beyond the endpoint's chain.
    Accepted,
    /// It was dropped by the endpoint's chain, by that of the other endpoint before this one saw it, or it is not known by
    /// whom.
    Dropped,
    /// It was dropped where the filter rules are, and no endpoint's chain did that: a rule that is not Calico's did, or
    /// Calico's default for packets from workloads to their host.
    Elsewhere,
}

impl Fate {
    /// All, in the order in which counters of all are kept.
    pub const ALL: [Self; 3] = [Self::Accepted, Self::Dropped, Self::Elsewhere];

    /// As labels print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Dropped => "dropped",
            Self::Elsewhere => "dropped_elsewhere",
        }
    }
}

/// What was counted by the paths of one list since it was installed.
#[derive(Clone, Debug)]
pub struct ListCounts {
    /// The list's number; no other list has it. Later ones have greater numbers.
    pub generation: u32,
    /// The rules that the bits of paths mean.
    pub list: Arc<WatchList>,
    /// Packets by path and by whether they went on.
    pub paths: Vec<(u64, Went, Counter)>,
    /// Whether another list was installed since and this one is told for the last time.
    pub closed: bool,
}

/// What the programs saw of one endpoint chain since they were attached. Nothing of it ever falls.
#[derive(Clone, Debug)]
pub struct ChainVerdicts {
    /// The chain.
    pub chain: ChainName,
    /// Who counts: programs that begin anew have another number, for as long as the kernel runs.
    pub counted_by: u32,
    /// Packets of, or related to, answered connections, by [`Fate::ALL`].
    pub established: [Counter; 3],
    /// All others, by [`Fate::ALL`].
    pub new: [Counter; 3],
    /// Those that came to this endpoint from another one of this host, whose chain can have accepted them for good before
    /// this one saw them: part of the first of `established`.
    pub sheltered: Counter,
    /// How many of `new` have no path that is known.
    pub unresolved: u64,
    /// Packets that were neither seen again nor dropped: queued, or taken by somebody.
    pub vanished: u64,
    /// The paths of the present list, and of those before it that were not told as closed yet.
    pub lists: Vec<ListCounts>,
}
