//! Labels of our own families.
//!
//! Workloads are labelled `namespace`, `pod`; host endpoints `pod=""` (left out) and `endpoint`. Without a datastore the
//! interface stands in for either.

use super::{Family, Label, ShownAccount, Slots, Texts};
use crate::calico::comment::Encapsulation;
use crate::calico::endpoint::Verdict;
use crate::calico::policy::PolicyId;
use crate::id::{Endpoint, EndpointKind};
use crate::index::Index;
use crate::ledger::{AccountKey, Key, Ledger, PolicyRef, ProfileRef, TotalKey, What};
use crate::watch::Fate;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What makes a series.
type Series = (Family, Box<[Label]>);

/// All accounts of the ledger, those of equal labels put together.
pub(super) fn accounts(ledger: &Ledger, index: &Index, texts: &mut Texts) -> Vec<ShownAccount> {
    let mut shown: BTreeMap<Series, (BTreeSet<Arc<str>>, Slots)> = BTreeMap::new();
    for (slot, key) in ledger.accounts() {
        let (family, labels, interface) = match key {
            Key::Unattributed(source, cause) => {
                let labels = vec![("source", source.as_str().into()), ("cause", cause.as_str().into())];
                (Family::Unattributed, labels, None)
            }
            Key::Account(key) => {
                let (family, labels) = labels(key, index);
                (family, labels, Some(key.endpoint.interface.as_str()))
            }
            Key::Total(key) => {
                let (family, labels) = total_labels(key, index);
                (family, labels, key.endpoint.as_ref().map(|endpoint| endpoint.interface.as_str()))
            }
        };
        let labels = labels.into_iter().map(|(name, value)| (name, texts.share(&value))).collect();
        let (interfaces, slots) = shown.entry((family, labels)).or_default();
        interfaces.extend(interface.map(|interface| texts.share(interface)));
        slots.push(slot);
    }
    let account = |((family, labels), (interfaces, slots)): (Series, (BTreeSet<_>, _))| {
        let interfaces = interfaces.into_iter().collect();
        ShownAccount { family, labels, interfaces, slots }
    };
    shown.into_iter().map(account).collect()
}

/// Family and labels of an account, by the names that the index knows.
pub fn labels(key: &AccountKey, index: &Index) -> (Family, Vec<Label>) {
    let mut labels = endpoint_labels(&key.endpoint, index);
    labels.push(("direction", key.direction.as_str().into()));
    labels.push(("ip_version", key.ip_version.to_string().into()));
    let family = what_labels(&mut labels, &key.what);
    (family, labels)
}

/// The same where a part was not told: its labels are empty.
fn total_labels(key: &TotalKey, index: &Index) -> (Family, Vec<Label>) {
    let nobody = || vec![("namespace", "".into()), ("pod", "".into())];
    let mut labels = key.endpoint.as_ref().map_or_else(nobody, |endpoint| endpoint_labels(endpoint, index));
    labels.push(("direction", key.direction.as_str().into()));
    labels.push(("ip_version", "".into()));
    let family = what_labels(&mut labels, &key.what);
    (family, labels)
}

fn what_labels(labels: &mut Vec<Label>, what: &What) -> Family {
    match what {
        What::Policy { tier, policy, action } => {
            labels.push(("tier", tier.as_str().into()));
            labels.extend(policy_labels(policy));
            labels.push(("action", action.as_str().into()));
            Family::Policy
        }
        What::Group { tier, members, action } => {
            labels.push(("tier", tier.as_str().into()));
            labels.extend(group_labels(members));
            labels.push(("action", action.as_str().into()));
            Family::Policy
        }
        What::NoPolicy { tier } => {
            labels.push(("tier", tier.as_str().into()));
            labels.push(("reason", "no_policy".into()));
            Family::DefaultDeny
        }
        What::NoProfile => {
            labels.push(("tier", "".into()));
            labels.push(("reason", "no_profile".into()));
            Family::DefaultDeny
        }
        What::Profile { profile, action } => {
            let name = match profile {
                ProfileRef::Known(name) => name.as_str(),
                ProfileRef::Chain(chain) => chain.as_str(),
            };
            labels.push(("profile", name.into()));
            labels.push(("action", action.as_str().into()));
            Family::Profile
        }
        What::Verdict(verdict) => {
            labels.extend(verdict_labels(*verdict));
            Family::EndpointChain
        }
        What::Failsafe => {
            labels.extend([("rule", "failsafe".into()), ("verdict", "accepted".into())]);
            Family::EndpointChain
        }
        What::Seen { established, fate } => {
            let state = if *established { "established" } else { "new" };
            labels.extend([("state", state.into()), ("verdict", fate.as_str().into())]);
            Family::Endpoint
        }
        What::AtInterface { sent } => {
            let verdict = if *sent { Fate::Accepted.as_str() } else { "any" };
            labels.extend([("state", "any".into()), ("verdict", verdict.into())]);
            Family::Endpoint
        }
    }
}

fn endpoint_labels(endpoint: &Endpoint, index: &Index) -> Vec<Label> {
    let interface = endpoint.interface.as_str();
    match endpoint.kind {
        EndpointKind::Workload => match index.workload(&endpoint.interface) {
            Some(workload) => {
                vec![("namespace", (*workload.namespace).into()), ("pod", (*workload.pod).into())]
            }
            None => vec![("namespace", "".into()), ("pod", interface.into())],
        },
        EndpointKind::Host => {
            let name = index.host_endpoint(&endpoint.interface).map_or(interface, |host| &host.name);
            vec![("namespace", "".into()), ("pod", "".into()), ("endpoint", name.into())]
        }
    }
}

fn policy_labels(policy: &PolicyRef) -> [Label; 3] {
    let (kind, namespace, name) = match policy {
        PolicyRef::Known(PolicyId { kind, namespace, name, .. }) => (kind.as_str(), &**namespace, &**name),
        PolicyRef::Chain(chain) => ("", "", chain.as_str()),
    };
    [("policy_kind", kind.into()), ("policy_namespace", namespace.into()), ("policy", name.into())]
}

/// A group has the kind `PolicyGroup` and its members' names in order of evaluation.
fn group_labels(members: &[PolicyRef]) -> [Label; 3] {
    let labels: Vec<_> = members.iter().map(policy_labels).collect();
    let names: Vec<&str> = labels.iter().map(|[_, _, (_, name)]| &**name).collect();
    let namespace = |labels: &[Label; 3]| labels[1].1.clone();
    let first = labels.first().map(namespace).unwrap_or_default();
    let common = if labels.iter().all(|l| namespace(l) == first) { first } else { "".into() };
    [("policy_kind", "PolicyGroup".into()), ("policy_namespace", common), ("policy", names.join(",").into())]
}

fn verdict_labels(verdict: Verdict) -> [Label; 2] {
    let (rule, verdict) = match verdict {
        Verdict::Established => ("established", "accepted"),
        Verdict::Invalid => ("invalid", "dropped"),
        Verdict::Encapsulated(Encapsulation::Vxlan) => ("vxlan", "dropped"),
        Verdict::Encapsulated(Encapsulation::IpInIp) => ("ipip", "dropped"),
        Verdict::PacketRate => ("packet_rate", "dropped"),
        Verdict::Connections => ("connection_limit", "dropped"),
        Verdict::AdminDown => ("admin_down", "dropped"),
        Verdict::ForwardDefault => ("forward_default", "accepted"),
        Verdict::WithoutPolicy => ("without_policy", "dropped"),
        Verdict::PolicyFailed => ("policy_failed", "dropped"),
    };
    [("rule", rule.into()), ("verdict", verdict.into())]
}
