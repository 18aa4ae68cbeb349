//! Packets by path: the map in which the programs count which rules of which list packets hit.
//!
//! In go the map's keys and values, out come sums over all processors.

use crate::bytes::{u32_at, u64_at};
use crate::in_place::{CannotHere, chain};
use accountant_abi::Traffic;
use accountant_abi::verdict::PathKey;
use accountant_core::Counter;
use accountant_core::watch::Went;
use accountant_sys::bpf;
use aya::maps::{HashMap as BpfHashMap, Map};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::BorrowedFd;

const KEY: usize = size_of::<PathKey>();
const VALUE: usize = size_of::<Traffic>();
const AT_ONCE: u32 = 1024;

/// Packets by path and by whether they went on.
pub(super) type Paths = Vec<(u64, Went, Counter)>;

/// The paths of each list.
pub(super) fn read(map: BorrowedFd<'_>) -> Result<HashMap<u32, Paths>, CannotHere> {
    let (keys, values) =
        bpf::read_hash(map, KEY, VALUE, AT_ONCE).map_err(|error| refused("reading paths", error))?;
    let mut sums: BTreeMap<(u32, u64, Went), Counter> = BTreeMap::new();
    for (key, value) in keys.chunks_exact(KEY).zip(values.chunks_exact(VALUE)) {
        let (Some(moved), Some(generation), Some(verdict)) =
            (u64_at(key, 0), u32_at(key, 12), u32_at(key, 20))
        else {
            continue;
        };
        let went = Went::BOTH[(verdict & 1) as usize];
        let counter = Counter::new(u64_at(value, 0).unwrap_or(0), u64_at(value, 8).unwrap_or(0));
        *sums.entry((generation, moved, went)).or_default() += counter;
    }
    let mut paths: HashMap<u32, Paths> = HashMap::new();
    for ((generation, moved, went), counter) in sums {
        paths.entry(generation).or_default().push((moved, went, counter));
    }
    Ok(paths)
}

/// Deletes all paths.
pub(super) fn forget_all(map: BorrowedFd<'_>) -> Result<(), CannotHere> {
    bpf::drain_hash(map, KEY, VALUE, AT_ONCE).map(drop).map_err(|error| refused("emptying paths", error))
}

/// Deletes the paths of a list that nobody counts any more.
pub(super) fn forget(
    map: &mut Map,
    slot: u32,
    generation: u32,
    keys: Vec<(u64, u32, u32)>,
) -> Result<(), CannotHere> {
    let map = BpfHashMap::try_from(map);
    let mut map: BpfHashMap<_, PathKey, Traffic> =
        map.map_err(|error| refused("opening paths", chain(&error)))?;
    for (moved, verdict, cpu) in keys {
        // Not every processor saw every path.
        let _ = map.remove(&PathKey { moved, slot, generation, cpu, verdict });
    }
    Ok(())
}

fn refused(operation: &str, error: impl ToString) -> CannotHere {
    CannotHere::Refused { operation: operation.into(), error: error.to_string() }
}
