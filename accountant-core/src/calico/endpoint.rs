//! Reading an endpoint chain: which of its rules counts what.
//!
//! The order of rules is in `felix/rules/endpoints.go` (`endpointIptablesChain`, `endpointFilterChain`); it changed
//! from version to version (tiers, groups, NFLOG, QoS), so a chain is recognised from its own rules, and the mark bits
//! are taken from them too. A rule that fits nowhere is kept as [`EndpointChain::unknown`]: it must not be mistaken for
//! a verdict of Calico's.
//!
//! Invariant: every rule index that is handed out belongs to a rule that has a counter.

use super::chain::ChainKind;
use super::comment::{self, Encapsulation, Qos};
use super::shared::PolicyAction;
use crate::ChainName;
use crate::id::TierName;
use crate::rule::{Action, Chain, CtStates, Rule};
use serde::{Deserialize, Serialize};

/// Index of a rule in its chain.
pub type RuleIndex = usize;

/// The mark bits that Felix works with, as the rules show them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Set by a policy or profile that accepts.
    pub accept: Option<u32>,
    /// Set by a policy that passes to the next tier.
    pub pass: Option<u32>,
}

impl Marks {
    /// The bits of either, `self` first.
    pub fn or(self, other: Self) -> Self {
        Self { accept: self.accept.or(other.accept), pass: self.pass.or(other.pass) }
    }
}

/// A call of a policy, group or profile chain and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Counts packets that entered.
    pub jump: RuleIndex,
    /// The chain that is called.
    pub target: ChainName,
    /// Counts packets that it accepted ("Return if policy accepted").
    pub accepted: Option<RuleIndex>,
}

/// One tier of an endpoint chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Its name; `default` where the version has no tiers.
    pub name: TierName,
    /// Its policies and groups in order of evaluation.
    pub items: Vec<Item>,
    /// Counts packets that no policy of the tier decided: the drop at its end, or an NFLOG rule in the same place.
    pub unmatched: Option<RuleIndex>,
    /// The drop at its end; a tier whose default action is Pass has none.
    pub drop: Option<RuleIndex>,
    /// Counts all packets that went on to what follows the tier.
    pub next: Option<RuleIndex>,
}

/// Where in a tier a policy decided: what its chain's counters tell of that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Place {
    /// In a tier that shows what no policy decided. All that is accepted counts as here.
    Closed,
    /// In a tier that shows that nowhere, before its last policy.
    Open,
    /// Denied as the last policy of such a tier.
    OpenLast,
    /// Where no counter of the endpoint tells: passed as the last policy of such a tier, or anything where nothing stands
    /// behind the policies.
    Alone,
}

impl Tier {
    /// Where an item decides so.
    pub fn place(&self, item: usize, action: PolicyAction) -> Place {
        let is_last = item + 1 >= self.items.len();
        match (action, self.unmatched) {
            (PolicyAction::Allow, _) | (_, Some(_)) => Place::Closed,
            (_, None) if !is_last => Place::Open,
            (PolicyAction::Deny, None) if self.next.is_some() => Place::OpenLast,
            _ => Place::Alone,
        }
    }
}

/// Rules before the tiers and other rules that decide on their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// Accepted: part of, or related to, an established connection.
    Established,
    /// Dropped: conntrack cannot place it.
    Invalid,
    /// Dropped: encapsulated by a workload.
    Encapsulated(Encapsulation),
    /// Dropped: over the packet rate of a QoS control.
    PacketRate,
    /// Rejected: over the connection limit of a QoS control.
    Connections,
    /// Dropped: the endpoint is administratively down.
    AdminDown,
    /// Accepted: forwarded, and no policy applies to forwarded traffic of this host endpoint.
    ForwardDefault,
    /// Dropped by the eBPF dataplane without asking policy: spoofed, malformed, over a rate, nowhere to go.
    WithoutPolicy,
    /// Dropped by the eBPF dataplane because the policy program could not be called.
    PolicyFailed,
}

/// What the rules of one endpoint chain count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointChain {
    /// Mark bits found on the way.
    pub marks: Marks,
    /// Whether rules speak of tiers by name (3.29 and later).
    pub names_tiers: bool,
    /// Rules whose counter is a verdict by itself.
    pub verdicts: Vec<(RuleIndex, Verdict)>,
    /// nftables counts what is *offered* to the packet-rate limit, not what it drops.
    pub rate_limit_offered: Option<RuleIndex>,
    /// The same of the connection limit: no counter shows its drops.
    pub connection_limit_offered: Option<RuleIndex>,
    /// The call of the failsafe ports.
    pub failsafe: Option<Item>,
    /// Counts what enters the part that policy decides: the rule that clears the marks.
    pub entered: Option<RuleIndex>,
    /// Tiers in order.
    pub tiers: Vec<Tier>,
    /// Profiles in order.
    pub profiles: Vec<Item>,
    /// Counts packets that no profile decided.
    pub no_profile: Option<RuleIndex>,
    /// Whether what no profile decided is dropped here.
    pub final_drop: bool,
    /// Rules that end a packet's way through the chain and that no version of Felix writes.
    pub unknown: Vec<RuleIndex>,
}

impl EndpointChain {
    /// Recognises the rules of an endpoint chain.
    pub fn read(chain: &Chain) -> Self {
        let mut reader = Reader::default();
        for (index, rule) in chain.rules().iter().enumerate() {
            reader.rule(index, rule);
        }
        reader.chain
    }
}

#[derive(Default)]
struct Reader {
    chain: EndpointChain,
    /// Whether a "Return if … accepted" may follow, and to what.
    open_item: OpenItem,
    /// Whether the tier that was opened last still waits for the rule that counts what went on.
    tier_waits: bool,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum OpenItem {
    #[default]
    None,
    Policy,
    Profile,
}

impl Reader {
    fn rule(&mut self, index: RuleIndex, rule: &Rule) {
        if !rule.counted {
            return;
        }
        let follows = std::mem::take(&mut self.open_item);
        let unconditional = rule.matches.is_empty();
        match &rule.action {
            Action::SetMark { value, mask } => {
                self.open_item = follows;
                self.set_mark(index, rule, *value, *mask);
            }
            Action::Jump(target) => self.jump(index, target),
            Action::Accept | Action::Return if rule.matches.only_ct().is_some_and(is_established) => {
                self.chain.verdicts.push((index, Verdict::Established));
            }
            Action::Return if self.is_accepted(rule) => self.accepted(index, rule, follows),
            Action::NfLog(prefix) if unconditional && prefix.starts_with("DR") => self.no_profile(index),
            Action::NfLog(_) if self.tests_unmatched(rule) => {
                if let Some(tier) = self.chain.tiers.last_mut() {
                    tier.unmatched.get_or_insert(index);
                }
            }
            Action::NoTrack => self.open_item = follows,
            action if action.denies() => self.deny(index, rule),
            Action::Return if unconditional => {}
            Action::Accept | Action::Return | Action::Goto(_) | Action::Other => {
                self.chain.unknown.push(index)
            }
            _ => {}
        }
    }

    fn set_mark(&mut self, index: RuleIndex, rule: &Rule, value: u32, mask: u32) {
        if let Some(name) = comment::tier_start(rule) {
            self.goes_on(index);
            self.chain.names_tiers |= rule.comment_with("Start of tier ").is_some();
            self.chain.marks.pass.get_or_insert(mask);
            self.open_tier(name);
        } else if comment::qos(rule).is_some() {
            // The marks of the packet-rate limit: no verdict in themselves.
        } else if value == 0 && rule.matches.is_empty() {
            self.chain.entered.get_or_insert(index);
        } else if value != 0 && rule.matches.only_ct().is_some_and(is_established) {
            // FilterAllowAction Return: the rule that returns comes next and is the one to count.
            self.chain.marks.accept.get_or_insert(value);
        } else if value != 0 && rule.matches.is_empty() {
            self.chain.verdicts.push((index, Verdict::ForwardDefault));
        }
    }

    fn jump(&mut self, index: RuleIndex, target: &ChainName) {
        let item = Item { jump: index, target: target.clone(), accepted: None };
        match ChainKind::of(target) {
            ChainKind::Policy(_) | ChainKind::Group(_) => {
                if !self.tier_waits {
                    // 3.28 opens its only tier without a rule of its own.
                    self.open_tier(TierName::default_tier());
                }
                if let Some(tier) = self.chain.tiers.last_mut() {
                    tier.items.push(item);
                }
                self.open_item = OpenItem::Policy;
            }
            ChainKind::Profile(_) => {
                self.goes_on(index);
                self.chain.profiles.push(item);
                self.open_item = OpenItem::Profile;
            }
            ChainKind::Failsafe => self.chain.failsafe = Some(item),
            _ => self.chain.unknown.push(index),
        }
    }

    /// `-m mark --mark A/A -j RETURN`.
    fn is_accepted(&self, rule: &Rule) -> bool {
        rule.matches.only_mark().is_some_and(|m| !m.invert && m.value == m.mask && m.mask != 0)
    }

    fn accepted(&mut self, index: RuleIndex, rule: &Rule, follows: OpenItem) {
        if let Some(mark) = rule.matches.mark {
            self.chain.marks.accept = Some(mark.mask);
        }
        let item = match follows {
            OpenItem::Policy => self.chain.tiers.last_mut().and_then(|tier| tier.items.last_mut()),
            OpenItem::Profile => self.chain.profiles.last_mut(),
            OpenItem::None => None,
        };
        match item {
            Some(item) => item.accepted = Some(index),
            None => self.chain.unknown.push(index),
        }
    }

    /// `-m mark --mark 0/P`: the packet that no policy of the tier decided.
    fn tests_unmatched(&mut self, rule: &Rule) -> bool {
        let Some(mark) = rule.matches.only_mark() else { return false };
        let tests = !mark.invert && mark.value == 0 && mark.mask != 0;
        if tests {
            self.chain.marks.pass.get_or_insert(mark.mask);
        }
        tests
    }

    fn deny(&mut self, index: RuleIndex, rule: &Rule) {
        if comment::is_admin_down(rule) {
            self.chain.verdicts.push((index, Verdict::AdminDown));
        } else if let Some(encapsulation) = comment::forbids_encapsulation(rule) {
            self.chain.verdicts.push((index, Verdict::Encapsulated(encapsulation)));
        } else if let Some(qos) = comment::qos(rule) {
            self.limit(index, rule, qos);
        } else if rule
            .matches
            .only_ct()
            .is_some_and(|ct| ct == CtStates { invalid: true, ..CtStates::default() })
        {
            self.chain.verdicts.push((index, Verdict::Invalid));
        } else if self.tests_unmatched(rule)
            && let Some(tier) = self.chain.tiers.last_mut()
        {
            tier.unmatched.get_or_insert(index);
            tier.drop = Some(index);
        } else if rule.matches.is_empty() {
            self.no_profile(index);
            self.chain.final_drop = true;
        } else {
            self.chain.unknown.push(index);
        }
    }

    fn limit(&mut self, index: RuleIndex, rule: &Rule, qos: Qos) {
        match (qos, rule.matches.limit_behind_counter) {
            (Qos::PacketRate, false) => self.chain.verdicts.push((index, Verdict::PacketRate)),
            (Qos::PacketRate, true) => self.chain.rate_limit_offered = Some(index),
            (Qos::Connections, false) => self.chain.verdicts.push((index, Verdict::Connections)),
            (Qos::Connections, true) => self.chain.connection_limit_offered = Some(index),
            (Qos::Helper, _) => {}
        }
    }

    /// The first unconditional rule behind a tier counts what went on from it.
    fn goes_on(&mut self, index: RuleIndex) {
        if std::mem::take(&mut self.tier_waits)
            && let Some(tier) = self.chain.tiers.last_mut()
        {
            tier.next = Some(index);
        }
    }

    /// The first unconditional rule behind the profiles counts what none of them decided.
    fn no_profile(&mut self, index: RuleIndex) {
        self.goes_on(index);
        self.chain.no_profile.get_or_insert(index);
    }

    fn open_tier(&mut self, name: TierName) {
        self.tier_waits = true;
        let tier = Tier { name, items: vec![], unmatched: None, drop: None, next: None };
        self.chain.tiers.push(tier);
    }
}

fn is_established(ct: CtStates) -> bool {
    ct.established && !ct.invalid
}
