//! Reading everything anew: at the beginning, and when notifications were lost.

use super::mirror::{ChainKey, MirrorChain};
use super::requests::{header, rules_of};
use super::socket::Dump;
use super::{Nftables, TRIES, describe, rule};
use crate::source::{Note, SourceError};
use accountant_core::IpVersion;
use netlink_bindings::nftables::{ChainAttrs, Request};
use std::collections::BTreeMap;

impl Nftables {
    /// Reads all chains that matter anew, all of one generation: a commit that is heard later must find the chains as they
    /// were before it.
    pub(super) fn resync(&mut self) -> Result<(), SourceError> {
        for _ in 0..TRIES {
            self.drain()?;
            let generation = self.generation()?;
            let mut chains = BTreeMap::new();
            for key in self.list_chains()? {
                if let Some(chain) = self.dump_whole(&key)? {
                    chains.insert(key, chain);
                }
            }
            if self.generation_at_rest()? == generation {
                self.mirror.reset(generation, chains);
                self.in_place.last_words.read_anew(generation);
                if self.synced {
                    self.notes.push(Note::ReadAnew);
                    self.gap = true;
                }
                self.synced = true;
                return Ok(());
            }
            self.notes.push(Note::Interrupted);
        }
        Err(SourceError::Unstable { object: "nf_tables".into(), tries: TRIES })
    }

    fn list_chains(&mut self) -> Result<Vec<ChainKey>, SourceError> {
        for _ in 0..TRIES {
            let mut keys = Vec::new();
            let mut whole = true;
            for ip_version in IpVersion::BOTH {
                let family = match ip_version {
                    IpVersion::V4 => 2,
                    IpVersion::V6 => 10,
                };
                let request = Request::new().op_getchain_dump(&header(family));
                let dump = self.query.ask(&request, |_, payload| {
                    let attributes = ChainAttrs::new(payload.get(4..).unwrap_or_default());
                    let text =
                        |value: Result<&std::ffi::CStr, _>| value.ok()?.to_str().ok().map(str::to_string);
                    if let (Some(table), Some(name)) =
                        (text(attributes.get_table()), text(attributes.get_name()))
                    {
                        keys.extend(ChainKey::new(family, &table, &name));
                    }
                    Ok(())
                })?;
                whole &= dump != Dump::Interrupted;
            }
            if whole {
                return Ok(keys);
            }
            self.notes.push(Note::Interrupted);
        }
        Err(SourceError::Unstable { object: "the list of nf_tables chains".into(), tries: TRIES })
    }

    /// A chain with its rules, decoded.
    fn dump_whole(&mut self, key: &ChainKey) -> Result<Option<MirrorChain>, SourceError> {
        for _ in 0..TRIES {
            let mut rules = Vec::new();
            let mut unreadable = 0;
            let dump = self.query.ask(&rules_of(key), |_, payload| {
                match rule::decode(payload.get(4..).unwrap_or_default(), key.table.native) {
                    Some(message) => rules.push((message.handle, message.rule)),
                    None => unreadable += 1,
                }
                Ok(())
            })?;
            match dump {
                Dump::Whole if unreadable > 0 => {
                    let reason = format!("{unreadable} of its rules cannot be decoded");
                    return Err(SourceError::decode(describe(key), reason));
                }
                Dump::Whole => return Ok(Some(MirrorChain::new(&key.chain, rules))),
                Dump::Absent => return Ok(None),
                Dump::Interrupted => self.notes.push(Note::Interrupted),
            }
        }
        Err(SourceError::Unstable { object: describe(key), tries: TRIES })
    }
}
