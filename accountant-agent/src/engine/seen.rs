//! What the programs in the kernel saw of each endpoint, whatever its chain did: the accounts of all its traffic.
//!
//! In go counts that never fall, out come postings of what is new in them.

use accountant_core::Counter;
use accountant_core::calico::ChainKind;
use accountant_core::ledger::{AccountKey, Key, Ledger, Posting, What};
use accountant_core::snapshot::TableId;
use accountant_core::watch::{ChainVerdicts, Went};
use accountant_core::{ChainName, Table};
use std::collections::{BTreeMap, HashMap};

/// What was posted of each chain.
#[derive(Debug, Default)]
pub(super) struct Seen {
    chains: HashMap<(TableId, ChainName), Posted>,
    /// Changes whenever chains come or go.
    version: u64,
    /// Packets of all chains, by how well they were seen.
    packets: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
struct Posted {
    established: [Counter; 2],
    unresolved: [Counter; 2],
    vanished: Counter,
    /// By list: of its paths.
    paths: BTreeMap<u32, [Counter; 2]>,
}

impl Seen {
    /// Posts what was seen since.
    pub(super) fn take(&mut self, table: TableId, chains: &[ChainVerdicts], ledger: &mut Ledger) {
        for chain in chains {
            let posted = self.chains.entry((table, chain.chain.clone())).or_insert_with(|| {
                self.version += 1;
                Posted::default()
            });
            let established = news(&mut posted.established, &chain.established);
            let unresolved = news(&mut posted.unresolved, &chain.unresolved);
            let [vanished] = news(std::array::from_mut(&mut posted.vanished), &[chain.vanished]);
            let mut paths = [Counter::ZERO; 2];
            for list in &chain.lists {
                let mut sums = [Counter::ZERO; 2];
                for (_, went, counter) in &list.paths {
                    sums[*went as usize] += *counter;
                }
                let more = news(posted.paths.entry(list.generation).or_default(), &sums);
                paths = [paths[0] + more[0], paths[1] + more[1]];
            }
            posted
                .paths
                .retain(|generation, _| chain.lists.iter().any(|list| list.generation == *generation));
            for went in Went::BOTH {
                let at = went as usize;
                for (is_established, amount) in [(true, established[at]), (false, paths[at] + unresolved[at])]
                {
                    if let Some(key) =
                        key(table, &chain.chain, is_established, went).filter(|_| !amount.is_zero())
                    {
                        ledger.post(Posting { key, amount });
                    }
                }
            }
            let sum = |pair: [Counter; 2]| pair[0].packets.saturating_add(pair[1].packets);
            for (how, packets) in [
                ("established", sum(established)),
                ("path", sum(paths)),
                ("verdict", sum(unresolved)),
                ("lost", vanished.packets),
            ] {
                let total = self.packets.entry(how).or_default();
                *total = total.saturating_add(packets);
            }
        }
        self.retain(|(id, name)| *id != table || chains.iter().any(|chain| chain.chain == *name));
    }

    fn retain(&mut self, is_kept: impl Fn(&(TableId, ChainName)) -> bool) {
        let before = self.chains.len();
        self.chains.retain(|chain, _| is_kept(chain));
        self.version += u64::from(self.chains.len() != before);
    }

    /// Changes whenever [`Self::keys`] may be others than before.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The table is gone.
    pub(super) fn forget(&mut self, table: TableId) {
        self.retain(|(id, _)| *id != table);
    }

    /// The accounts that can be posted to.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        let of_chain = |(table, chain): &(TableId, ChainName)| {
            let both = Went::BOTH.into_iter().flat_map(|went| [(true, went), (false, went)]);
            both.filter_map(|(established, went)| key(*table, chain, established, went)).collect::<Vec<_>>()
        };
        self.chains.keys().flat_map(of_chain)
    }

    /// Packets that were seen, by how well.
    pub(super) fn packets(&self) -> BTreeMap<&'static str, u64> {
        self.packets.clone()
    }
}

fn key(table: TableId, chain: &ChainName, established: bool, went: Went) -> Option<Key> {
    let ChainKind::Endpoint { endpoint, direction, .. } = ChainKind::of(chain) else { return None };
    let what = What::Seen { established, went };
    let account = AccountKey { endpoint, direction, ip_version: table.ip_version, what };
    (table.table == Table::Filter).then(|| account.into())
}

/// What is new since, and takes it as known. Counts fall only if the programs are others: then all of them are new.
fn news<const N: usize>(known: &mut [Counter; N], now: &[Counter; N]) -> [Counter; N] {
    let more =
        std::array::from_fn(
            |at| {
                if now[at].fell_below(known[at]) { now[at] } else { now[at].since(known[at]) }
            },
        );
    *known = *now;
    more
}

#[cfg(test)]
mod tests {
    use super::*;
    use accountant_core::IpVersion;
    use accountant_core::snapshot::Source;
    use accountant_core::watch::{ListCounts, WatchList};
    use std::sync::Arc;

    fn packets(n: u64) -> Counter {
        Counter::new(n, 100 * n)
    }

    fn list(generation: u32, on: u64, nowhere: u64, closed: bool) -> ListCounts {
        let paths = vec![(1, Went::On, packets(on)), (2, Went::Nowhere, packets(nowhere))];
        ListCounts { generation, list: Arc::new(WatchList::default()), paths, closed }
    }

    fn chain(established: u64, unresolved: u64, lists: Vec<ListCounts>) -> ChainVerdicts {
        ChainVerdicts {
            chain: "cali-tw-cali1".into(),
            established: [packets(established), Counter::ZERO],
            sheltered: Counter::ZERO,
            unresolved: [packets(unresolved), Counter::ZERO],
            vanished: Counter::ZERO,
            lists,
        }
    }

    #[test]
    fn lists_come_and_go_and_nothing_is_posted_twice() {
        let table = TableId {
            source: Source::Nftables,
            native: true,
            ip_version: IpVersion::V4,
            table: Table::Filter,
        };
        let (mut seen, mut ledger) = (Seen::default(), Ledger::default());
        for chains in [
            chain(5, 0, vec![list(1, 10, 3, false)]),
            chain(5, 2, vec![list(1, 12, 3, false), list(2, 1, 0, false)]),
            chain(6, 2, vec![list(1, 12, 4, true), list(2, 1, 1, false)]),
            chain(6, 2, vec![list(2, 8, 1, false)]),
        ] {
            seen.take(table, &[chains], &mut ledger);
        }
        let balance = |established, went| {
            let key = key(table, &"cali-tw-cali1".into(), established, went).unwrap();
            let slot = ledger.accounts().find(|(_, k)| **k == key).map(|(slot, _)| slot);
            slot.map(|slot| ledger.balances()[slot].packets)
        };
        assert_eq!(balance(true, Went::On), Some(6));
        assert_eq!(balance(true, Went::Nowhere), None);
        assert_eq!(balance(false, Went::On), Some(12 + 8 + 2));
        assert_eq!(balance(false, Went::Nowhere), Some(4 + 1));
        let told = BTreeMap::from([("established", 6), ("lost", 0), ("path", 25), ("verdict", 2)]);
        assert_eq!(seen.packets(), told);
        assert_eq!(seen.keys().count(), 4);
        seen.forget(table);
        assert_eq!(seen.keys().count(), 0);
    }
}
