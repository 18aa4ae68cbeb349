//! What Calico's own counters have beside the verdicts that our programs read: hits of rules on the whole node, and what
//! policy decided at each endpoint. The one lacks the workload, the other the policy.
//!
//! In go these counters and the verdicts read *after* them, so that what Calico counted more than we read is at most what we
//! missed. Out come postings to accounts that lack a part of their name, for spans of time in which something of Calico's had
//! no program of ours beside it; in all others the difference is only told.
//!
//! Invariants:
//! * a packet whose verdict was read is never in a total: what is posted is a running maximum of a lower bound;
//! * counters that fall, vanish or are in another map begin at zero; no posting is taken back;
//! * the first counters that an agent sees are where it begins, unless their maps came into being before its eyes.

use super::PolicyProgram;
use super::accountant::{Charged, PATIENCE, Reading, Way, what};
use super::names::Names;
use super::rule_id::RuleId;
use super::verdict::{Outcome, Verdict};
use crate::index::Index;
use crate::ledger::{Cause, Key, Posting, TotalKey, What};
use crate::snapshot::{Source, TableId};
use crate::watch::Fate;
use crate::{Counter, IpVersion};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

/// Calico's counters at one moment, before verdicts are read.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Hits of rules, where they can be read.
    pub rules: Option<RuleHits>,
    /// What was decided at each endpoint.
    pub ways: BTreeMap<Way, Decided>,
    /// Policy programs as far as they are listed, for names.
    pub programs: Vec<Arc<PolicyProgram>>,
    /// Whether the maps came into being since the source was first looked at.
    pub fresh: bool,
    /// Whether programs of ours read verdicts anywhere.
    pub beside: bool,
}

/// How often each rule was hit on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleHits {
    /// Which map says so.
    pub map: u32,
    /// By the rule's number.
    pub hits: BTreeMap<RuleId, u64>,
}

/// What was decided at an endpoint in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// Which map says so, and of which interface's index.
    pub origin: (u32, u32),
    /// Packets that policy accepted, that it denied, and that were dropped for another reason; those also if it had accepted
    /// them.
    pub packets: [u64; 3],
    /// Whether programs of ours are there.
    pub watched: bool,
    /// Whether it is known to have policy. Calico counts on each interface of the host; one without a listing is an endpoint
    /// only if the datastore says so.
    pub policed: bool,
}

/// One of Calico's counters.
#[derive(Debug, Default)]
struct Side {
    /// None as long as Calico has not counted anything.
    origin: Option<(u32, u32)>,
    calico: u64,
    /// What Calico counted more than was read, now and at the reading before.
    missed: [i64; 2],
    /// What was read and that Calico counted before it began anew, or has not counted yet. None if neither can be.
    debt: Option<i64>,
    /// How much of it was posted, and up to where that was decided.
    posted: i64,
    settled: i64,
    /// For how many readings more something may have been missed.
    open: u8,
    /// For how many readings it has waited for a name.
    waited: u32,
    /// See [`Decided::policed`].
    policed: bool,
    /// Whether programs of ours were there at the last reading.
    watched: bool,
}

/// For how many readings what was missed may come to light once all is watched again: with traffic under way no two agree.
const OPEN: u8 = 10;

impl Side {
    /// Takes a value, and what was read of the same since.
    fn read(&mut self, origin: Option<(u32, u32)>, calico: u64, ours: u64, watched: bool) {
        let anew = self.origin.is_some() && origin != self.origin || calico < self.calico;
        let counted = if anew { calico } else { calico - self.calico };
        let more = signed(counted) - signed(ours);
        (self.origin, self.calico) = (origin, calico);
        self.missed = [self.missed[0] + more, self.missed[0]];
        if counted == 0 && ours == 0 && !anew {
            // Nothing is under way, so nothing of it will show any more.
            self.missed[0] += self.debt.take().unwrap_or(0).max(0);
        } else if anew || calico == 0 {
            let behind = (-more).max(0);
            self.debt = self.debt.map(|debt| debt + behind).or((behind > 0).then_some(behind));
        } else if let Some(debt) = &mut self.debt {
            // What was under way at the one reading shows at the next, in either direction.
            *debt -= more;
        }
        self.open = if watched { self.open.saturating_sub(1) } else { OPEN };
    }

    /// How much more is certain to have been missed. Beside programs of ours only what two readings agree on.
    fn more(&self, beside: bool) -> i64 {
        let certain = if beside { self.missed[0].min(self.missed[1]) } else { self.missed[0] };
        if self.open > 0 { (certain - self.settled).max(0) } else { 0 }
    }

    /// Takes it as posted.
    fn post(&mut self, amount: i64) {
        self.settled += amount;
        self.posted += amount;
        if self.open == 0 {
            // Where all was watched it is no total, but a difference.
            self.settled = self.settled.max(self.missed[0]);
        }
    }

    fn is_unsettled(&self) -> bool {
        self.open > 0 && self.missed[0] > self.settled
    }
}

fn signed(packets: u64) -> i64 {
    i64::try_from(packets).unwrap_or(i64::MAX)
}

/// Accounts for Calico's own counters.
#[derive(Debug, Default)]
pub struct Totals {
    names: Names,
    rules: HashMap<RuleId, Side>,
    ways: HashMap<(Way, usize), Side>,
    /// Verdicts as they were last told.
    told: HashMap<(IpVersion, Way, Verdict), u64>,
    /// Whether there were counters of rules, of endpoints.
    begun: [bool; 2],
    accounts: BTreeSet<Key>,
    difference: Option<u64>,
}

impl Totals {
    /// Takes Calico's counters, the verdicts that were read after them, and charges what nobody saw more of.
    pub fn apply(&mut self, own: &Own, verdicts: &[(TableId, Reading)], index: &Index) -> Charged {
        let ours = self.ours(verdicts);
        let moved = self.read_ways(own, &ours.ways);
        // Whatever moves without a program of ours beside it moves counters of rules as well.
        let watched = own.beside && !moved;
        self.read_rules(own, &ours.rules, watched);
        for program in &own.programs {
            self.names.learn(program);
        }
        self.names.look_up(self.rules.keys().copied(), index);
        let mut charged = Charged::default();
        self.charge_rules(own.beside, &mut charged);
        self.charge_ways(index, &mut charged);
        self.accounts.extend(charged.postings.iter().map(|posting| posting.key.clone()));
        self.difference = own.rules.as_ref().filter(|_| own.beside).map(|_| {
            let differences = self.rules.values().map(|side| (side.missed[0] - side.posted).unsigned_abs());
            differences.sum()
        });
        charged
    }

    /// By how many hits Calico's counters of rules and the paths of verdicts differ, rule by rule. None where one of the two
    /// is not there.
    pub fn difference(&self) -> Option<u64> {
        self.difference
    }

    /// All accounts that were posted to.
    pub fn accounts(&self) -> impl Iterator<Item = &Key> {
        self.accounts.iter()
    }

    /// What was read since the last time.
    fn ours(&mut self, verdicts: &[(TableId, Reading)]) -> Ours {
        let mut ours = Ours::default();
        let mut told = HashMap::new();
        for (id, reading) in verdicts {
            for ((way, verdict), counter) in &reading.counted {
                let key = (id.ip_version, way.clone(), verdict.clone());
                let before = self.told.get(&key).copied().unwrap_or(0);
                let more = counter.packets.saturating_sub(before);
                told.insert(key, counter.packets.max(before));
                for &part in parts(verdict.outcome) {
                    *ours.ways.entry((way.clone(), part)).or_default() += more;
                }
                for id in &verdict.path {
                    *ours.rules.entry(*id).or_default() += more;
                }
            }
        }
        self.told = told;
        ours
    }

    /// Says whether a counter moved where no program of ours was.
    fn read_ways(&mut self, own: &Own, ours: &HashMap<(Way, usize), u64>) -> bool {
        let whole = std::mem::replace(&mut self.begun[1], true) || own.fresh;
        for (way, decided) in &own.ways {
            for (part, &packets) in decided.packets.iter().enumerate() {
                begin(&mut self.ways, (way.clone(), part), Some(decided.origin), packets, whole);
            }
        }
        // Calico's counters are read first: what comes first may have been read by our programs alone.
        for key in ours.keys() {
            begin(&mut self.ways, key.clone(), None, 0, whole);
        }
        let mut moved = false;
        for (key, side) in &mut self.ways {
            let decided = own.ways.get(&key.0);
            let packets = decided.map_or(0, |decided| decided.packets[key.1]);
            // Programs that are there now came after the last reading if they were not there then.
            let is_watched = decided.is_some_and(|decided| decided.watched);
            let watched = std::mem::replace(&mut side.watched, is_watched) && is_watched;
            side.policed = decided.map_or(side.policed, |decided| decided.policed);
            let origin = decided.map(|decided| decided.origin).or(side.origin);
            let before = side.calico;
            side.read(origin, packets, ours.get(key).copied().unwrap_or(0), watched);
            moved |= !watched && side.calico != before;
        }
        self.ways.retain(|(way, _), side| own.ways.contains_key(way) || side.debt.is_some());
        moved
    }

    fn read_rules(&mut self, own: &Own, ours: &HashMap<RuleId, u64>, watched: bool) {
        let Some(RuleHits { map, hits }) = &own.rules else { return };
        let whole = std::mem::replace(&mut self.begun[0], true) || own.fresh;
        for (&id, &packets) in hits {
            begin(&mut self.rules, id, Some((*map, 0)), packets, whole);
        }
        // As above.
        for &id in ours.keys() {
            begin(&mut self.rules, id, Some((*map, 0)), 0, whole);
        }
        for (id, side) in &mut self.rules {
            let packets = hits.get(id).copied().unwrap_or(0);
            side.read(Some((*map, 0)), packets, ours.get(id).copied().unwrap_or(0), watched);
        }
    }

    fn charge_rules(&mut self, beside: bool, charged: &mut Charged) {
        let names = &self.names;
        self.rules.retain(|&id, side| {
            let more = side.more(beside);
            let waits = more > 0 && !names.explains(id) && side.waited < PATIENCE;
            side.waited = if waits { side.waited + 1 } else { 0 };
            charged.unsettled |= waits || beside && side.is_unsettled();
            if !waits {
                side.post(more);
                if let (1.., Some(key)) = (more, rule_key(names, id)) {
                    charged.postings.push(posting(key, more));
                }
            }
            // Of a rule that is gone nothing more will be counted.
            waits || side.calico > 0 || side.debt.is_some() || side.is_unsettled()
        });
    }

    /// What passes at an interface while it is no endpoint is nobody's, and not posted when it becomes one.
    fn charge_ways(&mut self, index: &Index, charged: &mut Charged) {
        for ((way, part), side) in &mut self.ways {
            // Where no program of ours is, none has read anything.
            let beside = side.open < OPEN;
            let more = side.more(beside);
            side.post(more);
            charged.unsettled |= beside && side.is_unsettled();
            if more > 0 && (side.policed || index.knows(&way.0)) {
                charged.postings.push(posting(way_key(way, *part), more));
            }
        }
    }
}

/// What was read by our programs since.
#[derive(Default)]
struct Ours {
    rules: HashMap<RuleId, u64>,
    ways: HashMap<(Way, usize), u64>,
}

/// A counter that was not there before began at zero; those of the first reading began before the agent.
fn begin<K: Eq + Hash>(
    sides: &mut HashMap<K, Side>,
    key: K,
    origin: Option<(u32, u32)>,
    packets: u64,
    whole: bool,
) -> &mut Side {
    let calico = if whole { 0 } else { packets };
    sides.entry(key).or_insert_with(|| Side { origin, calico, ..Side::default() })
}

fn posting(key: Key, packets: i64) -> Posting {
    Posting { key, amount: Counter::new(packets.unsigned_abs(), 0) }
}

/// Which of [`Decided::packets`] an outcome is among.
fn parts(outcome: Outcome) -> &'static [usize] {
    match outcome {
        Outcome::Allowed => &[0],
        Outcome::Denied => &[1],
        Outcome::DroppedWithoutPolicy | Outcome::PolicyFailed => &[2],
        Outcome::AllowedThenDropped => &[0, 2],
    }
}

fn way_key((endpoint, direction): &Way, part: usize) -> Key {
    let fate = Fate::ALL.get(part).copied().unwrap_or(Fate::Elsewhere);
    let what = What::Seen { established: false, fate };
    TotalKey { endpoint: Some(endpoint.clone()), direction: *direction, what }.into()
}

/// Nothing where a tier only goes on to the next.
fn rule_key(names: &Names, id: RuleId) -> Option<Key> {
    match names.meaning(id) {
        // The ends of all tiers and profiles have this number, of both directions.
        _ if id == RuleId::NONE => Some(Key::Unattributed(Source::CalicoBpf, Cause::Undetermined)),
        None => Some(Key::Unattributed(Source::CalicoBpf, Cause::UnknownRule)),
        Some(meaning) => {
            let what = what(&meaning.decision)?;
            Some(TotalKey { endpoint: None, direction: meaning.direction, what }.into())
        }
    }
}

#[cfg(test)]
mod tests;
