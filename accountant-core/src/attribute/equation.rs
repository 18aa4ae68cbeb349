//! One equation: a sum of counters is a sum of unknowns. What its readings say, and how far they are to be believed.
//!
//! A reading takes time, so it belongs to no single moment. The moment that equations are solved for lies *between* the
//! last two readings: there, each counter is at least what the earlier one says and at most what the later one says.
//! A difference of counters is worth more than that: rules of one chain are read in the order in which packets meet
//! them, so the difference of one reading is too small by what passed meanwhile, and too large only by packets that
//! were between two rules at that very moment, of which there are a few at most.

use super::amount::Amount;
use super::program::Relation;
use super::store::Terms;
use crate::ChainName;
use crate::ledger::Cause;
use serde::{Deserialize, Serialize};

/// Sums of added and of subtracted counters since the agent first saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sides {
    pub(crate) plus: Amount,
    pub(crate) minus: Amount,
}

impl Sides {
    const NONE: Self = Self { plus: Amount::ZERO, minus: Amount::ZERO };

    pub(crate) fn difference(self) -> Amount {
        self.plus - self.minus
    }
}

/// What an equation is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Of an endpoint; what stays undetermined in it is accounted for. Every decision is in one of these.
    Counts,
    /// Of an endpoint; its terms are in others that count, too.
    Helps,
    /// Like `Helps`, and its terms are only at most this.
    AtMost,
    /// A sum over endpoints, of a shared chain.
    Column,
}

/// Where the doubtful part of an equation goes, if it turns out to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Blame {
    /// To the unattributed account.
    Nobody(Cause),
    /// To the terms of the equation: it is only doubted at which moment it was counted.
    Terms,
    /// Nowhere: other equations have it.
    Elsewhere,
}

/// A part of an equation that none of its terms need have caused.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Doubt {
    pub(crate) blame: Blame,
    /// Whether it is dropped when all numbers agree.
    pub(crate) refutable: bool,
    /// The value up to which there is no doubt.
    pub(crate) from: Amount,
    /// The value above which there is none; not known until there was another reading.
    pub(crate) to: Option<Amount>,
    /// The snapshot in which it arose.
    pub(crate) since: u64,
}

/// A part of what the terms did that an equation does not know of.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Missing {
    pub(crate) most: Amount,
    /// Whether it is taken for nothing when all numbers agree.
    pub(crate) refutable: bool,
}

/// What was read, and how much of it is accounted for; since everything that was read last was accounted for.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Readings {
    pub(crate) now: Sides,
    pub(crate) last: Sides,
    /// The reading before `last`.
    pub(crate) before: Sides,
    /// The greatest difference of any reading before the latest, less what can have been between two rules.
    pub(crate) floor: Amount,
    /// How much of it is accounted for.
    pub(crate) settled: Amount,
}

impl Readings {
    const NONE: &Self = &Self {
        now: Sides::NONE,
        last: Sides::NONE,
        before: Sides::NONE,
        floor: Amount::ZERO,
        settled: Amount::ZERO,
    };

    /// Whether it rests with all of it accounted for.
    fn is_accounted(&self) -> bool {
        self.now == self.last
            && self.last == self.before
            && self.settled == self.now.difference()
            && self.floor.is_within(self.settled)
    }
}

/// A sum of counters that equals a sum of unknowns.
///
/// There are some ten thousand on a node, and most of them rest: what only one that moves or is in doubt needs is apart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Equation {
    pub(crate) chain: ChainName,
    pub(crate) relation: Relation,
    pub(crate) role: Role,
    pub(crate) terms: Terms,
    /// Terms that are subtracted.
    pub(crate) minus_terms: Terms,
    /// Terms that the present rules no longer give it; they stay until it is settled.
    pub(crate) former: Terms,
    /// Whether counters are subtracted.
    pub(crate) is_difference: bool,
    /// `None` where nothing moved since all was accounted for.
    readings: Option<Box<Readings>>,
    /// How many packets can have been between two rules at the latest reading.
    pub(crate) in_flight: u32,
    /// Whether rules feed it, and whether they ever did.
    pub(crate) fed: bool,
    pub(crate) ever_fed: bool,
    /// The snapshot that brought the latest reading, and the one before.
    pub(crate) read_in: u64,
    pub(crate) read_before: u64,
    /// The snapshot in which it last moved.
    pub(crate) moved_in: u64,
    doubt: Option<Box<Doubt>>,
    missing: Option<Box<Missing>>,
    /// Not to be used until it is settled at rest.
    pub(crate) unusable: bool,
    /// How many snapshots it has waited to be settled.
    pub(crate) waited: u32,
}

impl Equation {
    pub(crate) fn new(chain: ChainName, relation: Relation) -> Self {
        Self {
            chain,
            relation,
            role: Role::Counts,
            terms: Terms::new(),
            minus_terms: Terms::new(),
            former: Terms::new(),
            is_difference: false,
            readings: None,
            in_flight: 0,
            fed: false,
            ever_fed: false,
            read_in: 0,
            read_before: 0,
            moved_in: 0,
            doubt: None,
            missing: None,
            unusable: false,
            waited: 0,
        }
    }

    /// What was read.
    pub(crate) fn readings(&self) -> &Readings {
        self.readings.as_deref().unwrap_or(Readings::NONE)
    }

    /// What was read, to be changed.
    pub(crate) fn readings_mut(&mut self) -> &mut Readings {
        let floor = Amount::ZERO - self.passing();
        self.readings.get_or_insert_with(|| Box::new(Readings { floor, ..Readings::default() }))
    }

    /// How much of it is accounted for.
    pub(crate) fn settled(&self) -> Amount {
        self.readings().settled
    }

    /// The part that none of its terms need have caused.
    pub(crate) fn doubt(&self) -> Option<Doubt> {
        self.doubt.as_deref().copied()
    }

    pub(crate) fn set_doubt(&mut self, doubt: Option<Doubt>) {
        self.doubt = doubt.map(Box::new);
    }

    /// The part of what its terms did that it does not know of.
    pub(crate) fn missing(&self) -> Option<Missing> {
        self.missing.as_deref().copied()
    }

    pub(crate) fn set_missing(&mut self, missing: Missing) {
        self.missing = Some(Box::new(missing));
    }

    /// Whether it only helps to determine what is accounted for by others.
    pub(crate) fn is_helper(&self) -> bool {
        matches!(self.role, Role::Helps | Role::AtMost)
    }

    pub(crate) fn is_column(&self) -> bool {
        self.role == Role::Column
    }

    /// What it surely holds between the last two readings, since the first one.
    pub(crate) fn low(&self) -> Amount {
        let readings = self.readings();
        if !self.minus_terms.is_empty() {
            // It can fall, so that no reading but the last two tells of it.
            return readings.last.plus - readings.now.minus;
        }
        if !self.fed || !self.is_difference {
            return readings.last.difference();
        }
        self.readings.as_ref().map_or_else(|| Amount::ZERO - self.passing(), |readings| readings.floor)
    }

    /// What packets that are between two rules can make a difference too large by, in the reading that is latest now.
    fn passing(&self) -> Amount {
        let longest = match self.relation {
            Relation::Verdict(_) | Relation::Failsafe => LONGEST_PACKET,
            _ => LONGEST_DATAGRAM,
        };
        Amount { packets: self.in_flight.into(), bytes: i128::from(self.in_flight) * longest }
    }

    /// The most it can hold between the last two readings, since the first one.
    pub(crate) fn high(&self, snapshot: u64) -> Amount {
        match self.fed && self.read_in != snapshot {
            true => Amount::UNBOUNDED,
            false => self.readings().now.plus - self.readings().last.minus,
        }
    }

    /// What it holds at rest and is not settled.
    pub(crate) fn rest(&self) -> Amount {
        self.readings().now.difference() - self.settled()
    }

    /// Whether it was read twice running without a move in between, or nothing moves it any more.
    pub(crate) fn is_quiet(&self, snapshot: u64) -> bool {
        !self.fed
            || (self.read_in == snapshot && self.read_before + 1 == snapshot && self.moved_in != snapshot)
    }

    /// Whether there is something to be settled that is not simply its counter's value.
    pub(crate) fn is_open(&self, snapshot: u64) -> bool {
        let unread = self.fed && self.read_in != snapshot && self.doubt.is_some();
        self.role == Role::Counts && (unread || self.rest().any_positive() || self.doubt.is_some())
    }

    /// The most that its doubtful part can be.
    pub(crate) fn doubtful(&self) -> Amount {
        self.doubt().map_or(Amount::ZERO, |doubt| match doubt.to {
            None => Amount::UNBOUNDED,
            Some(to) => (to - doubt.from).at_least_zero(),
        })
    }

    /// Starts a new reading, once a snapshot.
    ///
    /// `in_flight` is how many packets can be between two rules while counters are read.
    pub(crate) fn begin_reading(&mut self, snapshot: u64, in_flight: u32) {
        if self.read_in != snapshot {
            let passing = self.passing();
            if let Some(readings) = &mut self.readings {
                readings.floor = readings.floor.max(readings.now.difference() - passing);
                (readings.before, readings.last) = (readings.last, readings.now);
            }
            self.in_flight = in_flight;
            self.read_before = self.read_in;
            self.read_in = snapshot;
        }
    }

    /// Doubts what came between the reading before and the next one.
    pub(crate) fn doubts(&mut self, blame: Blame, refutable: bool, snapshot: u64) {
        self.unusable |= !self.minus_terms.is_empty();
        // Endpoints may have been read before the shared chain that they call, so that they can have lost what it told
        // of at the last reading.
        let before = self.readings().before.difference();
        let low = if self.is_column() { before } else { self.low().at_least_zero() };
        let from = low.max(self.settled());
        let old = self.doubt();
        self.set_doubt(Some(Doubt {
            blame: old.map_or(blame, |old| old.blame),
            refutable: refutable && old.is_none_or(|old| old.refutable),
            from: old.map_or(from, |old| old.from.min(from)),
            to: None,
            since: snapshot,
        }));
    }

    /// Notes that the terms did things that it does not know of.
    pub(crate) fn misses(&mut self, most: Amount, refutable: bool) {
        self.unusable |= !self.minus_terms.is_empty();
        let old = self.missing();
        self.set_missing(Missing {
            most: most + old.map_or(Amount::ZERO, |old| old.most),
            refutable: refutable && old.is_none_or(|old| old.refutable),
        });
    }

    /// A doubt ends with the first reading after it arose.
    pub(crate) fn end_doubt(&mut self, snapshot: u64) {
        let readings = self.readings();
        let high = match self.fed {
            true => readings.now.plus - readings.last.minus,
            false => readings.now.difference(),
        };
        if let Some(doubt) = &mut self.doubt
            && doubt.to.is_none()
            && (!self.fed || (self.read_in == snapshot && snapshot > doubt.since))
        {
            doubt.to = Some(high);
        }
        if self.doubt.is_some() && !self.doubtful().any_positive() {
            self.doubt = None;
        }
    }

    /// Its rules are gone: what it holds now is all there will be.
    pub(crate) fn orphan(&mut self) {
        self.fed = false;
        if let Some(readings) = &mut self.readings {
            readings.last = readings.now;
        }
    }

    /// All of it is accounted for, at rest.
    pub(crate) fn close(&mut self) {
        if let Some(readings) = &mut self.readings {
            readings.settled = readings.now.difference();
            // If it ever held more than now, that was lost.
            readings.floor = readings.floor.min(readings.settled);
        }
        self.doubt = None;
        self.missing = None;
        self.unusable = false;
        self.waited = 0;
    }

    /// Whether nothing moved since all of it was accounted for.
    pub(crate) fn is_accounted(&self) -> bool {
        self.readings.is_none()
    }

    /// Starts its readings anew where it rests and all of it is accounted for: they are told from nothing then.
    pub(crate) fn forget_accounted(&mut self) {
        let is_certain = self.doubt.is_none() && self.missing.is_none() && !self.unusable;
        if is_certain && self.readings.as_ref().is_some_and(|readings| readings.is_accounted()) {
            self.readings = None;
        }
    }
}

/// Bytes of a packet at most: `skb->len` of a TCP packet of many segments (`GSO_MAX_SIZE`, linux/netdevice.h).
const LONGEST_PACKET: i128 = 512 * 1024;
/// Bytes of a packet that policy sees at most: it opens a connection or is a datagram (`GSO_LEGACY_MAX_SIZE`).
const LONGEST_DATAGRAM: i128 = 64 * 1024;
