//! The books: index, ledger and an attributor for each table that is read.
//!
//! Several backends can hold Calico's chains of a table at once. Their rules count the same packets, so only one of them
//! posts ([`Books::posting`]) and the others are followed ([`Overlap`]).

use accountant_core::attribute::Compared;
use accountant_core::calico::bpf::Totals;
use accountant_core::index::Index;
use accountant_core::ledger::{Cause, Key, Ledger, Posting, What};
use accountant_core::snapshot::{Source, TableId};
use accountant_core::view::{View, Viewer};
use accountant_core::{IpVersion, Table};
use accountant_dataplane::source::How;
use accountant_dataplane::{Poll, Wanted};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::book::Book;
use super::denied::{LastFlows, Lost};
use super::overlap::{self, Overlap};
use super::seen::Seen;

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
    pub(super) ledger: Ledger,
    viewer: Viewer,
    pub(super) tables: BTreeMap<TableId, Book>,
    /// Tables of an earlier agent that were not read yet.
    pub(super) absent: BTreeSet<TableId>,
    pub(super) posting: BTreeMap<Place, TableId>,
    /// Tables that several backends have.
    pub(super) overlaps: BTreeMap<Place, Overlap>,
    /// When each table was last read.
    read: BTreeMap<TableId, Range<Instant>>,
    /// What Calico's eBPF dataplane counts itself, what was said of it since the last tick ended, and whether it is there.
    totals: Totals,
    totals_held: Vec<Posting>,
    has_totals: bool,
    /// What was counted last in tables that are gone.
    departed: Vec<(TableId, Vec<Posting>)>,
    /// Which of several backends was last said to be counted.
    said: BTreeMap<Place, Option<TableId>>,
    wanted: Wanted,
    /// What the programs in the kernel saw.
    pub(super) seen: Seen,
    /// Flows that were dropped lately.
    pub(super) denied: LastFlows,
    /// The same of those that were accepted, where they are wanted.
    pub(super) accepted: LastFlows,
    pub(super) events_lost: Lost,
    looked_after: Option<Duration>,
    /// Versions of the posting tables, of what was seen and of the ledger when it was last noted which accounts are in use.
    kept_at: Option<Versions>,
    grace: Duration,
    /// Packets by source and by how exactly they were charged.
    exactness: BTreeMap<(Source, &'static str), u64>,
    /// Packets that rules and programs in the kernel both should have counted, by which did.
    compared: BTreeMap<(Source, &'static str), u64>,
    /// Packets by source that rules had lost and that were charged all the same.
    repaired: BTreeMap<Source, u64>,
}

/// Of the posting tables, of what the programs saw, and of the ledger.
type Versions = (Vec<(TableId, u64)>, u64, u64);

/// What only one backend counts at a time.
pub(super) type Place = (IpVersion, Table);

impl Books {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, ..Self::default() }
    }

    /// Takes what a source read.
    pub(super) fn take(&mut self, poll: &mut Poll) -> Told {
        let mut told = Told::default();
        let held: Vec<TableId> =
            self.tables.keys().copied().chain(poll.tables.iter().map(|t| t.id)).collect();
        for table in &mut poll.tables {
            let Ok(snapshot) = &mut table.snapshot else { continue };
            if let Some(around) = &snapshot.verdicts {
                self.seen.take(table.id, &around.after, &mut self.ledger);
            }
            // What one backend knows by its programs and another by its counters alone cannot be told from what both counted.
            if held.iter().any(|id| *id != table.id && place(*id) == place(table.id)) {
                snapshot.verdicts = None;
            }
            let book = self.tables.entry(table.id).or_insert_with(|| Book::new(table.id));
            let attribution = book.apply(snapshot, &self.index);
            told.unsettled |= attribution.unsettled;
            told.resets += attribution.resets;
            self.compare(table.id.source, attribution.compared);
            self.wanted.extend(attribution.wanted.into_iter().map(|chain| (table.id, chain)));
        }
        for (id, reading) in &poll.verdicts {
            let book = self.tables.entry(*id).or_insert_with(|| Book::new(*id));
            told.unsettled |= book.charge(reading, &self.index);
        }
        match poll.how {
            How::Totals(_) | How::Beside(Ok(_)) => self.note_totals(true),
            How::Beside(Err(_)) => self.note_totals(false),
            How::Whole(_) | How::InPlace(_) => {}
        }
        for own in &poll.totals {
            let mut charged = self.totals.apply(own, &poll.verdicts, &self.index);
            self.totals_held.append(&mut charged.postings);
            told.unsettled |= charged.unsettled;
        }
        for id in &poll.gone {
            self.seen.forget(*id);
            if let Some(mut book) = self.tables.remove(id) {
                book.close(&self.index);
                self.departed.push((*id, book.held));
                self.kept_at = None;
            }
        }
        told
    }

    /// Tables that an earlier agent had and that are not there any more when a source is read for the first time.
    pub(super) fn note_absent(&mut self, source: Source, poll: &mut Poll) {
        for id in self.absent.extract_if(.., |id| id.source == source) {
            if !poll.tables.iter().any(|table| table.id == id) && !poll.gone.contains(&id) {
                poll.gone.push(id);
            }
        }
    }

    fn compare(&mut self, source: Source, compared: Compared) {
        let Compared { agreed, rules_only, programs_only, repaired } = compared;
        let total = self.repaired.entry(source).or_default();
        *total = total.saturating_add(repaired);
        let all = [("agreed", agreed), ("rules_only", rules_only), ("programs_only", programs_only)];
        for (result, packets) in all {
            let total = self.compared.entry((source, result)).or_default();
            *total = total.saturating_add(packets);
        }
    }

    /// The shared chains that the next reading of a source should contain.
    pub(super) fn take_wanted(&mut self, source: Source) -> Wanted {
        self.wanted.extract_if(|(id, _)| id.source == source).collect()
    }

    /// Notes when tables were read.
    pub(super) fn note_read(&mut self, poll: &Poll, when: &Range<Instant>) {
        let ids = poll.tables.iter().map(|table| table.id).chain(poll.verdicts.iter().map(|(id, _)| *id));
        self.read.extend(ids.map(|id| (id, when.clone())));
        self.read.retain(|id, _| !poll.gone.contains(id));
    }

    /// Sources whose tables are not posted because another's are: they are to be read after those.
    pub(super) fn followers(&self) -> BTreeSet<Source> {
        let mut places: BTreeMap<Place, Vec<TableId>> = BTreeMap::new();
        for (id, _) in self.tables.iter().filter(|(_, book)| book.has_endpoints()) {
            places.entry(place(*id)).or_default().push(*id);
        }
        let shared = places.into_values().filter(|ids| ids.len() > 1).flatten();
        let (posters, followers): (BTreeSet<_>, BTreeSet<_>) =
            shared.partition(|id| self.posting.get(&place(*id)) == Some(id));
        let of = |ids: BTreeSet<TableId>| ids.into_iter().map(|id| id.source).collect::<BTreeSet<_>>();
        &of(followers) - &of(posters)
    }

    /// Whether a table was read when another had been.
    fn is_read_after(&self, id: TableId, other: TableId) -> bool {
        matches!((self.read.get(&id), self.read.get(&other)), (Some(one), Some(other)) if one.start >= other.end)
    }

    /// Ends a tick: posts what was read.
    pub(super) fn end_tick(&mut self, now: Duration) {
        let mut held: BTreeMap<Place, Vec<(TableId, Vec<Posting>)>> = BTreeMap::new();
        for (id, postings) in self.departed.drain(..) {
            held.entry(place(id)).or_default().push((id, postings));
        }
        for (id, book) in self.tables.iter_mut().filter(|(_, book)| book.is_in_use()) {
            held.entry(place(*id)).or_default().push((*id, std::mem::take(&mut book.held)));
        }
        for (place, held) in held {
            self.post_place(place, held);
        }
        let totals = std::mem::take(&mut self.totals_held);
        if !self.rules_count() {
            self.post(Source::CalicoBpf, totals);
        }
        self.rename();
        if self.looked_after.is_none_or(|last| now.saturating_sub(last) >= LOOK_AFTER) {
            self.looked_after = Some(now);
            self.open_and_retire(now);
        }
    }

    /// Whether rules of iptables or nftables count for endpoints: then totals of the eBPF dataplane may have the same packets.
    /// Only those of the filter table: beside its eBPF dataplane Calico keeps chains for untracked policy of host endpoints in
    /// raw.
    pub(super) fn rules_count(&self) -> bool {
        let may_count_the_same = |id: &TableId| id.source != Source::CalicoBpf && id.table == Table::Filter;
        self.tables.iter().any(|(id, book)| may_count_the_same(id) && book.has_endpoints())
    }

    /// Notes whether Calico's eBPF dataplane has counters of its own.
    fn note_totals(&mut self, are_there: bool) {
        if std::mem::replace(&mut self.has_totals, are_there) != are_there {
            self.kept_at = None;
        }
    }

    /// By how many hits the counters of rules of the eBPF dataplane and the verdicts that were read differ.
    pub(super) fn rule_difference(&self, source: Source) -> Option<u64> {
        self.totals.difference().filter(|_| self.has_totals && source == Source::CalicoBpf)
    }

    /// Posts what the backends of one table counted in this tick.
    fn post_place(&mut self, place: Place, mut held: Vec<(TableId, Vec<Posting>)>) {
        let present: Vec<_> = held.iter().map(|(id, _)| *id).filter(|id| self.has_endpoints(id)).collect();
        let known = self.posting.get(&place).copied();
        let poster = known.or_else(|| self.most_alive(&held));
        let Some(poster) = poster else { return };
        let alone = held.iter().all(|(id, _)| *id == poster);
        if (alone || known.is_none()) && !self.overlaps.contains_key(&place) {
            // Of times that nobody saw, one backend's word has to do.
            for (id, postings) in held {
                if id == poster {
                    self.post(id.source, postings);
                }
            }
            self.posting.insert(place, poster);
            self.say_if_several(place, poster, &present);
            return;
        }
        for (id, postings) in &mut held {
            let drops = overlap::take_drops(postings);
            self.post(id.source, drops);
        }
        let known = self.overlaps.remove(&place);
        let is_new = known.is_none();
        let mut overlap = known.unwrap_or_default();
        overlap.begin_tick();
        for (id, postings) in held {
            overlap.count(id, postings);
        }
        self.post(poster.source, overlap.post(poster));
        let heir = present.first().copied().filter(|_| !present.contains(&poster));
        if let Some(heir) = heir {
            overlap.inherit(heir);
        }
        let successor = overlap.successor(poster).filter(|id| present.contains(id));
        let next = heir.or(successor).inspect(|&id| self.post(id.source, overlap.post(id))).unwrap_or(poster);
        self.posting.insert(place, next);
        self.say_if_several(place, next, &present);
        // What is not settled yet will be told later, though it was counted before.
        let is_behind = |id: &TableId| self.tables.get(id).is_some_and(Book::is_behind);
        let (unsettled, level): (Vec<TableId>, Vec<TableId>) = present.iter().partition(|id| is_behind(id));
        for &id in &level {
            let read_last = self.is_read_after(id, next) || is_new && id.source == next.source;
            if level.contains(&next) || is_new && read_last {
                overlap.level(id, read_last);
            }
        }
        if present.len() > 1 || !unsettled.is_empty() {
            self.overlaps.insert(place, overlap);
        }
    }

    fn has_endpoints(&self, id: &TableId) -> bool {
        self.tables.get(id).is_some_and(Book::has_endpoints)
    }

    fn post(&mut self, source: Source, postings: Vec<Posting>) {
        for posting in postings {
            let exactness = self.exactness.entry((source, exactness(&posting.key))).or_default();
            *exactness = exactness.saturating_add(posting.amount.packets);
            self.ledger.post(posting);
        }
    }

    /// Says which of several backends is counted, when that changes.
    fn say_if_several(&mut self, (ip_version, table): Place, poster: TableId, present: &[TableId]) {
        let several = (present.len() > 1).then_some(poster);
        if self.said.insert((ip_version, table), several) != Some(several) && several.is_some() {
            tracing::warn!(
                table = %format_args!("IPv{ip_version} {table}"),
                counted = backend(poster),
                "several backends hold Calico's chains: counting one of them"
            );
        }
    }

    /// Packets of a source by how exactly they were charged.
    pub(super) fn exactness(&self, source: Source) -> BTreeMap<&'static str, u64> {
        of_source(&self.exactness, source)
    }

    /// Packets of a source that rules and programs in the kernel both should have charged, by which did.
    pub(super) fn compared(&self, source: Source) -> BTreeMap<&'static str, u64> {
        of_source(&self.compared, source)
    }

    /// Packets of a source that its rules had lost and that were charged by what the programs told.
    pub(super) fn repaired(&self, source: Source) -> Option<u64> {
        self.repaired.get(&source).copied()
    }

    /// The backend with the most chains of endpoints; among equals the one that counted more.
    fn most_alive(&self, held: &[(TableId, Vec<Posting>)]) -> Option<TableId> {
        let weight = |(id, postings): &&(TableId, Vec<Posting>)| {
            let counted: u64 = postings.iter().map(|posting| posting.amount.packets).sum();
            (self.tables.get(id).map(|book| book.endpoints().count()), counted)
        };
        held.iter().max_by_key(weight).map(|(id, _)| *id)
    }

    /// Gives accounts the names that are known by now; also those that postings are held for.
    pub(super) fn rename(&mut self) {
        let renamed = self.tables.values_mut().flat_map(|book| book.rename(&self.index));
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
            for overlap in self.overlaps.values_mut() {
                overlap.rename(&old, &new);
            }
            self.ledger.rename(&old, new);
        }
    }

    /// Opens the accounts that the present rules can post to, so that they are there at zero, and retires those that
    /// nothing posts to any more.
    fn open_and_retire(&mut self, now: Duration) {
        let posting = self.posting.values().filter_map(|id| Some((*id, self.tables.get(id)?)));
        let posting: Vec<(TableId, &Book)> = posting.collect();
        let versions: Vec<_> = posting.iter().map(|(id, book)| (*id, book.accounts_version())).collect();
        // Nothing came or went: then all are in use that were.
        if self.kept_at != Some((versions.clone(), self.seen.version(), self.ledger.version())) {
            let mut in_use: HashSet<Key> = HashSet::new();
            for (id, book) in &posting {
                in_use.extend(book.accounts());
                in_use.extend(Cause::ALL.map(|cause| Key::Unattributed(id.source, cause)));
            }
            in_use.extend(self.seen.keys());
            if self.has_totals {
                in_use.extend(self.totals.accounts().cloned());
                in_use.extend(Cause::ALL.map(|cause| Key::Unattributed(Source::CalicoBpf, cause)));
            }
            for key in &in_use {
                self.ledger.open(key.clone());
            }
            self.ledger.keep(&in_use, now);
            self.kept_at = Some((versions, self.seen.version(), self.ledger.version()));
        }
        self.ledger.retire(now, self.grace, self.viewer.sums());
    }

    /// The accounts as they stand.
    pub(super) fn view(&mut self) -> View {
        self.viewer.view(&self.ledger, &self.index)
    }

    /// The tables with chains of endpoints, how many endpoints they have, and whether they post.
    pub(super) fn tables(&self, source: Source) -> Vec<(TableId, usize, bool)> {
        let of_source = self.tables.iter().filter(|(id, _)| id.source == source);
        let with_endpoints = of_source.filter_map(|(id, book)| {
            let endpoints: BTreeSet<_> = book.endpoints().collect();
            let posts = self.posting.get(&place(*id)) == Some(id);
            (!endpoints.is_empty()).then_some((*id, endpoints.len(), posts))
        });
        with_endpoints.collect()
    }
}

fn of_source(packets: &BTreeMap<(Source, &'static str), u64>, source: Source) -> BTreeMap<&'static str, u64> {
    let of_source = packets.iter().filter(|((s, _), _)| *s == source);
    of_source.map(|((_, result), packets)| (*result, *packets)).collect()
}

fn exactness(key: &Key) -> &'static str {
    match key {
        Key::Account(account) if matches!(account.what, What::Group { .. }) => "group",
        Key::Unattributed(_, Cause::Undetermined) => "undetermined",
        Key::Unattributed(..) => "unattributed",
        Key::Total(_) => "total",
        Key::Account(_) => "exact",
    }
}

/// What people call the backend.
fn backend(id: TableId) -> &'static str {
    match (id.source, id.native) {
        (Source::IptablesLegacy, _) => "iptables-legacy",
        (Source::Nftables, false) => "iptables-nft",
        (Source::Nftables, true) => "nftables",
        (Source::CalicoBpf, _) => "calico-bpf",
    }
}

fn place(id: TableId) -> Place {
    (id.ip_version, id.table)
}
