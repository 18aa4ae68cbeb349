//! Things of chains that are found by what they say, and known by a small number for as long as they are there.

use crate::ChainName;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use slab::Slab;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};

/// Has an identity: a chain, and what it is of that chain.
pub(crate) trait Identified {
    type What: Eq + Hash;
    fn identity(&self) -> (&ChainName, &Self::What);
}

/// Things by number and by identity. The identity is stored once, in the thing itself.
#[derive(Debug)]
pub(crate) struct Indexed<T> {
    things: Slab<T>,
    numbers: HashTable<u32>,
}

impl<T> Default for Indexed<T> {
    fn default() -> Self {
        Self { things: Slab::new(), numbers: HashTable::new() }
    }
}

impl<T: Identified> From<Slab<T>> for Indexed<T> {
    fn from(things: Slab<T>) -> Self {
        let mut numbers = HashTable::with_capacity(things.len());
        for (number, thing) in &things {
            let number = u32::try_from(number).expect("memory for so many is not to be had");
            let hash_of = |number: &u32| hash(things[*number as usize].identity());
            numbers.insert_unique(hash(thing.identity()), number, hash_of);
        }
        Self { things, numbers }
    }
}

impl<T: Identified> Indexed<T> {
    /// The number of the thing with this identity, which is made when it is not there.
    pub(crate) fn number(&mut self, chain: &ChainName, what: &T::What, make: impl FnOnce() -> T) -> u32 {
        let Self { things, numbers } = self;
        let hash_of = |number: &u32| hash(things[*number as usize].identity());
        let is_it = |number: &u32| things[*number as usize].identity() == (chain, what);
        match numbers.entry(hash((chain, what)), is_it, hash_of) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                if things.len() == things.capacity() {
                    // By an eighth and not by twice: there are many, and their number hardly ever changes.
                    things.reserve_exact(things.len() / 8 + 8);
                }
                let number =
                    u32::try_from(things.insert(make())).expect("memory for so many is not to be had");
                *place.insert(number).get()
            }
        }
    }

    /// The number of the thing with this identity, if it is there.
    pub(crate) fn find(&self, chain: &ChainName, what: &T::What) -> Option<u32> {
        let is_it = |number: &u32| self.things[*number as usize].identity() == (chain, what);
        self.numbers.find(hash((chain, what)), is_it).copied()
    }

    pub(crate) fn remove(&mut self, number: u32) -> T {
        let thing = self.things.remove(number as usize);
        if let Ok(entry) = self.numbers.find_entry(hash(thing.identity()), |&known| known == number) {
            entry.remove();
        }
        thing
    }

    /// The things by number, to be kept.
    pub(crate) fn things(&self) -> &Slab<T> {
        &self.things
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.things.iter().map(|(number, thing)| (number as u32, thing))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.things.iter_mut().map(|(_, thing)| thing)
    }
}

impl<T> std::ops::Index<u32> for Indexed<T> {
    type Output = T;
    fn index(&self, number: u32) -> &T {
        &self.things[number as usize]
    }
}

impl<T> std::ops::IndexMut<u32> for Indexed<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        &mut self.things[number as usize]
    }
}

fn hash(identity: impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(ChainName, u8);

    impl Identified for Thing {
        type What = u8;
        fn identity(&self) -> (&ChainName, &u8) {
            (&self.0, &self.1)
        }
    }

    #[test]
    fn a_thing_keeps_its_number_until_it_goes() {
        let mut things = Indexed::default();
        let number = |things: &mut Indexed<Thing>, chain: &str, what| {
            things.number(&chain.into(), &what, || Thing(chain.into(), what))
        };
        let all: Vec<_> = (0..100).map(|what| number(&mut things, "a", what)).collect();
        assert_eq!(number(&mut things, "a", 7), all[7]);
        assert_ne!(number(&mut things, "b", 7), all[7]);
        assert_eq!(things.remove(all[7]).1, 7);
        assert_eq!(things.iter().count(), 100);
        assert_eq!(number(&mut things, "a", 8), all[8]);
        assert_eq!(number(&mut things, "a", 7), all[7], "its place is used again");
    }
}
