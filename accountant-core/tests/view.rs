//! What is shown of accounts: no two series of a family have the same labels, and a sum loses no part.

use accountant_core::calico::PolicyKind;
use accountant_core::calico::policy::Spelling;
use accountant_core::calico::shared::PolicyAction;
use accountant_core::id::{Endpoint, EndpointKind, TierName};
use accountant_core::index::{HostEndpoint, Index, Object, Workload};
use accountant_core::ledger::{AccountKey, Key, Ledger, PolicyRef, Posting, What};
use accountant_core::view::Viewer;
use accountant_core::{Counter, Direction, IpVersion};
use std::collections::HashSet;

/// Two interfaces of one pod, and two of a host endpoint that its addresses tell.
fn index() -> Index {
    let workload = || Workload { namespace: "shop".into(), pod: "web".into(), ..Workload::default() };
    let host = |interface: &str| HostEndpoint {
        name: "node".into(),
        interface: interface.into(),
        ..HostEndpoint::default()
    };
    let mut index = Index::default();
    for interface in ["cali1", "cali2"] {
        let key = ("workload".into(), "".into(), interface.into());
        index.apply(key, Object::Workload(interface.into(), workload()));
    }
    for interface in ["eth0", "eth1"] {
        let key = ("host".into(), "".into(), interface.into());
        index.apply(key, Object::HostEndpoint(host(interface)));
    }
    index
}

fn key(kind: EndpointKind, interface: &str) -> Key {
    let endpoint = Endpoint { kind, interface: interface.into() };
    let policy = PolicyRef::Chain("cali-pi-x".into());
    let what = What::Policy { tier: "default".into(), policy, action: PolicyAction::Allow };
    AccountKey { endpoint, direction: Direction::Ingress, ip_version: IpVersion::V4, what }.into()
}

#[test]
fn several_interfaces_of_one_name_are_one_series() {
    let (index, mut ledger, mut viewer) = (index(), Ledger::default(), Viewer::default());
    let (workload, host) = (EndpointKind::Workload, EndpointKind::Host);
    for (kind, interface, packets) in
        [(workload, "cali1", 1), (workload, "cali2", 2), (host, "eth0", 4), (host, "eth1", 8)]
    {
        ledger.post(Posting { key: key(kind, interface), amount: Counter::new(packets, 0) });
    }
    let view = viewer.view(&ledger, &index);
    let labels: HashSet<_> =
        view.accounts.own.iter().map(|account| (account.family, &account.labels)).collect();
    assert_eq!(labels.len(), view.accounts.own.len());
    let shown: Vec<_> = view
        .accounts
        .own
        .iter()
        .map(|account| (account.interfaces.join(","), view.balance(account).packets))
        .collect();
    assert_eq!(shown, [("eth0,eth1".into(), 12), ("cali1,cali2".into(), 3)]);
    let compat: Vec<_> = view
        .accounts
        .compat
        .iter()
        .map(|account| (&*account.pod, view.compat_balance(account).packets))
        .collect();
    assert_eq!(compat, [("web", 3)]);
    // Two sums of our own families and one of the compatible ones.
    assert_eq!(viewer.sums().count(), 3);
}

/// A policy that Calico up to 3.31 stores without its tier is, after an upgrade, the same account, under what
/// calico-accountant would have called it before and after.
#[test]
fn a_policy_goes_on_under_its_name_when_only_the_old_label_is_another() {
    let (index, mut ledger, mut viewer) = (index(), Ledger::default(), Viewer::default());
    let tier = TierName::default_tier();
    for (spelling, packets) in [
        (Spelling::stored("shop/foo"), 1),
        (Spelling::of_kind(PolicyKind::NetworkPolicy, "shop", "foo"), 2),
        (Spelling::stored("shop/default.foo"), 4),
    ] {
        let policy = PolicyRef::Known(spelling.in_tier(&tier));
        let what = What::Policy { tier: tier.clone(), policy, action: PolicyAction::Allow };
        let endpoint = Endpoint { kind: EndpointKind::Workload, interface: "cali1".into() };
        let key = AccountKey { endpoint, direction: Direction::Ingress, ip_version: IpVersion::V4, what };
        ledger.post(Posting { key: key.into(), amount: Counter::new(packets, 0) });
    }
    let view = viewer.view(&ledger, &index);
    let own: Vec<_> = view.accounts.own.iter().map(|account| view.balance(account).packets).collect();
    assert_eq!(own, [7]);
    let compat =
        view.accounts.compat.iter().map(|account| {
            (account.policy.as_deref().unwrap_or_default(), view.compat_balance(account).packets)
        });
    assert_eq!(compat.collect::<Vec<_>>(), [("shop/default.foo", 6), ("shop/foo", 1)]);
}
