//! What counters of nf_tables had last: told when the kernel frees them.
//!
//! See `accountant-ebpf/src/freed`. Pointers are made known as they are seen in rules ([`Freed::know`]), and told of once;
//! [`Freed::last`] is asked for a counter whose pointer was seen in a rule at a moment, and the first news of it after that
//! is its last word.

use super::{CannotHere, Reader, chain, mapping};
use crate::bytes::u64_at;
use accountant_abi::in_place::CpuOffsets;
use accountant_core::Counter;
use accountant_sys::mapping::Mapping;
use aya::maps::{Array, HashMap as BpfHashMap, MapData, RingBuf};
use aya::programs::{ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// The object of the program in `accountant-ebpf/src/freed`.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/freed"));
const PROGRAM: &str = "per_cpu_freed";
/// Bytes of the ring buffer, a power of two: rules of a big table that go at once.
const ROOM: u32 = 1 << 20;

/// The program, attached, and what it told.
pub(crate) struct Freed {
    /// Detaches when it goes.
    _ebpf: Ebpf,
    known: BpfHashMap<MapData, u64, u64>,
    /// What is in that map and was not told.
    awaited: BTreeSet<u64>,
    news: RingBuf<MapData>,
    lost: Mapping,
    told: HashMap<u64, Vec<Told>>,
}

/// One freeing of one pointer.
#[derive(Clone, Copy, Debug)]
struct Told {
    at: Duration,
    last: Counter,
}

impl std::fmt::Debug for Freed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Freed").field("told", &self.told.len()).finish_non_exhaustive()
    }
}

impl Freed {
    /// Loads and attaches the program; the reader knows where processors have their memory.
    pub(super) fn attach(reader: &Reader) -> Result<Self, CannotHere> {
        let refused = |operation: &str, error: &dyn std::error::Error| CannotHere::Refused {
            operation: operation.into(),
            error: chain(error),
        };
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader.override_global("CPUS", &reader.cpus, true);
        loader.map_max_entries("NEWS", ROOM);
        let mut ebpf = loader.load(OBJECT).map_err(|error| refused("making the maps", &error))?;
        put_offsets(reader, &mut ebpf).map_err(|error| refused("telling of processors", &error))?;
        attach(&mut ebpf)
            .map_err(|error| refused("attaching the program that sees counters freed", &error))?;
        let known = ebpf.take_map("KNOWN").ok_or_else(|| CannotHere::NoField("map KNOWN".into()))?;
        let known =
            BpfHashMap::try_from(known).map_err(|error| refused("opening the known pointers", &error))?;
        let lost = mapping(&ebpf, "LOST", 1).map_err(|error| refused("mapping LOST", &error))?;
        let news = ebpf.take_map("NEWS").ok_or_else(|| CannotHere::NoField("map NEWS".into()))?;
        let news = RingBuf::try_from(news).map_err(|error| refused("opening the ring buffer", &error))?;
        Ok(Self { _ebpf: ebpf, known, awaited: BTreeSet::new(), news, lost, told: HashMap::new() })
    }

    /// Wants to be told of these pointers, which are in rules now, also if they were told of before.
    pub(crate) fn know(&mut self, pointers: impl IntoIterator<Item = u64>) {
        self.hear();
        for pointer in pointers {
            if !self.awaited.contains(&pointer) {
                // Where there is no room for it, it is not told, and waited for in vain.
                let _ = self.known.insert(pointer, 0, 0);
                self.awaited.insert(pointer);
            }
        }
    }

    /// Does not want to be told of any pointers but these any more.
    pub(crate) fn forget_all_but(&mut self, pointers: &BTreeSet<u64>) {
        for pointer in self.awaited.difference(pointers).copied().collect::<Vec<_>>() {
            let _ = self.known.remove(&pointer);
            self.awaited.remove(&pointer);
        }
    }

    /// Hears what was freed. Returns how much found no room, since ever.
    pub(crate) fn hear(&mut self) -> u64 {
        while let Some(record) = self.news.next() {
            if let Some((pointer, told)) = told(&record) {
                self.told.entry(pointer).or_default().push(told);
                let _ = self.known.remove(&pointer);
                self.awaited.remove(&pointer);
            }
        }
        self.lost.words()[0].load(Relaxed)
    }

    /// What a counter had last that was in a rule at that moment. Nothing if it is not freed, or not heard.
    pub(crate) fn last(&self, pointer: u64, seen: Duration) -> Option<Counter> {
        let told = self.told.get(&pointer)?;
        told.iter().find(|told| told.at > seen).map(|told| told.last)
    }

    /// Forgets what was freed before a moment: counters that are asked for from now on were seen later.
    pub(crate) fn forget_before(&mut self, moment: Duration) {
        self.told.retain(|_, told| {
            told.retain(|told| told.at > moment);
            !told.is_empty()
        });
    }
}

fn put_offsets(reader: &Reader, ebpf: &mut Ebpf) -> Result<(), aya::maps::MapError> {
    const NAME: &str = "CPU_OFFSETS";
    let missing = || aya::maps::MapError::InvalidName { name: NAME.into() };
    let known: Array<_, CpuOffsets> = Array::try_from(reader.ebpf.map(NAME).ok_or_else(missing)?)?;
    let offsets = known.get(&0, 0)?;
    let mut wanted: Array<_, CpuOffsets> = Array::try_from(ebpf.map_mut(NAME).ok_or_else(missing)?)?;
    wanted.set(0, offsets, 0)
}

fn attach(ebpf: &mut Ebpf) -> Result<(), ProgramError> {
    let program: &mut RawTracePoint = ebpf.program_mut(PROGRAM).ok_or(ProgramError::NotLoaded)?.try_into()?;
    program.load()?;
    program.attach("percpu_free_percpu").map(drop)
}

fn told(record: &[u8]) -> Option<(u64, Told)> {
    let word = |index: usize| u64_at(record, 8 * index);
    let (at, pointer, bytes, packets) = (word(0)?, word(1)?, word(2)?, word(3)?);
    Some((pointer, Told { at: Duration::from_nanos(at), last: Counter::new(packets, bytes) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_cut_short_tells_nothing() {
        let words = [5_u64, 0x1000, 600, 10];
        let record: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (pointer, full) = told(&record).unwrap();
        assert_eq!((pointer, full.at, full.last), (0x1000, Duration::from_nanos(5), Counter::new(10, 600)));
        assert!(told(&record[..31]).is_none());
    }
}
