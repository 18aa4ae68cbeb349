//! Names that come, change, go, and are told twice.

use super::*;
use crate::calico::policy::{PolicyKind, Spelling};

fn key(name: &str) -> ObjectKey {
    ("NetworkPolicy".into(), "n".into(), name.into())
}

fn policy(name: &str) -> Object {
    let tier = TierName::default_tier();
    Object::Policy(Spelling::of_kind(PolicyKind::NetworkPolicy, "n", name).in_tier(&tier), tier)
}

#[test]
fn a_policy_that_is_being_renamed_keeps_its_name_all_along() {
    let mut index = Index::default();
    let chain = ChainName::from("cali-pi-np/n/foo");
    let known = |index: &Index| index.policy(&chain, Generation::C, &TierName::default_tier()).is_some();
    index.apply(key("default.foo"), policy("default.foo"));
    assert!(known(&index));
    index.apply(key("foo"), policy("foo"));
    index.delete(&key("default.foo"));
    assert!(known(&index));
    index.delete(&key("foo"));
    assert!(!known(&index));
    assert!(index.tellers.is_empty());
}

#[test]
fn two_datastores_spellings_of_one_policy_are_one_policy() {
    let spelling = |group: &str, name: &str| -> ObjectKey {
        (format!("NetworkPolicy.{group}").into(), "n".into(), name.into())
    };
    let mut index = Index::default();
    index.apply(spelling("crd.projectcalico.org", "default.foo"), policy("default.foo"));
    index.apply(spelling("projectcalico.org", "foo"), policy("foo"));
    for stays in [true, false] {
        let spelt = if stays {
            spelling("crd.projectcalico.org", "default.foo")
        } else {
            spelling("projectcalico.org", "foo")
        };
        let id = PolicyId::new(PolicyKind::NetworkPolicy, "n", "foo");
        let tier = TierName::default_tier();
        for direction in [Direction::Ingress, Direction::Egress] {
            for max in [MAX_IPTABLES, MAX_NFTABLES] {
                for (generation, chain) in id.chains(&tier, direction, max) {
                    let known = index.policy(&chain, generation, &tier).unwrap();
                    assert_eq!(PolicyId { bare: false, ..known }, id, "{chain}");
                }
            }
        }
        assert_eq!(index.tier(&id).map(|tier| id.old_label(tier)).as_deref(), Some("n/default.foo"));
        index.delete(&spelt);
    }
    assert!(index.tellers.is_empty() && index.policies.is_empty() && index.tiers.is_empty());
}

#[test]
fn a_pod_that_is_made_anew_has_its_name_all_along() {
    let mut index = Index::default();
    let workload = |app: &str| {
        let workload = Workload { pod: "db-0".into(), app: app.into(), ..Workload::default() };
        Object::Workload("cali1".into(), workload)
    };
    let app = |index: &Index| index.workload(&"cali1".into()).map(|workload| workload.app.to_string());
    index.apply(key("db-0"), workload("old"));
    index.delete(&key("db-0"));
    assert_eq!(app(&index).as_deref(), Some("old"));
    index.apply(key("db-0"), workload("new"));
    assert_eq!(app(&index).as_deref(), Some("new"));
    assert_eq!(index.former.len(), 0);
}

#[test]
fn a_name_that_two_policies_explain_is_nobodys() {
    let mut index = Index::default();
    // Up to 3.28 the chain of `n/default.foo`; from 3.29 on also that of a tier `n` with a policy `default.foo`.
    index.apply(key("foo"), policy("foo"));
    let id = PolicyId::new(PolicyKind::GlobalNetworkPolicy, "", "foo");
    index
        .apply(("GlobalNetworkPolicy".into(), "".into(), "foo".into()), Object::Policy(id, "default".into()));
    let chain = ChainName::from("cali-pi-n/default.foo");
    let known = |generation| index.policy(&chain, generation, &TierName::default_tier());
    assert_eq!(known(Generation::A).as_ref().map(|id| &*id.namespace), Some("n"));
    assert_eq!(known(Generation::B), None);
}

/// The chain tells which of the two spellings Felix has, and with it what calico-accountant called the policy.
#[test]
fn the_old_label_of_a_hashed_chain_is_the_stored_name() {
    let mut index = Index::default();
    index.apply(key("foo"), policy("foo"));
    index.apply(key("a.b"), policy("a.b"));
    for (tier, generation, hashed, label) in [
        ("default", Generation::A, "n/foo", "n/foo"),
        ("default", Generation::A, "n/default.foo", "n/default.foo"),
        ("default", Generation::B, "default/n/foo", "n/foo"),
        ("default", Generation::B, "default/n/default.foo", "n/default.foo"),
        ("default", Generation::C, "np/n/foo", "n/default.foo"),
        ("default", Generation::C, "np/n/default.foo", "n/default.foo"),
        ("default", Generation::A, "n/a.b", "n/a.b"),
        ("a", Generation::B, "a/n/a.b", "n/a.b"),
        ("default", Generation::C, "np/n/a.b", "n/default.a.b"),
    ] {
        for max in [MAX_IPTABLES, MAX_NFTABLES] {
            let tier = TierName::from(tier);
            let chain = limited(policy_prefix(Direction::Egress), hashed, max).into();
            let known = index.policy(&chain, generation, &tier);
            assert_eq!(known.map(|id| id.old_label(&tier)).as_deref(), Some(label), "{hashed}");
        }
    }
}

#[test]
fn a_workload_is_remembered_until_another_takes_its_interface() {
    let mut index = Index::default();
    let interface = Interface::from("cali1");
    let workload =
        |pod: &str| Object::Workload("cali1".into(), Workload { pod: pod.into(), ..Workload::default() });
    index.apply(key("a"), workload("a"));
    index.delete(&key("a"));
    assert_eq!(&*index.workload(&interface).unwrap().pod, "a");
    index.apply(key("b"), workload("b"));
    assert_eq!(&*index.workload(&interface).unwrap().pod, "b");
}

#[test]
fn a_reset_leaves_what_is_in_it() {
    let mut index = Index::default();
    index.apply(key("foo"), policy("foo"));
    index.apply(key("bar"), policy("bar"));
    let version = index.version();
    assert!(index.reset(BTreeMap::from([(key("bar"), policy("bar"))])));
    assert!(index.version() > version);
    assert!(!index.reset(BTreeMap::from([(key("bar"), policy("bar"))])));
    assert_eq!(index.objects_by_kind(), BTreeMap::from([("NetworkPolicy", 1)]));
}
