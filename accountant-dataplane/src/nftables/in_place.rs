//! Chains of endpoints whose counters are read in place, at one generation.
//!
//! The kernel's lists are walked once for each generation, and what was found has to be what the mirror knows: the same
//! rules in the same order, each with a counter where there should be one. Anything else is read over netlink.

use super::last_words::{LastWords, Walk};
use super::mirror::{ChainKey, Mirror};
use super::watched::{self, Lists, PackedTable};
use crate::in_place::CannotHere;
use crate::in_place::nft::NftReader;
use crate::kernel::Programs;
use crate::kernel::list::Watched;
use accountant_abi::in_place::{Outcome, PackedRule, Reads, WalkedRule};
use accountant_core::rule::Chain;
use accountant_core::snapshot::{Reading, TableId};
use accountant_core::{ChainName, Counter, IpVersion};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is held between polls.
#[derive(Debug)]
pub(super) struct InPlace {
    reader: Result<NftReader, CannotHere>,
    held: Option<Held>,
    /// The counters of the last reading: memory to be used again.
    counters: Vec<Counter>,
    /// What deleted rules count last; it is told after a walk which generation it is then.
    pub(super) last_words: LastWords,
    /// When rules were last looked for because they had changed, and how long that took.
    looked_at: Instant,
    look_took: Duration,
    programs: Arc<Programs>,
    /// Endpoints' chains that the programs were told of without where their rules are.
    named: BTreeMap<TableId, Vec<ChainName>>,
}

/// Chains as they were read, table by table.
pub(super) type Readings = Vec<(TableId, Vec<Reading>)>;

/// The counters of one generation.
#[derive(Debug)]
struct Held {
    generation: u32,
    tables: Vec<(TableId, Vec<HeldChain>)>,
    /// A pointer for each rule that has a counter, chain by chain.
    pointers: Vec<u64>,
    /// Whether they were read before.
    reads: Reads,
}

/// A chain whose pointers are held. A poll looks at this and not at its rules, which are much memory.
#[derive(Debug)]
struct HeldChain {
    chain: Arc<Chain>,
    /// Which of the rules have a counter; nothing if all have.
    counted: Option<Box<[bool]>>,
    /// How many have.
    counters: usize,
}

impl InPlace {
    /// Not reading in place, for a reason; [`CannotHere::NotYet`] ends when there is something to read.
    pub(super) fn off(reason: CannotHere, programs: Arc<Programs>) -> Self {
        Self {
            last_words: LastWords::new(Err(reason.clone())),
            reader: Err(reason),
            held: None,
            counters: Vec::new(),
            looked_at: Instant::now(),
            look_took: Duration::ZERO,
            programs,
            named: BTreeMap::new(),
        }
    }

    /// Why it is not possible.
    pub(super) fn reason(&self) -> Option<&CannotHere> {
        self.reader.as_ref().err()
    }

    /// Tells the programs which endpoints there are, where nobody knows where their rules are.
    pub(super) fn name_endpoints(&mut self, mirror: &Mirror) {
        if self.reason().is_none() || !self.programs.wants() {
            return;
        }
        let mut chains: BTreeMap<TableId, Vec<ChainName>> = BTreeMap::new();
        for (key, _) in mirror.chains().filter(|(key, _)| key.is_endpoint()) {
            chains.entry(key.table).or_default().push(key.chain.clone());
        }
        if chains == self.named {
            return;
        }
        for (table, chains) in &chains {
            let watched = |chain: &ChainName| Watched { chain: chain.clone(), list: None, places: None };
            self.programs.watch(*table, chains.iter().map(watched).collect());
        }
        self.named = chains;
    }

    /// Reads all chains of endpoints, if the mirror is of this generation. What is returned counts if that still is the
    /// generation afterwards.
    pub(super) fn read(&mut self, mirror: &Mirror, generation: u32) -> Option<Readings> {
        if self.reader.as_ref().is_err_and(|reason| *reason == CannotHere::NotYet) {
            if !mirror.chains().any(|(key, _)| key.is_endpoint()) {
                return None;
            }
            self.load(mirror);
        }
        if self.reader.is_err() || mirror.generation() != generation {
            return None;
        }
        if self.held.as_ref().is_none_or(|held| held.generation != generation) {
            let held = self.walk(mirror, generation);
            self.held = self.lose_if_refused(held)?;
        }
        let (Some(held), Ok(reader)) = (&self.held, &self.reader) else { return None };
        let read = reader.read(&held.pointers, held.reads, &mut self.counters);
        match (self.lose_if_refused(read), &mut self.held) {
            (Some(Outcome::Done), Some(held)) => held.reads = Reads::Again,
            _ => self.held = None,
        }
        self.held.as_ref().map(|held| held.readings(&self.counters))
    }

    fn load(&mut self, mirror: &Mirror) {
        self.reader = NftReader::load(most_rules(mirror));
        match &self.reader {
            Ok(_) => tracing::debug!("counters of nftables are read in place"),
            Err(reason) => tracing::info!(%reason, "counters of nftables are read over netlink"),
        }
        let freed = self.reader.as_ref().map_err(Clone::clone).and_then(NftReader::attach_freed);
        if let (Ok(_), Err(reason)) = (&self.reader, &freed) {
            tracing::info!(%reason, "what deleted rules count last is not seen");
        }
        self.last_words = LastWords::new(freed);
    }

    /// The programs that walk have memory for so many rules: if there are more by now, they are loaded anew.
    fn make_room(&mut self, mirror: &Mirror) {
        let rules = most_rules(mirror);
        if self.reader.as_ref().is_ok_and(|reader| !reader.has_room_for(rules)) {
            let reader = NftReader::load(rules);
            if let Some(reader) = self.lose_if_refused(reader) {
                self.reader = Ok(reader);
            }
        }
    }

    /// Whether rules changed since it was looked where their counters are, and looking costs no more than a twentieth of the
    /// time, however often they do.
    pub(super) fn should_look(&self, mirror: &Mirror) -> bool {
        let changed = self.held.as_ref().is_some_and(|held| mirror.has_changed_since(held.generation));
        changed && self.looked_at.elapsed() > 20 * self.look_took
    }

    /// Looks where the counters of new rules are, at the mirror's generation. Which one it is then has to be said afterwards.
    pub(super) fn look(&mut self, mirror: &Mirror) {
        let started = Instant::now();
        let walked = self.walk(mirror, mirror.generation());
        if let Some(held) = self.lose_if_refused(walked).flatten() {
            self.held = Some(held);
        }
        (self.looked_at, self.look_took) = (Instant::now(), started.elapsed());
    }

    /// Lets the programs watch the chains of this generation.
    fn watch(&mut self, mirror: &Mirror, lists: Lists, names: &[String]) -> Result<(), CannotHere> {
        let Ok(reader) = &mut self.reader else { return Ok(()) };
        let chains = watched::chains(&lists);
        for (table, lists) in lists {
            let keys: Vec<&ChainKey> = chains.iter().filter(|key| key.table == table).collect();
            let mut packed = PackedTable::default();
            if let Some(first) = keys.first()
                && let Ok((cursor, walked)) = reader.walk_packed(table.ip_version, first.kernel_table())?
            {
                packed = PackedTable::new(cursor);
                let mut by_chain: HashMap<u32, Vec<PackedRule>> = HashMap::new();
                for rule in walked {
                    by_chain.entry(rule.chain).or_default().push(rule);
                }
                for key in keys {
                    let walked = number(names, key).and_then(|number| by_chain.remove(&number));
                    let walked = walked.unwrap_or_default();
                    let handles: Vec<u64> = walked.iter().map(|rule| reader.handle(rule)).collect();
                    packed.take(key, mirror, walked, &handles);
                }
            }
            self.programs.watch(table, packed.watched(lists));
        }
        Ok(())
    }

    fn walk(&mut self, mirror: &Mirror, generation: u32) -> Result<Option<Held>, CannotHere> {
        self.make_room(mirror);
        let Ok(reader) = &mut self.reader else { return Ok(None) };
        // Chains of endpoints are read; what rules of the others have last is of interest, too.
        let keys: Vec<&ChainKey> = mirror.chains().map(|(key, _)| key).collect();
        let mut walk = Walk::at(generation);
        // Chains of both IP versions mostly have the same names.
        let names: BTreeSet<String> = keys.iter().map(|key| key.kernel_chain()).collect();
        let names: Vec<String> = names.into_iter().collect();
        reader.want(&names)?;
        let tables: BTreeSet<(IpVersion, &str)> =
            keys.iter().map(|key| (key.table.ip_version, key.kernel_table())).collect();
        let mut found: HashMap<(IpVersion, &str, u32), Vec<WalkedRule>> = HashMap::new();
        for (ip_version, table) in tables {
            match reader.walk(ip_version, table)? {
                Ok(rules) => {
                    for rule in rules {
                        found.entry((ip_version, table, rule.chain)).or_default().push(rule);
                    }
                }
                Err(outcome) => {
                    tracing::debug!(%ip_version, table, ?outcome, "the walk through nf_tables failed");
                    return Ok(None);
                }
            }
        }
        let of_chain = |key: &ChainKey| {
            found.get(&(key.table.ip_version, key.kernel_table(), number(&names, key)?)).map(Vec::as_slice)
        };
        keys.iter().for_each(|key| walk.came_by(key.table, of_chain(key).unwrap_or_default()));
        self.last_words.walked(walk);
        let mut held = Held { generation, tables: Vec::new(), pointers: Vec::new(), reads: Reads::First };
        for key in keys.into_iter().filter(|key| key.is_endpoint()) {
            if !held.take(key, mirror, of_chain(key).unwrap_or_default()) {
                tracing::debug!(chain = %key.chain, "the walk through nf_tables found other rules");
                reader.forget_counters();
                return Ok(None);
            }
        }
        if self.programs.wants() {
            self.watch(mirror, watched::lists(mirror), &names)?;
        }
        Ok(Some(held))
    }

    /// A kernel that refuses to run what it let load is not asked again.
    fn lose_if_refused<T>(&mut self, result: Result<T, CannotHere>) -> Option<T> {
        result
            .inspect_err(|reason| {
                tracing::warn!(%reason, "counters of nftables are read over netlink from now on");
                self.reader = Err(reason.clone());
                self.held = None;
                self.last_words = LastWords::new(Err(reason.clone()));
            })
            .ok()
    }

    /// The tables that have endpoints, if they are known for this generation.
    pub(super) fn tables(&self, generation: u32) -> Option<BTreeSet<TableId>> {
        let held = self.held.as_ref().filter(|held| held.generation == generation)?;
        Some(held.tables.iter().map(|(id, _)| *id).collect())
    }
}

/// The number that a walk tells a chain by: its place among the names that are looked for.
fn number(names: &[String], key: &ChainKey) -> Option<u32> {
    names.binary_search(&key.kernel_chain()).ok().and_then(|number| u32::try_from(number).ok())
}

/// How many rules that matter the biggest table has.
fn most_rules(mirror: &Mirror) -> usize {
    let mut rules: HashMap<(IpVersion, &str), usize> = HashMap::new();
    for (key, chain) in mirror.chains() {
        *rules.entry((key.table.ip_version, key.kernel_table())).or_default() += chain.handles.len();
    }
    rules.into_values().max().unwrap_or(0)
}

impl Held {
    /// Takes a chain as it was walked, if it is as the mirror has it.
    fn take(&mut self, key: &ChainKey, mirror: &Mirror, walked: &[WalkedRule]) -> bool {
        let Some(known) = mirror.get(key) else { return false };
        let same = known.handles.iter().eq(walked.iter().map(|rule| &rule.handle))
            && known
                .chain
                .rules()
                .iter()
                .map(|rule| rule.counted)
                .eq(walked.iter().map(|rule| rule.counter != 0));
        if same {
            // The mirror's chains come table by table.
            if self.tables.last().is_none_or(|(id, _)| *id != key.table) {
                self.tables.push((key.table, Vec::new()));
            }
            let chains = self.tables.last_mut().map(|(_, chains)| chains);
            chains.into_iter().for_each(|chains| chains.push(HeldChain::new(&known.chain)));
            self.pointers.extend(walked.iter().map(|rule| rule.counter).filter(|&counter| counter != 0));
        }
        same
    }

    fn readings(&self, mut counters: &[Counter]) -> Readings {
        let mut readings =
            |chains: &Vec<HeldChain>| chains.iter().map(|c| c.reading(&mut counters)).collect();
        self.tables.iter().map(|(id, chains)| (*id, readings(chains))).collect()
    }
}

impl HeldChain {
    fn new(chain: &Arc<Chain>) -> Self {
        let counted: Box<[bool]> = chain.rules().iter().map(|rule| rule.counted).collect();
        let counters = counted.iter().filter(|counted| **counted).count();
        let counted = counted.contains(&false).then_some(counted);
        Self { chain: chain.clone(), counted, counters }
    }

    /// Takes the chain's counters from those that are left.
    fn reading(&self, counters: &mut &[Counter]) -> Reading {
        let (own, rest) = counters.split_at_checked(self.counters).unwrap_or_default();
        *counters = rest;
        let counters = match &self.counted {
            None => own.to_vec(),
            Some(counted) => {
                let mut own = own.iter().copied();
                let mut of_rule = |counted: &bool| counted.then(|| own.next()).flatten();
                counted.iter().map(|counted| of_rule(counted).unwrap_or_default()).collect()
            }
        };
        Reading { chain: self.chain.clone(), counters }
    }
}
