//! Source `nftables`: rules of iptables-nft (`ip filter`, `ip6 filter`, ...) and of Felix' own tables (`ip calico`,
//! `ip6 calico`), chain by chain over netlink.
//!
//! At every poll the endpoint chains are read in place ([`in_place`]) or dumped, and of each rule only handle and counter are
//! looked at; shared chains are dumped when they changed or when they are asked for. The structure is kept by [`mirror`], from the kernel's
//! notifications; a deleted rule's notification carries its last counter, so a rewrite costs no counts.
//!
//! A reading is of one piece: the generation is asked for after the dumps, notifications are heard up to it, and chains
//! that a commit touched meanwhile are dumped again. When notifications were lost everything is read anew.

pub mod counter;
pub mod rule;

mod in_place;
mod last_words;
mod mirror;
mod requests;
mod resync;
pub(crate) mod socket;
mod watched;
pub(crate) mod wire;
mod writers;

use crate::in_place::CannotHere;
use crate::kernel::Programs;
use crate::source::{How, Note, Poll, RuleSource, SourceError, TablePoll, Wanted, in_flight, now};
use accountant_core::snapshot::{Reading, Snapshot, Source, TableId};
use counter::handle_and_counter;
use in_place::{InPlace, Readings as InPlaceReadings};
use mirror::{ChainKey, Mirror, Went, is_after};
use netlink_bindings::nftables::{GenAttrs, Nfgenmsg, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use requests::rules_of;
use socket::{Dump, Heard, Notifications, Query};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often chains that keep changing are dumped again within one reading.
const TRIES: u32 = 16;
/// How long to wait for the notifications of a commit that the kernel already counts.
const HEARING: Duration = Duration::from_millis(500);
/// How often it is tried to read in place within one reading, before everything is dumped.
const IN_PLACE_TRIES: u32 = 3;

/// What came of dumping a chain's counters.
enum Dumped {
    Reading(Reading),
    /// A commit came in between.
    Interrupted,
    /// The chain has other rules than the mirror, or is gone: a commit is not heard yet. The last counters of the old rules
    /// come with its notifications, so the mirror must learn of it from nothing else.
    Unlike,
}

/// The chains of one poll.
struct Readings {
    /// Those of endpoints, if they were read in place.
    in_place: InPlaceReadings,
    dumped: HashMap<ChainKey, Reading>,
}

/// The source.
#[derive(Debug)]
pub struct Nftables {
    query: Query,
    notifications: Notifications,
    mirror: Mirror,
    synced: bool,
    /// Whether notifications were lost since the last reading, so that rules may have come and gone unseen.
    gap: bool,
    /// Tables that were read before, to notice when they go.
    tables: BTreeSet<TableId>,
    in_place: InPlace,
    programs: Arc<Programs>,
    notes: Vec<Note>,
    /// How many packets can be between two rules at a time.
    in_flight: u32,
}

impl Nftables {
    /// Prepares to read the tables of the calling thread's network namespace.
    pub fn new() -> Result<Self, SourceError> {
        Self::with(true, Programs::new(false))
    }

    /// The same, whether to read counters in place where that is possible, and the programs that see of each packet which
    /// rules it hits.
    pub fn with(in_place: bool, programs: Arc<Programs>) -> Result<Self, SourceError> {
        let reason = if in_place { CannotHere::NotYet } else { CannotHere::TurnedOff };
        Ok(Self {
            // Being told comes first, so that no change between the first reading and the first news is missed.
            notifications: Notifications::open()?,
            query: Query::open()?,
            mirror: Mirror::default(),
            synced: false,
            gap: false,
            tables: BTreeSet::new(),
            in_place: InPlace::off(reason, programs.clone()),
            programs,
            notes: Vec::new(),
            in_flight: in_flight(),
        })
    }

    /// Lets the kernel hold back so many bytes of news before it drops some, or the least that it can.
    pub fn hold_back(&self, bytes: usize) -> Result<(), SourceError> {
        self.notifications.hold_back(bytes)
    }

    fn with_endpoints(&self) -> BTreeSet<TableId> {
        self.in_place.tables(self.mirror.generation()).unwrap_or_else(|| {
            self.mirror.chains().filter(|(key, _)| key.is_endpoint()).map(|(key, _)| key.table).collect()
        })
    }

    fn how(&self) -> How {
        match self.in_place.reason() {
            Some(reason) => How::Whole(reason.clone()),
            None => How::InPlace(self.in_place.last_words.reason().cloned()),
        }
    }

    fn generation(&mut self) -> Result<u32, SourceError> {
        let request = Request::new().op_getgen_do(&Nfgenmsg::new());
        let mut generation = None;
        self.query.ask(&request, |_, payload| {
            let attributes = payload.get(4..).unwrap_or_default();
            generation = GenAttrs::new(attributes).get_id().ok();
            Ok(())
        })?;
        generation.ok_or_else(|| SourceError::decode("the generation of nf_tables", "it has no number"))
    }

    /// The generation of all that was read before. A commit shows in the rules a moment before it shows in the generation
    /// (so it must be on Linux 6.18, where dumps had rules of the commit to come), so it is asked for when none is under way.
    fn generation_at_rest(&mut self) -> Result<u32, SourceError> {
        self.query.wait_for_commits()?;
        self.generation()
    }

    /// Hears all notifications that are there.
    fn drain(&mut self) -> Result<(), SourceError> {
        loop {
            match self.notifications.hear()? {
                Heard::Nothing => return Ok(()),
                Heard::Lost => {
                    self.notes.push(Note::LostNotifications);
                    self.mirror.lose("the kernel dropped notifications");
                }
                Heard::Bytes(length) => {
                    for message in wire::messages(&self.notifications.buffer()[..length]) {
                        match message {
                            Ok(message) => self.mirror.hear(&message),
                            Err(_) => self.mirror.lose("a notification cannot be decoded"),
                        }
                    }
                }
            }
        }
    }

    /// Hears notifications up to a generation that the kernel has reached. They are sent right after it counts.
    fn hear_up_to(&mut self, generation: u32) -> Result<(), SourceError> {
        let deadline = Instant::now() + HEARING;
        self.drain()?;
        while is_after(generation, self.mirror.generation()) && !self.mirror.is_stale() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.notes.push(Note::LostNotifications);
                self.mirror.lose("the notification of a commit did not come");
                break;
            }
            let mut fds = [PollFd::new(self.notifications.fd(), PollFlags::POLLIN)];
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            poll(&mut fds, wait).map_err(|e| SourceError::io("waiting for", "nf_tables (netlink)", e))?;
            self.drain()?;
        }
        Ok(())
    }

    /// A chain's counters. Its rules are decoded only if they are not those of the mirror.
    fn dump(&mut self, key: &ChainKey) -> Result<Dumped, SourceError> {
        let rules = self.mirror.get(key).map_or(0, |known| known.handles.len());
        let mut handles = Vec::with_capacity(rules);
        let mut counters = Vec::with_capacity(rules);
        let dump = self.query.ask(&rules_of(key), |_, payload| {
            if let Some((handle, counter)) = handle_and_counter(payload.get(4..).unwrap_or_default()) {
                handles.push(handle);
                counters.push(counter);
            }
            Ok(())
        })?;
        if dump == Dump::Interrupted {
            self.notes.push(Note::Interrupted);
            return Ok(Dumped::Interrupted);
        }
        let known = self.mirror.get(key).filter(|known| dump == Dump::Whole && known.handles == handles);
        Ok(known.map_or(Dumped::Unlike, |known| {
            Dumped::Reading(Reading { chain: known.chain.clone(), counters })
        }))
    }

    /// Reads the chains of endpoints in place. Beside them: the generation at which that was done.
    fn read_in_place(&mut self) -> Result<Option<(u32, InPlaceReadings)>, SourceError> {
        if self.in_place.reason().is_some_and(|reason| *reason != CannotHere::NotYet) {
            return Ok(None);
        }
        let generation = self.generation()?;
        self.hear_up_to(generation)?;
        if self.mirror.is_stale() {
            return Ok(None);
        }
        Ok(self.in_place.read(&self.mirror, generation).map(|readings| (generation, readings)))
    }

    /// Looks where new rules have their counters.
    fn look(&mut self) -> Result<(), SourceError> {
        let generation = self.mirror.generation();
        if self.generation()? == generation {
            self.in_place.look(&self.mirror);
            let generation = self.generation_at_rest()?;
            self.in_place.last_words.stood(generation);
        }
        Ok(())
    }

    /// Reads the chains that are needed until all readings are of the generation that notifications were heard up to.
    fn read_stable(&mut self, wanted: &Wanted) -> Result<Readings, SourceError> {
        let mut changed = self.mirror.take_touched();
        let mut dumped: HashMap<ChainKey, Reading> = HashMap::new();
        for tries in 0..TRIES {
            let in_place = if tries < IN_PLACE_TRIES { self.read_in_place()? } else { None };
            let touched = self.mirror.take_touched();
            dumped.retain(|key, _| !(touched.contains(key) || in_place.is_some() && key.is_endpoint()));
            changed.extend(touched);
            let everything_is_there = in_place.is_some() && changed.is_empty() && wanted.is_empty();
            let looked_at_rules = !everything_is_there || self.in_place.last_words.has_fresh_walk();
            let (whole, unlike) = match everything_is_there {
                true => (true, Vec::new()),
                false => self.dump_missing(&mut dumped, |key| match key.is_endpoint() {
                    true => in_place.is_none(),
                    false => changed.contains(key) || wanted.contains(&(key.table, key.chain.clone())),
                })?,
            };
            let generation = if looked_at_rules { self.generation_at_rest()? } else { self.generation()? };
            self.hear_up_to(generation)?;
            let mut touched = self.mirror.take_touched();
            if unlike.iter().any(|key| !touched.contains(key)) {
                self.mirror.lose("no commit explains the rules that were read");
            }
            if self.mirror.is_stale() {
                self.resync()?;
                dumped.clear();
                touched.extend(self.mirror.take_touched());
            }
            // Counters that were read in place at another generation may be those of rules that are gone.
            let stood = in_place.as_ref().is_none_or(|(at, _)| *at == generation);
            self.in_place.last_words.stood(generation);
            if touched.is_empty() && whole && stood {
                let in_place = in_place.map(|(_, readings)| readings).unwrap_or_default();
                return Ok(Readings { in_place, dumped });
            }
            dumped.retain(|key, _| !touched.contains(key));
            changed.extend(touched);
        }
        // What was touched must be looked at next time, too.
        self.mirror.lose("rules kept changing");
        Err(SourceError::Unstable { object: "nf_tables".into(), tries: TRIES })
    }

    /// Dumps the chains that are needed and not there yet. Returns whether all of them could be, and those that are not as
    /// the mirror has them.
    fn dump_missing(
        &mut self,
        dumped: &mut HashMap<ChainKey, Reading>,
        needed: impl Fn(&ChainKey) -> bool,
    ) -> Result<(bool, Vec<ChainKey>), SourceError> {
        let missing = |key: &&ChainKey| needed(key) && !dumped.contains_key(*key);
        let missing: Vec<_> = self.mirror.chains().map(|(key, _)| key).filter(missing).cloned().collect();
        let (mut whole, mut unlike) = (true, Vec::new());
        for key in missing {
            match self.dump(&key)? {
                Dumped::Reading(reading) => drop(dumped.insert(key, reading)),
                Dumped::Interrupted => whole = false,
                Dumped::Unlike => unlike.push(key),
            }
        }
        Ok((whole, unlike))
    }
}

impl RuleSource for Nftables {
    fn source(&self) -> Source {
        Source::Nftables
    }

    fn read(&mut self, wanted: &Wanted) -> Result<Poll, SourceError> {
        let started = Instant::now();
        let seen = self.programs.read();
        self.drain()?;
        if !self.synced || self.mirror.is_stale() {
            self.resync()?;
        }
        let readings = self.read_stable(wanted)?;

        let mut snapshots: BTreeMap<TableId, Snapshot> = BTreeMap::new();
        let mut went = self.mirror.take_went();
        if self.in_place.last_words.confirm(&mut went) > 0 {
            self.notes.push(Note::Unconfirmed);
        }
        for Went { table, retired, .. } in went {
            snapshots.entry(table).or_default().retired.push(retired);
        }
        for (table, chains) in readings.in_place {
            snapshots.entry(table).or_default().chains.extend(chains);
        }
        for (key, reading) in readings.dumped {
            snapshots.entry(key.table).or_default().chains.push(reading);
        }
        for key in self.mirror.take_gone() {
            snapshots.entry(key.table).or_default().gone.push(key.chain);
        }
        let (at, gap, in_flight) = (now(), std::mem::take(&mut self.gap), self.in_flight);
        let version = Some(self.mirror.generation().into());
        let with_endpoints = self.with_endpoints();
        let gone: Vec<TableId> = self.tables.difference(&with_endpoints).copied().collect();
        gone.iter().for_each(|table| self.programs.watch(*table, Vec::new()));
        let mut tables: Vec<TablePoll> = snapshots
            .into_iter()
            .filter(|(id, _)| with_endpoints.contains(id) || self.tables.contains(id))
            .map(|(id, snapshot)| TablePoll {
                id,
                snapshot: Ok(Snapshot { at, gap, in_flight, version, ..snapshot }),
            })
            .collect();
        self.in_place.name_endpoints(&self.mirror);
        let flows = self.programs.complete(&mut tables, seen);
        let interfaces = self.programs.at_interfaces();
        let moved = self.tables != with_endpoints;
        self.tables = with_endpoints;
        let (notes, how, took) = (std::mem::take(&mut self.notes), self.how(), started.elapsed());
        let writers = self.mirror.writers.take();
        Ok(Poll { tables, gone, took, notes, moved, how, writers, flows, interfaces, ..Poll::default() })
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.notifications.fd())
    }

    /// Only hears, so that the kernel need not hold news back, and looks where new rules have their counters, before they
    /// go again. What was heard is handed over with the next reading; nobody should wait for that when Calico's chains came
    /// or went.
    fn on_events(&mut self) -> Result<Option<Poll>, SourceError> {
        self.drain()?;
        if !self.mirror.is_stale() && self.in_place.should_look(&self.mirror) {
            self.look()?;
        }
        let moved = self.synced && self.with_endpoints() != self.tables;
        Ok(moved.then(|| Poll { moved, how: self.how(), ..Poll::default() }))
    }
}

fn describe(key: &ChainKey) -> String {
    format!("chain {} of table ip{} {}", key.kernel_chain(), key.table.ip_version, key.kernel_table())
}

/// Hears any bytes as notifications and checks that the mirror is of one piece afterwards. For fuzzing.
#[doc(hidden)]
pub fn hear_any(stream: &[u8]) {
    let mut mirror = Mirror::default();
    for message in wire::messages(stream).map_while(Result::ok) {
        mirror.hear(&message);
    }
    for (key, chain) in mirror.chains() {
        assert_eq!(chain.handles.len(), chain.chain.rules().len(), "{}", describe(key));
    }
    for Went { retired, handles, .. } in mirror.take_went() {
        assert_eq!(handles.len(), retired.chain.rules().len());
        assert!(retired.finals.iter().all(|(index, _)| *index < handles.len()));
    }
    for key in mirror.take_gone() {
        assert!(mirror.get(&key).is_none());
    }
}
