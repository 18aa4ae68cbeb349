//! The agent, as far as it is core: it takes snapshots and keeps the book of what it charged.

use crate::kernel::Backend;
use crate::source::Source;
use crate::truth::{Book, Truth, add, text};
use accountant_core::attribute::{Attribution, Attributor};
use accountant_core::index::Index;
use accountant_core::ledger::{Key, Ledger};
use accountant_core::snapshot::{Snapshot, Source as SourceName, TableId};
use accountant_core::{Counter, IpVersion, Table};

/// One run of it.
pub(crate) struct Agent {
    attributor: Attributor,
    index: Index,
    ledger: Ledger,
    pub(crate) charged: Book,
    /// What was charged and what had happened when it first had settled everything.
    pub(crate) baseline: Option<(Book, Truth)>,
}

impl Agent {
    pub(crate) fn new(backend: Backend) -> Self {
        let (source, native) = match backend {
            Backend::Legacy => (SourceName::IptablesLegacy, false),
            Backend::NftWhole => (SourceName::Nftables, false),
            Backend::Native => (SourceName::Nftables, true),
        };
        let id = TableId { source, native, ip_version: IpVersion::V4, table: Table::Filter };
        Self {
            attributor: Attributor::new(id),
            index: Index::default(),
            ledger: Ledger::default(),
            charged: Book::new(),
            baseline: None,
        }
    }

    pub(crate) fn take(&mut self, snapshot: &Snapshot, source: &mut Source) -> Attribution {
        let attribution = self.attributor.apply(snapshot, &self.index);
        source.wanted.clone_from(&attribution.wanted);
        for posting in &attribution.postings {
            add(&mut self.charged, posting.key.clone(), posting.amount);
            self.ledger.post(posting.clone());
        }
        for (old, new) in self.attributor.rename(&self.index) {
            let balance = self.charged.remove(&old).unwrap_or_default();
            add(&mut self.charged, new.clone(), balance);
            self.ledger.rename(&old, new);
        }
        attribution
    }

    /// It was away, and goes on with what it kept.
    pub(crate) fn comes_back(&mut self) {
        let kept = postcard::to_allocvec(&(&self.attributor, &self.ledger)).unwrap();
        (self.attributor, self.ledger) = postcard::from_bytes(&kept).unwrap();
    }

    pub(crate) fn accounts(&self) -> Vec<Key> {
        self.attributor.accounts()
    }

    /// The ledger has what was posted.
    pub(crate) fn check_ledger(&self) -> Result<(), String> {
        let wrong = |key: &&Key| self.ledger.balance(key) != self.charged.get(*key).copied();
        match self.ledger.accounts().map(|(_, key)| key).find(wrong) {
            Some(key) => Err(format!("the ledger has {} at {:?}", text(key), self.ledger.balance(key))),
            None => Ok(()),
        }
    }
}

/// A reading in words: what was read, what was posted.
pub(crate) fn told(snapshot: &Snapshot, attribution: &Attribution) -> String {
    let mut lines = String::from("read");
    let retired =
        snapshot.retired.iter().map(|r| (" last of", &r.chain, r.finals.iter().map(|f| f.1).collect()));
    let read = snapshot.chains.iter().map(|r| ("", &r.chain, r.counters.clone()));
    for (what, chain, counters) in retired.chain(read) {
        let packets: Vec<_> = counters.iter().map(|counter: &Counter| counter.packets).collect();
        if packets.iter().any(|&packets| packets > 0) {
            lines += &format!("\n   {what} {}: {packets:?}", chain.name);
        }
    }
    for posting in attribution.postings.iter().filter(|posting| !posting.amount.is_zero()) {
        let Counter { packets, bytes } = posting.amount;
        lines += &format!("\n    -> {}: {packets}/{bytes}", text(&posting.key));
    }
    lines + if attribution.unsettled { "\n    unsettled" } else { "" }
}
