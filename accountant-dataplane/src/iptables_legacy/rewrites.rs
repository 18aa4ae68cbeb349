//! Seeing rewrites as they happen: the program that watches is attached only while somebody has the lock file open.
//!
//! Each table's rewrites are kept until the table is read whole again and they can be settled. Between two whole reads
//! there should be one; of more, only the first is of rules that are known.

use super::settle::Rewrite;
use crate::in_place::CannotHere;
use crate::in_place::rewrites::{Event, RewriteWatch, What};
use accountant_abi::in_place::Stamp;
use accountant_core::snapshot::{Source, TableId};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;

/// What was told of a table since it was last read whole.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) rewrites: Vec<Rewrite>,
    /// What the table was after the last of them: address of `private`, number of rules.
    pub(super) now: (u64, u32),
    /// Whether the last rewrite is over: counters that are kept were given back.
    pub(super) is_over: bool,
    /// Whether something could not be told.
    pub(super) broken: bool,
}

impl Told {
    fn hear(&mut self, event: Event) {
        let now = (event.private, event.number);
        match event.what {
            What::Replaced(Some(finals)) => {
                self.rewrites.push(Rewrite { finals, added: Vec::new() });
                (self.now, self.is_over) = (now, false);
            }
            What::Added(Some(added)) => {
                if let Some(rewrite) = self.rewrites.last_mut().filter(|r| r.added.is_empty()) {
                    rewrite.added = added;
                    self.is_over = true;
                } else {
                    // Somebody adds to counters of rules that stand: nobody counted that.
                    self.broken = true;
                }
            }
            What::Replaced(None) | What::Added(None) | What::Unknown => {
                self.broken = true;
                (self.now, self.is_over) = (now, true);
            }
        }
    }

    /// The one rewrite that leads from the table that is known to this one.
    pub(super) fn only(&self, stamp: &Stamp) -> Option<&Rewrite> {
        match &self.rewrites[..] {
            [only] if !self.broken && self.now == (stamp.private, stamp.number) => Some(only),
            _ => None,
        }
    }
}

/// The watch, and what it told.
#[derive(Debug)]
pub(super) struct Rewrites {
    watch: Result<RewriteWatch, CannotHere>,
    told: HashMap<TableId, Told>,
    /// Something was done that cannot be looked at, to no matter which table.
    unknown: bool,
    net: u64,
}

impl Rewrites {
    /// Not watching, for a reason.
    pub(super) fn off(reason: CannotHere) -> Self {
        Self { watch: Err(reason), told: HashMap::new(), unknown: false, net: 0 }
    }

    /// Gets ready to watch tables of so many rules in this network namespace.
    pub(super) fn prepare(&mut self, net: u64, rules: usize) {
        let ready = match &self.watch {
            Ok(watch) => self.net == net && (watch.has_room_for(rules) || watch.is_attached()),
            Err(CannotHere::NotYet) => false,
            Err(_) => true,
        };
        if !ready {
            self.net = net;
            self.watch = RewriteWatch::load(net, rules);
            if let Err(reason) = &self.watch {
                tracing::info!(%reason, "rewrites of iptables-legacy are not watched: each can cost some counts");
            }
        }
    }

    /// Why it is not possible.
    pub(super) fn reason(&self) -> Option<&CannotHere> {
        self.watch.as_ref().err()
    }

    /// Starts to watch. Whether it is watching now.
    pub(super) fn start(&mut self) -> bool {
        let Ok(watch) = &mut self.watch else { return false };
        match watch.attach() {
            Ok(()) => true,
            Err(reason) => {
                tracing::warn!(%reason, "rewrites of iptables-legacy are no longer watched");
                self.watch = Err(reason);
                false
            }
        }
    }

    pub(super) fn stop(&mut self) {
        if let Ok(watch) = &mut self.watch {
            watch.detach();
        }
    }

    pub(super) fn is_watching(&self) -> bool {
        self.watch.as_ref().is_ok_and(RewriteWatch::is_attached)
    }

    /// Becomes readable when something was told.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().ok().map(RewriteWatch::fd)
    }

    /// Hears what was told.
    pub(super) fn hear(&mut self) {
        let Ok(watch) = &mut self.watch else { return };
        for event in watch.drain() {
            match event.table {
                Some((ip_version, table)) => {
                    let id = TableId { source: Source::IptablesLegacy, native: false, ip_version, table };
                    self.told.entry(id).or_default().hear(event);
                }
                None if event.what == What::Unknown => {
                    self.unknown = true;
                    self.told.values_mut().for_each(|told| told.broken = true);
                }
                // A table that is not read.
                None => {}
            }
        }
    }

    /// Whether something was done since the last call that cannot be looked at.
    pub(super) fn take_unknown(&mut self) -> bool {
        std::mem::take(&mut self.unknown)
    }

    /// What was told of a table.
    pub(super) fn of(&self, id: TableId) -> Option<&Told> {
        self.told.get(&id)
    }

    /// The tables that are over and can be settled.
    pub(super) fn over(&self) -> Vec<TableId> {
        self.told.iter().filter(|(_, told)| told.is_over || told.broken).map(|(id, _)| *id).collect()
    }

    /// What was told of a table, which is settled with it.
    pub(super) fn take(&mut self, id: TableId) -> Option<Told> {
        self.told.remove(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use accountant_core::Counter;

    fn event(what: What, private: u64) -> Event {
        Event { table: None, what, private, number: 3 }
    }

    fn counters(packets: &[u64]) -> Option<Vec<Counter>> {
        Some(packets.iter().map(|&packets| Counter::new(packets, packets)).collect())
    }

    fn stamp(private: u64) -> Stamp {
        Stamp { net: 1, private, size: 9, number: 3 }
    }

    #[test]
    fn one_rewrite_leads_from_the_known_table_to_the_next() {
        let mut told = Told::default();
        told.hear(event(What::Replaced(counters(&[1])), 5));
        assert!(!told.is_over && told.only(&stamp(5)).is_some());
        told.hear(event(What::Added(counters(&[1])), 5));
        assert!(told.is_over);
        assert_eq!(told.only(&stamp(5)).map(|r| r.added.len()), Some(1));
        assert_eq!(told.only(&stamp(6)), None, "the table is another one by now");
        told.hear(event(What::Replaced(counters(&[2])), 6));
        assert_eq!(told.only(&stamp(6)), None, "the rules between the two are not known");
    }

    #[test]
    fn what_was_not_told_breaks_it() {
        for what in [What::Replaced(None), What::Added(None), What::Unknown] {
            let mut told = Told::default();
            told.hear(event(What::Replaced(counters(&[1])), 5));
            told.hear(event(what, 5));
            assert!(told.broken && told.only(&stamp(5)).is_none());
        }
        let mut told = Told::default();
        told.hear(event(What::Added(counters(&[1])), 5));
        assert!(told.broken, "counters were added to rules that stand");
    }
}
