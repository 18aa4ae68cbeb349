//! What each kind gives, written as `KEY: NAME`, or why it gives nothing.

use super::*;
use accountant_core::index::{HostEndpoint, Workload};

mod policies;

/// The settings of node `n1`.
fn settings() -> Settings {
    Settings::new("n1", "cali,tap")
}

fn told(object: &Object) -> String {
    match object {
        Object::Workload(interface, Workload { namespace, pod, app, ips }) => {
            format!("{interface} {namespace}/{pod} app={app} ips={}", ips.join(","))
        }
        Object::HostEndpoint(HostEndpoint { name, interface, expected_ips }) => {
            format!("{name} {interface} {expected_ips:?}")
        }
        Object::Policy(id, tier) => format!("{} {}/{} in {tier}", id.kind, id.namespace, id.name),
        Object::Profile(profile) => profile.to_string(),
    }
}

fn resource(yaml: &str) -> Resource {
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(yaml, options).expect("a map")
}

/// `yaml` is one object; `want` is `KIND NAMESPACE NAME: ...`, `nothing`, or an error.
#[track_caller]
fn check(yaml: &str, want: &str) {
    let resource = resource(yaml);
    let found = match convert(&resource, &settings()) {
        Ok(None) => "nothing".to_string(),
        Ok(Some(((kind, namespace, name), object))) => {
            format!("{kind} {namespace} {name}: {}", told(&object))
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(found, want, "{yaml}");
}

/// A pod `n/p` with the rest of its metadata, its spec and its status.
#[track_caller]
fn check_pod(metadata: &str, spec: &str, status: &str, want: &str) {
    check(
        &format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: n, name: p{metadata}}}, spec: {{{spec}}}, status: {{{status}}}}}"
        ),
        want,
    );
}

#[test]
fn pods_on_a_node_with_a_network_of_their_own_are_workloads() {
    let p = "Pod n p: cali24ab9b5aa6b n/p app= ips=";
    let p = &p
        .replace("cali24ab9b5aa6b", accountant_core::calico::names::pod_interface("cali", "n", "p").as_str());
    check_pod("", "nodeName: n2", "", p);
    check_pod("", "", "", "nothing");
    check_pod("", "nodeName: ''", "", "nothing");
    check_pod("", "nodeName: n1, hostNetwork: true", "", "nothing");
    check_pod("", "nodeName: n1, hostNetwork: false", "", p);
    check_pod(", labels: {app: web}", "nodeName: n1", "", &p.replace("app=", "app=web"));
    check_pod(", labels: {app: 7}", "nodeName: n1", "", "metadata.labels.app must not be a number");
    check_pod("", "nodeName: n1, hostNetwork: yes", "", "nothing");
    check_pod("", "nodeName: n1, hostNetwork: maybe", "", "spec.hostNetwork must not be text");
}

#[test]
fn addresses_come_from_the_first_place_that_has_any() {
    let interface = accountant_core::calico::names::pod_interface("cali", "n", "p");
    let check = |annotations: &str, status: &str, ips: &str| {
        let annotations = format!(", annotations: {{{annotations}}}");
        check_pod(&annotations, "nodeName: n1", status, &format!("Pod n p: {interface} n/p app= ips={ips}"));
    };
    let cni = "cni.projectcalico.org/podIP: 10.0.0.3/32";
    let cni_both = "cni.projectcalico.org/podIPs: '10.0.0.4/32, fd00::4/128'";
    let aws = "vpc.amazonaws.com/pod-ips: 10.0.0.5";
    let all = [cni, cni_both, aws].join(", ");
    check(&all, "podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], podIP: 10.0.0.2", "10.0.0.1,fd00::1");
    check(&all, "podIPs: [], podIP: 10.0.0.2", "10.0.0.2");
    check(&all, "podIPs: [{}], podIP: 10.0.0.2", "10.0.0.2");
    check(&all, "", "10.0.0.4,fd00::4");
    check(&[cni, aws].join(", "), "", "10.0.0.3");
    check(aws, "", "10.0.0.5");
    check("cni.projectcalico.org/podIP: 10.1.0.0/16", "", "10.1.0.0/16");
    check_pod("", "nodeName: n1", "podIPs: [7]", "status.podIPs[] must not be a number");
}

#[test]
fn finished_pods_are_kept_without_addresses() {
    let interface = accountant_core::calico::names::pod_interface("cali", "n", "p");
    let check = |metadata: &str, phase: &str, ips: &str| {
        let status = format!("phase: {phase}, podIP: 10.0.0.1");
        check_pod(metadata, "nodeName: n1", &status, &format!("Pod n p: {interface} n/p app= ips={ips}"));
    };
    for phase in ["Failed", "Succeeded", "Completed"] {
        check("", phase, "");
    }
    let going = "deletionTimestamp: 2026-08-01T10:00:00Z";
    let released = "annotations: {cni.projectcalico.org/podIP: ''}";
    check("", "Running", "10.0.0.1");
    check(&format!(", {going}"), "Running", "10.0.0.1");
    check(&format!(", {released}"), "Running", "10.0.0.1");
    check(&format!(", {going}, {released}"), "Running", "");
    check(&format!(", {going}, annotations: {{vpc.amazonaws.com/pod-ips: ''}}"), "Running", "");
    check(
        &format!(", {going}, annotations: {{cni.projectcalico.org/podIP: 10.0.0.1/32}}"),
        "Running",
        "10.0.0.1",
    );
}

/// A policy without a namespace or in namespace `n`, with the rest of its metadata and its spec.
#[track_caller]
fn check_policy(version_and_kind: (&str, &str), metadata: &str, spec: &str, want: &str) {
    let (version, kind) = version_and_kind;
    check(
        &format!("{{apiVersion: {version}, kind: {kind}, metadata: {{{metadata}}}, spec: {{{spec}}}}}"),
        want,
    );
}

#[test]
fn policies_of_kubernetes_have_tiers_of_their_own() {
    let np = ("networking.k8s.io/v1", "NetworkPolicy");
    let want = "NetworkPolicy.networking.k8s.io n foo: KubernetesNetworkPolicy n/foo in default";
    check_policy(np, "namespace: n, name: foo", "podSelector: {}", want);
    check_policy(np, "name: foo", "", "metadata.namespace is missing");
    let want =
        "AdminNetworkPolicy.policy.networking.k8s.io  foo: AdminNetworkPolicy /foo in adminnetworkpolicy";
    check_policy(
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
        "name: foo",
        "priority: 10",
        want,
    );
    let want = "BaselineAdminNetworkPolicy.policy.networking.k8s.io  default: \
                BaselineAdminNetworkPolicy /default in baselineadminnetworkpolicy";
    check_policy(
        ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"),
        "name: default",
        "",
        want,
    );
    let cnp = ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy");
    for (tier, calico) in [("Admin", "kube-admin"), ("Baseline", "kube-baseline")] {
        let want = format!(
            "ClusterNetworkPolicy.policy.networking.k8s.io  foo: KubernetesClusterNetworkPolicy /foo in {calico}"
        );
        check_policy(cnp, "name: foo", &format!("tier: {tier}"), &want);
    }
    check_policy(cnp, "name: foo", "", "spec.tier is missing");
    check_policy(cnp, "name: foo", "tier: admin", "spec.tier is \"admin\", which must be Admin or Baseline");
}

#[test]
fn a_stated_tier_counts_before_the_name() {
    let np = ("projectcalico.org/v3", "NetworkPolicy");
    let gnp = ("projectcalico.org/v3", "GlobalNetworkPolicy");
    let key = "NetworkPolicy.projectcalico.org n";
    let foo = |name: &str, rest: &str| format!("{key} {name}: {rest}");
    let in_n = |name: &str| format!("namespace: n, name: {name}");
    check_policy(np, &in_n("foo"), "", &foo("foo", "NetworkPolicy n/foo in default"));
    check_policy(np, &in_n("default.foo"), "", &foo("default.foo", "NetworkPolicy n/foo in default"));
    check_policy(np, &in_n("foo"), "tier: sec", &foo("foo", "NetworkPolicy n/foo in sec"));
    check_policy(np, &in_n("sec.foo"), "tier: sec", &foo("sec.foo", "NetworkPolicy n/sec.foo in sec"));
    let labelled = "namespace: n, name: foo, labels: {projectcalico.org/tier: sec}";
    check_policy(np, labelled, "", &foo("foo", "NetworkPolicy n/foo in sec"));
    check_policy(np, labelled, "tier: other", &foo("foo", "NetworkPolicy n/foo in other"));
    check_policy(np, &in_n("foo"), "tier: 1", "spec.tier must not be a number");
    // What a user wrote tells no tier by its name, unless Calico itself made the name.
    check_policy(np, &in_n("a.b"), "", &foo("a.b", "NetworkPolicy n/a.b in default"));
    let want = foo("knp.default.x", "KubernetesNetworkPolicy n/x in default");
    check_policy(np, &in_n("knp.default.x"), "", &want);
    let want = "GlobalNetworkPolicy.projectcalico.org  kanp.adminnetworkpolicy.x: \
                AdminNetworkPolicy /x in adminnetworkpolicy";
    check_policy(gnp, "name: kanp.adminnetworkpolicy.x", "", want);
    check_policy(
        gnp,
        "name: foo, namespace: n",
        "",
        "GlobalNetworkPolicy.projectcalico.org  foo: GlobalNetworkPolicy /foo in default",
    );
}

#[test]
fn stored_policies_have_stored_names_and_hidden_labels() {
    let np = ("crd.projectcalico.org/v1", "NetworkPolicy");
    let key = "NetworkPolicy.crd.projectcalico.org n";
    let check = |name: &str, metadata: &str, spec: &str, want: &str| {
        check_policy(
            np,
            &format!("namespace: n, name: {name}{metadata}"),
            spec,
            &format!("{key} {name}: {want}"),
        );
    };
    check("default.foo", "", "tier: default", "NetworkPolicy n/foo in default");
    check("default.foo", "", "", "NetworkPolicy n/foo in default");
    check("sec.foo", "", "", "NetworkPolicy n/sec.foo in sec");
    check("foo", "", "", "NetworkPolicy n/foo in default");
    check("ossg.default.g", "", "", "NetworkPolicy n/ossg.default.g in default");
    let hidden = |json: &str| format!(", annotations: {{projectcalico.org/metadata: '{json}'}}");
    let sec = hidden(r#"{"labels": {"projectcalico.org/tier": "sec"}, "name": "foo"}"#);
    check("foo", &sec, "", "NetworkPolicy n/foo in sec");
    check("foo", &sec, "tier: other", "NetworkPolicy n/foo in other");
    let both = format!(", labels: {{projectcalico.org/tier: shown}}{sec}");
    check("foo", &both, "", "NetworkPolicy n/foo in sec");
    check("sec.foo", &hidden(r#"{"name": "foo"}"#), "", "NetworkPolicy n/sec.foo in sec");
    check("foo", &hidden(""), "", "NetworkPolicy n/foo in default");
    check("foo", &hidden("{"), "tier: sec", "NetworkPolicy n/foo in sec");
    let broken = format!("namespace: n, name: foo{}", hidden("{"));
    check_policy(np, &broken, "", "annotation projectcalico.org/metadata does not parse as JSON");
}

#[test]
fn host_endpoints_of_this_node_alone_count() {
    let check_host = |spec: &str, want: &str| {
        check_policy(("projectcalico.org/v3", "HostEndpoint"), "name: h", spec, want);
    };
    let key = "HostEndpoint.projectcalico.org  h";
    check_host("node: n1, interfaceName: eth0", &format!("{key}: h eth0 []"));
    check_host("node: n1, interfaceName: '*'", &format!("{key}: h * []"));
    check_host("node: n1, expectedIPs: [192.0.2.1, 'fd00::1']", &format!("{key}: h  [192.0.2.1, fd00::1]"));
    check_host("node: N1, interfaceName: eth0", "nothing");
    check_host("node: n2", "nothing");
    check_host("interfaceName: eth0", "spec.node is missing");
    check_host("node: n1", "spec.interfaceName (or spec.expectedIPs) is missing");
    check_host("node: n1, expectedIPs: [eth0]", "spec.expectedIPs is \"eth0\", which must be IP addresses");
}

#[test]
fn workload_endpoints_tell_the_real_interface() {
    let check_wep = |metadata: &str, spec: &str, want: &str| {
        let metadata = format!("name: n1-k8s-p-eth0{metadata}");
        check_policy(("projectcalico.org/v3", "WorkloadEndpoint"), &metadata, spec, want);
    };
    let key = "WorkloadEndpoint.projectcalico.org n n1-k8s-p-eth0";
    check_wep(
        ", namespace: n, labels: {app: web}",
        "interfaceName: eni1, pod: p, node: n2, ipNetworks: [10.0.0.1/32, 'fd00::1/128', 10.1.0.0/16]",
        &format!("{key}: eni1 n/p app=web ips=10.0.0.1,fd00::1,10.1.0.0/16"),
    );
    check_wep(", namespace: n", "interfaceName: tap1, workload: vm", &format!("{key}: tap1 n/vm app= ips="));
    check_wep(", namespace: n", "interfaceName: tap1", &format!("{key}: tap1 n/n1-k8s-p-eth0 app= ips="));
    check_wep(", namespace: n", "pod: p", "spec.interfaceName is missing");
    check_wep("", "interfaceName: eni1", "metadata.namespace is missing");
}

#[test]
fn namespaces_service_accounts_and_profiles_are_profiles() {
    check("{apiVersion: v1, kind: Namespace, metadata: {name: n}}", "Namespace  n: kns.n");
    check(
        "{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: n, name: s}}",
        "ServiceAccount n s: ksa.n.s",
    );
    check(
        "{apiVersion: projectcalico.org/v3, kind: Profile, metadata: {name: own}}",
        "Profile.projectcalico.org  own: own",
    );
}

#[test]
fn other_kinds_give_nothing() {
    for (version, kind) in [
        ("projectcalico.org/v3", "Tier"),
        ("crd.projectcalico.org/v1", "StagedNetworkPolicy"),
        ("v1", "ConfigMap"),
        ("v1", "NetworkPolicy"),
        ("example.com/v1", "Pod"),
    ] {
        check_policy((version, kind), "namespace: n, name: x", "tier: []", "nothing");
    }
}

#[test]
fn what_is_essential_and_missing_is_told() {
    check("{metadata: {name: x}}", "kind is missing");
    check("{kind: Pod}", "apiVersion is missing");
    check("{apiVersion: v1, kind: Namespace}", "metadata.name is missing");
    check("{apiVersion: v1, kind: Namespace, metadata: {name: ''}}", "metadata.name is missing");
    check("{apiVersion: v1, kind: Namespace, metadata: x}", "metadata must not be text");
    check("{apiVersion: v1, kind: [Namespace]}", "kind must not be a list");
    let long = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {}}}}}", "x".repeat(254));
    check(&long, "metadata.name has 254 bytes, which is more than a name may have");
}

#[test]
fn the_first_interface_prefix_counts() {
    for (prefixes, first) in [("", "cali"), (",", "cali"), ("eni", "eni"), (" azv , cali", "azv")] {
        assert_eq!(&*Settings::new("n", prefixes).interface_prefix, first);
    }
}
