//! A watch list with addresses: what the sources hand over, and how the programs want it.

use accountant_abi::verdict::{MAX_PROOFS, MAX_RULES, Proof, Rule, WatchList};
use accountant_core::ChainName;
use accountant_core::watch;
use std::sync::Arc;

/// An endpoint's chain that is to be watched.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    /// The chain.
    pub(crate) chain: ChainName,
    /// What to watch. None if there is more than can be.
    pub(crate) list: Option<Arc<watch::WatchList>>,
    /// Where that is. None if it is not known at this moment.
    pub(crate) places: Option<Places>,
}

/// Where the watched rules are, and what shows that they still are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// How far the number of packets is behind a counter's pointer.
    pub(crate) packets_at: u32,
    /// Address of nf_tables' generation bit: the eight bytes that it is in, and how far from the lowest it is.
    pub(crate) cursor: Option<(u64, u32)>,
    /// What has to be where in the tables or chains.
    pub(crate) proofs: Vec<Proof>,
    /// The rules, in the order of the list.
    pub(crate) rules: Vec<Rule>,
}

impl Places {
    /// Whether the programs have room for it, and all is there.
    pub(super) fn fits(&self, list: &watch::WatchList) -> bool {
        let rules = (1..=MAX_RULES).contains(&self.rules.len()) && self.rules.len() == list.rules.len();
        rules && (1..=MAX_PROOFS).contains(&self.proofs.len())
    }

    /// The list as the programs want it. It has to fit.
    pub(super) fn record(&self, list: &watch::WatchList, generation: u32, slot: u32) -> WatchList {
        let mut record = WatchList {
            generation,
            slot,
            length: self.rules.len() as u32,
            proofs: self.proofs.len() as u32,
            packets_at: self.packets_at,
            cursor_shift: self.cursor.map_or(0, |(_, shift)| shift),
            cursor: self.cursor.map_or(0, |(address, _)| address),
            accepting: list.accepting(),
            accepting_alone: list.accepting_alone(),
            spares_established: u64::from(list.spares_established()),
            proof: [Proof::default(); MAX_PROOFS],
            rule: [Rule::default(); MAX_RULES],
        };
        for (to, from) in record.proof.iter_mut().zip(&self.proofs) {
            *to = *from;
        }
        for (to, from) in record.rule.iter_mut().zip(&self.rules) {
            *to = *from;
        }
        record
    }
}
