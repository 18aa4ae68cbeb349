//! Whole reads, and what is made of them: tables are read as soon as a rewrite is over, and looked into when nobody
//! waits, so that the next rewrite is not missed meanwhile.
//!
//! In go tables to be read, out come polls. Invariant: what was read is looked into in the order of reading.

use super::{Circumstance, IptablesLegacy, MOST_GRABBED};
use crate::source::{Poll, TablePoll, Wanted};
use accountant_core::snapshot::TableId;

impl IptablesLegacy {
    /// Reads tables whole, to be looked into soon.
    pub(super) fn grab_all(&mut self, ids: Vec<TableId>, how: Circumstance, poll: &mut Poll) {
        for id in ids {
            match self.grab(id, how) {
                Ok(grabbed) => self.grabbed.extend(grabbed),
                Err(error) => poll.tables.push(TablePoll { id, snapshot: Err(error) }),
            }
        }
    }

    /// Looks into all that was read, and goes on reading what is rewritten meanwhile.
    pub(super) fn digest_all(&mut self, wanted: &Wanted, poll: &mut Poll) {
        while let Some(grabbed) = self.grabbed.pop_front() {
            let id = grabbed.id;
            match self.digest(&grabbed, wanted) {
                Ok(Some(snapshot)) => poll.tables.push(TablePoll { id, snapshot: Ok(snapshot) }),
                Ok(None) => {}
                Err(error) => poll.tables.push(TablePoll { id, snapshot: Err(error) }),
            }
            self.whole.take_back(grabbed.blob);
            self.look();
            self.grab_what_is_over(poll);
        }
        self.get_ready_to_watch();
        if self.in_place.as_ref().is_some_and(|in_place| in_place.reason().is_none()) {
            // The next whole read is when rules change.
            self.whole.release();
        }
    }

    /// Reads tables whose rewrite is over, before the next one comes.
    pub(super) fn grab_what_is_over(&mut self, poll: &mut Poll) {
        let over = self.rewrites.over();
        let waiting: usize = self.grabbed.iter().map(|grabbed| grabbed.blob.bytes().len()).sum();
        if !over.is_empty() && waiting < MOST_GRABBED {
            let lock = self.lock.try_shared().ok().flatten();
            let how = if lock.is_some() { Circumstance::Locked } else { Circumstance::Over };
            self.grab_all(over, how, poll);
        }
    }
}
