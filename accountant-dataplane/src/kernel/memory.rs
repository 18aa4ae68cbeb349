//! The programs' maps as memory: interfaces, lists, totals, and whose each slot is.
//!
//! Invariant: what a program can see at any moment is whole. The word that makes something count is stored last.

use super::interfaces::{Interfaces, Slots};
use super::load::{Loaded, Sizes};
use super::owners::OWNER;
use crate::in_place::CannotHere;
use accountant_abi::verdict::{ACCEPTED_LOST, EVENTS_LOST, FLOWS_LOST, Interface, LOSSES, ROLES};
use accountant_sys::mapping::Mapping;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, Release};

/// Words of a value in the maps.
const INTERFACE: usize = size_of::<Interface>() / 8;
pub(super) const TOTALS: usize = size_of::<accountant_abi::verdict::Totals>() / 8;

/// The maps.
#[derive(Debug)]
pub(super) struct Memory {
    interfaces: Mapping,
    lists: Mapping,
    totals: Mapping,
    lost: Mapping,
    listening: Mapping,
    owners: Mapping,
    sizes: Sizes,
}

impl Memory {
    pub(super) fn new(loaded: &Loaded, sizes: Sizes) -> Result<Self, CannotHere> {
        let slots = sizes.slots as usize;
        Ok(Self {
            interfaces: loaded.memory("INTERFACES", INTERFACE * sizes.interfaces() as usize)?,
            lists: loaded.memory("LISTS", slots)?,
            totals: loaded.memory("TOTALS", TOTALS * slots * sizes.cpus as usize)?,
            lost: loaded.memory("LOST", LOSSES as usize)?,
            listening: loaded.memory("LISTENING", 1)?,
            owners: loaded.memory("OWNERS", OWNER * slots)?,
            sizes,
        })
    }

    /// The interfaces that are there.
    pub(super) fn interfaces(&self) -> (Interfaces, BTreeMap<u32, Slots>) {
        Interfaces::read(self.interfaces.words().chunks_exact(INTERFACE).map(interface))
    }

    pub(super) fn write_interface(&self, place: usize, interface: &Interface) {
        let words = &self.interfaces.words()[place * INTERFACE..][..INTERFACE];
        for (word, [v4, v6]) in words[1..].iter().zip(interface.slots) {
            word.store(u64::from(v4) | u64::from(v6) << 32, Relaxed);
        }
        words[0].store(u64::from(interface.index), Release);
    }

    /// Puts a slot's list at this place in use; at 0, none.
    pub(super) fn use_list(&self, slot: u32, place: u32) {
        self.lists.words()[slot as usize].store(u64::from(place), Release);
    }

    /// No list is in use any more.
    pub(super) fn use_no_list(&self) {
        self.lists.words().iter().for_each(|list| list.store(0, Release));
    }

    /// A slot's totals over all processors, in the order of the record that the programs keep.
    pub(super) fn totals(&self, slot: u32) -> [u64; TOTALS] {
        let mut totals = [0u64; TOTALS];
        for words in self.totals_of(slot) {
            for (total, word) in totals.iter_mut().zip(words) {
                *total = total.wrapping_add(word.load(Relaxed));
            }
        }
        totals
    }

    /// A slot's totals begin at zero.
    pub(super) fn begin_at_zero(&self, slot: u32) {
        self.totals_of(slot).flatten().for_each(|word| word.store(0, Release));
    }

    /// By processor.
    fn totals_of(&self, slot: u32) -> impl Iterator<Item = &[AtomicU64]> {
        let Sizes { cpus, slots, .. } = self.sizes;
        (0..cpus).map(move |cpu| &self.totals.words()[TOTALS * (cpu * slots + slot) as usize..][..TOTALS])
    }

    /// Packets of flows that there was no room for: dropped ones, and accepted ones.
    pub(super) fn flows_lost(&self) -> [u64; 2] {
        [FLOWS_LOST, ACCEPTED_LOST].map(|what| self.lost.words()[what as usize].load(Relaxed))
    }

    /// Flows that the ring buffer had no room for while somebody listened.
    pub(super) fn events_lost(&self) -> u64 {
        self.lost.words()[EVENTS_LOST as usize].load(Relaxed)
    }

    /// Says whether somebody listens.
    pub(super) fn listen(&self, listens: bool) {
        self.listening.words()[0].store(u64::from(listens), Release);
    }

    /// Whose each slot is.
    pub(super) fn owners(&self) -> &[AtomicU64] {
        self.owners.words()
    }
}

fn interface(words: &[AtomicU64]) -> Interface {
    let both = |word: &AtomicU64| {
        let word = word.load(Relaxed);
        [word as u32, (word >> 32) as u32]
    };
    let mut interface = Interface { index: words[0].load(Relaxed) as u32, ..Interface::default() };
    interface.slots.iter_mut().zip(&words[1..]).for_each(|(slots, word)| *slots = both(word));
    interface
}

const _: () = assert!(INTERFACE == 1 + ROLES);
