//! One rule of a packet filter in the form that all dataplanes share.
//!
//! The decoders of `accountant-dataplane` make these from xtables blobs and netlink messages; only what the
//! recognition of Calico's dialects needs is kept, the rest is one bit: "has other matches".
//!
//! Invariant: a rule's [`RuleId`] depends on its content (Felix' own hash where there is one), never on its
//! position or handle, so a rule is known again after others were inserted before it.

use crate::ChainName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What a rule does with a packet that matches it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// No target: the rule only counts, or only carries a comment.
    None,
    /// Accept.
    Accept,
    /// Drop silently.
    Drop,
    /// Drop with an answer (ICMP or TCP reset).
    Reject,
    /// Go back to the calling chain.
    Return,
    /// Call a chain.
    Jump(ChainName),
    /// Go to a chain without coming back here.
    Goto(ChainName),
    /// `mark = (mark & !mask) ^ value`; processing goes on.
    SetMark {
        /// Bits to set.
        value: u32,
        /// Bits to clear first.
        mask: u32,
    },
    /// Exempt from connection tracking; processing goes on.
    NoTrack,
    /// NFLOG with this prefix; processing goes on.
    NfLog(Box<str>),
    /// Kernel log; processing goes on.
    Log,
    /// Anything else.
    Other,
}

impl Action {
    /// Drop or Reject: Felix' deny action can be either.
    pub fn denies(&self) -> bool {
        matches!(self, Self::Drop | Self::Reject)
    }
}

/// `(mark & mask) == value`, or `!=` if inverted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MarkMatch {
    /// The bits compared with.
    pub value: u32,
    /// The bits looked at.
    pub mask: u32,
    /// Whether the test is for "not equal".
    pub invert: bool,
}

/// Conntrack states that a rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CtStates {
    /// The packet belongs to no connection and starts none.
    pub invalid: bool,
    /// The packet belongs to a connection that was answered.
    pub established: bool,
    /// The packet starts a connection that belongs to another.
    pub related: bool,
    /// Any state but these three.
    pub other: bool,
}

/// The matches of a rule, as far as they matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Matches {
    /// Test of the packet mark.
    pub mark: Option<MarkMatch>,
    /// Test of the conntrack state (not inverted).
    pub ct: Option<CtStates>,
    /// A rate or connection limit that comes *after* the counter (nftables), so that the counter counts what was
    /// offered and not what was dropped.
    pub limit_behind_counter: bool,
    /// Whether there is any other match.
    pub others: bool,
}

impl Matches {
    /// Every packet that reaches the rule matches it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The rule tests the mark and nothing else.
    pub fn only_mark(&self) -> Option<MarkMatch> {
        let rest = Self { mark: None, ..self.clone() };
        if rest.is_empty() { self.mark } else { None }
    }

    /// The rule tests the conntrack state and nothing else.
    pub fn only_ct(&self) -> Option<CtStates> {
        let rest = Self { ct: None, ..self.clone() };
        if rest.is_empty() { self.ct } else { None }
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The 16 characters behind `cali:` in the rule's comment: Felix' hash of the chain's name and of all rules up
    /// to this one. `None` on rules of others.
    pub hash: Option<Box<str>>,
    /// The other comments, in order, without the hash.
    pub comments: Vec<Box<str>>,
    /// When it applies.
    pub matches: Matches,
    /// What it does.
    pub action: Action,
    /// A digest of the raw rule, counters excluded, for rules that have no hash of Felix'.
    pub content: u64,
    /// Whether the rule has a counter at all. Comment-only rules of native nftables have none.
    pub counted: bool,
}

impl Rule {
    /// The first comment that contains `text`.
    pub fn comment_with(&self, text: &str) -> Option<&str> {
        self.comments.iter().map(|c| &**c).find(|c| c.contains(text))
    }

    /// Splits the comments of a rule into Felix' hash and the rest.
    ///
    /// iptables keeps one comment match for the hash and one for each text; native nftables has one comment for all,
    /// `cali:HASH; text`, in which several texts are joined by a space.
    pub fn split_comments<'a>(raw: impl IntoIterator<Item = &'a str>) -> (Option<Box<str>>, Vec<Box<str>>) {
        let mut hash = None;
        let mut texts = Vec::new();
        for comment in raw {
            let Some(rest) = comment.strip_prefix("cali:") else {
                texts.push(comment.into());
                continue;
            };
            let (this, text) = rest.split_once(';').unwrap_or((rest, ""));
            hash.get_or_insert_with(|| this.trim().into());
            texts.extend(Some(text.trim()).filter(|t| !t.is_empty()).map(Into::into));
        }
        (hash, texts)
    }
}

/// What makes a rule the same rule in two readings of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId {
    digest: u64,
    /// The how-many-eth rule with this digest in the chain: rules of others can be duplicates.
    nth: u16,
}

/// A chain at one moment: its name, its rules in order and their identities.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name, without a table-layer prefix.
    pub name: ChainName,
    rules: Box<[Rule]>,
    ids: Box<[RuleId]>,
}

impl Chain {
    /// Makes a chain of rules in order.
    pub fn new(name: ChainName, rules: Vec<Rule>) -> Self {
        let mut seen: HashMap<u64, u16> = HashMap::new();
        let ids = rules
            .iter()
            .map(|rule| {
                let digest = digest(rule);
                let nth = seen.entry(digest).or_insert(0);
                let id = RuleId { digest, nth: *nth };
                *nth = nth.saturating_add(1);
                id
            })
            .collect();
        Self { name, rules: rules.into(), ids }
    }

    /// The rules in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The identities of the rules, in the same order.
    pub fn ids(&self) -> &[RuleId] {
        &self.ids
    }

    /// Whether the other chain has the same rules in the same order.
    pub fn same_rules(&self, other: &Self) -> bool {
        self.ids == other.ids
    }
}

/// Identities are told anew from the rules.
impl Serialize for Chain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.name, &self.rules).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Chain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (name, rules) = Deserialize::deserialize(deserializer)?;
        Ok(Self::new(name, rules))
    }
}

fn digest(rule: &Rule) -> u64 {
    let mut hasher = DefaultHasher::new();
    match &rule.hash {
        Some(hash) => hash.hash(&mut hasher),
        None => rule.content.hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(hash: Option<&str>, content: u64) -> Rule {
        Rule {
            hash: hash.map(Into::into),
            comments: vec![],
            matches: Matches::default(),
            action: Action::None,
            content,
            counted: true,
        }
    }

    #[test]
    fn a_rule_keeps_its_identity_when_others_come_before_it() {
        let before = Chain::new("c".into(), vec![rule(Some("a"), 1), rule(None, 2), rule(None, 2)]);
        let after =
            Chain::new("c".into(), vec![rule(None, 9), rule(Some("a"), 1), rule(None, 2), rule(None, 2)]);
        assert_eq!(before.ids(), &after.ids()[1..]);
        assert_ne!(before.ids()[1], before.ids()[2], "duplicates are told apart by their order");
    }

    #[test]
    fn comments_are_split_in_both_spellings() {
        let (hash, texts) = Rule::split_comments(["cali:abc", "k=v", "Policy a.b ingress"]);
        assert_eq!((hash.as_deref(), texts.len()), (Some("abc"), 2));
        let (hash, texts) = Rule::split_comments(["cali:abc; Start of tier t"]);
        assert_eq!((hash.as_deref(), &*texts[0]), (Some("abc"), "Start of tier t"));
        let (hash, texts) = Rule::split_comments(["cali:abc;"]);
        assert_eq!((hash.as_deref(), texts.len()), (Some("abc"), 0));
        let (hash, texts) = Rule::split_comments(["not ours; cali:abc"]);
        assert_eq!((hash, &*texts[0]), (None, "not ours; cali:abc"));
    }
}
