//! Seeing rewrites as they happen: the program that watches is attached only while somebody has the lock file open.
//!
//! Each table's rewrites are kept until the table is read whole again and they can be settled, step by step. The rules
//! between two of them were never read: they are those that the writer had.

use super::settle::Rewrite;
use crate::in_place::CannotHere;
use crate::in_place::rewrites::{Event, RewriteWatch, What};
use accountant_abi::in_place::Stamp;
use accountant_core::snapshot::{Source, TableId};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;

/// More replacements of a table than this are not kept while it waits to be read.
const MOST_STEPS: usize = 64;

/// What was told of a table since it was last read whole.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    steps: Vec<Step>,
    /// Whether the last rewrite is over: counters that are kept were given back.
    pub(super) is_over: bool,
    /// Whether something could not be told.
    broken: bool,
}

/// One replacement of a table, and what the table was then.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) rewrite: Rewrite,
    /// The new rules as the writer had them, if they were told.
    pub(super) rules: Option<Vec<u8>>,
    /// Address of the new table's `private`, and the number of its rules.
    pub(super) private: u64,
    pub(super) number: u32,
}

impl Told {
    fn hear(&mut self, event: Event) {
        let Event { what, private, number, .. } = event;
        match what {
            What::Replaced(Some(finals), rules) if self.steps.len() < MOST_STEPS => {
                let rewrite = Rewrite { finals, added: Vec::new() };
                self.steps.push(Step { rewrite, rules, private, number });
                self.is_over = false;
            }
            What::Added(Some(added)) => {
                if let Some(step) = self.steps.last_mut().filter(|step| step.rewrite.added.is_empty()) {
                    step.rewrite.added = added;
                    self.is_over = true;
                } else {
                    // Somebody adds to counters of rules that stand: nobody counted that.
                    self.broken = true;
                }
            }
            What::Replaced(..) | What::Added(None) | What::Unknown => {
                (self.broken, self.is_over) = (true, true);
            }
        }
    }

    /// Whether all steps are known that lead from the table that was read last to this one.
    pub(super) fn leads_to(&self, stamp: &Stamp) -> bool {
        let Some((last, between)) = self.steps.split_last() else { return false };
        !self.broken
            && (last.private, last.number) == (stamp.private, stamp.number)
            && between.iter().all(|step| step.rules.is_some())
    }

    /// These steps.
    pub(super) fn into_steps(self) -> Vec<Step> {
        self.steps
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

    fn counters(packets: &[u64]) -> Option<Vec<Counter>> {
        Some(packets.iter().map(|&packets| Counter::new(packets, packets)).collect())
    }

    fn stamp(private: u64) -> Stamp {
        Stamp { net: 1, private, size: 9, number: 3 }
    }

    fn replaced(rules: Option<&[u8]>) -> What {
        What::Replaced(counters(&[1]), rules.map(<[u8]>::to_vec))
    }

    /// These were told, each with the table that it made.
    fn told(events: impl IntoIterator<Item = (What, u64)>) -> Told {
        let mut told = Told::default();
        for (what, private) in events {
            told.hear(Event { table: None, what, private, number: 3 });
        }
        told
    }

    #[test]
    fn rewrites_lead_from_the_known_table_to_the_next() {
        let begun = told([(replaced(None), 5)]);
        assert!(!begun.is_over && begun.leads_to(&stamp(5)));
        let over = told([(replaced(None), 5), (What::Added(counters(&[1])), 5)]);
        assert!(over.is_over && over.leads_to(&stamp(5)));
        assert!(!over.leads_to(&stamp(6)), "the table is another one by now");
        assert_eq!(over.into_steps()[0].rewrite.added.len(), 1);
        assert!(!Told::default().leads_to(&stamp(0)), "nothing was told");
    }

    #[test]
    fn a_table_that_was_replaced_again_at_once_is_known_if_its_rules_were_told() {
        let known = told([(replaced(Some(b"rules")), 5), (replaced(None), 6)]);
        assert!(known.leads_to(&stamp(6)) && !known.leads_to(&stamp(5)));
        let unknown = told([(replaced(None), 5), (replaced(Some(b"rules")), 6)]);
        assert!(!unknown.leads_to(&stamp(6)), "the rules between the two are not known");
    }

    #[test]
    fn what_was_not_told_breaks_it() {
        for what in [What::Replaced(None, None), What::Added(None), What::Unknown] {
            assert!(!told([(replaced(None), 5), (what, 5)]).leads_to(&stamp(5)));
        }
        let added = told([(What::Added(counters(&[1])), 5)]);
        assert!(added.broken, "counters were added to rules that stand");
        let many = told((0..=MOST_STEPS).map(|_| (replaced(Some(b"rules")), 5)));
        assert!(many.broken && many.steps.len() == MOST_STEPS);
    }
}
