//! The programs as a witness: which chains they watch, and what they saw of each.
//!
//! Each endpoint chain has a *slot*, in which the programs count. A chain's list is installed beside the old one and then
//! taken in its place with one store; what was counted by the old one is told until the one who reads it has said so
//! ([`Witness::release`]), and only then are its numbers and its room used again.
//!
//! Invariant: what is told of a chain never falls, and no count of one list is told as one of another.

use super::Flows;
use super::flows::{self, Events, SeenFlow};
use super::interfaces::{Interfaces, Slots};
use super::list::{Places, Watched};
use super::load::{Loaded, Sizes};
use super::memory::Memory;
use super::owners::{Key, Owners, next_generation};
use super::paths;
use super::pins::Pins;
use super::sites::{Sites, roles};
use crate::in_place::{CannotHere, chain};
use accountant_abi::verdict::{FATES, WatchList};
use accountant_core::calico::ChainKind;
use accountant_core::snapshot::TableId;
use accountant_core::watch::{self, ChainVerdicts, ListCounts};
use accountant_core::{Counter, IpVersion};
use accountant_sys::bpf::Runs;
use aya::maps::Array;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many flows can be dropped between two readings without one being lost.
const FLOWS: u32 = 1 << 14;
/// Bytes of the ring buffer: some 3 000 flows.
const EVENTS: u32 = 1 << 18;
/// How many of them are taken at once.
const AT_ONCE: usize = 512;
/// A packet that came by an old list is long through its hook.
const THROUGH: Duration = Duration::from_millis(20);

/// What was counted of the chains of each table.
pub type Verdicts = BTreeMap<TableId, Vec<ChainVerdicts>>;

/// The programs, attached, and what they watch.
#[derive(Debug)]
pub(super) struct Witness {
    /// Of the totals' map.
    counted_by: u32,
    loaded: Loaded,
    sizes: Sizes,
    memory: Memory,
    events: Events,
    interfaces: Interfaces,
    sites: Sites,
    owners: Owners,
    slots: HashMap<Key, Slot>,
    /// Interfaces that an earlier agent left, for tables that were not looked at yet.
    left: BTreeMap<u32, Slots>,
    looked_at: HashSet<TableId>,
    free_places: Vec<u32>,
    /// Chains that there was no room for when it was last said.
    said_full: bool,
}

#[derive(Debug)]
struct Slot {
    number: u32,
    list: Option<Installed>,
    /// Lists before it, not told for the last time yet.
    old: Vec<(Installed, Instant)>,
    /// Whether the chain is gone: the slot is kept until all was told.
    gone: bool,
}

#[derive(Clone, Debug)]
struct Installed {
    place: u32,
    generation: u32,
    list: Arc<watch::WatchList>,
    places: Places,
}

impl Witness {
    /// Loads and attaches the programs, with room for twice these chains, or goes on with those that an earlier agent left.
    pub(super) fn start(
        chains: usize,
        cpus: u32,
        accepted_flows: bool,
        pins: Option<&Pins>,
    ) -> Result<Self, CannotHere> {
        let least = u32::try_from(2 * chains).unwrap_or(u32::MAX).clamp(1024, 1 << 14).next_power_of_two();
        let slots = pins.and_then(|pins| pins.find(cpus, least)).unwrap_or(least);
        let sizes = Sizes {
            slots,
            lists: slots,
            paths: 64 * slots,
            flows: FLOWS,
            events: EVENTS,
            cpus,
            accepted_flows,
        };
        let folder = pins.map(|pins| pins.maps(sizes)).transpose()?;
        let mut loaded = Loaded::new(sizes, folder.as_deref())?;
        let memory = Memory::new(&loaded, sizes)?;
        let events = loaded.take_events()?;
        memory.listen(false);
        // Nobody knows any more what is in the lists of an earlier agent, and what their paths mean.
        memory.use_no_list();
        paths::forget_all(loaded.map_fd("PATHS")?)?;
        if loaded.goes_on() {
            tracing::info!("the programs of an earlier agent go on counting");
        }
        loaded.attach()?;
        let (interfaces, left) = memory.interfaces();
        let owners = Owners::read(memory.owners());
        let sites = Sites::new(&loaded);
        Ok(Self {
            counted_by: loaded.counted_by(),
            loaded,
            sizes,
            memory,
            events,
            interfaces,
            sites,
            owners,
            slots: HashMap::new(),
            left,
            looked_at: HashSet::new(),
            free_places: (1..slots).rev().collect(),
            said_full: false,
        })
    }

    /// Watches these chains of a table and no others of it.
    pub(super) fn watch(&mut self, table: TableId, chains: Vec<Watched>) -> Result<(), CannotHere> {
        for ((id, name), slot) in &mut self.slots {
            if *id == table && !chains.iter().any(|watched| watched.chain == *name) {
                slot.gone = true;
            }
        }
        self.retire_gone();
        self.looked_at.insert(table);
        for watched in chains {
            self.watch_chain(table, watched)?;
        }
        self.look_for_interfaces();
        self.look_for_sites();
        Ok(())
    }

    /// Takes what became of the interfaces since.
    pub(super) fn look_for_interfaces(&mut self) {
        let mut wanted: BTreeMap<u32, Slots> = BTreeMap::new();
        let mut index_of: HashMap<String, u32> = HashMap::new();
        // The same order each time: of two backends that hold a chain of an interface, one has it for good.
        let mut slots: Vec<_> = self.slots.iter().filter(|(_, slot)| !slot.gone).collect();
        slots.sort_by_key(|(_, slot)| slot.number);
        for ((table, name), slot) in slots {
            let ChainKind::Endpoint { endpoint, direction, forward } = ChainKind::of(name) else { continue };
            let index = *index_of
                .entry(endpoint.interface.as_str().into())
                .or_insert_with(|| nix::net::if_::if_nametoindex(endpoint.interface.as_str()).unwrap_or(0));
            if index == 0 {
                continue;
            }
            for &role in roles(table.table, endpoint.kind, direction, forward) {
                let version = usize::from(table.ip_version == IpVersion::V6);
                let here = &mut wanted.entry(index).or_default()[role as usize][version];
                if *here == 0 {
                    *here = slot.number;
                }
            }
        }
        self.go_on_with_what_was_left(&mut wanted);
        let (writes, homeless) = self.interfaces.hold(&wanted);
        for (place, interface) in writes {
            self.memory.write_interface(place, &interface);
        }
        if homeless > 0 {
            tracing::warn!(interfaces = homeless, "no room: their packets are counted by the rules alone");
        }
    }

    /// Keeps the slots of chains whose table was not looked at yet: their packets are counted on.
    fn go_on_with_what_was_left(&mut self, wanted: &mut BTreeMap<u32, Slots>) {
        if self.left.is_empty() {
            return;
        }
        let tables: HashMap<u32, TableId> =
            self.owners.all().map(|(slot, (table, _))| (slot, *table)).collect();
        let is_open = |slot: u32| tables.get(&slot).is_some_and(|table| !self.looked_at.contains(table));
        for slot in self.left.values_mut().flatten().flatten() {
            *slot = Some(*slot).filter(|slot| *slot != 0 && is_open(*slot)).unwrap_or(0);
        }
        self.left.retain(|_, slots| slots.iter().flatten().any(|slot| *slot != 0));
        for (index, left) in &self.left {
            let here = wanted.entry(*index).or_default();
            for (slot, left) in here.iter_mut().flatten().zip(left.iter().flatten()) {
                if *slot == 0 {
                    *slot = *left;
                }
            }
        }
    }

    /// Has programs attached where chains of host endpoints are, and nowhere else.
    fn look_for_sites(&mut self) {
        let chains = self.slots.iter().filter(|(_, slot)| !slot.gone).map(|(key, _)| key);
        self.sites.hold(&mut self.loaded, chains);
    }

    fn watch_chain(&mut self, table: TableId, watched: Watched) -> Result<(), CannotHere> {
        let key = (table, watched.chain);
        if !self.slots.contains_key(&key) {
            let Some((number, is_new)) = self.owners.take(self.memory.owners(), &key) else {
                self.say_full();
                return Ok(());
            };
            if is_new {
                self.memory.begin_at_zero(number);
                Owners::note(self.memory.owners(), number, &key);
            }
            self.slots.insert(key.clone(), Slot { number, list: None, old: vec![], gone: false });
        }
        let wanted = watched.list.zip(watched.places).filter(|(list, places)| places.fits(list));
        let Some(slot) = self.slots.get_mut(&key) else { return Ok(()) };
        slot.gone = false;
        let held = slot.list.as_ref();
        let same = match (&wanted, held) {
            (Some((list, places)), Some(held)) => held.list == *list && held.places == *places,
            (None, None) => true,
            _ => false,
        };
        if same {
            return Ok(());
        }
        let mut next = None;
        if let Some((list, places)) = wanted {
            let Some(place) = self.free_places.pop() else {
                slot.retire(&self.memory);
                self.say_full();
                return Ok(());
            };
            let generation = next_generation(self.memory.owners());
            let record = places.record(&list, generation, slot.number);
            next = Some(Installed { place, generation, list, places });
            write_list(&mut self.loaded, place, &record)?;
        }
        slot.retire(&self.memory);
        if let Some(next) = next {
            self.memory.use_list(slot.number, next.place);
            slot.list = Some(next);
        }
        Ok(())
    }

    fn say_full(&mut self) {
        if !std::mem::replace(&mut self.said_full, true) {
            tracing::warn!("no room for more chains: the rest is counted by the rules alone");
        }
    }

    fn retire_gone(&mut self) {
        for slot in self.slots.values_mut().filter(|slot| slot.gone) {
            slot.retire(&self.memory);
        }
    }

    /// What was counted so far.
    pub(super) fn read(&self) -> Result<Verdicts, CannotHere> {
        let mut paths = paths::read(self.loaded.map_fd("PATHS")?)?;
        let mut verdicts = Verdicts::new();
        for ((table, name), slot) in &self.slots {
            let totals = self.memory.totals(slot.number);
            let pair = |at: usize| Counter::new(totals[2 * at], totals[2 * at + 1]);
            let mut lists: Vec<ListCounts> = Vec::new();
            let installed = slot.old.iter().map(|(list, since)| (list, since.elapsed() > THROUGH));
            for (list, closed) in installed.chain(slot.list.iter().map(|list| (list, false))) {
                lists.push(ListCounts {
                    generation: list.generation,
                    list: list.list.clone(),
                    paths: paths.remove(&list.generation).unwrap_or_default(),
                    closed,
                });
            }
            verdicts.entry(*table).or_default().push(ChainVerdicts {
                chain: name.clone(),
                counted_by: self.counted_by,
                established: [0, 1, 2].map(pair),
                new: [3, 4, 5].map(pair),
                sheltered: pair(6),
                unresolved: totals[14],
                vanished: totals[15],
                lists,
            });
        }
        Ok(verdicts)
    }

    /// Attaches programs again that somebody detached, if it is time to look.
    pub(super) fn care(&mut self) -> Result<(), CannotHere> {
        if !self.sites.is_due() {
            return Ok(());
        }
        self.look_for_sites();
        self.sites.care(&mut self.loaded)
    }

    /// How many programs had to be attached again.
    pub(super) fn attached_again(&self) -> u64 {
        self.sites.attached_again()
    }

    /// How often each program ran, as far as the kernel keeps statistics.
    pub(super) fn runs(&self) -> Vec<(&'static str, Runs)> {
        self.loaded.runs()
    }

    /// Flows since the last call.
    pub(super) fn take_flows(&self) -> Result<Flows, CannotHere> {
        let take = |map| -> Result<Vec<SeenFlow>, CannotHere> {
            Ok(self.named(flows::take(self.loaded.map_fd(map)?)?))
        };
        let [denied_lost, accepted_lost] = self.memory.flows_lost();
        Ok(Flows {
            denied: take("FLOWS")?,
            denied_lost,
            accepted: if self.sizes.accepted_flows { take("ACCEPTED")? } else { Vec::new() },
            accepted_lost,
            events_lost: self.memory.events_lost(),
        })
    }

    /// Has flows told as they are dropped, from now on. What is returned is ready when there are any.
    pub(super) fn listen(&mut self) -> BorrowedFd<'_> {
        while !self.events.take(AT_ONCE).is_empty() {}
        self.memory.listen(true);
        self.events.fd()
    }

    /// Has none told any more.
    pub(super) fn listen_no_more(&self) {
        self.memory.listen(false);
    }

    /// The first packets of flows that were dropped since the last call, as many as are taken at once, and how many others
    /// there were, since the beginning.
    pub(super) fn take_events(&mut self) -> (Vec<SeenFlow>, u64) {
        let records = self.events.take(AT_ONCE);
        (self.named(records), self.memory.events_lost())
    }

    /// Flows with the chains and the rules that they met.
    fn named(&self, records: Vec<flows::Record>) -> Vec<SeenFlow> {
        let mut chains: HashMap<u32, &Key> = HashMap::new();
        let mut lists: HashMap<u32, &Arc<watch::WatchList>> = HashMap::new();
        if !records.is_empty() {
            chains.extend(self.owners.all());
            for slot in self.slots.values() {
                let installed = slot.old.iter().map(|(list, _)| list).chain(&slot.list);
                lists.extend(installed.map(|installed| (installed.generation, &installed.list)));
            }
        }
        let flow = |record: flows::Record| {
            let (table, chain) = chains.get(&record.slot)?;
            let list = lists.get(&record.generation).map(|list| Arc::clone(list));
            Some(record.flow(*table, chain, list))
        };
        records.into_iter().filter_map(flow).collect()
    }

    /// Forgets lists that were told as closed, and chains that are gone when all of theirs were.
    pub(super) fn release(&mut self, told: &[ChainVerdicts]) -> Result<(), CannotHere> {
        let lists = told.iter().flat_map(|chain| &chain.lists).filter(|list| list.closed);
        for list in lists {
            let keys = list.paths.iter().flat_map(|(moved, went, _)| {
                let key = |cpu| (*moved, *went as u32, cpu);
                (0..self.sizes.cpus).map(key)
            });
            let keys: Vec<_> = keys.collect();
            let Some(slot) = self
                .slots
                .values_mut()
                .find(|slot| slot.old.iter().any(|(old, _)| old.generation == list.generation))
            else {
                continue;
            };
            let number = slot.number;
            let generation = list.generation;
            slot.old.retain(|(old, _)| {
                let done = old.generation == generation;
                if done {
                    self.free_places.push(old.place);
                }
                !done
            });
            paths::forget(self.loaded.map("PATHS")?, number, generation, keys)?;
        }
        let owners = &mut self.owners;
        self.slots.retain(|key, slot| {
            let done = slot.gone && slot.old.is_empty();
            if done {
                owners.rest(key.clone());
            }
            !done
        });
        Ok(())
    }
}

impl Slot {
    /// Takes the list out of use.
    fn retire(&mut self, memory: &Memory) {
        if let Some(old) = self.list.take() {
            memory.use_list(self.number, 0);
            self.old.push((old, Instant::now()));
        }
    }
}

fn write_list(loaded: &mut Loaded, place: u32, record: &WatchList) -> Result<(), CannotHere> {
    let mut array: Array<_, WatchList> = Array::try_from(loaded.map("WATCH")?).map_err(|e| refused(&e))?;
    array.set(place, record, 0).map_err(|error| refused(&error))
}

fn refused(error: &aya::maps::MapError) -> CannotHere {
    CannotHere::Refused { operation: "changing what is watched".into(), error: chain(error) }
}

const _: () = assert!(FATES == 3);
