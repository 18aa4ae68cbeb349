//! The book of one table: who says what its numbers mean, and what was said and is not posted yet.

use accountant_core::attribute::{Attribution, Attributor};
use accountant_core::calico::bpf::{Accountant, Reading};
use accountant_core::id::Endpoint;
use accountant_core::index::Index;
use accountant_core::ledger::{Key, Posting};
use accountant_core::snapshot::{Snapshot, Source, TableId};

/// How many empty snapshots settle whatever a table that is gone left open.
const CLOSING: usize = 8;

/// Who says what the numbers of a table mean.
pub(super) enum Charger {
    /// Of rules and their counters.
    Rules(Box<Attributor>),
    /// Of verdicts.
    Verdicts(Box<Accountant>),
}

/// The book of one table.
pub(super) struct Book {
    pub(super) by: Charger,
    /// Postings since the last tick ended.
    pub(super) held: Vec<Posting>,
    /// Whether another reading would tell more of what was counted already.
    pub(super) unsettled: bool,
}

impl Book {
    pub(super) fn new(id: TableId) -> Self {
        let by = match id.source {
            Source::CalicoBpf => Charger::Verdicts(Box::new(Accountant::new(id))),
            Source::IptablesLegacy | Source::Nftables => Charger::Rules(Box::new(Attributor::new(id))),
        };
        Self { by, held: Vec::new(), unsettled: false }
    }

    pub(super) fn endpoints(&self) -> Box<dyn Iterator<Item = &Endpoint> + '_> {
        match &self.by {
            Charger::Rules(attributor) => Box::new(attributor.endpoints()),
            Charger::Verdicts(accountant) => Box::new(accountant.endpoints()),
        }
    }

    pub(super) fn has_endpoints(&self) -> bool {
        self.endpoints().next().is_some()
    }

    /// Whether it has chains of endpoints, or had them until now.
    pub(super) fn is_in_use(&self) -> bool {
        self.has_endpoints() || !self.held.is_empty()
    }

    /// Whether packets that it counted up to now can still be charged later.
    pub(super) fn is_behind(&self) -> bool {
        self.unsettled || matches!(&self.by, Charger::Rules(attributor) if !attributor.is_level())
    }

    pub(super) fn accounts(&self) -> Vec<Key> {
        match &self.by {
            Charger::Rules(attributor) => attributor.accounts(),
            Charger::Verdicts(accountant) => accountant.accounts(),
        }
    }

    /// Changes whenever its accounts may be others than before.
    pub(super) fn accounts_version(&self) -> u64 {
        match &self.by {
            Charger::Rules(attributor) => attributor.accounts_version(),
            Charger::Verdicts(accountant) => accountant.accounts_version(),
        }
    }

    pub(super) fn rename(&mut self, index: &Index) -> Vec<(Key, Key)> {
        match &mut self.by {
            Charger::Rules(attributor) => attributor.rename(index),
            // The numbers of rules say all, or nothing was charged to a name.
            Charger::Verdicts(_) => Vec::new(),
        }
    }

    pub(super) fn apply(&mut self, snapshot: &Snapshot, index: &Index) -> Attribution {
        let Charger::Rules(attributor) = &mut self.by else { return Attribution::default() };
        let mut attribution = attributor.apply(snapshot, index);
        self.held.append(&mut attribution.postings);
        self.unsettled = attribution.unsettled;
        attribution
    }

    /// Takes verdicts; says whether another reading would tell more.
    pub(super) fn charge(&mut self, reading: &Reading, index: &Index) -> bool {
        let Charger::Verdicts(accountant) = &mut self.by else { return false };
        let mut charged = accountant.apply(reading, index);
        self.held.append(&mut charged.postings);
        self.unsettled = charged.unsettled;
        charged.unsettled
    }

    /// Settles what was left open: there is nothing more to come.
    pub(super) fn close(&mut self, index: &Index) {
        match &mut self.by {
            Charger::Rules(_) => {
                for _ in 0..CLOSING {
                    self.apply(&Snapshot::default(), index);
                }
            }
            Charger::Verdicts(accountant) => self.held.extend(accountant.close()),
        }
    }
}
