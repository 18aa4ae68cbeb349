//! Source `iptables-legacy`: counters read in place, or whole tables by getsockopt under a shared lock.
//!
//! A table is read whole when it is new or was replaced, and where reading in place is not possible ([`in_place`]); its
//! structure is decoded only when the digest of everything but the counters changed.
//!
//! Every replacement passes the lock file. When somebody opens it, the watch of [`rewrites`] is attached, which is told the
//! last counters of the rules that go; once the table is read whole again they are settled ([`settle`]), and nothing is
//! lost. Where there is no watch, one more read at that moment catches what was counted so far, and when the file is closed
//! again one under the lock tells where the new rules begin: a rewrite costs what passes between the first of the two and
//! the swap of the table, and only what passes between the two is in doubt. Both tell all chains, because the next rewrite
//! may change any of them.
//!
//! The filter table is read at every poll, mangle and raw as long as they have chains of host endpoints.

pub use settings::Settings;

pub mod blob;
mod in_place;
mod lock;
mod rewrites;
mod settings;
mod settle;
mod table;
mod wakeup;
mod watched;
mod watching;
mod whole;
mod whole_reads;

use crate::in_place::CannotHere;
use crate::source::{How, Note, Poll, RuleSource, SourceError, TablePoll, Wanted, in_flight, now};
use accountant_core::snapshot::{Retired, Snapshot, Source, TableId};
use accountant_core::{ChainName, Table};
use in_place::InPlace;
use lock::{News, Shared, XtablesLock};
use rewrites::Rewrites;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};
use table::{KnownTable, Novelty, describe, is_endpoint, layout};
use wakeup::Wakeup;
use whole::WholeReader;
use whole_reads::{Circumstance, Grabbed, Since};

/// How many polls a table without chains of host endpoints is left alone, unless the lock file was opened.
const LEAVE_ALONE: u32 = 30;
/// How long to sleep between tries to get the lock. It is mostly held for milliseconds.
const RETRY: Duration = Duration::from_micros(300);

/// The source.
#[derive(Debug)]
pub struct IptablesLegacy {
    settings: Settings,
    lock: XtablesLock,
    wakeup: Option<Wakeup>,
    whole: WholeReader,
    in_place: Option<InPlace>,
    rewrites: Rewrites,
    /// When the lock file last was in the news.
    last_news: Instant,
    tables: HashMap<TableId, KnownTable>,
    /// Tables that were read and wait to be looked into, oldest first.
    grabbed: VecDeque<Grabbed>,
    /// News of the lock file that nothing was done about yet.
    news: News,
    notes: Vec<Note>,
    /// How many packets can be between two rules while they are read in place.
    in_flight: u32,
}

/// What a look at a table without reading it whole brings.
enum Glance {
    /// It has to be read whole.
    Whole,
    /// There is nothing to tell.
    Nothing,
    /// Its counters.
    Told(Snapshot),
}

impl IptablesLegacy {
    /// Prepares to read the tables of the calling thread's network namespace.
    pub fn new(settings: Settings) -> Self {
        let lock = XtablesLock::open(&settings.lock_file);
        let wakeup = Wakeup::new()
            .and_then(|wakeup| lock.events().map_or(Ok(()), |fd| wakeup.add(fd)).map(|()| wakeup))
            .inspect_err(|error| tracing::warn!(%error, "cannot wait for news of the xtables lock"));
        let watch = settings.watch_rewrites && settings.in_place;
        let reason = if watch { CannotHere::NotYet } else { CannotHere::TurnedOff };
        Self {
            settings,
            lock,
            wakeup: wakeup.ok(),
            whole: WholeReader::default(),
            in_place: None,
            rewrites: Rewrites::off(reason),
            last_news: Instant::now(),
            tables: HashMap::new(),
            grabbed: VecDeque::new(),
            news: News::default(),
            notes: Vec::new(),
            in_flight: in_flight(),
        }
    }

    /// The tables that the namespace has, whether or not Calico uses them.
    pub fn present() -> Result<Vec<TableId>, SourceError> {
        whole::present()
    }

    /// Tables that are there, less those that are gone, which the poll tells.
    fn list(&mut self, poll: &mut Poll) -> Result<Vec<TableId>, SourceError> {
        let present = Self::present()?;
        poll.gone.extend(self.tables.keys().filter(|id| !present.contains(id)));
        poll.gone.iter().for_each(|id| self.settings.programs.watch(*id, Vec::new()));
        self.tables.retain(|id, _| present.contains(id));
        if !present.is_empty() && self.in_place.is_none() {
            self.in_place = Some(InPlace::new(self.settings.in_place));
        }
        Ok(present)
    }

    /// Looks at a table without reading it whole: at chains of endpoints and those that are wanted, or at all.
    fn glance(&mut self, id: TableId, wanted: &Wanted, all: bool) -> Glance {
        let trusted = self.is_trusted(id);
        let (Some(known), Some(in_place)) = (self.tables.get_mut(&id), &mut self.in_place) else {
            return Glance::Whole;
        };
        if !trusted {
            return Glance::Whole;
        }
        if !known.has_endpoints {
            // Mangle and raw mostly have no chains of endpoints.
            let left_alone = id.table != Table::Filter && known.left_alone < LEAVE_ALONE;
            known.left_alone += 1;
            return if in_place.stands(id) || left_alone { Glance::Nothing } else { Glance::Whole };
        }
        let in_flight = self.in_flight;
        let named = |name: &ChainName| wanted.contains(&(id, name.clone()));
        match in_place.read(id, &known.decoded, |index, chain| {
            all || known.endpoints.binary_search(&index).is_ok()
                || !wanted.is_empty() && named(&chain.chain.name)
        }) {
            Some(mut chains) => {
                known.deductions.apply(&mut chains);
                let version = known.stamp.as_ref().map(|stamp| stamp.private);
                Glance::Told(Snapshot { chains, in_flight, version, at: now(), ..Snapshot::default() })
            }
            None => Glance::Whole,
        }
    }

    /// Looks at tables without reading them whole. Returns those that have to be.
    fn glance_all(&mut self, ids: Vec<TableId>, wanted: &Wanted, all: bool, poll: &mut Poll) -> Vec<TableId> {
        let glances: Vec<_> = ids.into_iter().map(|id| (id, self.glance(id, wanted, all))).collect();
        // A table that was replaced twice since the last look can have the address that it had. The first of the two was
        // told before the second came, so it is heard of now.
        self.look();
        let mut whole = Vec::new();
        for (id, glance) in glances {
            match glance {
                Glance::Told(snapshot) if self.is_trusted(id) => {
                    poll.tables.push(TablePoll { id, snapshot: Ok(snapshot) });
                }
                Glance::Nothing => {}
                Glance::Told(_) | Glance::Whole => whole.push(id),
            }
        }
        whole
    }

    /// Whether nothing is known to have been done to a table since it was read whole.
    fn is_trusted(&self, id: TableId) -> bool {
        self.tables.get(&id).is_some_and(|known| !known.in_doubt) && self.rewrites.of(id).is_none()
    }

    /// Looks into what was read. None if there is nothing to tell.
    fn digest(&mut self, grabbed: &Grabbed, wanted: &Wanted) -> Result<Option<Snapshot>, SourceError> {
        let Grabbed { id, how, stamp, contents, since, is_watched, was_trusted } = grabbed;
        let (id, stamp, blob) = (*id, *stamp, contents.bytes());
        let layout = layout(id.ip_version);
        let undecodable = |error: blob::BlobError| SourceError::decode(describe(id), error);
        let fingerprint = blob::fingerprint(blob, layout).map_err(undecodable)?;
        let same = self.tables.get(&id).is_some_and(|known| known.decoded.fingerprint == fingerprint);
        let known = self.tables.remove(&id);
        let too_late = match how {
            // Other rules than those that were there when somebody was last done with the lock.
            Circumstance::LastLook { missed } => {
                !same && known.as_ref().is_some_and(|known| *missed || !known.in_doubt)
            }
            Circumstance::Unseen => !same && known.is_some(),
            // Nobody tells of rewrites: there may have been any number of them.
            _ => !same && known.is_some() && !self.lock.is_watched(),
        };
        let was_known = known.is_some();
        let before = known.as_ref().and_then(|known| known.stamp);
        let seen = known.as_ref().and_then(|known| known.seen);
        let stood = before.is_some() && before == stamp;
        let (mut known, novelty) = match known {
            Some(known) if same => (known, Novelty::default()),
            mut known => match KnownTable::decode(blob, layout, &mut known) {
                Ok(decoded) => decoded,
                Err(error) => {
                    self.tables.extend(known.map(|known| (id, known)));
                    return Err(undecodable(error));
                }
            },
        };
        let needed = |chain: &blob::DecodedChain| {
            let name = &chain.chain.name;
            how.is_rewrite()
                || !was_trusted
                || is_endpoint(name)
                || novelty.changed.contains(name)
                || wanted.contains(&(id, name.clone()))
        };
        let mut chains = known.readings(blob, needed);
        let rewrite = since.rewrite_of(before);
        let retired = rewrite.and_then(|rewrite| known.settle(novelty.before.as_ref(), rewrite));
        let missed = match (&retired, since) {
            (Some(_), _) => false,
            // Nothing was told, and it is another one than the last that was seen.
            (None, Since::Nothing) => *is_watched && stamp.is_some() && seen.is_some() && seen != stamp,
            (None, _) => was_known,
        };
        if missed || too_late {
            tracing::debug!(?id, "a rewrite was not seen, or not all of it");
            self.notes.push(Note::MissedRewrite);
            known.deductions.forget_reset(&chains);
        }
        known.deductions.apply(&mut chains);
        known.left_alone = 0;
        let (sure, past) = (how.is_sure(), contents.are_past());
        known.in_doubt = !sure || past || self.lock.is_open() && !self.rewrites.is_watching();
        (known.stamp, known.seen) = (stamp.filter(|_| sure), stamp);
        let has_endpoints = known.has_endpoints;
        if !(past || stood && matches!(since, Since::Nothing) && same && *was_trusted)
            && let Some(in_place) = &mut self.in_place
        {
            match known.stamp {
                Some(stamp) => in_place.hold(id, stamp, &known.decoded),
                None => in_place.give_up(id),
            }
            if self.settings.programs.wants() {
                self.settings.programs.watch(id, in_place.watched(id, &known.decoded));
            }
        }
        self.tables.insert(id, known);
        if !has_endpoints && novelty.gone.is_empty() {
            return Ok(None);
        }
        let retired: Vec<Retired> = retired.unwrap_or_default();
        let gone = novelty.gone;
        let gap = missed || too_late;
        let (version, may_dip) = (stamp.as_ref().map(|stamp| stamp.private), !sure);
        Ok(Some(Snapshot { retired, chains, gone, gap, version, may_dip, at: now(), ..Snapshot::default() }))
    }

    /// Waits for the lock, and sees meanwhile what those do who have it.
    fn lock_shared(&mut self) -> io::Result<Shared> {
        let deadline = Instant::now() + self.settings.lock_patience;
        loop {
            if let Some(lock) = self.lock.try_shared()? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.look();
            std::thread::sleep(RETRY);
        }
    }

    fn finish(&mut self, mut poll: Poll, started: Instant, before: &HashSet<TableId>) -> Poll {
        poll.moved = self.with_endpoints() != *before;
        poll.took = started.elapsed();
        poll.notes.append(&mut self.notes);
        poll.how = match self.in_place.as_ref().and_then(InPlace::reason) {
            Some(reason) => How::Whole(reason.clone()),
            None => How::InPlace(self.rewrites.reason().cloned()),
        };
        poll
    }
}

impl KnownTable {
    /// What a rewrite means for the rules: `before` is the table that it replaced, if its rules were others.
    fn settle(
        &mut self,
        before: Option<&blob::DecodedTable>,
        rewrite: &settle::Rewrite,
    ) -> Option<Vec<Retired>> {
        settle::settle(before.unwrap_or(&self.decoded), &self.decoded, rewrite, &mut self.deductions)
    }
}

impl RuleSource for IptablesLegacy {
    fn source(&self) -> Source {
        Source::IptablesLegacy
    }

    fn read(&mut self, wanted: &Wanted) -> Result<Poll, SourceError> {
        let (started, before) = (Instant::now(), self.with_endpoints());
        let seen = self.settings.programs.read();
        self.look();
        let mut poll = Poll::default();
        self.grab_what_is_over(&mut poll);
        self.digest_all(wanted, &mut poll);
        let present = self.list(&mut poll)?;
        self.watch_from_the_start(&present);
        if self.lock.is_open() && !self.rewrites.is_watching() {
            self.doubt_all();
        }
        // This reading is the look that news ask for.
        let news = std::mem::take(&mut self.news);
        let all = (news.opened || news.closed) && !self.rewrites.is_watching();
        let whole = self.glance_all(present, wanted, all, &mut poll);
        if !whole.is_empty() {
            let lock = self.lock_shared();
            let circumstance = if lock.is_ok() { Circumstance::Locked } else { Circumstance::Unlocked };
            self.look();
            self.grab_all(whole, circumstance, &mut poll);
            if let Err(error) = &lock {
                tracing::debug!(%error, "read without the xtables lock");
                self.notes.push(Note::Unlocked);
            }
            drop(lock);
            self.digest_all(wanted, &mut poll);
        }
        poll.flows = self.settings.programs.complete(&mut poll.tables, seen);
        poll.interfaces = self.settings.programs.at_interfaces();
        Ok(self.finish(poll, started, &before))
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        self.wakeup.as_ref().map(Wakeup::fd).or_else(|| self.lock.events())
    }

    fn on_events(&mut self) -> Result<Option<Poll>, SourceError> {
        let (started, before) = (Instant::now(), self.with_endpoints());
        let mut poll = Poll::default();
        self.hear_news(&mut poll)?;
        self.digest_all(&Wanted::default(), &mut poll);
        self.stop_watching_if_done();
        let told = !poll.tables.is_empty() || !self.notes.is_empty() || self.with_endpoints() != before;
        Ok(told.then(|| self.finish(poll, started, &before)))
    }
}
