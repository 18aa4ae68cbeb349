//! The endpoint chains of a table, with the rules of each that tell what becomes of a packet, and where those are.
//!
//! A table stays where it is until it is replaced. That a rule is the one that is meant is shown by Felix' hash, which is of
//! the chain's name and of all rules up to this one.

use super::blob::{DecodedChain, DecodedTable};
use super::table::is_endpoint;
use crate::kernel::list::{Places, Watched};
use accountant_abi::verdict::{Proof, Rule};
use accountant_core::ChainName;
use accountant_core::watch::{self, WatchedRule};
use std::collections::HashMap;
use std::sync::Arc;

/// A table whose counters are held.
pub(super) struct HeldTable<'a> {
    /// Where the kernel says what the table is, and what it says.
    pub(super) proof: Proof,
    /// Address of the first rule.
    pub(super) rules: u64,
    /// The pointers of all rules of the chains that matter, chain by chain.
    pub(super) pointers: &'a [u64],
    /// Whether they stand in the rules.
    pub(super) in_rules: bool,
}

/// The chains of endpoints. Without a held table nobody knows where their rules are.
pub(super) fn chains(decoded: &DecodedTable, table: Option<&HeldTable<'_>>) -> Vec<Watched> {
    let mut first = 0;
    let mut by_name: HashMap<&ChainName, (usize, &DecodedChain)> = HashMap::new();
    for chain in &decoded.chains {
        by_name.insert(&chain.chain.name, (first, chain));
        first += chain.offsets().len();
    }
    let group = |name: &ChainName| by_name.get(name).map(|(_, chain)| chain.chain.clone());
    let endpoints = decoded.chains.iter().filter(|chain| is_endpoint(&chain.chain.name));
    endpoints
        .map(|endpoint| {
            let list = watch::list(&endpoint.chain, &group).ok().map(Arc::new);
            let places = list.as_ref().zip(table).and_then(|(list, table)| {
                let rule = |watched: &WatchedRule| {
                    let (first, chain) = by_name.get(&watched.chain)?;
                    table.rule(*first, chain, watched.rule)
                };
                let rules = list.rules.iter().map(rule).collect::<Option<Vec<_>>>()?;
                Some(Places { packets_at: 0, cursor: None, proofs: vec![table.proof], rules })
            });
            Watched { chain: endpoint.chain.name.clone(), list, places }
        })
        .collect()
}

impl HeldTable<'_> {
    fn rule(&self, first: usize, chain: &DecodedChain, rule: usize) -> Option<Rule> {
        let counter = *self.pointers.get(first + rule)?;
        let offset = u64::from(*chain.offsets().get(rule)?);
        let mark_at = self.rules + u64::from(chain.hash_offset(rule)?);
        let mark = chain.chain.rules().get(rule)?.hash.as_ref()?.as_bytes().first_chunk::<8>()?;
        let place = if self.in_rules { self.rules + offset } else { 0 };
        Some(Rule { counter, place, mark_at, mark: u64::from_ne_bytes(*mark) })
    }
}
