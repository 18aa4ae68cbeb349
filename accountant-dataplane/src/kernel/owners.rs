//! Which chain has which slot, in a map that outlives the agent: a chain that comes back finds its counts.
//!
//! Invariants: a slot is given to another chain only when there is no unused one, and then the one whose chain is gone for
//! longest. Its counts begin at zero, and at no moment is a slot noted for a chain whose counts are not its own, wherever
//! the agent is killed.

use accountant_abi::verdict::{MAX_NAME, Owner};
use accountant_core::snapshot::{Source, TableId};
use accountant_core::{ChainName, IpVersion, Table};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// A chain of a table.
pub(super) type Key = (TableId, ChainName);

/// Words of an owner.
pub(super) const OWNER: usize = size_of::<Owner>() / 8;

/// What says that a slot is somebody's.
const OWNED: u64 = 1 << 63;
const SOURCES: [Source; 3] = [Source::IptablesLegacy, Source::Nftables, Source::CalicoBpf];

/// The slots, as far as user space knows them.
#[derive(Debug)]
pub(super) struct Owners {
    numbers: HashMap<Key, u32>,
    unused: Vec<u32>,
    /// Slots whose chains are gone, the one that is gone for longest first.
    resting: VecDeque<Key>,
}

impl Owners {
    /// What an earlier agent left, or nothing. Chains count as gone until they are seen.
    pub(super) fn read(words: &[AtomicU64]) -> Self {
        let slots = words.chunks_exact(OWNER).enumerate().skip(1);
        let owned: BTreeMap<u32, Key> =
            slots.filter_map(|(slot, words)| Some((u32::try_from(slot).ok()?, read(words)?))).collect();
        let all = u32::try_from(words.len() / OWNER).unwrap_or(u32::MAX);
        let unused = (1..all).rev().filter(|slot| !owned.contains_key(slot)).collect();
        let resting = owned.values().cloned().collect();
        Self { numbers: owned.into_iter().map(|(slot, key)| (key, slot)).collect(), unused, resting }
    }

    /// The chain's slot, and whether it is new to it: then its counts have to be set to zero before [`Self::note`]. None if
    /// all are in use.
    pub(super) fn take(&mut self, words: &[AtomicU64], key: &Key) -> Option<(u32, bool)> {
        if let Some(&slot) = self.numbers.get(key) {
            self.resting.retain(|resting| resting != key);
            return Some((slot, false));
        }
        let slot = self.unused.pop().or_else(|| {
            let longest = self.resting.pop_front()?;
            self.numbers.remove(&longest)
        })?;
        words[slot as usize * OWNER].store(0, Release);
        self.numbers.insert(key.clone(), slot);
        Some((slot, true))
    }

    /// Leaves it to the next agent that a slot is a chain's.
    pub(super) fn note(words: &[AtomicU64], slot: u32, (table, name): &Key) {
        let words = &words[slot as usize * OWNER..][..OWNER];
        let mut bytes = [0; MAX_NAME];
        // Felix' names are shorter. A longer one is the chain's own as long as this agent lives.
        let Some(room) = bytes.get_mut(..name.as_str().len()) else { return };
        room.copy_from_slice(name.as_str().as_bytes());
        for (word, bytes) in words[1..].iter().zip(bytes.as_chunks().0) {
            word.store(u64::from_ne_bytes(*bytes), Relaxed);
        }
        words[0].store(head(*table, name.as_str().len()), Release);
    }

    /// The chain is gone, and all that was counted of it was told.
    pub(super) fn rest(&mut self, key: Key) {
        self.resting.push_back(key);
    }

    /// All slots that are somebody's.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, &Key)> {
        self.numbers.iter().map(|(key, number)| (*number, key))
    }
}

/// The number for a new list: greater than any that a list ever had.
pub(super) fn next_generation(words: &[AtomicU64]) -> u32 {
    let next = words[0].load(Relaxed).wrapping_add(1) as u32;
    words[0].store(u64::from(next), Release);
    next
}

fn head(TableId { source, native, ip_version, table }: TableId, length: usize) -> u64 {
    let place = |found: Option<usize>| found.unwrap_or(0) as u64;
    let source = place(SOURCES.iter().position(|s| *s == source));
    let version = place(IpVersion::BOTH.iter().position(|v| *v == ip_version));
    let table = place(Table::ALL.iter().position(|t| *t == table));
    OWNED | (length as u64) << 32 | source << 24 | u64::from(native) << 16 | version << 8 | table
}

fn read(words: &[AtomicU64]) -> Option<Key> {
    let head = words[0].load(Acquire);
    let part = |shift: u32| (head >> shift & 0xff) as usize;
    let bytes: Vec<u8> = words[1..].iter().flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect();
    let name = std::str::from_utf8(bytes.get(..part(32))?).ok()?;
    let table = TableId {
        source: *SOURCES.get(part(24))?,
        native: part(16) != 0,
        ip_version: *IpVersion::BOTH.get(part(8))?,
        table: *Table::ALL.get(part(0))?,
    };
    (head & OWNED != 0 && !name.is_empty()).then(|| (table, name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        let table = TableId {
            source: Source::Nftables,
            native: true,
            ip_version: IpVersion::V6,
            table: Table::Filter,
        };
        (table, name.into())
    }

    fn memory(slots: usize) -> Vec<AtomicU64> {
        (0..slots * OWNER).map(|_| AtomicU64::new(0)).collect()
    }

    /// Takes a slot as the witness does.
    fn take(owners: &mut Owners, words: &[AtomicU64], name: &str) -> Option<(u32, bool)> {
        let taken = owners.take(words, &key(name))?;
        Owners::note(words, taken.0, &key(name));
        Some(taken)
    }

    #[test]
    fn who_comes_back_finds_its_slot_in_this_life_and_the_next() {
        let words = memory(4);
        let mut owners = Owners::read(&words);
        assert_eq!(take(&mut owners, &words, "a"), Some((1, true)));
        assert_eq!(take(&mut owners, &words, "b"), Some((2, true)));
        owners.rest(key("a"));
        assert_eq!(take(&mut owners, &words, "a"), Some((1, false)));
        let mut next = Owners::read(&words);
        assert!(next.all().any(|owned| owned == (2, &key("b"))));
        assert_eq!(take(&mut next, &words, "b"), Some((2, false)));
        assert_eq!(take(&mut next, &words, "c"), Some((3, true)), "unused ones first");
        assert_eq!(take(&mut next, &words, "d"), Some((1, true)), "a is not back");
        assert_eq!(take(&mut next, &words, "a"), None);
        next.rest(key("c"));
        assert_eq!(take(&mut next, &words, "a"), Some((3, true)));
    }

    #[test]
    fn a_slot_is_nobodys_until_it_is_noted() {
        let words = memory(3);
        let mut owners = Owners::read(&words);
        take(&mut owners, &words, "a");
        owners.rest(key("a"));
        owners.take(&words, &key("b"));
        owners.take(&words, &key("c"));
        let next = Owners::read(&words);
        assert_eq!((next.numbers.len(), next.unused.len()), (0, 2));
        Owners::note(&words, 2, &key(&"long".repeat(20)));
        assert_eq!(Owners::read(&words).numbers.len(), 0);
    }

    #[test]
    fn numbers_of_lists_go_on() {
        let words = memory(2);
        assert_eq!([(); 3].map(|()| next_generation(&words)), [1, 2, 3]);
        assert_eq!(Owners::read(&words).numbers.len(), 0);
    }
}
