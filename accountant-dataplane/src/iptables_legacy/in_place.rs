//! Tables whose counters are read in place: what is held of each between polls, and whether it can still be trusted.
//!
//! A table is held after a whole read: its stamp, and the per-CPU pointers of its counters. It is given up when the stamp is
//! another one, and when the lock file's news say that somebody may have replaced it twice.

use super::blob::{DecodedChain, DecodedTable};
use super::watched::{self, HeldTable};
use crate::in_place::CannotHere;
use crate::in_place::legacy::LegacyReader;
use crate::kernel::list::Watched;
use accountant_abi::in_place::{Reads, Stamp};
use accountant_abi::verdict::Proof;
use accountant_core::snapshot::{Reading, TableId};
use std::collections::HashMap;

/// The tables that are held.
#[derive(Debug)]
pub(super) struct InPlace {
    reader: Result<LegacyReader, CannotHere>,
    held: HashMap<TableId, Held>,
}

#[derive(Debug)]
struct Held {
    stamp: Stamp,
    /// The pointers of all rules of the chains that matter, chain by chain.
    pointers: Vec<u64>,
}

impl InPlace {
    /// Loads the programs, if that is wanted and possible.
    pub(super) fn new(wanted: bool) -> Self {
        let reader = if wanted { LegacyReader::load() } else { Err(CannotHere::TurnedOff) };
        match &reader {
            Ok(_) => tracing::debug!("counters of iptables-legacy are read in place"),
            Err(reason) => tracing::info!(%reason, "counters of iptables-legacy are read as whole tables"),
        }
        Self { reader, held: HashMap::new() }
    }

    /// Why it is not possible.
    pub(super) fn reason(&self) -> Option<&CannotHere> {
        self.reader.as_ref().err()
    }

    /// What a table is now.
    pub(super) fn stamp(&mut self, id: TableId) -> Option<Stamp> {
        let stamp = self.reader.as_ref().ok()?.stamp(id);
        self.lose_if_refused(stamp)?
    }

    /// Holds a table that was read whole while its stamp was this one before and after.
    pub(super) fn hold(&mut self, id: TableId, stamp: Stamp, decoded: &DecodedTable) {
        self.held.remove(&id);
        let Ok(reader) = &self.reader else { return };
        let offsets: Vec<u32> = decoded.chains.iter().flat_map(DecodedChain::offsets).copied().collect();
        let resolved = reader.resolve(id, &stamp, &offsets).and_then(|resolved| match resolved {
            Ok(pointers) => {
                let read = reader.read(id, &stamp, &pointers, Reads::First)?;
                Ok(read.map(|_| pointers))
            }
            Err(outcome) => Ok(Err(outcome)),
        });
        match self.lose_if_refused(resolved) {
            Some(Ok(pointers)) => {
                self.held.insert(id, Held { stamp, pointers });
            }
            Some(Err(outcome)) => tracing::debug!(?id, ?outcome, "the table is not held"),
            None => {}
        }
    }

    /// The chains of endpoints of a table that is held, with the rules of each that tell what becomes of a packet.
    pub(super) fn watched(&mut self, id: TableId, decoded: &DecodedTable) -> Vec<Watched> {
        let located = self.reader.as_ref().ok().map(|reader| (reader.locate(id), reader.has_pointers()));
        let located =
            located.and_then(|(located, pointers)| Some((self.lose_if_refused(located)??, pointers)));
        let held = self.held.get(&id);
        let table = held.zip(located).map(|(held, ((at, behind), in_rules))| HeldTable {
            proof: Proof { at, value: held.stamp.private },
            rules: held.stamp.private + behind,
            pointers: &held.pointers,
            in_rules,
        });
        watched::chains(decoded, table.as_ref())
    }

    /// Gives a table up.
    pub(super) fn give_up(&mut self, id: TableId) {
        self.held.remove(&id);
    }

    /// Whether a table is held and still is what it was.
    pub(super) fn stands(&mut self, id: TableId) -> bool {
        let held = self.held.get(&id).map(|held| held.stamp);
        held.is_some() && self.stamp(id) == held
    }

    /// Reads chains of a table that is held; none if it is not, or no longer what it was.
    pub(super) fn read(
        &mut self,
        id: TableId,
        decoded: &DecodedTable,
        needed: impl Fn(usize, &DecodedChain) -> bool,
    ) -> Option<Vec<Reading>> {
        let held = self.held.get(&id)?;
        let reader = self.reader.as_ref().ok()?;
        let mut rest = &held.pointers[..];
        let mut pointers = Vec::new();
        let mut chains = Vec::new();
        for (index, chain) in decoded.chains.iter().enumerate() {
            let (own, behind) = rest.split_at_checked(chain.offsets().len())?;
            rest = behind;
            if needed(index, chain) {
                pointers.extend_from_slice(own);
                chains.push(chain);
            }
        }
        let read = reader.read(id, &held.stamp, &pointers, Reads::Again);
        let Some(Ok(counters)) = self.lose_if_refused(read) else {
            self.held.remove(&id);
            return None;
        };
        let mut counters = counters.into_iter();
        let reading = |chain: &DecodedChain| Reading {
            chain: chain.chain.clone(),
            counters: counters.by_ref().take(chain.offsets().len()).collect(),
        };
        Some(chains.into_iter().map(reading).collect())
    }

    /// A kernel that refuses to run what it let load is not asked again.
    fn lose_if_refused<T>(&mut self, result: Result<T, CannotHere>) -> Option<T> {
        result
            .inspect_err(|reason| {
                tracing::warn!(%reason, "counters of iptables-legacy are read as whole tables from now on");
                self.reader = Err(reason.clone());
                self.held.clear();
            })
            .ok()
    }
}
