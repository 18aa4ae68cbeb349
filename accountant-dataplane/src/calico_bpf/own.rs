//! Reading Calico's own counters: hits of rules on the whole node, and what was decided at each endpoint. They check what our
//! programs count, and are all there is where these cannot be.
//!
//! Up to 3.25 the counters of an interface are in a map of its own, pinned in a folder named after it.

use super::links::HookId;
use super::listing::Listings;
use super::pins::{OwnMaps, PerInterface};
use super::programs::counters_of;
use super::reading::{endpoint, way};
use crate::clsact::interfaces;
use accountant_abi::calico::{EGRESS, HookKey, INGRESS};
use accountant_core::calico::bpf::totals::{Decided, RuleHits};
use accountant_core::calico::bpf::{CounterLayout, Own, RuleId};
use accountant_core::id::EndpointKind;
use accountant_core::{Interface, IpVersion};
use aya::maps::{Map, MapError, PerCpuArray, PerCpuHashMap};
use std::collections::BTreeMap;

/// Who else reads, where.
pub(super) struct Beside<'a> {
    /// Whether programs of ours are at a hook; none if there are no programs.
    pub(super) hooks: Option<&'a dyn Fn(HookId) -> bool>,
    /// The listings, which tell that an interface of the host has policy.
    pub(super) listings: &'a Listings,
    /// Whether the maps came into being while we looked.
    pub(super) fresh: bool,
}

/// Reads all of them.
pub(super) fn read(maps: &OwnMaps, beside: &Beside<'_>) -> Result<Own, MapError> {
    let mut ways: BTreeMap<_, Decided> = BTreeMap::new();
    for (index, name) in interfaces() {
        let endpoint = endpoint(maps, index, &name);
        for hook in [INGRESS, EGRESS] {
            let way = way(&endpoint, hook);
            let listed = |ip_version| {
                let whose: (Interface, _, _) = (endpoint.interface.clone(), way.1, ip_version);
                beside.listings.program(&whose).is_some()
            };
            let policed = endpoint.kind == EndpointKind::Workload || IpVersion::BOTH.into_iter().any(listed);
            let Some((map, packets)) = decided(maps, index, &name, hook)? else { continue };
            let watched = beside.hooks.is_some_and(|hooks| hooks((index, hook)));
            ways.insert(way, Decided { origin: (map, index), packets, watched, policed });
        }
    }
    Ok(Own {
        rules: rules(maps)?,
        ways,
        programs: beside.listings.programs().collect(),
        fresh: beside.fresh,
        beside: beside.hooks.is_some(),
    })
}

/// Which map counts, and how many packets were accepted and denied by policy, and dropped for other reasons.
fn decided(
    maps: &OwnMaps,
    interface: u32,
    name: &str,
    hook: u8,
) -> Result<Option<(u32, [u64; 3])>, MapError> {
    let (map, layout, rows) = match &maps.counters {
        Some((pinned, layout)) => {
            let rows = counters_of(pinned, *layout, HookKey { interface, hook: hook.into() })?;
            (pinned.id, *layout, rows)
        }
        None => match maps.per_interface.of(name, hook == INGRESS) {
            Some(pinned) => (pinned.id, PerInterface::LAYOUT, Some(rows_of_one(&pinned.map)?)),
            None => return Ok(None),
        },
    };
    let Some(rows) = rows else { return Ok(None) };
    let sum = |reasons: &[usize]| -> u64 {
        let of_row = |row: &Vec<u64>| reasons.iter().filter_map(|&reason| row.get(reason)).sum::<u64>();
        rows.iter().map(of_row).sum()
    };
    let (accepted, denied) = ([CounterLayout::ACCEPTED], [CounterLayout::DENIED]);
    Ok(Some((map, [sum(&accepted), sum(&denied), sum(layout.drops())])))
}

fn rows_of_one(map: &Map) -> Result<Vec<Vec<u64>>, MapError> {
    let map: PerCpuArray<_, [u64; 14]> = map.try_into()?;
    Ok(map.get(&0, 0)?.iter().map(|row| row.to_vec()).collect())
}

fn rules(maps: &OwnMaps) -> Result<Option<RuleHits>, MapError> {
    let Some(pinned) = &maps.rules else { return Ok(None) };
    let map: PerCpuHashMap<_, u64, u64> = (&pinned.map).try_into()?;
    let hits = map.iter().map(|entry| entry.map(|(id, values)| (RuleId(id), values.iter().sum())));
    Ok(Some(RuleHits { map: pinned.id, hits: hits.collect::<Result<_, _>>()? }))
}
