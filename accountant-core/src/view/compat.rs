//! The families of monzo/calico-accountant: names, label sets and meaning as there, denies charged to the workload that
//! they hit, IP versions and tiers summed.

use super::{Slots, Texts};
use crate::calico::policy::PolicyId;
use crate::calico::shared::PolicyAction;
use crate::id::{EndpointKind, TierName};
use crate::index::Index;
use crate::ledger::{AccountKey, Key, Ledger, PolicyRef, What};
use crate::{Direction, Interface};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The compatible families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CompatFamily {
    /// `no_policy_drop_counter`
    NoPolicyDrop,
    /// `policy_accept_counter`
    PolicyAccept,
    /// `policy_accept_drop_counter`
    PolicyAcceptDrop,
}

/// What makes a series: all that is in a [`CompatAccount`] but its balance.
type Series = (CompatFamily, Arc<str>, Arc<str>, Arc<str>, Arc<str>, &'static str, Option<Arc<str>>);

/// One account of a compatible family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompatAccount {
    /// Its family.
    pub family: CompatFamily,
    /// Label `pod`.
    pub pod: Arc<str>,
    /// Label `pod_namespace`.
    pub pod_namespace: Arc<str>,
    /// Label `app`.
    pub app: Arc<str>,
    /// Label `ip`: sorted, joined by commas, without `/32` and `/128`.
    pub ip: Arc<str>,
    /// Label `type`: `tw` or `fw`.
    pub chain: &'static str,
    /// Label `policy`, in the spelling of Calico before 3.29; none for `no_policy_drop_counter`.
    pub policy: Option<Arc<str>>,
    pub(super) slots: Slots,
}

/// The compatible accounts of the ledger, those of equal labels put together.
pub(super) fn accounts(ledger: &Ledger, index: &Index, texts: &mut Texts) -> Vec<CompatAccount> {
    let mut accounts: BTreeMap<Series, CompatAccount> = BTreeMap::new();
    let mut workloads: HashMap<&Interface, [Arc<str>; 4]> = HashMap::new();
    for (slot, key) in ledger.accounts() {
        let Key::Account(key) = key else { continue };
        let Some((family, policy)) = family(key) else { continue };
        let chain = match key.direction {
            Direction::Ingress => "tw",
            Direction::Egress => "fw",
        };
        let policy = policy.map(|policy| texts.share(&policy));
        let interface = &key.endpoint.interface;
        let labels = workloads.entry(interface).or_insert_with(|| workload(interface, index, texts));
        let [pod, pod_namespace, app, ip] = labels.clone();
        let series =
            (family, pod.clone(), pod_namespace.clone(), app.clone(), ip.clone(), chain, policy.clone());
        let new =
            || CompatAccount { family, pod, pod_namespace, app, ip, chain, policy, slots: Slots::new() };
        accounts.entry(series).or_insert_with(new).slots.push(slot);
    }
    accounts.into_values().collect()
}

/// Labels `pod`, `pod_namespace`, `app` and `ip`.
fn workload(interface: &Interface, index: &Index, texts: &mut Texts) -> [Arc<str>; 4] {
    match index.workload(interface) {
        None => [interface.as_str(), "", "", ""].map(|text| texts.share(text)),
        Some(workload) => {
            let mut ips = workload.ips.clone();
            ips.sort();
            [&*workload.pod, &workload.namespace, &workload.app, &ips.join(",")].map(|text| texts.share(text))
        }
    }
}

fn family(key: &AccountKey) -> Option<(CompatFamily, Option<String>)> {
    if key.endpoint.kind != EndpointKind::Workload {
        return None;
    }
    let (tier, members, action) = match &key.what {
        What::NoPolicy { .. } => return Some((CompatFamily::NoPolicyDrop, None)),
        What::Policy { tier, policy, action } => (tier, std::slice::from_ref(policy), action),
        What::Group { tier, members, action } => (tier, &members[..], action),
        _ => return None,
    };
    let family = match action {
        PolicyAction::Allow => CompatFamily::PolicyAccept,
        PolicyAction::Deny => CompatFamily::PolicyAcceptDrop,
        PolicyAction::Pass => return None,
    };
    let names: Vec<_> = members.iter().map(|policy| old_name(policy, tier)).collect();
    Some((family, Some(names.join(","))))
}

/// The old program left the label empty where it could not name a chain.
fn old_name(policy: &PolicyRef, tier: &TierName) -> String {
    match policy {
        PolicyRef::Known(id) => PolicyId::old_label(id, tier),
        PolicyRef::Chain(_) => String::new(),
    }
}
