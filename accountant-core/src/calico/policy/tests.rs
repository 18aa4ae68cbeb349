//! Names of every generation, and what became of them in calico-accountant's label.

use super::*;
use crate::calico::names::MAX_IPTABLES;

fn id(kind: PolicyKind, namespace: &str, name: &str) -> PolicyId {
    PolicyId::new(kind, namespace, name)
}

fn tier(name: &str) -> TierName {
    TierName::from(name)
}

#[test]
fn one_policy_whatever_generation_names_it() {
    for (stored, in_tier, kind, kind_ns, kind_name, want) in [
        ("n/default.foo", "default", NetworkPolicy, "n", "foo", id(NetworkPolicy, "n", "foo")),
        ("n/default.foo", "default", NetworkPolicy, "n", "default.foo", id(NetworkPolicy, "n", "foo")),
        (
            "n/knp.default.x",
            "default",
            KubernetesNetworkPolicy,
            "n",
            "x",
            id(KubernetesNetworkPolicy, "n", "x"),
        ),
        (
            "n/knp.default.x",
            "default",
            NetworkPolicy,
            "n",
            "knp.default.x",
            id(KubernetesNetworkPolicy, "n", "x"),
        ),
        ("default.g", "default", GlobalNetworkPolicy, "", "g", id(GlobalNetworkPolicy, "", "g")),
        ("t.g", "t", GlobalNetworkPolicy, "", "t.g", id(GlobalNetworkPolicy, "", "t.g")),
        (
            "default.default.g",
            "default",
            GlobalNetworkPolicy,
            "",
            "default.default.g",
            id(GlobalNetworkPolicy, "", "default.g"),
        ),
    ] {
        assert_eq!(Spelling::stored(stored).in_tier(&tier(in_tier)), want);
        assert_eq!(Spelling::of_kind(kind, kind_ns, kind_name).in_tier(&tier(in_tier)), want);
    }
    // From 3.32 on names are free: this one is no policy of the tier `default`.
    let of_t = Spelling::of_kind(NetworkPolicy, "n", "default.foo").in_tier(&tier("t"));
    assert_eq!(of_t, id(NetworkPolicy, "n", "default.foo"));
}

#[test]
fn chains_of_every_generation() {
    let chains = |id: PolicyId, tier: &str| -> Vec<String> {
        let tier = TierName::from(tier);
        id.chains(&tier, Direction::Ingress, MAX_IPTABLES).iter().map(|c| c.1.to_string()).collect()
    };
    assert_eq!(
        chains(id(KubernetesNetworkPolicy, "default", "foo"), "default")[..3],
        ["cali-pi-_ye-Z83fcSj35vkNHhEv", "cali-pi-_9tjSCz6Yv0P45r-9ylU", "cali-pi-knp/default/foo"]
    );
    assert_eq!(
        chains(id(NetworkPolicy, "default", "foo"), "default"),
        [
            "cali-pi-default/default.foo",
            "cali-pi-_z7xoIjNr3UYzlqszrHj",
            "cali-pi-np/default/foo",
            "cali-pi-_kqoeN6Z7AHVWsiBmNgW",
            "cali-pi-default/default/foo",
            "cali-pi-default/foo"
        ]
    );
    // What kubectl made past Calico's API, whose tier is then that of its name.
    assert_eq!(chains(id(GlobalNetworkPolicy, "", "a.b"), "default")[4..], ["cali-pi-a/a.b", "cali-pi-a.b"]);
    assert_eq!(
        chains(id(GlobalNetworkPolicy, "", "tier1.foo"), "tier1"),
        ["cali-pi-tier1.foo", "cali-pi-tier1/tier1.foo", "cali-pi-gnp/tier1.foo"]
    );
    assert_eq!(
        chains(id(AdminNetworkPolicy, "", "foo"), "adminnetworkpolicy")[1],
        "cali-pi-_wKHgR68sWmHadUmyakG"
    );
}

#[test]
fn plain_chain_names_are_read_by_generation() {
    let default = TierName::default_tier();
    let read =
        |chain, generation| Spelling::of_chain(chain, generation).map(|spelling| spelling.in_tier(&default));
    assert_eq!(read("cali-pi-default/default.foo", Generation::A), Some(id(NetworkPolicy, "default", "foo")));
    assert_eq!(read("cali-pi-default/default.foo", Generation::B), Some(id(GlobalNetworkPolicy, "", "foo")));
    assert_eq!(read("cali-po-knp/shop/web", Generation::C), Some(id(KubernetesNetworkPolicy, "shop", "web")));
    assert_eq!(read("cali-po-_qhRePlGqjuVVTnxus0f", Generation::B), None);
}

/// Generations A and B: the label is the stored name as it is, whatever it is.
#[test]
fn the_old_label_is_what_generations_a_and_b_store() {
    for (stored, in_tier) in [
        ("n/default.foo", "default"),
        ("n/knp.default.foo", "default"),
        ("default.g", "default"),
        ("n/t.foo", "t"),
        ("t.g", "t"),
        ("kanp.adminnetworkpolicy.a", "adminnetworkpolicy"),
        ("kbanp.baselineadminnetworkpolicy.default", "baselineadminnetworkpolicy"),
        ("n/ossg.default.group", "default"),
        ("ossg.group", "default"),
        // Made past Calico's API: without a tier in the name, or with what looks like one where there are none.
        ("n/foo", "default"),
        ("g", "default"),
        ("n/t.foo", "default"),
        ("a.b-c", "default"),
        ("n/default.foo", "t"),
        ("n/default.default.foo", "default"),
    ] {
        let id = Spelling::stored(stored).in_tier(&tier(in_tier));
        assert_eq!(id.old_label(&tier(in_tier)), stored);
        let unknown = PolicyId { bare: false, ..id.clone() };
        assert_eq!(
            id.bare,
            unknown.old_label(&tier(in_tier)) != stored,
            "{stored}: bare if nothing else tells"
        );
    }
}

/// Generation C: the label is what generation A would have stored.
#[test]
fn the_old_label_of_generation_c_is_made_of_kind_tier_and_name() {
    for (kind, namespace, name, in_tier, want) in [
        (KubernetesNetworkPolicy, "n", "foo", "default", "n/knp.default.foo"),
        (KubernetesNetworkPolicy, "n", "default.foo", "default", "n/knp.default.default.foo"),
        (NetworkPolicy, "n", "knp.default.foo", "default", "n/knp.default.foo"),
        (NetworkPolicy, "n", "foo", "default", "n/default.foo"),
        (NetworkPolicy, "n", "default.foo", "default", "n/default.foo"),
        (NetworkPolicy, "n", "default.default.foo", "default", "n/default.default.foo"),
        (NetworkPolicy, "n", "a.b", "default", "n/default.a.b"),
        (NetworkPolicy, "n", "ossg.default.g", "default", "n/ossg.default.g"),
        (GlobalNetworkPolicy, "", "foo", "default", "default.foo"),
        (GlobalNetworkPolicy, "", "default.foo", "default", "default.foo"),
        (GlobalNetworkPolicy, "", "ossg.g", "default", "ossg.g"),
        (NetworkPolicy, "n", "foo", "t", "n/t.foo"),
        (NetworkPolicy, "n", "t.foo", "t", "n/t.foo"),
        (NetworkPolicy, "n", "tx.foo", "t", "n/t.tx.foo"),
        (NetworkPolicy, "n", "default.foo", "t", "n/t.default.foo"),
        (GlobalNetworkPolicy, "", "foo", "t", "t.foo"),
        (KubernetesClusterNetworkPolicy, "", "x", "kube-admin", "kcnp.x"),
        (KubernetesClusterNetworkPolicy, "", "default.x", "kube-baseline", "kcnp.default.x"),
    ] {
        let id = Spelling::of_kind(kind, namespace, name).in_tier(&tier(in_tier));
        assert_eq!(id.old_label(&tier(in_tier)), want, "{kind} {namespace}/{name} in {in_tier}");
    }
}
