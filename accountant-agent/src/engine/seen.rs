//! What the programs in the kernel saw of each endpoint, whatever its chain did: the accounts of all its traffic.
//!
//! In go counts that never fall, out come postings of what is new in them.

use super::at_interfaces::AtInterfaces;
use accountant_core::Counter;
use accountant_core::calico::ChainKind;
use accountant_core::ledger::{AccountKey, Key, Ledger, Posting, What};
use accountant_core::snapshot::TableId;
use accountant_core::watch::{ChainVerdicts, Fate};
use accountant_core::{ChainName, Direction, Table};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// What was posted of each chain.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    chains: HashMap<(TableId, ChainName), Posted>,
    /// The same of chains that are gone: one that comes back under its name finds what the programs counted for it.
    gone: HashMap<(TableId, ChainName), Posted>,
    /// Changes whenever chains come or go.
    version: u64,
    /// What was counted at interfaces, where nobody sees what chains do.
    pub(super) at_interfaces: AtInterfaces,
    /// Packets of all chains, by how well they were seen.
    #[serde(skip)]
    packets: BTreeMap<&'static str, u64>,
}

/// How many chains that are gone are remembered, and half of these at least: as many as the programs have places for.
const REMEMBERED: usize = 1 << 15;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Posted {
    /// Who counted that.
    counted_by: u32,
    /// The version in which the chain went, last.
    gone_at: u64,
    established: [Counter; 3],
    new: [Counter; 3],
    unresolved: u64,
    vanished: u64,
}

impl Seen {
    /// Posts what was seen since.
    pub(super) fn take(&mut self, table: TableId, chains: &[ChainVerdicts], ledger: &mut Ledger) {
        for chain in chains {
            let name = (table, chain.chain.clone());
            let gone = &mut self.gone;
            let posted = self.chains.entry(name).or_insert_with_key(|name| {
                self.version += 1;
                gone.remove(name).unwrap_or_default()
            });
            if posted.counted_by != chain.counted_by {
                *posted = Posted { counted_by: chain.counted_by, ..Posted::default() };
            }
            let established = news(&mut posted.established, &chain.established);
            let new = news(&mut posted.new, &chain.new);
            for (is_established, amounts) in [(true, established), (false, new)] {
                for (fate, amount) in Fate::ALL.into_iter().zip(amounts) {
                    let key = key(table, &chain.chain, is_established, fate);
                    if let Some(key) = key.filter(|_| !amount.is_zero()) {
                        ledger.post(Posting { key, amount });
                    }
                }
            }
            let unresolved = more(&mut posted.unresolved, chain.unresolved);
            let vanished = more(&mut posted.vanished, chain.vanished);
            let sum = |counters: [Counter; 3]| counters.into_iter().sum::<Counter>().packets;
            for (how, packets) in [
                ("established", sum(established)),
                // Both are counted one after the other.
                ("path", sum(new).saturating_sub(unresolved)),
                ("verdict", unresolved),
                ("lost", vanished),
            ] {
                let total = self.packets.entry(how).or_default();
                *total = total.saturating_add(packets);
            }
        }
        self.retain(|(id, name)| *id != table || chains.iter().any(|chain| chain.chain == *name));
    }

    fn retain(&mut self, is_kept: impl Fn(&(TableId, ChainName)) -> bool) {
        let before = self.gone.len();
        let now = self.version + 1;
        let gone = self.chains.extract_if(|chain, _| !is_kept(chain));
        self.gone.extend(gone.map(|(chain, posted)| (chain, Posted { gone_at: now, ..posted })));
        if self.gone.len() == before {
            return;
        }
        self.version = now;
        if self.gone.len() > REMEMBERED {
            let mut times: Vec<u64> = self.gone.values().map(|posted| posted.gone_at).collect();
            times.sort_unstable();
            let half = times[times.len() / 2];
            self.gone.retain(|_, posted| posted.gone_at > half);
        }
    }

    /// Changes whenever [`Self::keys`] may be others than before.
    pub(super) fn version(&self) -> u64 {
        self.version + self.at_interfaces.version()
    }

    /// The table is gone.
    pub(super) fn forget(&mut self, table: TableId) {
        self.retain(|(id, _)| *id != table);
    }

    /// The accounts that can be posted to.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        let of_chain = |(table, chain): &(TableId, ChainName)| {
            let all = Fate::ALL.into_iter().flat_map(|fate| [(true, fate), (false, fate)]);
            all.filter_map(|(established, fate)| key(*table, chain, established, fate)).collect::<Vec<_>>()
        };
        self.chains.keys().flat_map(of_chain).chain(self.at_interfaces.keys())
    }

    /// Packets that were seen, by how well.
    pub(super) fn packets(&self) -> BTreeMap<&'static str, u64> {
        self.packets.clone()
    }
}

fn key(table: TableId, chain: &ChainName, established: bool, fate: Fate) -> Option<Key> {
    account(table, chain, established, fate).map(Key::from)
}

/// The account of what became so of packets of an endpoint. All packets come by its chain of the filter table, but for those
/// that its chains in front of it drop; what leaves after its destination was changed has come by.
pub(super) fn account(
    table: TableId,
    chain: &ChainName,
    established: bool,
    fate: Fate,
) -> Option<AccountKey> {
    let ChainKind::Endpoint { endpoint, direction, .. } = ChainKind::of(chain) else { return None };
    let is_counted = match (table.table, direction) {
        (Table::Filter, _) => true,
        (Table::Raw, _) | (Table::Mangle, Direction::Ingress) => fate != Fate::Accepted,
        (Table::Mangle, Direction::Egress) => false,
    };
    let what = What::Seen { established, fate };
    is_counted.then_some(AccountKey { endpoint, direction, ip_version: table.ip_version, what })
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

/// The same of a number.
fn more(known: &mut u64, now: u64) -> u64 {
    let before = std::mem::replace(known, now);
    now.checked_sub(before).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use accountant_core::IpVersion;
    use accountant_core::snapshot::Source;

    fn packets(n: u64) -> Counter {
        Counter::new(n, 100 * n)
    }

    fn chain(established: u64, new: [u64; 3], unresolved: u64) -> ChainVerdicts {
        ChainVerdicts {
            counted_by: 1,
            chain: "cali-tw-cali1".into(),
            established: [packets(established), Counter::ZERO, Counter::ZERO],
            new: new.map(packets),
            sheltered: Counter::ZERO,
            unresolved,
            vanished: 0,
            lists: vec![],
        }
    }

    #[test]
    fn nothing_is_posted_twice() {
        let table = TableId {
            source: Source::Nftables,
            native: true,
            ip_version: IpVersion::V4,
            table: Table::Filter,
        };
        let (mut seen, mut ledger) = (Seen::default(), Ledger::default());
        let balance = |ledger: &Ledger, established, fate| {
            let key = key(table, &"cali-tw-cali1".into(), established, fate).unwrap();
            ledger.balance(&key).map(|balance| balance.packets)
        };
        for told in [chain(5, [10, 3, 0], 0), chain(5, [15, 3, 0], 2), chain(6, [15, 4, 1], 2)] {
            seen.take(table, &[told], &mut ledger);
        }
        assert_eq!(balance(&ledger, true, Fate::Accepted), Some(6));
        assert_eq!(balance(&ledger, true, Fate::Dropped), None);
        assert_eq!(Fate::ALL.map(|fate| balance(&ledger, false, fate)), [Some(15), Some(4), Some(1)]);
        let told = BTreeMap::from([("established", 6), ("lost", 0), ("path", 18), ("verdict", 2)]);
        assert_eq!(seen.packets(), told);
        // Other programs, which begin anew.
        seen.take(table, &[chain(1, [2, 0, 0], 1)], &mut ledger);
        assert_eq!(balance(&ledger, true, Fate::Accepted), Some(7));
        assert_eq!(balance(&ledger, false, Fate::Accepted), Some(17));
        assert_eq!(seen.keys().count(), 6);
        // Gone, and back.
        seen.take(table, &[], &mut ledger);
        assert_eq!(seen.keys().count(), 0);
        seen.take(table, &[chain(3, [2, 0, 0], 1)], &mut ledger);
        assert_eq!(balance(&ledger, true, Fate::Accepted), Some(9));
        assert_eq!(balance(&ledger, false, Fate::Accepted), Some(17));
        // Other programs, which have counted more by now than those before.
        let others = ChainVerdicts { counted_by: 2, ..chain(4, [3, 0, 0], 1) };
        seen.take(table, &[others], &mut ledger);
        assert_eq!(balance(&ledger, true, Fate::Accepted), Some(13));
        assert_eq!(balance(&ledger, false, Fate::Accepted), Some(20));
        seen.forget(table);
        assert_eq!(seen.keys().count(), 0);
    }

    #[test]
    fn each_packet_of_a_host_endpoint_is_one_packet_in_whichever_tables_it_has_chains() {
        let counted = |table, chain: &str| {
            let table =
                TableId { source: Source::IptablesLegacy, native: false, ip_version: IpVersion::V4, table };
            Fate::ALL.map(|fate| account(table, &chain.into(), false, fate).is_some())
        };
        assert_eq!(counted(Table::Filter, "cali-fh-eth0"), [true; 3]);
        assert_eq!(counted(Table::Raw, "cali-fh-eth0"), [false, true, true]);
        assert_eq!(counted(Table::Raw, "cali-th-eth0"), [false, true, true]);
        assert_eq!(counted(Table::Mangle, "cali-fh-eth0"), [false, true, true]);
        assert_eq!(counted(Table::Mangle, "cali-th-eth0"), [false; 3]);
    }
}
