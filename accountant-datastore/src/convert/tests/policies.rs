//! Policies: what is wrong with their selectors, and what calico-accountant called them.

use super::*;

#[test]
fn selectors_that_are_none_are_told_of_policies_that_have_names() {
    let complaint = |kind: (&str, &str), spec: &str| {
        let (version, kind) = kind;
        let yaml = format!(
            "{{spec: {{{spec}}}, apiVersion: {version}, kind: {kind}, metadata: {{namespace: n, name: p}}}}"
        );
        let resource = resource(&yaml);
        assert!(convert(&resource, &settings()).is_ok_and(|named| named.is_some()), "{yaml}");
        complaint(&resource).map(|error| error.to_string())
    };
    let np = ("projectcalico.org/v3", "NetworkPolicy");
    let gnp = ("crd.projectcalico.org/v1", "GlobalNetworkPolicy");
    for good in [
        "",
        "selector: ''",
        "selector: all(), namespaceSelector: has(a), serviceAccountSelector: a == 'b'",
        "ingress: [{action: Allow}, {source: {selector: \"a in {'b'}\", notSelector: '!has(a)'}}], egress: null",
        "ingress: [{source: {nets: [10.0.0.0/8]}}, 7, {source: 7}]",
    ] {
        assert_eq!(complaint(np, good), None, "{good}");
    }
    for (bad, field) in [
        ("selector: a ==", "spec.selector does not parse"),
        ("selector: a b", "spec.selector does not parse"),
        ("selector: 7", "spec.selector must not be a number"),
        ("namespaceSelector: (", "spec.namespaceSelector does not parse"),
        ("serviceAccountSelector: '!'", "spec.serviceAccountSelector does not parse"),
        ("ingress: [{}, {source: {selector: a ==}}]", "a rule's selector does not parse"),
        ("egress: [{destination: {notSelector: b}}]", "a rule's notSelector does not parse"),
        ("egress: [{destination: {namespaceSelector: b}}]", "a rule's namespaceSelector does not parse"),
        ("egress: {}", "spec.egress must not be a map"),
    ] {
        for kind in [np, gnp] {
            assert_eq!(complaint(kind, bad).as_deref(), Some(field), "{bad}");
        }
    }
    // Kubernetes' own have no selectors of this form.
    assert_eq!(
        complaint(("networking.k8s.io/v1", "NetworkPolicy"), "ingress: [{from: []}], egress: 3"),
        None
    );
}

/// From an object, by the chain that Felix of a generation makes of it, to the label that calico-accountant gave it.
#[test]
fn the_old_label_follows_from_the_object_and_its_chain() {
    const V1: &str = "crd.projectcalico.org/v1";
    const V3: &str = "projectcalico.org/v3";
    let (np, gnp) = ("NetworkPolicy", "GlobalNetworkPolicy");
    let admin = "policy.networking.k8s.io/v1alpha1";
    let cluster = "policy.networking.k8s.io/v1alpha2";
    for (version, kind, name, spec, hashed, tier, label) in [
        // Kubernetes' own policies, by the Kubernetes API or as a user lists them.
        ("networking.k8s.io/v1", np, "foo", "", "A n/knp.default.foo", "default", "n/knp.default.foo"),
        (
            "networking.k8s.io/v1",
            np,
            "foo",
            "",
            "B default/n/knp.default.foo",
            "default",
            "n/knp.default.foo",
        ),
        ("networking.k8s.io/v1", np, "foo", "", "C knp/n/foo", "default", "n/knp.default.foo"),
        // The same as kube-controllers copies them into etcd.
        (V3, np, "knp.default.foo", "", "A n/knp.default.foo", "default", "n/knp.default.foo"),
        (
            V3,
            np,
            "knp.default.foo",
            "tier: default",
            "B default/n/knp.default.foo",
            "default",
            "n/knp.default.foo",
        ),
        (
            V3,
            np,
            "knp.default.foo",
            "tier: default",
            "C np/n/knp.default.foo",
            "default",
            "n/knp.default.foo",
        ),
        // Custom resources and etcd, as Calico's API stores them, and as users write them.
        (V1, np, "default.foo", "", "A n/default.foo", "default", "n/default.foo"),
        (V1, np, "default.foo", "tier: default", "B default/n/default.foo", "default", "n/default.foo"),
        (V1, np, "default.foo", "tier: default", "C np/n/default.foo", "default", "n/default.foo"),
        (V1, np, "foo", "tier: default", "C np/n/foo", "default", "n/default.foo"),
        (V3, np, "foo", "", "A n/default.foo", "default", "n/default.foo"),
        (V3, np, "default.foo", "", "B default/n/default.foo", "default", "n/default.foo"),
        (V3, gnp, "g", "tier: default", "C gnp/g", "default", "default.g"),
        (V3, gnp, "default.g", "", "A default.g", "default", "default.g"),
        (V1, np, "ossg.default.s", "", "A n/ossg.default.s", "default", "n/ossg.default.s"),
        (V1, np, "ossg.default.s", "tier: default", "C np/n/ossg.default.s", "default", "n/ossg.default.s"),
        // Made past Calico's API.
        (V1, np, "foo", "", "A n/foo", "default", "n/foo"),
        (V1, gnp, "foo", "", "B default/foo", "default", "foo"),
        (V1, gnp, "a.b", "", "A a.b", "default", "a.b"),
        (V1, gnp, "a.b", "tier: default", "B a/a.b", "a", "a.b"),
        // Other tiers.
        (V1, np, "sec.foo", "tier: sec", "B sec/n/sec.foo", "sec", "n/sec.foo"),
        (V3, np, "sec.foo", "tier: sec", "C np/n/sec.foo", "sec", "n/sec.foo"),
        (V3, np, "foo", "tier: sec", "C np/n/foo", "sec", "n/sec.foo"),
        (V3, gnp, "default.foo", "tier: sec", "C gnp/default.foo", "sec", "sec.default.foo"),
        // Policies of cluster administrators.
        (
            admin,
            "AdminNetworkPolicy",
            "x",
            "",
            "B adminnetworkpolicy/kanp.adminnetworkpolicy.x",
            "adminnetworkpolicy",
            "kanp.adminnetworkpolicy.x",
        ),
        (
            admin,
            "BaselineAdminNetworkPolicy",
            "default",
            "",
            "B baselineadminnetworkpolicy/kbanp.baselineadminnetworkpolicy.default",
            "baselineadminnetworkpolicy",
            "kbanp.baselineadminnetworkpolicy.default",
        ),
        (cluster, "ClusterNetworkPolicy", "x", "tier: Admin", "C kcnp/x", "kube-admin", "kcnp.x"),
        (cluster, "ClusterNetworkPolicy", "x", "tier: Baseline", "C kcnp/x", "kube-baseline", "kcnp.x"),
    ] {
        use accountant_core::calico::names::{MAX_IPTABLES, MAX_NFTABLES, limited};
        use accountant_core::calico::policy::Generation;
        let yaml = format!(
            "{{apiVersion: {version}, kind: {kind}, metadata: {{namespace: n, name: {name}}}, spec: {{{spec}}}}}"
        );
        let resource = resource(&yaml);
        let mut index = accountant_core::index::Index::default();
        let (key, object) = convert(&resource, &settings()).unwrap().unwrap();
        index.apply(key, object);
        let (generation, hashed) = hashed.split_once(' ').unwrap();
        let generation = match generation {
            "A" => Generation::A,
            "B" => Generation::B,
            _ => Generation::C,
        };
        for max in [MAX_IPTABLES, MAX_NFTABLES] {
            let chain = limited("cali-pi-", hashed, max).into();
            let known = index.policy(&chain, generation, &tier.into());
            assert_eq!(
                known.map(|id| id.old_label(&tier.into())).as_deref(),
                Some(label),
                "{yaml}: {hashed}"
            );
        }
    }
}
