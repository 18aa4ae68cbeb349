//! What is remembered of a table between polls, and what a whole read says that is new.

use super::blob::{self, BlobError, DecodedChain, DecodedTable, Layout};
use super::settle::Deductions;
use accountant_abi::in_place::Stamp;
use accountant_core::calico::ChainKind;
use accountant_core::rule::Chain;
use accountant_core::snapshot::{Reading, TableId};
use accountant_core::{ChainName, IpVersion};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A table as it was last read whole.
#[derive(Debug)]
pub(super) struct KnownTable {
    pub(super) decoded: DecodedTable,
    /// What the kernel's table was when it was read, if that is known.
    pub(super) stamp: Option<Stamp>,
    /// The same, also if its counters were not sure.
    pub(super) seen: Option<Stamp>,
    /// What rules show that they did not count themselves.
    pub(super) deductions: Deductions,
    /// Which of the chains are those of endpoints.
    pub(super) endpoints: Vec<usize>,
    /// Whether there are any.
    pub(super) has_endpoints: bool,
    /// Polls since it was last looked at.
    pub(super) left_alone: u32,
    /// Whether it may have been replaced since, for all that its address says.
    pub(super) in_doubt: bool,
}

/// What a whole read brought.
#[derive(Debug, Default)]
pub(super) struct Novelty {
    /// The table as it was before, if it is another now.
    pub(super) before: Option<DecodedTable>,
    /// Chains that are new or have other rules.
    pub(super) changed: HashSet<ChainName>,
    /// Chains that went.
    pub(super) gone: Vec<ChainName>,
}

impl KnownTable {
    /// Decodes a table and says what is new in it. What was known is taken, unless it cannot be decoded.
    pub(super) fn decode(
        blob: &[u8],
        layout: Layout,
        known: &mut Option<Self>,
    ) -> Result<(Self, Novelty), BlobError> {
        let old = known.as_ref().map(|known| chains_by_name(&known.decoded)).unwrap_or_default();
        let decoded = blob::decode(blob, layout, &old)?;
        let new = chains_by_name(&decoded);
        let gone = old.keys().filter(|name| !new.contains_key(*name)).cloned().collect();
        let is_new = |(name, chain): &(&ChainName, &Arc<Chain>)| {
            old.get(*name).is_none_or(|old| !Arc::ptr_eq(old, chain))
        };
        let changed = new.iter().filter(is_new).map(|(name, _)| name.clone()).collect();
        let numbered = decoded.chains.iter().enumerate();
        let endpoints: Vec<_> =
            numbered.filter(|(_, chain)| is_endpoint(&chain.chain.name)).map(|(index, _)| index).collect();
        let (before, deductions) = known.take().map(|known| (known.decoded, known.deductions)).unzip();
        let table = Self {
            decoded,
            stamp: None,
            seen: None,
            deductions: deductions.unwrap_or_default(),
            has_endpoints: !endpoints.is_empty(),
            endpoints,
            left_alone: 0,
            in_doubt: false,
        };
        Ok((table, Novelty { before, changed, gone }))
    }

    /// The counters of these chains, out of a whole read of these rules.
    pub(super) fn readings(&self, blob: &[u8], needed: impl Fn(&DecodedChain) -> bool) -> Vec<Reading> {
        let chains = self.decoded.chains.iter().filter(|chain| needed(chain));
        chains.map(|chain| Reading { chain: chain.chain.clone(), counters: chain.read(blob) }).collect()
    }
}

pub(super) fn is_endpoint(name: &ChainName) -> bool {
    matches!(ChainKind::of(name), ChainKind::Endpoint { .. })
}

pub(super) fn layout(ip_version: IpVersion) -> Layout {
    match ip_version {
        IpVersion::V4 => blob::IPV4,
        IpVersion::V6 => blob::IPV6,
    }
}

pub(super) fn describe(id: TableId) -> String {
    format!("IPv{} table {} of iptables-legacy", id.ip_version, id.table)
}

fn chains_by_name(decoded: &DecodedTable) -> HashMap<ChainName, Arc<Chain>> {
    decoded.chains.iter().map(|chain| (chain.chain.name.clone(), chain.chain.clone())).collect()
}
