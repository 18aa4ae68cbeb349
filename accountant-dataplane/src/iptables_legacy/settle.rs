//! What a rewrite of a table means for its rules: which went with which last counter, which go on, which began anew.
//!
//! A rule of the new table that was given exactly the last counter of its predecessor goes on as if nothing had happened.
//! All others of the old table hand over their last counters; a successor that was given something else (by `iptables -Z`
//! or a restore with counters) did not count that itself, so it is taken off what it shows from then on.
//!
//! Pure. Invariant: with the last counters of one rewrite, what rules hand over and what they count afterwards is exactly
//! what passed.

use super::blob::{DecodedChain, DecodedTable};
use accountant_core::rule::RuleId;
use accountant_core::snapshot::{Reading, Retired};
use accountant_core::{ChainName, Counter};
use std::collections::HashMap;
use std::sync::Arc;

/// One replacement of a table, as it was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rewrite {
    /// The last counters of the old table, entry by entry.
    pub(super) finals: Vec<Counter>,
    /// What was added to the new table's, entry by entry; nothing if nothing was.
    pub(super) added: Vec<Counter>,
}

/// What rules show that they did not count themselves.
#[derive(Debug, Default)]
pub(super) struct Deductions(HashMap<ChainName, HashMap<RuleId, Counter>>);

impl Deductions {
    /// Takes off what is not the rules' own.
    pub(super) fn apply(&self, readings: &mut [Reading]) {
        for reading in readings {
            let Some(of_chain) = self.0.get(&reading.chain.name) else { continue };
            for (id, counter) in reading.chain.ids().iter().zip(&mut reading.counters) {
                if let Some(&deduction) = of_chain.get(id) {
                    *counter = less(*counter, deduction);
                }
            }
        }
    }

    /// After a rewrite that nobody saw: what is more than a rule shows is no longer in it.
    pub(super) fn forget_reset(&mut self, readings: &[Reading]) {
        for reading in readings {
            let Some(of_chain) = self.0.get_mut(&reading.chain.name) else { continue };
            for (id, counter) in reading.chain.ids().iter().zip(&reading.counters) {
                if of_chain.get(id).is_some_and(|deduction| counter.fell_below(*deduction)) {
                    of_chain.remove(id);
                }
            }
        }
    }

    fn of(&self, chain: &ChainName, id: RuleId) -> Counter {
        self.0.get(chain).and_then(|of_chain| of_chain.get(&id)).copied().unwrap_or_default()
    }

    fn set(&mut self, chain: &ChainName, id: RuleId, deduction: Counter) {
        if !deduction.is_zero() {
            self.0.entry(chain.clone()).or_default().insert(id, deduction);
        } else if let Some(of_chain) = self.0.get_mut(chain) {
            of_chain.remove(&id);
        }
    }
}

/// Settles a rewrite: hands over the last counters of rules that do not go on, and keeps the deductions right. None if the
/// counters are not those of the tables.
pub(super) fn settle(
    before: &DecodedTable,
    after: &DecodedTable,
    rewrite: &Rewrite,
    deductions: &mut Deductions,
) -> Option<Vec<Retired>> {
    let fits = |counters: &[Counter], table: &DecodedTable| counters.len() == table.entries;
    if !fits(&rewrite.finals, before) || !(rewrite.added.is_empty() || fits(&rewrite.added, after)) {
        return None;
    }
    let successors: HashMap<&ChainName, &DecodedChain> =
        after.chains.iter().map(|chain| (&chain.chain.name, chain)).collect();
    let mut retired = Vec::new();
    for old in &before.chains {
        let new = successors.get(&old.chain.name).copied();
        let finals = settle_chain(old, new, rewrite, deductions);
        if !finals.is_empty() {
            retired.push(Retired { chain: old.chain.clone(), finals, lost: vec![] });
        }
        if new.is_none() {
            deductions.0.remove(&old.chain.name);
        }
    }
    Some(retired)
}

fn settle_chain(
    old: &DecodedChain,
    new: Option<&DecodedChain>,
    rewrite: &Rewrite,
    deductions: &mut Deductions,
) -> Vec<(usize, Counter)> {
    let name = &old.chain.name;
    let place = places(old, new);
    let mut finals = Vec::new();
    for (index, &id) in old.chain.ids().iter().enumerate() {
        let last = rewrite.finals.get(old.entry(index)).copied().unwrap_or_default();
        let successor = new.zip(place(index)).map(|(new, index)| new.entry(index));
        let given = successor.map(|entry| rewrite.added.get(entry).copied().unwrap_or_default());
        if given == Some(last) {
            continue;
        }
        finals.push((index, less(last, deductions.of(name, id))));
        deductions.set(name, id, given.unwrap_or_default());
    }
    finals
}

/// Where the rules of a chain are in its successor.
fn places<'a>(
    old: &'a DecodedChain,
    new: Option<&'a DecodedChain>,
) -> Box<dyn Fn(usize) -> Option<usize> + 'a> {
    match new {
        Some(new) if Arc::ptr_eq(&old.chain, &new.chain) => Box::new(Some),
        Some(new) => {
            let ids: HashMap<RuleId, usize> =
                new.chain.ids().iter().copied().enumerate().map(|(index, id)| (id, index)).collect();
            Box::new(move |index| ids.get(&old.chain.ids()[index]).copied())
        }
        None => Box::new(|_| None),
    }
}

fn less(counter: Counter, deduction: Counter) -> Counter {
    Counter::new(
        counter.packets.saturating_sub(deduction.packets),
        counter.bytes.saturating_sub(deduction.bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use accountant_core::rule::{Action, Chain, Matches, Rule};

    /// A table of one chain with an entry before it.
    fn table(rules: &[&str]) -> DecodedTable {
        let rule = |hash: &&str| Rule {
            hash: Some((*hash).into()),
            comments: vec![],
            matches: Matches::default(),
            action: Action::None,
            content: 0,
            counted: true,
        };
        let chain = Arc::new(Chain::new("cali-tw-x".into(), rules.iter().map(rule).collect()));
        let chain = DecodedChain::new(chain, vec![0; rules.len()], 1);
        DecodedTable { chains: vec![chain], entries: 1 + rules.len(), fingerprint: 0 }
    }

    fn counters(packets: &[u64]) -> Vec<Counter> {
        packets.iter().map(|&packets| Counter::new(packets, packets)).collect()
    }

    fn rewrite(finals: &[u64], added: &[u64]) -> Rewrite {
        Rewrite { finals: counters(finals), added: counters(added) }
    }

    fn packets(retired: &[Retired]) -> Vec<(usize, u64)> {
        retired.iter().flat_map(|r| r.finals.iter().map(|(index, last)| (*index, last.packets))).collect()
    }

    fn shown(deductions: &Deductions, table: &DecodedTable, raw: &[u64]) -> Vec<u64> {
        let mut readings = vec![Reading { chain: table.chains[0].chain.clone(), counters: counters(raw) }];
        deductions.apply(&mut readings);
        readings[0].counters.iter().map(|counter| counter.packets).collect()
    }

    #[test]
    fn rules_that_were_kept_go_on_and_others_hand_over() {
        let (before, after) = (table(&["a", "b", "c"]), table(&["new", "c", "b"]));
        let mut deductions = Deductions::default();
        // b was kept, c began anew, a went.
        let told = rewrite(&[100, 5, 7, 9], &[100, 0, 0, 7]);
        let retired = settle(&before, &after, &told, &mut deductions).unwrap();
        assert_eq!(packets(&retired), [(0, 5), (2, 9)]);
        assert_eq!(shown(&deductions, &after, &[1, 2, 8]), [1, 2, 8]);
    }

    #[test]
    fn a_table_whose_counters_nobody_put_back_begins_anew() {
        let table = table(&["a", "b"]);
        let retired = settle(&table, &table, &rewrite(&[1, 5, 0], &[]), &mut Deductions::default()).unwrap();
        assert_eq!(packets(&retired), [(0, 5)], "a counter that is zero goes on as well as it begins");
    }

    #[test]
    fn what_a_rule_was_given_it_did_not_count() {
        let table = table(&["a", "b"]);
        let mut deductions = Deductions::default();
        // iptables -Z gives back what was counted after it had read.
        let retired = settle(&table, &table, &rewrite(&[0, 50, 60], &[0, 2, 60]), &mut deductions).unwrap();
        assert_eq!(packets(&retired), [(0, 50)]);
        assert_eq!(shown(&deductions, &table, &[5, 61]), [3, 61]);
        // The next rewrite keeps it, the one after that does not.
        let kept = settle(&table, &table, &rewrite(&[0, 9, 61], &[0, 9, 61]), &mut deductions).unwrap();
        assert_eq!((packets(&kept), shown(&deductions, &table, &[10, 61])), (vec![], vec![8, 61]));
        let reset = settle(&table, &table, &rewrite(&[0, 12, 61], &[0, 0, 61]), &mut deductions).unwrap();
        assert_eq!((packets(&reset), shown(&deductions, &table, &[1, 61])), (vec![(0, 10)], vec![1, 61]));
    }

    #[test]
    fn a_deduction_that_cannot_be_in_it_is_forgotten() {
        let table = table(&["a"]);
        let mut deductions = Deductions::default();
        settle(&table, &table, &rewrite(&[0, 50], &[0, 20]), &mut deductions).unwrap();
        let reading = |raw| Reading { chain: table.chains[0].chain.clone(), counters: counters(&[raw]) };
        deductions.forget_reset(&[reading(20)]);
        assert_eq!(shown(&deductions, &table, &[21]), [1]);
        deductions.forget_reset(&[reading(3)]);
        assert_eq!(shown(&deductions, &table, &[21]), [21]);
    }

    #[test]
    fn counters_of_another_table_are_refused() {
        let (before, after) = (table(&["a"]), table(&["a", "b"]));
        let mut deductions = Deductions::default();
        assert!(settle(&before, &after, &rewrite(&[0], &[]), &mut deductions).is_none());
        assert!(settle(&before, &after, &rewrite(&[0, 1], &[0, 1]), &mut deductions).is_none());
        assert!(settle(&before, &after, &rewrite(&[0, 1], &[0, 1, 0]), &mut deductions).is_some());
    }
}
