//! The families of monzo/calico-accountant: names, label sets and meaning as there, denies charged to the workload that
//! they hit, IP versions and tiers summed.

use super::{Slots, Texts};
use crate::calico::policy::PolicyId;
use crate::calico::shared::PolicyAction;
use crate::id::{EndpointKind, TierName};
use crate::index::{Index, Workload};
use crate::ledger::{AccountKey, Key, Ledger, PolicyRef, What};
use crate::{Direction, Interface};
use std::collections::BTreeMap;
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

/// What the accounts that make one series have in common: family, interface, label `type`, label `policy`.
type Series = (CompatFamily, Interface, &'static str, Option<Arc<str>>);

/// The compatible accounts of the ledger.
pub(super) fn accounts(ledger: &Ledger, index: &Index, texts: &mut Texts) -> Vec<CompatAccount> {
    let mut slots: BTreeMap<Series, Slots> = BTreeMap::new();
    for (slot, key) in ledger.accounts() {
        let Key::Account(key) = key else { continue };
        let Some((family, policy)) = family(key) else { continue };
        let chain = match key.direction {
            Direction::Ingress => "tw",
            Direction::Egress => "fw",
        };
        let policy = policy.map(|policy| texts.share(&policy));
        slots.entry((family, key.endpoint.interface.clone(), chain, policy)).or_default().push(slot);
    }
    let account = |((family, interface, chain, policy), slots): (Series, Slots)| {
        let stand_in = || Workload { pod: interface.as_str().into(), ..Workload::default() };
        let workload = index.workload(&interface).cloned().unwrap_or_else(stand_in);
        let mut ips = workload.ips;
        ips.sort();
        let [pod, pod_namespace, app, ip] =
            [&*workload.pod, &workload.namespace, &workload.app, &ips.join(",")].map(|t| texts.share(t));
        CompatAccount { family, pod, pod_namespace, app, ip, chain, policy, slots }
    };
    slots.into_iter().map(account).collect()
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
