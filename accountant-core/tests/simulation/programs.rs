//! The programs in the kernel: they see which watched rules each packet hits, as long as their lists are good.
//!
//! A list is good from when it is installed, after a reading, until one of its chains is rewritten; packets in between
//! have no path. Whoever attaches the programs anew starts at nothing; whoever restarts finds what was counted.

use crate::kernel::{Kernel, Packet, Step};
use accountant_core::calico::chain::ChainKind;
use accountant_core::rule::Chain;
use accountant_core::snapshot::Around;
use accountant_core::watch::{self, ChainVerdicts, ListCounts, WatchList, Went};
use accountant_core::{ChainName, Counter};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What happens to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Attach,
    Detach,
    /// From now on some packets have no path.
    Falter,
    Recover,
}

#[derive(Debug, Default)]
pub(crate) struct Programs {
    pub(crate) attached: bool,
    falters: bool,
    chains: BTreeMap<ChainName, Slot>,
    generation: u32,
    /// Packets that went through an endpoint's chain and were not told.
    untold: u64,
}

#[derive(Debug)]
struct Slot {
    counts: ChainVerdicts,
    /// The chain of the list that is installed, if that is still good.
    good_for: Option<Arc<Chain>>,
}

/// A packet that has passed all rules.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    pub(crate) packet: Packet,
    pub(crate) steps: Vec<Step>,
    pub(crate) accepted: bool,
}

impl Passed {
    /// Whether its path is counted only after counters were read while it passed.
    pub(crate) fn is_slow(&self) -> bool {
        self.packet.size.is_multiple_of(2)
    }
}

impl Programs {
    pub(crate) fn change(&mut self, change: Change) {
        match change {
            Change::Attach if !self.attached => {
                *self = Self { attached: true, generation: self.generation, ..Self::default() }
            }
            Change::Attach => {}
            Change::Detach => self.attached = false,
            Change::Falter => self.falters = true,
            Change::Recover => self.falters = false,
        }
        self.untold += u64::from(change != Change::Recover);
    }

    /// Rules were rewritten.
    pub(crate) fn check(&mut self, kernel: &Kernel) {
        let is_same = |chain: &Arc<Chain>| {
            kernel.chains.get(&chain.name).is_some_and(|live| Arc::ptr_eq(&live.chain, chain))
        };
        for slot in self.chains.values_mut() {
            let list = slot.counts.lists.last().filter(|list| !list.closed);
            let is_good = |chain: &Arc<Chain>| {
                is_same(chain) && list.is_some_and(|list| list.list.depends_on.iter().all(is_same))
            };
            if !slot.good_for.as_ref().is_some_and(is_good) {
                slot.good_for = None;
            }
        }
    }

    /// A packet has passed.
    pub(crate) fn see(&mut self, Passed { packet, steps, accepted }: &Passed) {
        let size = Counter::new(1, packet.size);
        // What somebody else drops behind the endpoint's chain went nowhere, too.
        let went = if *accepted && packet.size % 5 != 0 { Went::On } else { Went::Nowhere };
        let slot = self.chains.get_mut(&packet.entry).filter(|_| self.attached);
        let Some(slot) = slot else {
            self.untold += u64::from(!packet.established);
            return;
        };
        if packet.established {
            slot.counts.established[went as usize] += size;
            return;
        }
        let list = slot.counts.lists.last_mut().filter(|_| slot.good_for.is_some());
        let falters = self.falters && packet.size % 3 == 0;
        let Some((list, moved)) = list.filter(|_| !falters).and_then(|list| {
            let moved = path(&list.list, steps)?;
            Some((list, moved))
        }) else {
            slot.counts.new[went as usize] += size;
            slot.counts.unresolved += 1;
            self.untold += 1;
            return;
        };
        slot.counts.new[went as usize] += size;
        match list.paths.iter_mut().find(|(known, how, _)| (*known, *how) == (moved, went)) {
            Some((.., count)) => *count += size,
            None => list.paths.push((moved, went, size)),
        }
    }

    /// Whether every packet that no rule of an answered connection took was told.
    pub(crate) fn told_all(&self) -> bool {
        self.attached && self.untold == 0
    }

    /// What was counted up to now.
    pub(crate) fn tell(&self) -> Vec<ChainVerdicts> {
        self.chains.values().map(|slot| slot.counts.clone()).collect()
    }

    /// What was told before a reading and is told now, if there is somebody to tell.
    pub(crate) fn around(&self, before: Vec<ChainVerdicts>) -> Option<Around> {
        self.attached.then(|| Around { before, after: self.tell() })
    }

    /// After a reading lists are made for what was read.
    pub(crate) fn install(&mut self, kernel: &Kernel) {
        if !self.attached {
            return;
        }
        let is_endpoint = |name: &ChainName| matches!(ChainKind::of(name), ChainKind::Endpoint { .. });
        self.chains.retain(|name, _| kernel.chains.contains_key(name));
        for (name, live) in kernel.chains.iter().filter(|(name, _)| is_endpoint(name)) {
            let slot = self.chains.entry(name.clone()).or_insert_with(|| Slot::new(name));
            slot.counts.lists.retain(|list| !list.closed);
            if slot.good_for.is_some() {
                continue;
            }
            slot.counts.lists.iter_mut().for_each(|list| list.closed = true);
            let called = |name: &ChainName| kernel.chains.get(name).map(|live| live.chain.clone());
            if let Ok(list) = watch::list(&live.chain, &called) {
                self.generation += 1;
                let (generation, list) = (self.generation, Arc::new(list));
                slot.counts.lists.push(ListCounts { generation, list, paths: vec![], closed: false });
                slot.good_for = Some(live.chain.clone());
            }
        }
    }
}

impl Slot {
    fn new(chain: &ChainName) -> Self {
        let counts = ChainVerdicts {
            counted_by: 1,
            chain: chain.clone(),
            established: [Counter::ZERO; 3],
            new: [Counter::ZERO; 3],
            sheltered: Counter::ZERO,
            unresolved: 0,
            vanished: 0,
            lists: vec![],
        };
        Self { counts, good_for: None }
    }
}

/// The rules of the list that were hit; nothing where one was hit twice.
fn path(list: &WatchList, steps: &[Step]) -> Option<u64> {
    let mut moved = 0;
    for (bit, watched) in list.rules.iter().enumerate() {
        match steps.iter().filter(|(chain, rule)| (chain, *rule) == (&watched.chain, watched.rule)).count() {
            0 => {}
            1 => moved |= 1 << bit,
            _ => return None,
        }
    }
    Some(moved)
}
