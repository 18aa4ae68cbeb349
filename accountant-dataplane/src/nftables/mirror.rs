//! The rules that matter, kept up to date by the kernel's notifications of changes.
//!
//! A commit is told rule by rule and ends with the new generation's number. At that moment each chain that it changed
//! gets its new version, and the last counters of the rules that went are handed over with the version that they belonged
//! to. Pure: bytes go in, nothing is read.
//!
//! Invariant: between two generations the mirror does not change; a notification that does not fit makes it
//! [`Mirror::is_stale`], never wrong.

use super::rule::{self, RuleMessage};
use super::wire::Message;
use super::writers::Writers;
use accountant_core::calico::ChainKind;
use accountant_core::rule::{Chain, Rule, RuleId};
use accountant_core::snapshot::{Retired, Source, TableId};
use accountant_core::{ChainName, Counter, IpVersion, Table};
use netlink_bindings::nftables::{ChainAttrs, GenAttrs, RuleAttrs, TableAttrs};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The name of Felix' own table.
const NATIVE_TABLE: &str = "calico";
/// `NFPROTO_IPV4`, `NFPROTO_IPV6`
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_...`
const DELTABLE: u16 = 0xa02;
const NEWCHAIN: u16 = 0xa03;
const DELCHAIN: u16 = 0xa05;
pub(crate) const NEWRULE: u16 = 0xa06;
const DELRULE: u16 = 0xa08;
const NEWGEN: u16 = 0xa0f;
/// `NLM_F_APPEND`, in notifications of rules that were added at the end of their chain.
const APPENDED: u16 = 0x800;

/// A chain that matters, and how to ask the kernel for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ChainKey {
    pub(crate) table: TableId,
    pub(crate) chain: ChainName,
}

impl ChainKey {
    /// The chain of this name in this table of the kernel's, if it matters.
    pub(crate) fn new(family: u8, table: &str, chain: &str) -> Option<Self> {
        let ip_version = match family {
            FAMILY_IPV4 => IpVersion::V4,
            FAMILY_IPV6 => IpVersion::V6,
            _ => return None,
        };
        let native = table == NATIVE_TABLE;
        let (table, chain) = match native {
            true => rule::split_layer(chain)?,
            false => (Table::ALL.into_iter().find(|known| known.as_str() == table)?, chain),
        };
        let chain = ChainName::from(chain);
        let table = TableId { source: Source::Nftables, native, ip_version, table };
        ChainKind::of(&chain).matters().then_some(Self { table, chain })
    }

    /// The kernel's name of the table.
    pub(crate) fn kernel_table(&self) -> &'static str {
        if self.table.native { NATIVE_TABLE } else { self.table.table.as_str() }
    }

    /// The kernel's name of the chain.
    pub(crate) fn kernel_chain(&self) -> String {
        if self.table.native {
            format!("{}-{}", self.table.table, self.chain)
        } else {
            self.chain.to_string()
        }
    }

    /// The kernel's number of the address family.
    pub(crate) fn family(&self) -> u8 {
        match self.table.ip_version {
            IpVersion::V4 => FAMILY_IPV4,
            IpVersion::V6 => FAMILY_IPV6,
        }
    }

    pub(crate) fn is_endpoint(&self) -> bool {
        matches!(ChainKind::of(&self.chain), ChainKind::Endpoint { .. })
    }
}

/// A chain as it stands.
#[derive(Clone, Debug)]
pub(crate) struct MirrorChain {
    pub(crate) handles: Vec<u64>,
    pub(crate) chain: Arc<Chain>,
}

impl MirrorChain {
    pub(crate) fn new(name: &ChainName, rules: Vec<(u64, Rule)>) -> Self {
        let (handles, rules) = rules.into_iter().unzip();
        Self { handles, chain: Arc::new(Chain::new(name.clone(), rules)) }
    }

    /// Whether a rule is there: who replaces one gives the new one its handle.
    fn has(&self, handle: u64, rule: RuleId) -> bool {
        let place = self.handles.iter().position(|&known| known == handle);
        place.is_some_and(|place| self.chain.ids()[place] == rule)
    }

    fn rules(&self) -> Vec<(u64, Rule, bool)> {
        self.handles
            .iter()
            .zip(self.chain.rules())
            .map(|(&handle, rule)| (handle, rule.clone(), false))
            .collect()
    }
}

/// Rules of a chain that went.
#[derive(Debug)]
pub(crate) struct Went {
    pub(crate) table: TableId,
    pub(crate) retired: Retired,
    /// The generation of the commit that deleted them, or at which they were found gone.
    pub(crate) generation: u32,
    /// The handles of all rules of the chain, as it stood before.
    pub(crate) handles: Vec<u64>,
}

/// What a commit did to a chain so far.
#[derive(Debug)]
struct Change {
    before: Option<MirrorChain>,
    /// The rules of before; those that were deleted keep their place until the commit ends, because others are told to
    /// stand behind them.
    rules: Vec<(u64, Rule, bool)>,
    fresh: Vec<Fresh>,
    finals: Vec<(usize, Counter)>,
    gone: bool,
}

/// A rule that the commit adds. Where it stands can depend on one that is told later.
#[derive(Debug)]
struct Fresh {
    told: RuleMessage,
    appended: bool,
}

/// The chains that matter.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    chains: BTreeMap<ChainKey, MirrorChain>,
    /// Changes of the commit whose end is not yet told.
    open: BTreeMap<ChainKey, Change>,
    generation: u32,
    touched: BTreeSet<ChainKey>,
    /// The latest generation that changed chains that matter.
    changed: u32,
    went: Vec<Went>,
    gone: BTreeSet<ChainKey>,
    stale: bool,
    pub(crate) writers: Writers,
}

impl Mirror {
    /// Starts anew from what was read at this generation or later. Rules that are not there any more went unheard; those
    /// that say the same and have another handle are others, with counters of their own.
    pub(crate) fn reset(&mut self, generation: u32, chains: BTreeMap<ChainKey, MirrorChain>) {
        for (key, old) in &self.chains {
            let new = chains.get(key);
            let is_there =
                |index: &usize| new.is_some_and(|new| new.has(old.handles[*index], old.chain.ids()[*index]));
            let lost: Vec<_> = (0..old.handles.len()).filter(|index| !is_there(index)).collect();
            if !lost.is_empty() {
                let retired = Retired { chain: old.chain.clone(), finals: vec![], lost };
                let handles = old.handles.clone();
                self.went.push(Went { table: key.table, retired, generation, handles });
            }
        }
        let gone: Vec<_> = self.chains.keys().filter(|key| !chains.contains_key(*key)).cloned().collect();
        self.gone.extend(gone);
        self.touched.extend(chains.keys().cloned());
        self.chains = chains;
        self.open.clear();
        (self.generation, self.changed) = (generation, generation);
        self.stale = false;
    }

    pub(crate) fn chains(&self) -> impl Iterator<Item = (&ChainKey, &MirrorChain)> {
        self.chains.iter()
    }

    pub(crate) fn get(&self, key: &ChainKey) -> Option<&MirrorChain> {
        self.chains.get(key)
    }

    /// The generation up to which notifications were heard.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether chains that matter are not what they were at an earlier generation.
    pub(crate) fn has_changed_since(&self, generation: u32) -> bool {
        is_after(self.changed, generation)
    }

    /// Whether notifications were lost or did not fit.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    /// Notes that the chains cannot be relied on any more.
    pub(crate) fn lose(&mut self, why: &'static str) {
        tracing::debug!(why, "rules of nftables have to be read anew");
        self.stale = true;
    }

    /// Chains whose rules changed since the last call.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<ChainKey> {
        std::mem::take(&mut self.touched)
    }

    /// Rules that went since the last call, oldest first.
    pub(crate) fn take_went(&mut self) -> Vec<Went> {
        std::mem::take(&mut self.went)
    }

    /// Chains that went since the last call and are not back.
    pub(crate) fn take_gone(&mut self) -> Vec<ChainKey> {
        let gone = std::mem::take(&mut self.gone);
        gone.into_iter().filter(|key| !self.chains.contains_key(key)).collect()
    }

    /// Takes a notification.
    pub(crate) fn hear(&mut self, message: &Message<'_>) {
        let Some((header, attributes)) = message.payload.split_at_checked(4) else {
            self.lose("a notification is cut short");
            return;
        };
        let family = header[0];
        match message.kind {
            NEWRULE | DELRULE => self.rule(message, family, attributes),
            NEWCHAIN | DELCHAIN => self.chain(message.kind == DELCHAIN, family, attributes),
            DELTABLE => self.table_gone(family, attributes),
            NEWGEN => {
                let commit = GenAttrs::new(attributes);
                if !self.open.is_empty() {
                    self.writers.note(&commit);
                }
                self.commit(commit.get_id().ok());
            }
            _ => {}
        }
    }

    fn rule(&mut self, message: &Message<'_>, family: u8, attributes: &[u8]) {
        let attributes = RuleAttrs::new(attributes);
        let Some(key) =
            rule::place(&attributes).and_then(|(table, chain)| ChainKey::new(family, table, chain))
        else {
            return;
        };
        let Some(told) = rule::message(&attributes, key.table.native) else {
            self.lose("a notification of a rule cannot be decoded");
            return;
        };
        let change = self.change(&key);
        if message.kind == DELRULE {
            change.delete(&told);
        } else {
            change.fresh.push(Fresh { told, appended: message.flags & APPENDED != 0 });
        }
    }

    fn chain(&mut self, deleted: bool, family: u8, attributes: &[u8]) {
        let attributes = ChainAttrs::new(attributes);
        let name =
            |text: Result<&std::ffi::CStr, _>| text.ok().and_then(|t| t.to_str().ok()).map(str::to_string);
        let (Some(table), Some(chain)) = (name(attributes.get_table()), name(attributes.get_name())) else {
            return;
        };
        if let Some(key) = ChainKey::new(family, &table, &chain) {
            self.change(&key).gone = deleted;
        }
    }

    fn table_gone(&mut self, family: u8, attributes: &[u8]) {
        let attributes = TableAttrs::new(attributes);
        let Some(name) = attributes.get_name().ok().and_then(|name| name.to_str().ok()) else { return };
        let of_table = |key: &&ChainKey| key.family() == family && key.kernel_table() == name;
        let keys: Vec<_> = self.chains.keys().filter(of_table).cloned().collect();
        for key in keys {
            self.change(&key).gone = true;
        }
    }

    fn change(&mut self, key: &ChainKey) -> &mut Change {
        let before = self.chains.get(key);
        self.open.entry(key.clone()).or_insert_with(|| Change {
            before: before.cloned(),
            rules: before.map(MirrorChain::rules).unwrap_or_default(),
            fresh: Vec::new(),
            finals: Vec::new(),
            gone: false,
        })
    }

    fn commit(&mut self, generation: Option<u32>) {
        let changes = std::mem::take(&mut self.open);
        let Some(generation) = generation else {
            self.lose("a commit has no number");
            return;
        };
        // What was read already tells of this commit.
        if !is_after(generation, self.generation) {
            return;
        }
        self.generation = generation;
        if !changes.is_empty() {
            self.changed = generation;
        }
        for (key, mut change) in changes {
            self.touched.insert(key.clone());
            if !change.place_fresh() {
                self.lose("a new rule stands behind one that is not known");
            }
            let old = change.before.as_ref().map(|before| before.chain.clone());
            if let (Some(before), false) = (change.before, change.finals.is_empty()) {
                let retired = Retired { chain: before.chain, finals: change.finals, lost: vec![] };
                let handles = before.handles;
                self.went.push(Went { table: key.table, retired, generation, handles });
            }
            if change.gone {
                self.chains.remove(&key);
                self.gone.insert(key);
                continue;
            }
            let rules = change.rules.into_iter().filter(|(.., deleted)| !deleted);
            let rules = rules.map(|(handle, rule, _)| (handle, rule)).collect();
            let mut new = MirrorChain::new(&key.chain, rules);
            if let Some(old) = old.filter(|old| old.same_rules(&new.chain)) {
                new.chain = old;
            }
            self.chains.insert(key, new);
        }
    }
}

impl Change {
    fn delete(&mut self, told: &RuleMessage) {
        let of_before = self.before.as_ref().and_then(|b| b.handles.iter().position(|&h| h == told.handle));
        if let Some(index) = of_before
            && !self.finals.iter().any(|(known, _)| *known == index)
        {
            self.finals.push((index, told.counter));
        }
        if let Some((.., deleted)) = self.rules.iter_mut().find(|(handle, ..)| *handle == told.handle) {
            *deleted = true;
        }
    }

    /// Puts the new rules in their places. Returns whether all places are known.
    fn place_fresh(&mut self) -> bool {
        let mut waiting = std::mem::take(&mut self.fresh);
        while !waiting.is_empty() {
            let before = waiting.len();
            waiting = waiting.into_iter().filter_map(|fresh| self.place(fresh)).collect();
            if waiting.len() == before {
                return false;
            }
        }
        true
    }

    /// Puts a rule in its place; gives it back if it stands behind a rule that is not placed yet.
    fn place(&mut self, fresh: Fresh) -> Option<Fresh> {
        let find = |wanted: u64, rules: &[(u64, Rule, bool)]| {
            rules.iter().position(|(handle, ..)| *handle == wanted)
        };
        let index = match (find(fresh.told.handle, &self.rules), fresh.told.position) {
            // It takes the place, and the handle, of the rule that it replaces.
            (Some(replaced), _) => {
                self.rules.remove(replaced);
                replaced
            }
            (None, Some(position)) => match find(position, &self.rules) {
                Some(before) => before + 1,
                None => return Some(fresh),
            },
            // Without a position it is the last or the first.
            (None, None) if fresh.appended => self.rules.len(),
            (None, None) => 0,
        };
        self.rules.insert(index, (fresh.told.handle, fresh.told.rule, false));
        None
    }
}

/// Whether one generation's number comes after another's; the numbers wrap around.
pub(crate) fn is_after(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) as i32 > 0
}

#[cfg(test)]
pub(super) mod tests;
