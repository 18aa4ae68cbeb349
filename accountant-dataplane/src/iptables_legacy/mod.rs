//! Source `iptables-legacy`: whole tables by getsockopt, under a shared lock.
//!
//! Each read is one system call a table. Structure is decoded only when the digest of everything but the counters changed.
//! When somebody opens the lock file, one more read without the lock catches what the rules counted up to that moment; when
//! the file is closed again, one under the lock tells where the new rules begin. So a rewrite costs what passes between the
//! first of the two and the swap of the table, and only what passes between the two is in doubt, not what passed since the
//! last poll. Both tell all chains, because the next rewrite may change any of them.
//!
//! The filter table is read at every poll, mangle and raw as long as they have chains of host endpoints.

pub mod blob;
mod lock;

use crate::source::{Note, Poll, RuleSource, SourceError, TablePoll, Wanted, now};
use accountant_core::calico::ChainKind;
use accountant_core::rule::Chain;
use accountant_core::snapshot::{Reading, Snapshot, Source, TableId};
use accountant_core::{ChainName, IpVersion, Table};
use accountant_sys::scratch::Scratch;
use accountant_sys::xtables::{Family, Socket};
use blob::{DecodedTable, Layout};
use lock::XtablesLock;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a table that changes its size between two calls is asked for again.
const TRIES: u32 = 8;
/// How many polls a table without chains of host endpoints is left alone, unless the lock file was opened.
const LEAVE_ALONE: u32 = 30;

/// How to read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The lock file of the xtables tools.
    pub lock_file: PathBuf,
    /// How long to wait for the lock before reading without it.
    pub lock_patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lock_file: "/run/xtables.lock".into(), lock_patience: Duration::from_secs(2) }
    }
}

/// Memory for a bigger table is given back to the kernel between polls, when nobody needs it. For a smaller one having it
/// anew costs more than it is worth: at 23 500 rules, which are 13 MB, a third of an idle agent's processor time on a
/// virtual machine whose host takes free pages away.
const KEPT: usize = 16 << 20;

/// The source.
#[derive(Debug)]
pub struct IptablesLegacy {
    settings: Settings,
    lock: XtablesLock,
    sockets: HashMap<IpVersion, Socket>,
    tables: HashMap<TableId, KnownTable>,
    scratch: Scratch,
    /// Whether somebody was done with the lock since the last reading: tables may be others by now, and other rules at the
    /// next look do not mean that it came too late.
    rewritten: bool,
}

/// What is remembered of a table between polls.
#[derive(Debug)]
struct KnownTable {
    decoded: DecodedTable,
    /// Whether an endpoint has a chain in it.
    has_endpoints: bool,
    /// Polls since it was last read.
    left_alone: u32,
}

/// The circumstances of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Circumstance {
    /// Under the lock.
    Locked,
    /// Without: a moment of zeros is possible.
    Unlocked,
    /// Without, because a writer is about to replace a table.
    LastLook,
    /// Under the lock, because a writer is done.
    Rewritten,
}

impl Circumstance {
    /// Whether the reading was taken because of a writer.
    fn is_rewrite(self) -> bool {
        matches!(self, Self::LastLook | Self::Rewritten)
    }

    fn may_dip(self) -> bool {
        matches!(self, Self::Unlocked | Self::LastLook)
    }
}

/// Tables of iptables-legacy that the namespace has, by the text of `/proc/net/ip{,6}_tables_names`.
///
/// `None` is a kernel without the modules. A table that is not listed must not be asked for: the kernel would load
/// modules and register it.
fn tables_in(names: Option<&str>) -> Vec<Table> {
    let names: HashSet<&str> = names.unwrap_or_default().lines().map(str::trim).collect();
    Table::ALL.into_iter().filter(|table| names.contains(table.as_str())).collect()
}

fn names_file(ip_version: IpVersion) -> &'static str {
    match ip_version {
        IpVersion::V4 => "/proc/thread-self/net/ip_tables_names",
        IpVersion::V6 => "/proc/thread-self/net/ip6_tables_names",
    }
}

fn layout(ip_version: IpVersion) -> Layout {
    match ip_version {
        IpVersion::V4 => blob::IPV4,
        IpVersion::V6 => blob::IPV6,
    }
}

impl IptablesLegacy {
    /// Prepares to read the tables of the calling thread's network namespace.
    pub fn new(settings: Settings) -> Self {
        let lock = XtablesLock::open(&settings.lock_file);
        Self {
            settings,
            lock,
            sockets: HashMap::new(),
            tables: HashMap::new(),
            scratch: Scratch::default(),
            rewritten: false,
        }
    }

    /// The tables that the namespace has, whether or not Calico uses them.
    pub fn present() -> Result<Vec<TableId>, SourceError> {
        let mut present = Vec::new();
        for ip_version in IpVersion::BOTH {
            let file = names_file(ip_version);
            let names = match std::fs::read_to_string(file) {
                Ok(names) => Some(names),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                // Whoever may not read the names cannot tell that there are none.
                Err(error) => return Err(SourceError::io("reading", file, error)),
            };
            let id = |table| TableId { source: Source::IptablesLegacy, native: false, ip_version, table };
            present.extend(tables_in(names.as_deref()).into_iter().map(id));
        }
        Ok(present)
    }

    fn read_all(&mut self, wanted: &Wanted, circumstance: Circumstance) -> Result<Poll, SourceError> {
        let started = Instant::now();
        let mut poll = Poll::default();
        let with_endpoints = self.with_endpoints();
        let present = Self::present()?;
        poll.gone.extend(self.tables.keys().filter(|id| !present.contains(id)));
        self.tables.retain(|id, _| present.contains(id));
        for id in present {
            let is_of_use = match circumstance {
                Circumstance::LastLook => self.has_endpoints(id),
                Circumstance::Rewritten => self.has_endpoints(id) || id.table == Table::Filter,
                Circumstance::Locked | Circumstance::Unlocked => !self.leave_alone(id),
            };
            if !is_of_use {
                continue;
            }
            match self.read_table(id, wanted, circumstance) {
                Ok(snapshot) => {
                    poll.tables.extend(snapshot.map(|snapshot| TablePoll { id, snapshot: Ok(snapshot) }));
                }
                Err(error) => poll.tables.push(TablePoll { id, snapshot: Err(error) }),
            }
        }
        self.rewritten = false;
        poll.moved = self.with_endpoints() != with_endpoints;
        if self.scratch.capacity() > KEPT {
            self.scratch.release();
        }
        poll.took = started.elapsed();
        Ok(poll)
    }

    fn has_endpoints(&self, id: TableId) -> bool {
        self.tables.get(&id).is_some_and(|table| table.has_endpoints)
    }

    fn with_endpoints(&self) -> HashSet<TableId> {
        self.tables.iter().filter(|(_, table)| table.has_endpoints).map(|(id, _)| *id).collect()
    }

    /// What tells the tables' rules from others.
    fn fingerprints(&self) -> HashMap<TableId, u64> {
        self.tables.iter().map(|(id, table)| (*id, table.decoded.fingerprint)).collect()
    }

    /// A writer is about to replace a table: what was counted up to now.
    fn last_look(&mut self) -> Result<Poll, SourceError> {
        let (before, rewritten) = (self.fingerprints(), self.rewritten);
        let mut poll = self.read_all(&Wanted::default(), Circumstance::LastLook)?;
        if !rewritten && self.fingerprints() != before {
            missed_rewrite(&mut poll);
        }
        tracing::debug!(tables = poll.tables.len(), "looked once more: somebody opened the xtables lock");
        Ok(poll)
    }

    /// A writer is done: where the new rules begin. Nothing if another writer is at work, who will be done, too.
    fn look_again(&mut self, missed: bool) -> Result<Option<Poll>, SourceError> {
        let Ok(_lock) = self.lock.shared(Duration::ZERO) else { return Ok(None) };
        let before = self.fingerprints();
        let mut poll = self.read_all(&Wanted::default(), Circumstance::Rewritten)?;
        if missed && self.fingerprints() != before {
            missed_rewrite(&mut poll);
        }
        Ok(Some(poll))
    }

    /// Mangle and raw mostly have no chains of endpoints.
    fn leave_alone(&mut self, id: TableId) -> bool {
        match self.tables.get_mut(&id) {
            Some(table)
                if id.table != Table::Filter && !table.has_endpoints && table.left_alone < LEAVE_ALONE =>
            {
                table.left_alone += 1;
                true
            }
            _ => false,
        }
    }

    /// `None` if the table has nothing to tell.
    fn read_table(
        &mut self,
        id: TableId,
        wanted: &Wanted,
        circumstance: Circumstance,
    ) -> Result<Option<Snapshot>, SourceError> {
        let layout = layout(id.ip_version);
        let blob = read_blob(&mut self.sockets, &mut self.scratch, id)?;
        let undecodable = |error: blob::BlobError| SourceError::decode(describe(id), error);
        let fingerprint = blob::fingerprint(blob, layout).map_err(undecodable)?;

        let known = self.tables.get(&id);
        let same = known.is_some_and(|known| known.decoded.fingerprint == fingerprint);
        let mut gone = Vec::new();
        let mut changed = HashSet::new();
        if !same {
            let old = known.map(|known| chains_by_name(&known.decoded)).unwrap_or_default();
            let decoded = blob::decode(blob, layout, &old).map_err(undecodable)?;
            let new = chains_by_name(&decoded);
            gone.extend(old.keys().filter(|name| !new.contains_key(*name)).cloned());
            let is_new = |(name, chain): &(&ChainName, &Arc<Chain>)| {
                old.get(*name).is_none_or(|old| !Arc::ptr_eq(old, chain))
            };
            changed.extend(new.iter().filter(is_new).map(|(name, _)| name.clone()));
            let is_endpoint = |name: &ChainName| matches!(ChainKind::of(name), ChainKind::Endpoint { .. });
            let has_endpoints = new.keys().any(is_endpoint);
            self.tables.insert(id, KnownTable { decoded, has_endpoints, left_alone: 0 });
        }
        let Some(known) = self.tables.get_mut(&id) else { return Ok(None) };
        known.left_alone = 0;
        if !known.has_endpoints && gone.is_empty() {
            return Ok(None);
        }
        let needed = |chain: &&blob::DecodedChain| {
            let name = &chain.chain.name;
            circumstance.is_rewrite()
                || matches!(ChainKind::of(name), ChainKind::Endpoint { .. })
                || changed.contains(name)
                || wanted.contains(&(id, name.clone()))
        };
        let chains = known.decoded.chains.iter().filter(needed);
        let chains = chains.map(|c| Reading { chain: c.chain.clone(), counters: c.read(blob) }).collect();
        let may_dip = circumstance.may_dip();
        Ok(Some(Snapshot { chains, gone, may_dip, at: now(), ..Snapshot::default() }))
    }
}

/// Rules were rewritten without a look before it, and perhaps more than once.
fn missed_rewrite(poll: &mut Poll) {
    poll.notes.push(Note::MissedRewrite);
    for table in &mut poll.tables {
        if let Ok(snapshot) = &mut table.snapshot {
            snapshot.gap = true;
        }
    }
}

impl RuleSource for IptablesLegacy {
    fn source(&self) -> Source {
        Source::IptablesLegacy
    }

    fn read(&mut self, wanted: &Wanted) -> Result<Poll, SourceError> {
        let lock = self.lock.shared(self.settings.lock_patience);
        let before = self.lock.events().is_none().then(|| self.fingerprints());
        let circumstance = if lock.is_ok() { Circumstance::Locked } else { Circumstance::Unlocked };
        let mut poll = self.read_all(wanted, circumstance)?;
        if let Err(error) = lock {
            tracing::debug!(%error, "read without the xtables lock");
            poll.notes.push(Note::Unlocked);
        }
        if before.is_some_and(|before| !before.is_empty() && before != self.fingerprints()) {
            // Nobody tells of rewrites: there may have been any number of them.
            missed_rewrite(&mut poll);
        }
        Ok(poll)
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        self.lock.events()
    }

    fn on_events(&mut self) -> Result<Option<Poll>, SourceError> {
        let news = self.lock.news();
        self.rewritten |= news.closed;
        for table in self.tables.values_mut().filter(|_| news.opened) {
            table.left_alone = LEAVE_ALONE;
        }
        if news.opened && !news.closed_again {
            self.last_look().map(Some)
        } else if news.closed || news.closed_again {
            self.look_again(news.closed_again && !self.rewritten)
        } else {
            Ok(None)
        }
    }
}

fn read_blob<'a>(
    sockets: &mut HashMap<IpVersion, Socket>,
    scratch: &'a mut Scratch,
    id: TableId,
) -> Result<&'a [u8], SourceError> {
    let failed = |operation, error| SourceError::io(operation, describe(id), error);
    let socket = match sockets.entry(id.ip_version) {
        std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::hash_map::Entry::Vacant(entry) => {
            let family = match id.ip_version {
                IpVersion::V4 => Family::Ip,
                IpVersion::V6 => Family::Ip6,
            };
            entry.insert(Socket::open(family).map_err(|e| failed("opening a socket for", e))?)
        }
    };
    let table = id.table.as_str();
    for _ in 0..TRIES {
        let info = socket.info(table).map_err(|e| failed("asking the size of", e))?;
        match socket.entries(table, info.size, scratch) {
            Ok(_) => return Ok(Socket::blob(scratch)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed("reading", error)),
        }
    }
    Err(SourceError::Unstable { object: describe(id), tries: TRIES })
}

fn chains_by_name(decoded: &DecodedTable) -> HashMap<ChainName, Arc<Chain>> {
    decoded.chains.iter().map(|chain| (chain.chain.name.clone(), chain.chain.clone())).collect()
}

fn describe(id: TableId) -> String {
    format!("IPv{} table {} of iptables-legacy", id.ip_version, id.table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_that_are_listed_are_read() {
        assert_eq!(tables_in(None), []);
        assert_eq!(tables_in(Some("")), []);
        assert_eq!(tables_in(Some("nat\nfilter\n")), [Table::Filter]);
        assert_eq!(tables_in(Some("raw\nmangle\nfilter")), Table::ALL);
    }
}
