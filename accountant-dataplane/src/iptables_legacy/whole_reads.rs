//! Whole reads, and what is made of them: tables are read as soon as a rewrite is over, and looked into when nobody
//! waits, so that the next rewrite is not missed meanwhile.
//!
//! A table that was replaced more than once before it could be read is looked into step by step, with the rules that the
//! writers had in between.
//!
//! In go tables to be read, out come polls. Invariant: what was read is looked into in the order of reading.

use super::rewrites::{Step, Told};
use super::settle::Rewrite;
use super::table::{describe, layout};
use super::whole::Blob;
use super::{IptablesLegacy, blob};
use crate::source::{Poll, SourceError, TablePoll, Wanted};
use accountant_abi::in_place::Stamp;
use accountant_core::snapshot::TableId;

/// How many bytes of tables may wait to be looked into before another one is read.
const MOST_GRABBED: usize = 64 << 20;

/// The circumstances of a whole read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Circumstance {
    /// Under the lock.
    Locked,
    /// Without: a moment of zeros is possible.
    Unlocked,
    /// Without, but a rewrite was told to be over: good if the table still is what it was then.
    Over,
    /// Without, because a writer is about to replace a table; `missed` if one before was not seen to begin.
    LastLook { missed: bool },
    /// Under the lock, because a writer is done.
    Rewritten,
    /// The same, and that the writer began was seen no sooner.
    Unseen,
}

impl Circumstance {
    /// Whether the counters are what they are going to be, and not in the middle of a rewrite.
    pub(super) fn is_sure(self) -> bool {
        !matches!(self, Self::Unlocked | Self::LastLook { .. })
    }

    /// Whether the reading was taken because of a writer, so that it tells all chains.
    pub(super) fn is_rewrite(self) -> bool {
        !matches!(self, Self::Locked | Self::Unlocked)
    }
}

/// A table as it was read, not yet looked into.
#[derive(Debug)]
pub(super) struct Grabbed {
    pub(super) id: TableId,
    pub(super) how: Circumstance,
    /// What it was before and after.
    pub(super) stamp: Option<Stamp>,
    pub(super) contents: Contents,
    pub(super) since: Since,
    /// Whether a rewrite would have been told.
    pub(super) is_watched: bool,
    /// Whether nothing was known to have been done to it since it was last read whole.
    pub(super) was_trusted: bool,
}

/// A table's rules and counters.
#[derive(Debug)]
pub(super) enum Contents {
    /// As the kernel handed them out.
    Read(Blob),
    /// Of a table that is no more: its rules as its writer had them, with the counters that they began with.
    Past(Vec<u8>),
}

/// What was done to a table since it was last looked into.
#[derive(Debug)]
pub(super) enum Since {
    /// Nothing was told.
    Nothing,
    /// It was replaced once.
    Rewritten {
        /// By this.
        rewrite: Rewrite,
        /// The table that was there before, if it is one that was told: address of its `private`.
        from: Option<u64>,
    },
    /// Not all of what was done is known.
    Unclear,
}

impl Contents {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Read(blob) => blob.bytes(),
            Self::Past(rules) => rules,
        }
    }

    /// Whether the table is no more.
    pub(super) fn are_past(&self) -> bool {
        matches!(self, Self::Past(_))
    }
}

impl Since {
    /// The one rewrite that leads here from the table that is known.
    pub(super) fn rewrite_of(&self, known: Option<Stamp>) -> Option<&Rewrite> {
        match self {
            Self::Rewritten { rewrite, from } => {
                let is_known = |from| known.is_some_and(|known| known.private == from);
                from.is_none_or(is_known).then_some(rewrite)
            }
            Self::Nothing | Self::Unclear => None,
        }
    }
}

impl IptablesLegacy {
    /// Reads a table whole, without a look into it: what is done about it can wait, the next rewrite does not.
    fn grab(&mut self, id: TableId, how: Circumstance) -> Result<(), SourceError> {
        let before = self.in_place.as_mut().and_then(|in_place| in_place.stamp(id));
        let blob = self.whole.read(id)?;
        let after = self.in_place.as_mut().and_then(|in_place| in_place.stamp(id));
        let stamp = before.filter(|_| before == after);
        self.rewrites.hear();
        let leads_here = |told: &Told| stamp.is_some_and(|stamp| told.leads_to(&stamp));
        if how == Circumstance::Over
            && !self.rewrites.of(id).is_some_and(|told| told.is_over && leads_here(told))
        {
            // The next rewrite is under way, and will be told.
            return Ok(());
        }
        let told = if matches!(how, Circumstance::LastLook { .. }) { None } else { self.rewrites.take(id) };
        let is_watched = self.rewrites.reason().is_none();
        let was_trusted = told.is_none() && self.is_trusted(id);
        let since = match (told, stamp) {
            (None, _) => Since::Nothing,
            (Some(told), Some(stamp)) if told.leads_to(&stamp) => {
                self.grab_steps(id, stamp, told.into_steps())?
            }
            (Some(_), _) => Since::Unclear,
        };
        let contents = Contents::Read(blob);
        self.grabbed.push_back(Grabbed { id, how, stamp, contents, since, is_watched, was_trusted });
        Ok(())
    }

    /// The tables between the one that is known and the one that was read. What leads from the last of them to it is
    /// returned.
    fn grab_steps(&mut self, id: TableId, stamp: Stamp, steps: Vec<Step>) -> Result<Since, SourceError> {
        let (mut since, mut from) = (Since::Unclear, None);
        let last = steps.len().saturating_sub(1);
        for (number, Step { rewrite, rules, private, number: count }) in steps.into_iter().enumerate() {
            let added = rewrite.added.clone();
            since = Since::Rewritten { rewrite, from };
            if number == last {
                break;
            }
            let mut rules = rules.unwrap_or_default();
            blob::set_counters(&mut rules, layout(id.ip_version), &added)
                .map_err(|error| SourceError::decode(describe(id), error))?;
            from = Some(private);
            let stamp = Some(Stamp { private, number: count, ..stamp });
            let (how, contents) = (Circumstance::Over, Contents::Past(rules));
            let grabbed = Grabbed { id, how, stamp, contents, since, is_watched: true, was_trusted: false };
            self.grabbed.push_back(grabbed);
            since = Since::Unclear;
        }
        Ok(since)
    }

    /// Reads tables whole, to be looked into soon.
    pub(super) fn grab_all(&mut self, ids: Vec<TableId>, how: Circumstance, poll: &mut Poll) {
        for id in ids {
            match self.grab(id, how) {
                Ok(()) => {}
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
            if let Contents::Read(blob) = grabbed.contents {
                self.whole.take_back(blob);
            }
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
        let waiting: usize = self.grabbed.iter().map(|grabbed| grabbed.contents.bytes().len()).sum();
        if !over.is_empty() && waiting < MOST_GRABBED {
            let lock = self.lock.try_shared().ok().flatten();
            let how = if lock.is_some() { Circumstance::Locked } else { Circumstance::Over };
            self.grab_all(over, how, poll);
        }
    }
}
