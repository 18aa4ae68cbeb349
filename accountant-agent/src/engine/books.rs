//! The books: index, ledger and an attributor for each table that is read.
//!
//! Two backends can hold Calico's chains at once, while Felix changes from one to the other or where it left the old ones
//! behind. Their rules count the same packets, so only one of them posts ([`Books::posting`]); the other is followed, so
//! that nothing is counted twice when it takes over.

use accountant_core::attribute::Attributor;
use accountant_core::index::Index;
use accountant_core::ledger::{AccountKey, Cause, Key, Ledger, Posting, What};
use accountant_core::snapshot::{Snapshot, Source, TableId};
use accountant_core::view::{View, Viewer};
use accountant_core::{IpVersion, Table};
use accountant_dataplane::{Poll, Wanted};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

/// How many ticks the posting backend must stand still while another moves before the other takes over.
const STANDS_STILL: u64 = 3;
/// How many empty snapshots settle whatever a table that is gone left open.
const CLOSING: usize = 8;
/// How often it is looked which accounts are still in use.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// What polls told beside counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Another reading right now would tell more.
    pub(super) unsettled: bool,
    /// Counters that were reset.
    pub(super) resets: u64,
}

/// Everything that is counted.
#[derive(Default)]
pub(super) struct Books {
    pub(super) index: Index,
    ledger: Ledger,
    viewer: Viewer,
    tables: BTreeMap<TableId, Book>,
    posting: BTreeMap<(IpVersion, Table), TableId>,
    wanted: Wanted,
    tick: u64,
    looked_after: Option<Duration>,
    grace: Duration,
    /// Packets by source and by how exactly they were charged.
    exactness: BTreeMap<(Source, &'static str), u64>,
}

/// The book of one table.
struct Book {
    attributor: Attributor,
    /// Postings since the last tick ended.
    held: Vec<Posting>,
    /// The tick in which something was last counted.
    moved: u64,
}

impl Books {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, ..Self::default() }
    }

    /// Takes what a source read.
    pub(super) fn take(&mut self, poll: &Poll) -> Told {
        let mut told = Told::default();
        for table in &poll.tables {
            let Ok(snapshot) = &table.snapshot else { continue };
            let book = self.tables.entry(table.id).or_insert_with(|| Book::new(table.id));
            let attribution = book.apply(snapshot, &self.index, self.tick);
            told.unsettled |= attribution.unsettled;
            told.resets += attribution.resets;
            self.wanted.extend(attribution.wanted.into_iter().map(|chain| (table.id, chain)));
        }
        for id in &poll.gone {
            if let Some(mut book) = self.tables.remove(id) {
                for _ in 0..CLOSING {
                    book.apply(&Snapshot::default(), &self.index, self.tick);
                }
                self.post(*id, book.held);
            }
        }
        told
    }

    /// The shared chains that the next reading of a source should contain.
    pub(super) fn take_wanted(&mut self, source: Source) -> Wanted {
        self.wanted.extract_if(|(id, _)| id.source == source).collect()
    }

    /// Ends a tick: posts what was read.
    pub(super) fn end_tick(&mut self, now: Duration) {
        self.choose_posting();
        let held: Vec<_> =
            self.tables.iter_mut().map(|(id, book)| (*id, std::mem::take(&mut book.held))).collect();
        for (id, postings) in held {
            self.post(id, postings);
        }
        self.rename();
        if self.looked_after.is_none_or(|last| now.saturating_sub(last) >= LOOK_AFTER) {
            self.looked_after = Some(now);
            self.open_and_retire(now);
        }
        self.tick += 1;
    }

    fn post(&mut self, id: TableId, postings: Vec<Posting>) {
        if self.posting.get(&place(id)) == Some(&id) {
            for posting in postings {
                let exactness = self.exactness.entry((id.source, exactness(&posting.key))).or_default();
                *exactness = exactness.saturating_add(posting.amount.packets);
                self.ledger.post(posting);
            }
        }
    }

    /// Packets of a source by how exactly they were charged.
    pub(super) fn exactness(&self, source: Source) -> BTreeMap<&'static str, u64> {
        let of_source = self.exactness.iter().filter(|((s, _), _)| *s == source);
        of_source.map(|((_, result), packets)| (*result, *packets)).collect()
    }

    /// Chooses, for each table, the backend that posts.
    fn choose_posting(&mut self) {
        let mut places: BTreeMap<_, Vec<TableId>> = BTreeMap::new();
        for (id, book) in &self.tables {
            if book.attributor.endpoints().next().is_some() {
                places.entry(place(*id)).or_default().push(*id);
            }
        }
        for (place, ids) in places {
            let present = self.posting.get(&place).copied().filter(|id| ids.contains(id));
            let chosen = match present {
                None => self.most_alive(&ids),
                Some(present) => {
                    ids.iter().copied().find(|&id| self.overtakes(id, present)).unwrap_or(present)
                }
            };
            if self.posting.insert(place, chosen) != Some(chosen) && ids.len() > 1 {
                tracing::warn!(
                    ?place,
                    ?chosen,
                    "several backends hold Calico's chains: counting one of them"
                );
            }
        }
    }

    /// The backend with the most chains of endpoints; among equals the one that counted more.
    fn most_alive(&self, ids: &[TableId]) -> TableId {
        let weight = |id: &TableId| {
            self.tables.get(id).map(|book| {
                let counted: u64 = book.held.iter().map(|posting| posting.amount.packets).sum();
                (book.attributor.endpoints().count(), counted)
            })
        };
        ids.iter().copied().max_by_key(weight).unwrap_or(ids[0])
    }

    fn overtakes(&self, id: TableId, present: TableId) -> bool {
        let moved = |id| self.tables.get(&id).map_or(0, |book| book.moved);
        moved(id) >= moved(present) + STANDS_STILL
    }

    /// Gives accounts the names that are known by now; also those that postings are held for.
    pub(super) fn rename(&mut self) {
        let renamed = self.tables.values_mut().flat_map(|book| book.attributor.rename(&self.index));
        let renamed: HashMap<Key, Key> = renamed.collect();
        if renamed.is_empty() {
            return;
        }
        for posting in self.tables.values_mut().flat_map(|book| &mut book.held) {
            if let Some(new) = renamed.get(&posting.key) {
                posting.key = new.clone();
            }
        }
        for (old, new) in renamed {
            self.ledger.rename(&old, new);
        }
    }

    /// Opens the accounts that the present rules can post to, so that they are there at zero, and retires those that
    /// nothing posts to any more.
    fn open_and_retire(&mut self, now: Duration) {
        let mut in_use: HashSet<Key> = HashSet::new();
        for id in self.posting.values() {
            if let Some(book) = self.tables.get(id) {
                in_use.extend(book.attributor.accounts());
                in_use.extend(Cause::ALL.map(|cause| Key::Unattributed(id.source, cause)));
            }
        }
        for key in &in_use {
            self.ledger.open(key.clone());
        }
        self.ledger.keep(&in_use, now, self.grace);
    }

    /// The accounts as they stand.
    pub(super) fn view(&mut self) -> View {
        self.viewer.view(&self.ledger, &self.index)
    }

    /// The tables with chains of endpoints, how many endpoints they have, and whether they post.
    pub(super) fn tables(&self, source: Source) -> Vec<(TableId, usize, bool)> {
        let of_source = self.tables.iter().filter(|(id, _)| id.source == source);
        let with_endpoints = of_source.filter_map(|(id, book)| {
            let endpoints: BTreeSet<_> = book.attributor.endpoints().collect();
            let posts = self.posting.get(&place(*id)) == Some(id);
            (!endpoints.is_empty()).then_some((*id, endpoints.len(), posts))
        });
        with_endpoints.collect()
    }
}

impl Book {
    fn new(id: TableId) -> Self {
        Self { attributor: Attributor::new(id), held: Vec::new(), moved: 0 }
    }

    fn apply(
        &mut self,
        snapshot: &Snapshot,
        index: &Index,
        tick: u64,
    ) -> accountant_core::attribute::Attribution {
        let mut attribution = self.attributor.apply(snapshot, index);
        self.held.append(&mut attribution.postings);
        if !self.held.is_empty() {
            self.moved = tick;
        }
        attribution
    }
}

fn exactness(key: &Key) -> &'static str {
    match key {
        Key::Account(AccountKey { what: What::Group { .. }, .. }) => "group",
        Key::Unattributed(_, Cause::Undetermined) => "undetermined",
        Key::Unattributed(..) => "unattributed",
        Key::Account(_) => "exact",
    }
}

fn place(id: TableId) -> (IpVersion, Table) {
    (id.ip_version, id.table)
}
