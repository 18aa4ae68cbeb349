//! The table of endpoints' interfaces that the programs look into: who is where in it.
//!
//! An interface is at the place that the lowest bits of its index tell, or at one of the next. Pure: it says what to write.
//!
//! Invariant: an interface that stays keeps its place, so the programs always find it.

use accountant_abi::verdict::{Interface, PROBES, ROLES};
use std::collections::BTreeMap;

/// The slots of an interface's chains, by role and IP version.
pub(super) type Slots = [[u32; 2]; ROLES];

/// What a place has had in it that is gone: looking on goes past it.
const GONE: u32 = u32::MAX;

/// The table.
#[derive(Debug)]
pub(super) struct Interfaces {
    /// The index at each place.
    places: Vec<u32>,
    at: BTreeMap<u32, (usize, Slots)>,
}

impl Interfaces {
    /// The table that is in memory, and who is in it.
    pub(super) fn read(all: impl Iterator<Item = Interface>) -> (Self, BTreeMap<u32, Slots>) {
        let mut table = Self { places: Vec::new(), at: BTreeMap::new() };
        for (place, interface) in all.enumerate() {
            table.places.push(interface.index);
            if !matches!(interface.index, 0 | GONE) {
                table.at.insert(interface.index, (place, interface.slots));
            }
        }
        let held = table.at.iter().map(|(index, (_, slots))| (*index, *slots)).collect();
        (table, held)
    }

    /// Makes the table hold these interfaces. Returns what to write where, and how many there was no room for.
    pub(super) fn hold(&mut self, wanted: &BTreeMap<u32, Slots>) -> (Vec<(usize, Interface)>, usize) {
        let mut writes = Vec::new();
        let gone: Vec<u32> = self.at.keys().filter(|index| !wanted.contains_key(index)).copied().collect();
        for index in gone {
            if let Some((place, _)) = self.at.remove(&index) {
                self.places[place] = GONE;
                writes.push((place, Interface { index: GONE, ..Interface::default() }));
            }
        }
        let mut homeless = 0;
        for (&index, &slots) in wanted {
            let known = self.at.get(&index).copied();
            if known.is_some_and(|(_, held)| held == slots) {
                continue;
            }
            let Some(place) = known.map(|(place, _)| place).or_else(|| self.free(index)) else {
                homeless += 1;
                continue;
            };
            self.places[place] = index;
            self.at.insert(index, (place, slots));
            writes.push((place, Interface { index, padding: 0, slots }));
        }
        (writes, homeless)
    }

    fn free(&self, index: u32) -> Option<usize> {
        let mask = self.places.len() - 1;
        let probes = (0..PROBES as usize).map(|probe| (index as usize + probe) & mask);
        probes.into_iter().find(|&place| matches!(self.places[place], 0 | GONE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(slot: u32) -> Slots {
        [[slot; 2]; ROLES]
    }

    fn wanted(all: &[(u32, u32)]) -> BTreeMap<u32, Slots> {
        all.iter().map(|&(index, slot)| (index, slots(slot))).collect()
    }

    /// What the programs find, by the rules by which they look.
    fn look(memory: &[Interface], index: u32) -> Option<Slots> {
        let mask = memory.len() - 1;
        let probes = (0..PROBES as usize).map(|probe| memory[(index as usize + probe) & mask]);
        probes
            .take_while(|found| found.index != 0)
            .find(|found| found.index == index)
            .map(|found| found.slots)
    }

    #[test]
    fn whoever_is_held_is_found_whatever_comes_and_goes() {
        let mut memory = vec![Interface::default(); 16];
        let (mut table, _) = Interfaces::read((0..16).map(|_| Interface::default()));
        let mut hold = |all: &[(u32, u32)]| {
            let (writes, homeless) = table.hold(&wanted(all));
            for (place, interface) in &writes {
                memory[*place] = *interface;
            }
            assert_eq!(homeless, 0);
            let found: Vec<_> = all.iter().map(|&(index, _)| look(&memory, index)).collect();
            assert_eq!(found, all.iter().map(|&(_, slot)| Some(slots(slot))).collect::<Vec<_>>());
            assert_eq!((look(&memory, 7), look(&memory, 100)), (None, None));
            writes.len()
        };
        assert_eq!(hold(&[(3, 1), (19, 2), (35, 3)]), 3, "three want the same place");
        assert_eq!(hold(&[(3, 1), (19, 2), (35, 3)]), 0);
        assert_eq!(hold(&[(35, 3)]), 2, "the last is found past those that went");
        assert_eq!(hold(&[(35, 4), (51, 5), (15, 6), (31, 7)]), 4);
        let (mut again, held) = Interfaces::read(memory.iter().copied());
        assert_eq!(held, wanted(&[(35, 4), (51, 5), (15, 6), (31, 7)]));
        assert_eq!(again.hold(&held), (vec![], 0), "whoever was there stays where it is");
    }

    #[test]
    fn who_finds_no_place_is_told() {
        let (mut table, _) = Interfaces::read((0..16).map(|_| Interface::default()));
        let crowd: Vec<_> = (0..10).map(|n| (3 + 16 * n, n)).collect();
        assert_eq!(table.hold(&wanted(&crowd)).1, 2);
    }
}
