//! From counted verdicts to postings: the packets of each verdict of an endpoint, charged to the rules on its path.
//!
//! A verdict's path has the rule of each tier that passed the packet on, and the one that decided. Each is charged to its
//! policy; what decided without a rule is charged to the tier, or to the missing profile.
//!
//! Invariants:
//! * each verdict is charged once, and what is charged is never taken back;
//! * a verdict whose deciding rule has no name waits a few readings for one, and is then unattributed, with its number told.

use super::PolicyProgram;
use super::names::Names;
use super::rule_id::{Decision, Meaning, RuleId};
use super::verdict::{Outcome, Verdict};
use crate::calico::endpoint::Verdict as Rule;
use crate::calico::shared::PolicyAction;
use crate::id::{Endpoint, EndpointKind, TierName};
use crate::index::Index;
use crate::ledger::{AccountKey, Cause, Key, PolicyRef, Posting, ProfileRef, What};
use crate::snapshot::TableId;
use crate::{Counter, Direction};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// For how many readings a rule without a name is waited for.
pub(super) const PATIENCE: u32 = 3;

/// A direction of an endpoint.
pub type Way = (Endpoint, Direction);

/// What was read: the verdicts counted so far, and the policy programs that there are.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// How many packets had each verdict; of endpoints that are gone until they were read once more. A verdict that is not
    /// here any more begins anew.
    pub counted: BTreeMap<(Way, Verdict), Counter>,
    /// The policy programs of the endpoints that are there. None for one whose listing cannot be read.
    pub programs: BTreeMap<Way, Option<Arc<PolicyProgram>>>,
}

/// What a reading led to.
#[derive(Debug, Default)]
pub struct Charged {
    /// Additions to accounts.
    pub postings: Vec<Posting>,
    /// Whether another reading would tell more.
    pub unsettled: bool,
}

/// Accounts for the verdicts of one IP version.
#[derive(Debug)]
pub struct Accountant {
    id: TableId,
    names: Names,
    programs: BTreeMap<Way, Option<Arc<PolicyProgram>>>,
    charged: HashMap<(Way, Verdict), Counter>,
    /// Verdicts that wait for a name: for how many readings, and what was not charged yet.
    waiting: HashMap<(Way, Verdict), (u32, Counter)>,
    accounts_version: u64,
}

impl Accountant {
    /// Starts to account.
    pub fn new(id: TableId) -> Self {
        Self {
            id,
            names: Names::default(),
            programs: BTreeMap::new(),
            charged: HashMap::new(),
            waiting: HashMap::new(),
            accounts_version: 0,
        }
    }

    /// The endpoints that have programs.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.programs.keys().map(|(endpoint, _)| endpoint)
    }

    /// Numbers of rules that decided and have no name.
    pub fn unexplained(&self) -> impl Iterator<Item = RuleId> {
        self.names.unexplained()
    }

    /// What a rule's number means, as far as it was learnt.
    pub fn meaning(&self, id: RuleId) -> Option<&Meaning> {
        self.names.meaning(id)
    }

    /// All accounts that the present programs can post to, and those of present endpoints that were posted to.
    pub fn accounts(&self) -> Vec<Key> {
        let present = self.charged.keys().filter(|(way, _)| self.programs.contains_key(way));
        let mut accounts: Vec<_> = present.flat_map(|key| self.keys(key)).collect();
        for (way, program) in &self.programs {
            let Some(program) = program else { continue };
            let decisions = program.meanings.values().filter_map(|meaning| what(&meaning.decision));
            accounts.extend(decisions.chain([What::NoProfile]).map(|what| self.key(way, what)));
        }
        accounts
    }

    /// Changes whenever [`Self::accounts`] may be others than before.
    pub fn accounts_version(&self) -> u64 {
        self.accounts_version
    }

    /// Takes a reading and charges what is new in it.
    pub fn apply(&mut self, reading: &Reading, index: &Index) -> Charged {
        self.learn(reading, index);
        let charged_before = self.charged.len();
        self.charged.retain(|key, _| reading.counted.contains_key(key));
        self.accounts_version += u64::from(self.charged.len() != charged_before);
        self.waiting.retain(|key, _| reading.counted.contains_key(key));
        let mut charged = Charged::default();
        for (key, &counted) in &reading.counted {
            let before = self.charged.get(key).copied().unwrap_or_default();
            if counted == before || counted.fell_below(before) {
                continue;
            }
            let amount = counted.since(before);
            if self.waits(key, amount) {
                charged.unsettled = true;
                continue;
            }
            charged.postings.extend(self.keys(key).into_iter().map(|key| Posting { key, amount }));
            let is_new = self.charged.insert(key.clone(), counted).is_none();
            self.accounts_version += u64::from(is_new);
        }
        charged
    }

    /// Charges what still waits for a name: no other reading will come.
    pub fn close(&mut self) -> Vec<Posting> {
        let waiting = std::mem::take(&mut self.waiting);
        let post = |(verdict, (_, amount)): &((Way, Verdict), (u32, Counter))| {
            let amount = *amount;
            self.keys(verdict).into_iter().map(move |key| Posting { key, amount }).collect::<Vec<_>>()
        };
        waiting.into_iter().collect::<Vec<_>>().iter().flat_map(post).collect()
    }

    /// Whether a verdict still waits for the name of a rule on its path.
    fn waits(&mut self, key: &(Way, Verdict), amount: Counter) -> bool {
        let named = |id: &RuleId| self.names.explains(*id);
        let readings = self.waiting.get(key).map_or(0, |(readings, _)| *readings);
        if key.1.path.iter().all(named) || readings >= PATIENCE {
            self.waiting.remove(key);
            return false;
        }
        self.waiting.insert(key.clone(), (readings + 1, amount));
        true
    }

    /// Learns names: from the programs, and for numbers that no program explains from the formulas.
    fn learn(&mut self, reading: &Reading, index: &Index) {
        for (way, program) in &reading.programs {
            if self.programs.get(way) != Some(program) {
                program.iter().for_each(|program| self.names.learn(program));
            }
        }
        if self.programs != reading.programs {
            self.programs.clone_from(&reading.programs);
            self.accounts_version += 1;
        }
        let paths = reading.counted.keys().flat_map(|(_, verdict)| &verdict.path);
        self.accounts_version += u64::from(self.names.look_up(paths.copied(), index));
    }

    /// The accounts that a verdict is charged to.
    fn keys(&self, (way, verdict): &(Way, Verdict)) -> Vec<Key> {
        let key = |what| self.key(way, what);
        let decided = match verdict.outcome {
            Outcome::Allowed | Outcome::AllowedThenDropped | Outcome::Denied => {
                verdict.path.len().checked_sub(1)
            }
            Outcome::DroppedWithoutPolicy => return vec![key(What::Verdict(Rule::WithoutPolicy))],
            Outcome::PolicyFailed => return vec![key(What::Verdict(Rule::PolicyFailed))],
        };
        let Some(last) = decided else {
            // An interface of the host without policy lets everything through.
            let has_policy = way.0.kind == EndpointKind::Workload || self.programs.contains_key(way);
            if verdict.outcome != Outcome::Denied && !has_policy {
                return Vec::new();
            }
            return vec![Key::Unattributed(self.id.source, Cause::NotRecorded)];
        };
        let nobody = |cause| Key::Unattributed(self.id.source, cause);
        let before = verdict.path[..last].iter().filter_map(|id| what(&self.names.meaning(*id)?.decision));
        let mut keys: Vec<_> = before.map(key).collect();
        let id = verdict.path[last];
        let decision = self.names.meaning(id).map(|meaning| &meaning.decision);
        let is_denied = verdict.outcome == Outcome::Denied;
        let ends = if is_denied { PolicyAction::Deny } else { PolicyAction::Allow };
        match decision.map(Decision::action) {
            Some(action) if action == ends => keys.extend(decision.and_then(what).map(key)),
            None if id == RuleId::NONE && is_denied => keys.push(key(self.undecided(way, last))),
            // A tier goes on to the next. Where a host's interface has none left, that lets the packet through; else more
            // rules were hit than Calico has room to note.
            None | Some(PolicyAction::Pass) if decision.is_some() || id == RuleId::NONE => {
                keys.extend(decision.and_then(what).map(key));
                let is_cut = is_denied || way.0.kind == EndpointKind::Workload;
                keys.extend(is_cut.then(|| nobody(Cause::NotRecorded)));
            }
            // Nothing explains it, or what does is of another rule that has had this number.
            _ => keys.push(nobody(Cause::UnknownRule)),
        }
        keys
    }

    /// What dropped a packet where no rule did. Each tier before has left one number on the path, so the place tells the
    /// tier up to Calico 3.29, where all ends of tiers have the number of none; behind all tiers it is the profiles' end.
    fn undecided(&self, way: &Way, place: usize) -> What {
        let tiers = self.programs.get(way).and_then(Option::as_ref).map(|program| &program.tiers);
        let tier: Option<&TierName> = tiers.and_then(|tiers| tiers.get(place));
        tier.map_or(What::NoProfile, |tier| What::NoPolicy { tier: tier.clone() })
    }

    fn key(&self, (endpoint, direction): &Way, what: What) -> Key {
        let (endpoint, direction) = (endpoint.clone(), *direction);
        AccountKey { endpoint, direction, ip_version: self.id.ip_version, what }.into()
    }
}

/// What a decision is charged to. Nothing where a tier only goes on to the next.
pub(super) fn what(decision: &Decision) -> Option<What> {
    Some(match decision {
        Decision::Policy { tier, policy, action } => {
            What::Policy { tier: tier.clone(), policy: PolicyRef::Known(policy.clone()), action: *action }
        }
        Decision::Profile { profile, action } => {
            What::Profile { profile: ProfileRef::Known(profile.clone()), action: *action }
        }
        Decision::EndOfTier { tier, action: PolicyAction::Deny } => What::NoPolicy { tier: tier.clone() },
        Decision::EndOfTier { .. } => return None,
    })
}

#[cfg(test)]
mod tests;
