//! Being told of rewrites of iptables-legacy, with the last counters of the rules that went.
//!
//! The program of `accountant-ebpf/src/rewrites` sees the end of every system call while it is attached, which taxes every
//! process a little: whoever uses this attaches it only while somebody has the lock file open.

use super::fields::{self, Rules};
use super::reason::{CannotHere, Host, NEEDED};
use super::{chain, mapping};
use crate::bytes::{u32_at, u64_at};
use accountant_abi::rewrites::{ADDED, COMPAT, Head, Piece, REPLACED, RulesPiece};
use accountant_core::{Counter, IpVersion, Table};
use accountant_sys::mapping::Mapping;
use aya::maps::{Map, MapData, RingBuf};
use aya::programs::raw_trace_point::RawTracePointLinkId;
use aya::programs::{ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering::Relaxed;

/// The object of the programs in `accountant-ebpf/src/rewrites`.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/rewrites"));
const PROGRAM: &str = "system_call_ends";
/// Sizes of the ring buffer: a power of two.
const SMALLEST: u32 = 1 << 20;
const BIGGEST: u32 = 1 << 26;
/// Rules of more bytes are not told: whoever rewrites so many is at it long enough for them to be read.
const MOST_RULES: u32 = 2 << 20;

/// Something that was done to a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// The table; none if that is not known.
    pub(crate) table: Option<(IpVersion, Table)>,
    pub(crate) what: What,
    /// Address and number of rules of the table afterwards.
    pub(crate) private: u64,
    pub(crate) number: u32,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The table was replaced: the last counters of the old rules in their order, none if not all were told, and the new
    /// rules as the writer had them, none if they are many or not all were told.
    Replaced(Option<Vec<Counter>>, Option<Vec<u8>>),
    /// Counters were added to those of the rules. None if not all were told.
    Added(Option<Vec<Counter>>),
    /// Something that cannot be looked at: a 32-bit program did it, or the news of it were lost.
    Unknown,
}

/// The program and what it tells.
pub(crate) struct RewriteWatch {
    ebpf: Ebpf,
    link: Option<RawTracePointLinkId>,
    news: RingBuf<MapData>,
    lost: Mapping,
    lost_before: u64,
    pieces: HashMap<u64, Pieces>,
    room: u32,
}

/// What a writer's head is still to come for.
#[derive(Debug, Default)]
struct Pieces {
    counters: Vec<Counter>,
    rules: Vec<u8>,
}

impl std::fmt::Debug for RewriteWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RewriteWatch").field("attached", &self.is_attached()).finish_non_exhaustive()
    }
}

impl RewriteWatch {
    /// Loads the program for the network namespace at this address, with room for tables of so many rules.
    pub(crate) fn load(net: u64, rules: usize) -> Result<Self, CannotHere> {
        let host = Host::look(NEEDED);
        let (fields, _) =
            fields::fields(Rules::LegacyRewrites).map_err(|reason| reason.explained_by(&host))?;
        let room = room_for(rules);
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader.override_global("FIELDS", &fields, true);
        loader.override_global("NET", &net, true);
        loader.override_global("MOST_RULES", &MOST_RULES, true);
        loader.map_max_entries("NEWS", room);
        let refused = |operation: &str, error: &dyn std::error::Error| {
            CannotHere::refused(operation, chain(error), &host)
        };
        let mut ebpf = loader.load(OBJECT).map_err(|error| refused("making the maps", &error))?;
        program(&mut ebpf)
            .and_then(RawTracePoint::load)
            .map_err(|error| refused("loading the program that watches rewrites", &error))?;
        let lost = mapping(&ebpf, "LOST", 1).map_err(|error| refused("mapping LOST", &error))?;
        let news = ebpf.take_map("NEWS").ok_or_else(|| CannotHere::NoField("map NEWS".into()))?;
        let news = news_of(news).map_err(|error| refused("opening the ring buffer", &error))?;
        Ok(Self { ebpf, link: None, news, lost, lost_before: 0, pieces: HashMap::new(), room })
    }

    /// Whether the ring buffer is big enough for tables of so many rules.
    pub(crate) fn has_room_for(&self, rules: usize) -> bool {
        room_for(rules) <= self.room
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.link.is_some()
    }

    pub(crate) fn attach(&mut self) -> Result<(), CannotHere> {
        if self.link.is_none() {
            let attached = program(&mut self.ebpf).and_then(|program| program.attach("sys_exit"));
            self.link = Some(attached.map_err(|error| CannotHere::Refused {
                operation: "attaching the program that watches rewrites".into(),
                error: chain(&error),
            })?);
        }
        Ok(())
    }

    pub(crate) fn detach(&mut self) {
        if let Some(link) = self.link.take()
            && let Err(error) = program(&mut self.ebpf).and_then(|program| program.detach(link))
        {
            tracing::warn!(%error, "the program that watches rewrites cannot be detached");
        }
    }

    /// Becomes readable when something was told.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// What was told since the last call.
    pub(crate) fn drain(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(record) = self.news.next() {
            if record.len() == size_of::<Piece>() {
                take_counters(&mut self.pieces, &record);
            } else if record.len() == size_of::<RulesPiece>() {
                take_rules(&mut self.pieces, &record);
            } else if let Some(head) = head(&record) {
                events.push(event(head, self.pieces.remove(&head.writer)));
            }
        }
        let lost = self.lost.words()[0].load(Relaxed);
        if lost != self.lost_before {
            self.lost_before = lost;
            events.push(Event { table: None, what: What::Unknown, private: 0, number: 0 });
        }
        events
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut RawTracePoint, ProgramError> {
    ebpf.program_mut(PROGRAM).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn news_of(map: Map) -> Result<RingBuf<MapData>, aya::maps::MapError> {
    RingBuf::try_from(map)
}

/// Rewrites that can wait to be heard, each with the counters that went and those that came, and a little: two of a big table,
/// three of one whose rules are told as well.
fn room_for(rules: usize) -> u32 {
    // A rule of Felix' is some 520 bytes.
    let of_a_rule = if rules.saturating_mul(520) < MOST_RULES as usize { 3 * (34 + 560) } else { 2 * 34 };
    let bytes = u32::try_from(rules.saturating_mul(of_a_rule)).unwrap_or(u32::MAX);
    bytes.clamp(SMALLEST, BIGGEST).next_power_of_two().min(BIGGEST)
}

/// Puts a piece's counters in their places. Pieces come in order; one that is missing leaves its writer's incomplete.
fn take_counters(pieces: &mut HashMap<u64, Pieces>, record: &[u8]) {
    let Some((writer, first, count)) = piece(record) else { return };
    let of_writer = pieces.entry(writer).or_default();
    if first == 0 {
        // What an earlier call of the writer's, that failed to end, has left.
        *of_writer = Pieces::default();
    }
    if of_writer.counters.len() == first {
        let counter = |index: usize| {
            Some(Counter::new(u64_at(record, 16 + 16 * index)?, u64_at(record, 24 + 16 * index)?))
        };
        of_writer.counters.extend((0..count).map_while(counter));
    }
}

/// The same for rules, which come behind the counters.
fn take_rules(pieces: &mut HashMap<u64, Pieces>, record: &[u8]) {
    let Some((writer, first, count)) = piece(record) else { return };
    let of_writer = pieces.entry(writer).or_default();
    if of_writer.rules.len() == first {
        of_writer.rules.extend(record.get(16..16 + count).unwrap_or_default());
    }
}

/// Whose piece it is, where it belongs, and how much is in it.
fn piece(record: &[u8]) -> Option<(u64, usize, usize)> {
    Some((u64_at(record, 0)?, u32_at(record, 8)? as usize, u32_at(record, 12)? as usize))
}

fn head(record: &[u8]) -> Option<Head> {
    Some(Head {
        writer: u64_at(record, 0)?,
        name: u64_at(record, 8)?,
        private: u64_at(record, 16)?,
        number: u32_at(record, 24)?,
        kind: u32_at(record, 28)?,
        family: u32_at(record, 32)?,
        count: u32_at(record, 36)?,
        failed: u32_at(record, 40)?,
        size: u32_at(record, 44)?,
    })
}

fn event(head: Head, pieces: Option<Pieces>) -> Event {
    let Pieces { counters, rules } = pieces.unwrap_or_default();
    let rules = (rules.len() == head.size as usize).then_some(rules);
    let counters = (head.failed == 0 && counters.len() == head.count as usize).then_some(counters);
    let what = match head.kind {
        REPLACED => What::Replaced(counters, rules),
        ADDED => What::Added(counters),
        _ => What::Unknown,
    };
    let name = head.name.to_ne_bytes();
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    let table = Table::ALL.into_iter().find(|table| table.as_str().as_bytes() == name);
    let ip_version = if head.family == 10 { IpVersion::V6 } else { IpVersion::V4 };
    let table = table.filter(|_| head.kind != COMPAT).map(|table| (ip_version, table));
    Event { table, what, private: head.private, number: head.number }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(writer: u64, first: u32, counters: &[u64]) -> Vec<u8> {
        let mut bytes = writer.to_ne_bytes().to_vec();
        bytes.extend(first.to_ne_bytes());
        bytes.extend((counters.len() as u32).to_ne_bytes());
        bytes.extend(counters.iter().flat_map(|c| [c.to_ne_bytes(), (c * 10).to_ne_bytes()]).flatten());
        bytes.resize(size_of::<Piece>(), 0xff);
        bytes
    }

    fn rules(writer: u64, first: u32, rules: &[u8]) -> Vec<u8> {
        let mut bytes = writer.to_ne_bytes().to_vec();
        bytes.extend(first.to_ne_bytes());
        bytes.extend((rules.len() as u32).to_ne_bytes());
        bytes.extend(rules);
        bytes.resize(size_of::<RulesPiece>(), 0xff);
        bytes
    }

    fn filter(kind: u32, count: u32) -> Head {
        let name = u64::from_ne_bytes(*b"filter\0\0");
        Head { writer: 7, name, private: 1, number: 2, kind, family: 10, count, ..Head::default() }
    }

    fn of_counters(counters: &[Counter]) -> Option<Pieces> {
        Some(Pieces { counters: counters.to_vec(), rules: vec![] })
    }

    #[test]
    fn pieces_are_joined_by_writer_and_believed_only_if_all_came() {
        let mut pieces = HashMap::new();
        take_counters(&mut pieces, &counters(7, 0, &[1, 2]));
        take_counters(&mut pieces, &counters(8, 0, &[9]));
        take_counters(&mut pieces, &counters(7, 2, &[3]));
        let told = event(Head { size: 1, ..filter(REPLACED, 3) }, pieces.remove(&7));
        let wanted: Vec<_> = [1, 2, 3].map(|n| Counter::new(n, 10 * n)).into();
        assert_eq!(told.table, Some((IpVersion::V6, Table::Filter)));
        assert_eq!(told.what, What::Replaced(Some(wanted.clone()), None));
        assert_eq!(event(filter(ADDED, 4), of_counters(&wanted)).what, What::Added(None));
        let failed = Head { failed: 1, ..filter(ADDED, 3) };
        assert_eq!(event(failed, of_counters(&wanted)).what, What::Added(None));
        // A piece is missing.
        take_counters(&mut pieces, &counters(7, 0, &[1]));
        take_counters(&mut pieces, &counters(7, 2, &[3]));
        assert_eq!(event(filter(REPLACED, 3), pieces.remove(&7)).what, What::Replaced(None, Some(vec![])));
        assert_eq!(event(filter(COMPAT, 0), None).table, None);
    }

    #[test]
    fn rules_come_behind_the_counters_and_are_whole_or_not_told() {
        let mut pieces = HashMap::new();
        // An earlier call of the writer's failed to end.
        take_rules(&mut pieces, &rules(7, 0, b"old"));
        take_counters(&mut pieces, &counters(7, 0, &[1]));
        take_rules(&mut pieces, &rules(7, 0, b"so"));
        take_rules(&mut pieces, &rules(7, 2, b"me"));
        let head = Head { size: 4, ..filter(REPLACED, 1) };
        let What::Replaced(_, told) = event(head, pieces.remove(&7)).what else { panic!() };
        assert_eq!(told.as_deref(), Some(&b"some"[..]));
        take_counters(&mut pieces, &counters(7, 0, &[1]));
        take_rules(&mut pieces, &rules(7, 2, b"me"));
        assert_eq!(
            event(head, pieces.remove(&7)).what,
            What::Replaced(Some(vec![Counter::new(1, 10)]), None)
        );
        // More than there is in the record is not read.
        take_rules(&mut pieces, &[&[0; 12][..], &[0xff; 4]].concat());
        assert!(pieces[&0].rules.is_empty());
    }

    #[test]
    fn foreign_tables_are_nobodys() {
        let nat = Head { name: u64::from_ne_bytes(*b"nat\0\0\0\0\0"), ..filter(REPLACED, 0) };
        assert_eq!(event(nat, None).table, None);
        assert_eq!(head(&[0; size_of::<Head>()]).map(|_| ()), Some(()));
        assert_eq!(head(&[0; size_of::<Head>() - 1]), None);
    }
}
