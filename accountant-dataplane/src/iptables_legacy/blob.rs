//! Decoding what `IPT_SO_GET_ENTRIES` returns: a table as the kernel has it, entry behind entry.
//!
//! Source: `struct ipt_entry`, `struct ip6t_entry` (`include/uapi/linux/netfilter_ipv{4,6}/ip{,6}_tables.h`),
//! `struct xt_entry_target` (`include/uapi/linux/netfilter/x_tables.h`), Linux 6.18, host byte order, 64-bit alignment.
//! Verified against `iptables-legacy-save` and the counters of the captures.
//!
//! Invariant: total. Any bytes give a table or a typed error; nothing is read beyond the blob.

use crate::bytes::{u16_at, u64_at};
use crate::census::{CALICO, Extent, Table};
use crate::xtables;
use accountant_core::calico::ChainKind;
use accountant_core::rule::{Action, Chain, Matches, Rule};
use accountant_core::{ChainName, Counter};
use std::collections::HashMap;
use std::sync::Arc;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What differs between `ipt_entry` and `ip6t_entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Size of the addresses and interfaces, before protocol and flags.
    addresses: usize,
    /// Offset of the protocol, two bytes.
    protocol: usize,
    /// Offset of the flags, one byte, and of the inverting flags.
    flags: usize,
    inverting_flags: usize,
    /// The flag that makes a jump a goto.
    goto: u8,
    /// Offset of `target_offset`; `next_offset` follows.
    target_offset: usize,
    /// Offset of the counters: packets, then bytes, eight bytes each.
    counters: usize,
    /// Size of the entry: where the first match or the target begins.
    size: usize,
}

/// `struct ipt_entry`
pub const IPV4: Layout = Layout {
    addresses: 80,
    protocol: 80,
    flags: 82,
    inverting_flags: 83,
    goto: 0x02,
    target_offset: 88,
    counters: 96,
    size: 112,
};

/// `struct ip6t_entry`
pub const IPV6: Layout = Layout {
    addresses: 128,
    protocol: 128,
    flags: 131,
    inverting_flags: 132,
    goto: 0x04,
    target_offset: 140,
    counters: 152,
    size: 168,
};

/// Size of `struct xt_counters`.
const COUNTERS_SIZE: usize = 16;

/// A blob that is not a table.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BlobError {
    /// An entry does not fit into the rest of the blob, or is smaller than an entry can be.
    #[error("entry at byte {offset} of {length} is cut short or has an impossible size")]
    Entry {
        /// Where it begins.
        offset: usize,
        /// Size of the blob.
        length: usize,
    },
    /// A match or target does not fit into its entry.
    #[error("match or target at byte {offset} does not fit into its entry")]
    Extension {
        /// Where it begins.
        offset: usize,
    },
    /// A jump goes to where no chain begins.
    #[error("the rule at byte {offset} jumps to byte {target}, where no chain begins")]
    Jump {
        /// Where the rule begins.
        offset: usize,
        /// Where it jumps to.
        target: i32,
    },
}

/// The chains of a table that matter, and where their counters are.
#[derive(Debug)]
pub struct DecodedTable {
    /// The chains in the order of the blob.
    pub chains: Vec<DecodedChain>,
    /// Number of entries in the table, of all chains.
    pub entries: usize,
    /// Digest of everything but the counters.
    pub fingerprint: u64,
}

/// A chain and where its counters are.
#[derive(Debug)]
pub struct DecodedChain {
    /// The chain.
    pub chain: Arc<Chain>,
    counters: Vec<u32>,
    /// Where Felix' hashes are in the blob, rule by rule; zero for none.
    hashes: Vec<u32>,
    /// Number of the entry that its first rule is.
    first: usize,
}

impl DecodedChain {
    #[cfg(test)]
    pub(super) fn new(chain: Arc<Chain>, counters: Vec<u32>, first: usize) -> Self {
        Self { chain, counters, hashes: Vec::new(), first }
    }

    /// Number of the entry that a rule of the chain is, counted over the whole table.
    pub fn entry(&self, rule: usize) -> usize {
        self.first + rule
    }

    /// Where its rules' counters are in the blob, rule by rule.
    pub fn offsets(&self) -> &[u32] {
        &self.counters
    }

    /// Where the text of a rule's hash is in the blob.
    pub fn hash_offset(&self, rule: usize) -> Option<u32> {
        self.hashes.get(rule).copied().filter(|&offset| offset != 0)
    }

    /// The counters of its rules in a blob of the same fingerprint.
    pub fn read(&self, blob: &[u8]) -> Vec<Counter> {
        let read = |&offset: &u32| counter_at(blob, offset as usize).unwrap_or(Counter::ZERO);
        self.counters.iter().map(read).collect()
    }
}

/// One entry of a blob.
#[derive(Clone, Copy)]
struct Entry<'a> {
    offset: usize,
    bytes: &'a [u8],
    target: usize,
}

/// The entries of a blob one by one; ends after the first that is impossible.
struct Entries<'a> {
    blob: &'a [u8],
    layout: Layout,
    offset: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, BlobError>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        if offset >= self.blob.len() {
            return None;
        }
        let entry = self.entry_at(offset);
        self.offset = entry.map_or(self.blob.len(), |entry| offset + entry.bytes.len());
        Some(entry.ok_or(BlobError::Entry { offset, length: self.blob.len() }))
    }
}

impl<'a> Entries<'a> {
    fn entry_at(&self, offset: usize) -> Option<Entry<'a>> {
        let rest = self.blob.get(offset..)?;
        let target = usize::from(u16_at(rest, self.layout.target_offset)?);
        let next = usize::from(u16_at(rest, self.layout.target_offset + 2)?);
        let fits = self.layout.size <= target && target < next;
        Some(Entry { offset, bytes: rest.get(..next).filter(|_| fits)?, target })
    }
}

fn entries(blob: &[u8], layout: Layout) -> Entries<'_> {
    Entries { blob, layout, offset: 0 }
}

/// Digest of everything in a blob but the counters. Two blobs of equal digest have their counters in the same places.
pub fn fingerprint(blob: &[u8], layout: Layout) -> Result<u64, BlobError> {
    let mut digest = blob.len() as u64;
    for entry in entries(blob, layout) {
        let bytes = entry?.bytes;
        digest = xxh3_64_with_seed(&bytes[..layout.counters], digest);
        digest = xxh3_64_with_seed(&bytes[layout.counters + COUNTERS_SIZE..], digest);
    }
    Ok(digest)
}

/// Decodes a table. Chains whose rules are those of a known chain are given as that very chain.
pub fn decode(
    blob: &[u8],
    layout: Layout,
    known: &HashMap<ChainName, Arc<Chain>>,
) -> Result<DecodedTable, BlobError> {
    let starts = chain_starts(blob, layout)?;
    let mut chains = Vec::new();
    let mut current: Option<Unfinished> = None;
    let mut count = 0;
    for entry in entries(blob, layout) {
        let entry = entry?;
        count += 1;
        if let Some(name) = chain_head(entry) {
            chains.extend(current.take().map(|chain| finish(chain, known)));
            let name = ChainName::from(name);
            current = ChainKind::of(&name).matters().then(|| Unfinished::new(name, count));
        } else if let Some(chain) = &mut current {
            chain.rules.push(rule(entry, layout, &starts)?);
            chain.counters.push(u32::try_from(entry.offset + layout.counters).unwrap_or(u32::MAX));
            chain.hashes.push(hash_of(entry, layout));
        }
    }
    chains.extend(current.take().map(|chain| finish(chain, known)));
    Ok(DecodedTable { chains, entries: count, fingerprint: fingerprint(blob, layout)? })
}

/// A chain whose end was not seen yet.
struct Unfinished {
    name: ChainName,
    rules: Vec<Rule>,
    counters: Vec<u32>,
    hashes: Vec<u32>,
    first: usize,
}

impl Unfinished {
    fn new(name: ChainName, first: usize) -> Self {
        Self { name, rules: Vec::new(), counters: Vec::new(), hashes: Vec::new(), first }
    }
}

/// Counts chains and rules. `built_in` is how many chains the table has from the start; they come first, and like users' chains
/// each ends with an entry that nobody wrote: its policy.
pub fn count(blob: &[u8], built_in: u32, layout: Layout) -> Result<Table, BlobError> {
    let mut table = Table { others: Extent { chains: built_in.into(), rules: 0 }, ..Table::default() };
    let (mut is_calico, mut entries_of_chain, mut ends) = (false, 0, u64::from(built_in));
    for entry in entries(blob, layout) {
        let Some(name) = chain_head(entry?) else {
            entries_of_chain += 1;
            continue;
        };
        table.of(is_calico).rules += u64::saturating_sub(entries_of_chain, ends);
        (is_calico, entries_of_chain, ends) = (name.starts_with(CALICO), 0, 1);
        // The table's last entry looks like a chain's head and has this name.
        table.of(is_calico).chains += u64::from(name != "ERROR");
    }
    Ok(table)
}

/// A user chain ends with a rule that the kernel wants and no user wrote: the unconditional RETURN.
fn finish(unfinished: Unfinished, known: &HashMap<ChainName, Arc<Chain>>) -> DecodedChain {
    let Unfinished { name, mut rules, mut counters, mut hashes, first } = unfinished;
    rules.pop();
    counters.truncate(rules.len());
    hashes.truncate(rules.len());
    let chain = Chain::new(name, rules);
    let chain = match known.get(&chain.name) {
        Some(known) if known.same_rules(&chain) => known.clone(),
        _ => Arc::new(chain),
    };
    DecodedChain { chain, counters, hashes, first }
}

/// What a comment with Felix' hash begins with.
const HASH: &str = "cali:";

/// Where the text of the entry's hash is in the blob; zero for none.
fn hash_of(entry: Entry<'_>, layout: Layout) -> u32 {
    let mut at = layout.size;
    while at < entry.target {
        let Some((name, _, data)) = xtables::split(&entry.bytes[..entry.target], at) else { break };
        if name == "comment" && xtables::text(data).is_some_and(|text| text.starts_with(HASH)) {
            return u32::try_from(entry.offset + at + xtables::SIZE + HASH.len()).unwrap_or(0);
        }
        at += xtables::SIZE + data.len();
    }
    0
}

/// Where the first rule of each user chain is: behind an entry whose target is ERROR and names the chain.
fn chain_starts(blob: &[u8], layout: Layout) -> Result<HashMap<usize, ChainName>, BlobError> {
    let mut starts = HashMap::new();
    for entry in entries(blob, layout) {
        let entry = entry?;
        if let Some(name) = chain_head(entry) {
            starts.insert(entry.offset + entry.bytes.len(), ChainName::from(name));
        }
    }
    Ok(starts)
}

/// The chain that begins with this entry. The last entry of a table looks the same and begins nothing.
fn chain_head(entry: Entry<'_>) -> Option<&str> {
    let (target, _, data) = xtables::split(entry.bytes, entry.target)?;
    if target == "ERROR" { xtables::text(data) } else { None }
}

fn rule(entry: Entry<'_>, layout: Layout, starts: &HashMap<usize, ChainName>) -> Result<Rule, BlobError> {
    let bad = |at: usize| BlobError::Extension { offset: entry.offset + at };
    let mut matches = Matches { others: tests_packet(entry.bytes, layout), ..Matches::default() };
    let mut comments = Vec::new();
    let mut at = layout.size;
    while at < entry.target {
        let (name, revision, data) = xtables::split(&entry.bytes[..entry.target], at).ok_or(bad(at))?;
        match name {
            "comment" => comments.extend(xtables::text(data)),
            _ => xtables::read_match(name, revision, data, &mut matches),
        }
        at += xtables::SIZE + data.len();
    }
    let (name, revision, data) = xtables::split(entry.bytes, entry.target).ok_or(bad(entry.target))?;
    let action = match (name, xtables::verdict(data)) {
        ("", Some(verdict)) => standard(verdict, entry, layout, starts)?,
        ("", None) => return Err(bad(entry.target)),
        _ => xtables::read_target(name, revision, data),
    };
    let content = digest(entry, layout, &action);
    let (hash, comments) = Rule::split_comments(comments);
    Ok(Rule { hash, comments, matches, action, content, counted: true })
}

/// What the standard target does: a verdict, or a jump to where a chain begins. A jump to the next rule does nothing.
fn standard(
    verdict: i32,
    entry: Entry<'_>,
    layout: Layout,
    starts: &HashMap<usize, ChainName>,
) -> Result<Action, BlobError> {
    // A verdict is -NF_x - 1; RETURN is XT_RETURN, -NF_REPEAT - 1.
    match verdict {
        -1 => return Ok(Action::Drop),
        -2 => return Ok(Action::Accept),
        -5 => return Ok(Action::Return),
        ..0 => return Ok(Action::Other),
        _ => {}
    }
    let target = usize::try_from(verdict).unwrap_or(usize::MAX);
    if target == entry.offset + entry.bytes.len() && !starts.contains_key(&target) {
        return Ok(Action::None);
    }
    let chain = starts.get(&target).ok_or(BlobError::Jump { offset: entry.offset, target: verdict })?.clone();
    let goto = entry.bytes[layout.flags] & layout.goto != 0;
    Ok(if goto { Action::Goto(chain) } else { Action::Jump(chain) })
}

/// Whether the entry itself tests addresses, interfaces or the protocol.
fn tests_packet(entry: &[u8], layout: Layout) -> bool {
    let flags = entry[layout.flags] & !layout.goto;
    let protocol = u16_at(entry, layout.protocol).unwrap_or(0);
    entry[..layout.addresses].iter().any(|&byte| byte != 0)
        || protocol != 0
        || entry[layout.inverting_flags] != 0
        || flags != 0
}

/// A digest of a rule that does not change when other chains grow: jumps count by name.
fn digest(entry: Entry<'_>, layout: Layout, action: &Action) -> u64 {
    let seed = match action {
        Action::Jump(chain) | Action::Goto(chain) => xxh3_64_with_seed(chain.as_str().as_bytes(), 1),
        _ => xxh3_64_with_seed(&entry.bytes[entry.target..], 2),
    };
    let digest = xxh3_64_with_seed(&entry.bytes[..layout.target_offset - 4], seed);
    xxh3_64_with_seed(&entry.bytes[layout.size..entry.target], digest)
}

/// Gives the entries of a table these counters, in their order, and zeros to those behind.
pub(super) fn set_counters(blob: &mut [u8], layout: Layout, counters: &[Counter]) -> Result<(), BlobError> {
    let places: Vec<usize> =
        entries(blob, layout).map(|entry| Ok(entry?.offset + layout.counters)).collect::<Result<_, _>>()?;
    let counters = counters.iter().copied().chain(std::iter::repeat(Counter::ZERO));
    for (place, counter) in places.into_iter().zip(counters) {
        blob[place..place + 8].copy_from_slice(&counter.packets.to_ne_bytes());
        blob[place + 8..place + COUNTERS_SIZE].copy_from_slice(&counter.bytes.to_ne_bytes());
    }
    Ok(())
}

fn counter_at(blob: &[u8], offset: usize) -> Option<Counter> {
    Some(Counter::new(u64_at(blob, offset)?, u64_at(blob, offset + 8)?))
}
