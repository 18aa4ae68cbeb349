//! When the watch of rewrites is attached, and what is done when there is news.
//!
//! Whoever opens the lock file may replace a table: the watch is attached, and one more look at the counters is taken,
//! which bounds what is lost if the watch should miss it. When a rewrite is over the table is read whole at once, before the
//! next one comes. A while after the last one has closed the file, the watch is detached.

use super::IptablesLegacy;
use super::whole_reads::Circumstance;
use crate::source::{Poll, SourceError, Wanted};
use accountant_core::Table;
use accountant_core::snapshot::TableId;
use std::collections::HashSet;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How long the watch stays attached after the last news. Several of one kind can be told as one, so the file may be open
/// although it does not seem so; and of a small table the next writer can be done before a watch that is not there any more
/// could be attached again. It costs every system call of the node some 50 ns.
const LINGER: Duration = Duration::from_secs(2);
/// After how long without news it is looked whether anybody holds the lock at all.
const SILENCE: Duration = Duration::from_secs(3);

impl IptablesLegacy {
    /// Hears the news, and attaches the watch if somebody opened the lock file.
    pub(super) fn look(&mut self) {
        let was_watching = self.rewrites.is_watching();
        let news = self.lock.news();
        if !self.lock.is_watched() {
            self.doubt_all();
        }
        if news.opened || news.closed || news.lost {
            self.last_news = Instant::now();
            let watching = self.rewrites.start();
            if watching && !was_watching {
                self.run_clock(true);
            }
            // Two replacements can look like none. One that was only begun cannot.
            if news.lost || news.closed && !was_watching {
                self.doubt_all();
            }
        }
        self.rewrites.hear();
        if self.rewrites.take_unknown() {
            self.doubt_all();
        }
        self.news.add(news);
    }

    /// All that is done about news.
    pub(super) fn hear_news(&mut self, poll: &mut Poll) -> Result<(), SourceError> {
        if let Some(wakeup) = &self.wakeup {
            wakeup.heard();
        }
        self.look();
        let news = std::mem::take(&mut self.news);
        if news.begun {
            self.last_look(news.over, poll);
        } else if news.closed && !self.rewrites.is_watching() {
            self.look_again(news.over, poll)?;
        }
        self.grab_what_is_over(poll);
        Ok(())
    }

    /// A writer is about to replace a table: what was counted up to now. Without the watch that is all there will be, of all
    /// chains, because any of them may change. `missed`: another one was at work before, whom nobody saw begin.
    fn last_look(&mut self, missed: bool, poll: &mut Poll) {
        let watching = self.rewrites.is_watching();
        let ids = self.with_endpoints().into_iter().collect();
        let whole = self.glance_all(ids, &Wanted::default(), !watching, poll);
        if !watching {
            self.grab_all(whole, Circumstance::LastLook { missed }, poll);
        }
        tracing::debug!(tables = poll.tables.len(), "looked once more: somebody opened the xtables lock");
    }

    /// A writer whom nobody watched is done: where the new rules begin. Nothing if another writer is at work, who will be
    /// done, too.
    fn look_again(&mut self, missed: bool, poll: &mut Poll) -> Result<(), SourceError> {
        let Ok(Some(_lock)) = self.lock.try_shared() else { return Ok(()) };
        let how = if missed { Circumstance::Unseen } else { Circumstance::Rewritten };
        let with_endpoints = self.with_endpoints();
        let mut ids = Self::present()?;
        // Chains of endpoints come to the filter table first.
        ids.retain(|id| id.table == Table::Filter || with_endpoints.contains(id));
        self.grab_all(ids, how, poll);
        Ok(())
    }

    pub(super) fn with_endpoints(&self) -> HashSet<TableId> {
        self.tables.iter().filter(|(_, table)| table.has_endpoints).map(|(id, _)| *id).collect()
    }

    /// Tables may have been replaced, for all that their addresses say.
    pub(super) fn doubt_all(&mut self) {
        for table in self.tables.values_mut() {
            table.in_doubt = true;
        }
    }

    /// Makes the watch ready before these tables are read for the first time: they can be rewritten while the agent is still
    /// about to start, so it is attached at once.
    pub(super) fn watch_from_the_start(&mut self, present: &[TableId]) {
        let Some(in_place) = self.in_place.as_mut().filter(|_| self.tables.is_empty()) else { return };
        let stamps: Vec<_> = present.iter().filter_map(|id| in_place.stamp(*id)).collect();
        if let Some(stamp) = stamps.iter().max_by_key(|stamp| stamp.number) {
            self.prepare_to_watch(stamp.net, stamp.number as usize);
            if self.rewrites.start() {
                self.last_news = Instant::now();
                self.run_clock(true);
            }
        }
    }

    /// Makes the watch ready for the tables that are known.
    pub(super) fn get_ready_to_watch(&mut self) {
        let with_endpoints = self.tables.values().filter(|table| table.has_endpoints);
        let stamps = with_endpoints.filter_map(|table| Some((table.stamp?.net, table.decoded.entries)));
        if let Some((net, rules)) = stamps.max_by_key(|(_, rules)| *rules) {
            self.prepare_to_watch(net, rules);
            // Somebody may have the file open since before there was a watch.
            if self.lock.is_open() && !self.rewrites.is_watching() && self.rewrites.start() {
                self.run_clock(true);
            }
        }
    }

    fn prepare_to_watch(&mut self, net: u64, rules: usize) {
        let before = self.rewrites.fd().map(|fd| fd.as_raw_fd());
        self.rewrites.prepare(net, rules);
        if let (Some(wakeup), Some(fd)) = (&self.wakeup, self.rewrites.fd())
            && before != Some(fd.as_raw_fd())
            && let Err(error) = wakeup.add(fd)
        {
            tracing::debug!(%error, "cannot wait for news of rewrites: they are heard at the next poll");
        }
    }

    pub(super) fn stop_watching_if_done(&mut self) {
        let silence = self.last_news.elapsed();
        if !self.rewrites.is_watching() || silence < LINGER {
            return;
        }
        if self.lock.is_open() {
            // They wait for the lock, or were not seen to close the file.
            if silence < SILENCE || !matches!(self.lock.try_shared(), Ok(Some(_))) {
                return;
            }
            self.lock.nobody_has_it();
        }
        self.rewrites.stop();
        self.rewrites.hear();
        self.run_clock(false);
    }

    fn run_clock(&self, run: bool) {
        let every = run.then_some(LINGER);
        if let Some(Err(error)) = self.wakeup.as_ref().map(|wakeup| wakeup.tick(every)) {
            tracing::debug!(%error, "no clock: the watch is detached with later news");
        }
    }
}
