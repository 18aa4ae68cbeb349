//! The endpoint chains of nf_tables, with the rules of each that tell what becomes of a packet, and where packets meet them.
//!
//! A chain has its rules in one piece of memory, which a commit that changes the chain replaces. That a rule is the one that
//! is meant is shown by its handle, which no other rule of its table ever has.

use super::mirror::{ChainKey, Mirror};
use crate::kernel::list::{Places, Watched};
use accountant_abi::in_place::PackedRule;
use accountant_abi::verdict::{Proof, Rule};
use accountant_core::ChainName;
use accountant_core::snapshot::TableId;
use accountant_core::watch::{self, WatchList, WatchedRule};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// `nft_counter`: bytes, then packets.
const PACKETS_AT: u32 = 8;

/// An endpoint's chain, and what to watch of it; none if there is more than can be.
type List = (ChainName, Option<Arc<WatchList>>);

/// What to watch of each endpoint's chain, by table.
pub(super) type Lists = BTreeMap<TableId, Vec<List>>;

/// The rules of all endpoints' chains that tell what becomes of a packet.
pub(super) fn lists(mirror: &Mirror) -> Lists {
    let mut lists = Lists::new();
    for (key, known) in mirror.chains().filter(|(key, _)| key.is_endpoint()) {
        let shared = |name: &ChainName| {
            let key = ChainKey { table: key.table, chain: name.clone() };
            mirror.get(&key).map(|known| known.chain.clone())
        };
        let list = watch::list(&known.chain, &shared).ok().map(Arc::new);
        lists.entry(key.table).or_default().push((key.chain.clone(), list));
    }
    lists
}

/// The chains that these rules are in.
pub(super) fn chains(lists: &Lists) -> BTreeSet<ChainKey> {
    let of_table = |(table, lists): (&TableId, &Vec<List>)| {
        let rules = lists.iter().filter_map(|(_, list)| list.as_ref()).flat_map(|list| &list.rules);
        let key = |rule: &WatchedRule| ChainKey { table: *table, chain: rule.chain.clone() };
        rules.map(key).collect::<Vec<_>>()
    };
    lists.iter().flat_map(of_table).collect()
}

/// The rules of a table's chains as packets meet them, as far as they are those of the mirror.
#[derive(Debug, Default)]
pub(super) struct PackedTable {
    /// Address of the byte with the generation's bit.
    cursor: u64,
    chains: HashMap<ChainName, Vec<PackedRule>>,
}

impl PackedTable {
    pub(super) fn new(cursor: u64) -> Self {
        Self { cursor, chains: HashMap::new() }
    }

    /// Takes a chain as it was walked, with the handles of its rules, if it is as the mirror has it.
    pub(super) fn take(&mut self, key: &ChainKey, mirror: &Mirror, walked: Vec<PackedRule>, handles: &[u64]) {
        if mirror.get(key).is_some_and(|known| known.handles == handles) {
            self.chains.insert(key.chain.clone(), walked);
        }
    }

    /// The chains of endpoints of this table, with where their rules are.
    pub(super) fn watched(&self, lists: Vec<List>) -> Vec<Watched> {
        let watched = |(chain, list): List| {
            let places = list.as_ref().and_then(|list| self.places(list));
            Watched { chain, list, places }
        };
        lists.into_iter().map(watched).collect()
    }

    fn places(&self, list: &WatchList) -> Option<Places> {
        let mut proofs: Vec<Proof> = Vec::new();
        let mut rules = Vec::with_capacity(list.rules.len());
        for watched in &list.rules {
            let rule = self.chains.get(&watched.chain)?.get(watched.rule)?;
            let proof = Proof { at: rule.chain_at, value: rule.blob };
            if !proofs.contains(&proof) {
                proofs.push(proof);
            }
            if rule.counter == 0 {
                return None;
            }
            rules.push(Rule {
                counter: rule.counter,
                place: rule.counter_at,
                mark_at: rule.head_at,
                mark: rule.head,
            });
        }
        // The eight bytes that the bit is in.
        let (word, shift) = (self.cursor & !7, (self.cursor & 7) as u32 * 8);
        Some(Places { packets_at: PACKETS_AT, cursor: Some((word, shift)), proofs, rules })
    }
}
