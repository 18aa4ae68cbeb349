//! Counters of nf_tables, read in place.
//!
//! A walk through the kernel's lists finds each rule's counter, once for a generation; then they are read by pointer. What
//! a walk says, and what is read by its pointers, counts only if the generation was the same before and after, which the
//! caller asks for.

use super::fields::Rules;
use super::freed::Freed;
use super::{CannotHere, Reader};
use accountant_abi::in_place::{
    CHAIN_NAME, ChainKeyName, MAX_CHAINS, MAX_RULES, Outcome, PackedRule, Reads, WalkedRule,
};
use accountant_core::{Counter, IpVersion};
use accountant_sys::mapping::Mapping;
use aya::maps::HashMap;
use std::sync::atomic::Ordering::Relaxed;

/// Room for a small node's rules, and for some to come.
const LEAST_ROOM: u32 = 4096;
/// Words of a rule as packets see it.
const PACKED_WORDS: usize = size_of::<PackedRule>() / 8;

/// Reads tables of the calling thread's network namespace.
#[derive(Debug)]
pub(crate) struct NftReader {
    reader: Reader,
    walked: Mapping,
    packed: Mapping,
    /// How many rules of a table one walk can come by.
    room: usize,
    /// The chains that walks look into, in the order of their numbers.
    wanted: Vec<String>,
    /// Address of the kernel's operations of counters, once a walk has found them.
    counter_ops: u64,
}

impl NftReader {
    /// With room for tables of so many rules.
    pub(crate) fn load(rules: usize) -> Result<Self, CannotHere> {
        let room = u32::try_from(rules).ok().filter(|&rules| rules <= MAX_RULES);
        let room = room.ok_or(CannotHere::TooManyRules(rules))?.max(LEAST_ROOM).next_power_of_two();
        let maps = [("WANTED", MAX_CHAINS), ("WALKED", room), ("PACKED", room)];
        let reader = Reader::load(Rules::Nftables, &["walk_nft", "walk_packed", "read_nft"], &maps)?;
        let room = room as usize;
        let walked = reader.map("WALKED", size_of::<WalkedRule>() / 8 * room)?;
        let packed = reader.map("PACKED", PACKED_WORDS * room)?;
        Ok(Self { reader, walked, packed, room, wanted: Vec::new(), counter_ops: 0 })
    }

    /// Whether there is room for tables of so many rules.
    pub(crate) fn has_room_for(&self, rules: usize) -> bool {
        rules <= self.room
    }

    /// Chooses the chains that walks look into. Rules are told with the number that their chain has here.
    pub(crate) fn want(&mut self, chains: &[String]) -> Result<(), CannotHere> {
        if self.wanted == chains {
            return Ok(());
        }
        let refused = |error: aya::maps::MapError| CannotHere::Refused {
            operation: "choosing chains to walk".into(),
            error: super::chain(&error),
        };
        let map =
            self.reader.ebpf.map_mut("WANTED").ok_or_else(|| CannotHere::NoField("map WANTED".into()))?;
        let mut map: HashMap<_, ChainKeyName, u32> = HashMap::try_from(map).map_err(refused)?;
        for name in self.wanted.drain(..) {
            // A name that is too long was never put in.
            let _ = key(&name).map(|key| map.remove(&key));
        }
        for (number, name) in (0..).zip(chains) {
            let key =
                key(name).ok_or_else(|| CannotHere::NoField(format!("chain {name} of usual length")))?;
            map.insert(key, number, 0).map_err(refused)?;
        }
        self.wanted = chains.to_vec();
        Ok(())
    }

    /// Walks a table: the rules of the wanted chains that it has, chain by chain in their order.
    pub(crate) fn walk(
        &mut self,
        ip_version: IpVersion,
        table: &str,
    ) -> Result<Result<Vec<WalkedRule>, Outcome>, CannotHere> {
        let count = match self.walk_by("walk_nft", ip_version, table)? {
            Ok(count) => count,
            Err(outcome) => return Ok(Err(outcome)),
        };
        let rules = self.walked.words().chunks_exact(3).take(count);
        let rule = |words: &[std::sync::atomic::AtomicU64]| WalkedRule {
            handle: words[0].load(Relaxed),
            counter: words[1].load(Relaxed),
            chain: words[2].load(Relaxed) as u32,
            padding: 0,
        };
        Ok(Ok(rules.map(rule).collect()))
    }

    /// Walks a table: the rules of the wanted chains as packets see them, and where the generation's bit is.
    pub(crate) fn walk_packed(
        &mut self,
        ip_version: IpVersion,
        table: &str,
    ) -> Result<Result<(u64, Vec<PackedRule>), Outcome>, CannotHere> {
        if self.reader.fields.blob_data == 0 {
            return Err(CannotHere::NoField("nft_rule_blob".into()));
        }
        let count = match self.walk_by("walk_packed", ip_version, table)? {
            Ok(count) => count,
            Err(outcome) => return Ok(Err(outcome)),
        };
        let cursor = self.reader.stamp.words()[0].load(Relaxed);
        let rules = self.packed.words().chunks_exact(PACKED_WORDS).take(count);
        let rule = |words: &[std::sync::atomic::AtomicU64]| {
            let word = |index: usize| words[index].load(Relaxed);
            PackedRule {
                head_at: word(0),
                head: word(1),
                counter_at: word(2),
                counter: word(3),
                chain_at: word(4),
                blob: word(5),
                chain: word(6) as u32,
                padding: 0,
            }
        };
        Ok(Ok((cursor, rules.map(rule).collect())))
    }

    /// The handle of a rule as packets see it.
    pub(crate) fn handle(&self, rule: &PackedRule) -> u64 {
        let fields = &self.reader.fields;
        rule.head >> fields.packed_handle_shift & ((1 << fields.packed_handle_bits) - 1)
    }

    /// Runs a program that walks. Returns how many rules it found.
    fn walk_by(
        &mut self,
        program: &str,
        ip_version: IpVersion,
        table: &str,
    ) -> Result<Result<usize, Outcome>, CannotHere> {
        let mut name = [0; 8];
        for (to, from) in name.iter_mut().zip(table.bytes()) {
            *to = from;
        }
        // NFPROTO_IPV4, NFPROTO_IPV6
        let family = match ip_version {
            IpVersion::V4 => 2,
            IpVersion::V6 => 10,
        };
        let arguments = [family, u64::from_ne_bytes(name), self.counter_ops];
        let outcome = self.reader.run(program, &arguments)?;
        if outcome != Outcome::Done {
            return Ok(Err(outcome));
        }
        let stamp = self.reader.stamp.words();
        self.counter_ops = stamp[1].load(Relaxed);
        Ok(Ok((stamp[2].load(Relaxed) >> 32) as usize))
    }

    /// Begins to be told what counters had last.
    pub(crate) fn attach_freed(&self) -> Result<Freed, CannotHere> {
        Freed::attach(&self.reader)
    }

    /// Forgets what counters are like: they were not found.
    pub(crate) fn forget_counters(&mut self) {
        self.counter_ops = 0;
    }

    /// Reads the counters behind these pointers, in place of those that were read before.
    pub(crate) fn read(
        &self,
        pointers: &[u64],
        reads: Reads,
        counters: &mut Vec<Counter>,
    ) -> Result<Outcome, CannotHere> {
        counters.clear();
        for part in pointers.chunks(self.reader.at_once()) {
            self.reader.put_addresses(part.iter().copied());
            let arguments = [part.len() as u64, u64::from(self.reader.cpus), reads as u64];
            match self.reader.run("read_nft", &arguments)? {
                Outcome::Done => {
                    let sums = self.reader.sums().take(part.len());
                    counters.extend(sums.map(|(bytes, packets)| Counter::new(packets, bytes)));
                }
                outcome => return Ok(outcome),
            }
        }
        Ok(Outcome::Done)
    }
}

/// A chain's name as the programs compare it; none if it is too long.
fn key(name: &str) -> Option<ChainKeyName> {
    let mut bytes = [0; CHAIN_NAME];
    let room = bytes[..CHAIN_NAME - 1].get_mut(..name.len())?;
    room.copy_from_slice(name.as_bytes());
    Some(ChainKeyName { bytes })
}
