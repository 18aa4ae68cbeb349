//! Rules before they are spelled: what they match and do, not how iptables or nft says it.
//!
//! A [`Draft`] is the set of chains of one IP version while they are being written; the sibling files add to it.

use super::dialect::{Dialect, Marks};
use crate::policy::{Deny, Model, Net, PortRange, Protocol};
use accountant_core::{Direction, IpVersion};
use std::collections::{BTreeMap, BTreeSet};

/// The tables, in the order in which a packet meets them. Native nftables folds them into one, as prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the table of the same name")]
pub enum Table {
    Raw,
    Mangle,
    Nat,
    Filter,
}

impl Table {
    /// The name that iptables gives it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// One condition of a rule.
#[derive(Clone, Debug)]
pub(crate) enum Match {
    Established,
    Invalid,
    /// Destination NAT was (or was not) done to the connection.
    Dnat(bool),
    /// Packets to addresses that are not routed back where they came from.
    ReversePathFails,
    /// Interfaces; a final `+` stands for any rest.
    In(String),
    Out(String),
    Protocol(Protocol),
    ProtocolNumber(u8),
    /// All bits of the mark are set, or none is, or not all are, or any is.
    MarkSet(u32),
    MarkClear(u32),
    MarkNotSet(u32),
    MarkNotClear(u32),
    Source(Net),
    NotSource(Net),
    Destination(Net),
    NotDestination(Net),
    SourceSet(String),
    DestinationSet(String),
    /// The set has addresses with ports.
    DestinationPortSet(String),
    SourcePorts(L4, Vec<PortRange>),
    Ports(L4, Vec<PortRange>),
    NotPorts(L4, Vec<PortRange>),
    IcmpType(u8),
    Icmpv6Type(u8),
    /// At most so many packets a second, and a burst.
    Within(u32, u32),
}

/// The protocol whose ports are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum L4 {
    Tcp,
    Udp,
}

/// What a rule does with what it matches.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Nothing: the rule is there for its comment.
    Nothing,
    Accept,
    Drop,
    Reject,
    /// Drops packets beyond so many a second and a burst (nftables, where one rule can).
    LimitPackets(u32, u32),
    /// Rejects new TCP connections when there are more than so many.
    LimitConnections(u32),
    Return,
    Jump(String),
    Goto(String),
    SetMark(u32),
    ClearMark(u32),
    /// Clears the bits, said as "set to this value under this mask".
    MaskMark(u32),
    Log,
    Nflog {
        group: u8,
        prefix: String,
    },
    NoTrack,
    /// Goes to the chain that a verdict map names for the interface (nftables from 3.30).
    Dispatch(Way, String),
}

/// Where an interface stands: the packet came in by it, or will go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    In,
    Out,
}

/// A rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) comments: Vec<String>,
    pub(crate) matches: Vec<Match>,
    pub(crate) target: Target,
}

/// A chain. In a base chain, the rules from `appended` on stand behind everybody else's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    pub(crate) rules: Vec<Rule>,
    pub(crate) appended: Option<usize>,
}

/// The chains of one IP version.
pub(crate) struct Draft<'a> {
    pub(crate) model: &'a Model,
    pub(crate) dialect: Dialect,
    pub(crate) marks: Marks,
    pub(crate) version: IpVersion,
    pub(crate) chains: BTreeMap<(Table, String), Chain>,
    /// Verdict maps: name, interface, chain.
    pub(crate) maps: BTreeMap<String, BTreeMap<String, String>>,
}

impl Rule {
    pub(crate) fn new(matches: impl Into<Vec<Match>>, target: Target) -> Self {
        Self { comments: Vec::new(), matches: matches.into(), target }
    }

    pub(crate) fn always(target: Target) -> Self {
        Self::new([], target)
    }

    pub(crate) fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comments.push(comment.into());
        self
    }
}

impl<'a> Draft<'a> {
    pub(crate) fn new(model: &'a Model, dialect: Dialect, version: IpVersion) -> Self {
        let (chains, maps) = (BTreeMap::new(), BTreeMap::new());
        Self { model, dialect, marks: dialect.marks(), version, chains, maps }
    }

    pub(crate) fn chain(&mut self, table: Table, name: impl Into<String>, rules: Vec<Rule>) {
        self.chains.insert((table, name.into()), Chain { rules, appended: None });
    }

    /// The deny action in this table, and the word that comments use for it. The kernel rejects only in filter.
    pub(crate) fn deny(&self, table: Table) -> (Target, &'static str) {
        match self.model.settings.deny {
            Deny::Reject if table == Table::Filter => (Target::Reject, "Reject"),
            _ => (Target::Drop, "Drop"),
        }
    }

    /// The chains of every policy and profile that some endpoint uses, in both directions: Felix programs them all
    /// (before 3.15).
    pub(crate) fn every_policy(&mut self) {
        let model = self.model;
        for direction in [Direction::Ingress, Direction::Egress] {
            for (tier, policy) in
                model.tiers.iter().flat_map(|tier| tier.policies.iter().map(move |p| (tier, p)))
            {
                self.policy_chain(Table::Filter, tier, policy, direction);
            }
            for profile in &model.profiles {
                self.profile_chain(&profile.name, direction);
            }
        }
    }

    /// Leaves out the chains that no base chain leads to: Felix programs only what is referenced (since 3.15).
    pub(crate) fn drop_unreferenced(&mut self) {
        let mut seen: BTreeSet<(Table, String)> = BTreeSet::new();
        let mut open: Vec<(Table, String)> =
            self.chains.keys().filter(|(_, name)| !name.starts_with("cali-")).cloned().collect();
        while let Some(key) = open.pop() {
            if !seen.insert(key.clone()) {
                continue;
            }
            let rules = self.chains.get(&key).map_or(&[][..], |chain| &chain.rules);
            for rule in rules {
                match &rule.target {
                    Target::Jump(next) | Target::Goto(next) => open.push((key.0, next.clone())),
                    Target::Dispatch(_, map) => {
                        let chains = self.maps.get(map).into_iter().flat_map(BTreeMap::values);
                        open.extend(chains.map(|chain| (key.0, chain.clone())));
                    }
                    _ => {}
                }
            }
        }
        self.chains.retain(|key, _| seen.contains(key));
    }
}
