//! The rules that Felix writes for a model: the same order, comments, marks, names and hashes.
//!
//! In goes a [`Model`] and a [`Dialect`]; out comes a [`Rendering`], chain by chain and for both IP versions, ready to
//! be loaded as a whole ([`Rendering::restore_text`], [`Rendering::nft_text`]) or compared with the last one and
//! applied in part ([`crate::apply`]).
//!
//! Invariant: what is rendered here for the model of a capture in `tests/fixtures/felix` equals what the real Felix
//! wrote, hash by hash (`tests/shape.rs`).

mod dialect;
mod dispatch;
mod draft;
mod endpoint;
mod fixed;
mod groups;
mod hash;
mod iptables;
pub(crate) mod nft;
mod policy;
pub(crate) mod text;

pub use dialect::{Backend, Dialect, Version};
pub use draft::Table;

use crate::policy::Model;
use accountant_core::IpVersion;
use draft::Draft;
use std::collections::{BTreeMap, BTreeSet};

/// What separates the rules that Felix inserts into a base chain from those that it appends, in the hash.
const APPENDS: &str = "*appends*";

/// All that Felix writes on one node.
#[derive(Clone, Debug)]
pub struct Rendering {
    /// Which Felix, and to what.
    pub dialect: Dialect,
    /// The rules of IPv4 and IPv6.
    pub rulesets: [Ruleset; 2],
}

/// The rules of one IP version.
#[derive(Clone, Debug)]
pub struct Ruleset {
    /// The IP version.
    pub version: IpVersion,
    /// The chains by table and name. In native nftables the names carry the table as a prefix, as in the kernel.
    pub chains: BTreeMap<(Table, String), Vec<Written>>,
    /// The sets by name.
    pub sets: BTreeMap<String, SetContent>,
    /// The verdict maps by name: interface, and the chain that it leads to.
    pub maps: BTreeMap<String, BTreeMap<String, String>>,
}

/// A rule as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The 16 characters that tell this rule, at this place of this chain, from all others.
    pub hash: String,
    /// The whole rule, comments included: what follows `-A CHAIN` or `add rule TABLE CHAIN`.
    pub text: String,
}

/// A set as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetContent {
    /// Whether its members are addresses with ports.
    pub with_ports: bool,
    /// Its members, as the backend's tool spells them.
    pub members: BTreeSet<String>,
}

/// Renders the model as this Felix would.
pub fn render(model: &Model, dialect: Dialect) -> Rendering {
    Rendering { dialect, rulesets: IpVersion::BOTH.map(|version| ruleset(model, dialect, version)) }
}

impl Rendering {
    /// The rules of this IP version.
    pub fn of(&self, version: IpVersion) -> &Ruleset {
        let [v4, v6] = &self.rulesets;
        if version == IpVersion::V4 { v4 } else { v6 }
    }
}

impl Ruleset {
    /// How many rules there are.
    pub fn rule_count(&self) -> usize {
        self.chains.values().map(Vec::len).sum()
    }

    /// The rules of a chain of the filter table, by the name that is the same in every backend (`cali-tw-…`).
    pub fn filter_chain(&self, name: &str) -> Option<&[Written]> {
        let plain = self.chains.get(&(Table::Filter, name.to_string()));
        plain.or_else(|| self.chains.get(&(Table::Filter, nft::name(Table::Filter, name)))).map(Vec::as_slice)
    }
}

fn ruleset(model: &Model, dialect: Dialect, version: IpVersion) -> Ruleset {
    let mut draft = Draft::new(model, dialect, version);
    draft.fixed_chains();
    for endpoint in &model.endpoints {
        draft.workload_chains(endpoint);
    }
    for host in &model.host_endpoints {
        draft.host_chains(host);
    }
    draft.failsafes();
    draft.workload_dispatch();
    draft.host_dispatch();
    if dialect.since(Version::V3_25) {
        draft.drop_unreferenced();
    } else {
        draft.every_policy();
    }
    Ruleset { version, sets: sets(&draft), chains: chains(&draft), maps: maps(&draft) }
}

fn chains(draft: &Draft<'_>) -> BTreeMap<(Table, String), Vec<Written>> {
    let written = draft.chains.iter().map(|((table, name), chain)| {
        let name = if draft.dialect.is_nft() { nft::name(*table, name) } else { name.clone() };
        let (first, appended) = chain.rules.split_at(chain.appended.unwrap_or(chain.rules.len()));
        let mut rules = written(draft, *table, &name, first);
        if !appended.is_empty() {
            rules.extend(written(draft, *table, &format!("{name}{APPENDS}"), appended));
        }
        ((*table, name), rules)
    });
    written.collect()
}

fn written(draft: &Draft<'_>, table: Table, chain: &str, rules: &[draft::Rule]) -> Vec<Written> {
    if draft.dialect.is_nft() {
        let place = nft::Place { table, ip: draft.version, version: draft.dialect.version() };
        let bodies: Vec<String> = rules.iter().map(|rule| nft::spell(rule, place)).collect();
        let hashes = hash::rules(chain, bodies.iter().map(String::as_str));
        let lines = rules.iter().zip(bodies).zip(hashes).map(|((rule, body), hash)| {
            let comment = nft::comment(&hash, &rule.comments);
            Written { text: format!("{body} comment \"{comment}\""), hash }
        });
        return lines.collect();
    }
    let bodies: Vec<String> = rules.iter().map(iptables::spell).collect();
    let hashed: Vec<String> =
        bodies.iter().map(|body| format!("-A {chain} HASH {body}").trim_end().to_string()).collect();
    let hashes = hash::rules(chain, hashed.iter().map(String::as_str));
    let lines = bodies.into_iter().zip(hashes).map(|(body, hash)| {
        let text = format!("-m comment --comment \"cali:{hash}\" {body}").trim_end().to_string();
        Written { hash, text }
    });
    lines.collect()
}

fn sets(draft: &Draft<'_>) -> BTreeMap<String, SetContent> {
    let written = draft.model.sets.iter().map(|set| {
        let ours = set.members.iter().filter(|net| net.version() == draft.version);
        let spelled = ours.map(|net| match draft.dialect.is_nft() {
            true => nft::element(net, set.port),
            false => iptables::member(net, set.port),
        });
        (draft.set(&set.id), SetContent { with_ports: set.port.is_some(), members: spelled.collect() })
    });
    written.collect()
}

fn maps(draft: &Draft<'_>) -> BTreeMap<String, BTreeMap<String, String>> {
    let prefixed = |name: &String| nft::name(Table::Filter, name);
    let written = draft.maps.iter().map(|(name, elements)| {
        let elements = elements.iter().map(|(interface, chain)| (interface.clone(), prefixed(chain)));
        (prefixed(name), elements.collect())
    });
    written.collect()
}
