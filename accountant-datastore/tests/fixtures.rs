//! The fixtures: manifests as a user lists them, and objects as Calico 3.31 stores them, against what is known of them.

use accountant_core::Direction;
use accountant_core::calico::names::{MAX_IPTABLES, pod_interface};
use accountant_core::calico::policy::{Generation, PolicyId, PolicyKind};
use accountant_core::id::TierName;
use accountant_core::index::{HostEndpoint, Object, ObjectKey, Workload};
use accountant_datastore::convert::Settings;
use accountant_datastore::manifests::decode;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

type Objects = BTreeMap<ObjectKey, Object>;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// All objects of some files, none of which may have an error.
fn objects_of(node: &str, files: &[PathBuf]) -> Objects {
    let mut objects = Objects::new();
    for file in files {
        let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let decoded = decode(&file.to_string_lossy(), &bytes, &Settings::new(node, ""));
        assert!(decoded.errors.is_empty(), "{:?}", decoded.errors);
        objects.extend(decoded.objects);
    }
    objects
}

fn json(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).expect("the fixture is JSON")
}

fn policies(objects: &Objects) -> BTreeMap<PolicyId, TierName> {
    let policy = |object: &Object| match object {
        Object::Policy(id, tier) => Some((id.clone(), tier.clone())),
        _ => None,
    };
    objects.values().filter_map(policy).collect()
}

fn workloads(objects: &Objects) -> BTreeMap<String, Workload> {
    let workload = |object: &Object| match object {
        Object::Workload(interface, workload) => Some((interface.to_string(), workload.clone())),
        _ => None,
    };
    objects.values().filter_map(workload).collect()
}

fn host_endpoints(objects: &Objects) -> Vec<HostEndpoint> {
    let host = |object: &Object| match object {
        Object::HostEndpoint(host) => Some(host.clone()),
        _ => None,
    };
    objects.values().filter_map(host).collect()
}

fn profiles(objects: &Objects) -> BTreeSet<String> {
    let profile = |object: &Object| match object {
        Object::Profile(profile) => Some(profile.to_string()),
        _ => None,
    };
    objects.values().filter_map(profile).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// The policy that an entry of `expected.json` is about.
fn id(kind: &str, namespace: &str, name: &str) -> PolicyId {
    let kind = PolicyKind::parse(kind).expect("a kind");
    PolicyId { kind, namespace: namespace.into(), name: name.into() }
}

#[test]
fn the_chain_fixtures_have_three_pods_and_seven_policies() {
    let folder = fixtures().join("chains/manifests");
    let objects = objects_of("node1", &[folder.join("policies.yaml"), folder.join("workloads.yaml")]);
    let pods: Vec<_> = workloads(&objects)
        .into_values()
        .map(|w| format!("{}/{} {} {}", w.namespace, w.pod, w.app, w.ips.join(",")))
        .collect();
    let mut sorted = pods.clone();
    sorted.sort();
    assert_eq!(
        sorted,
        ["default/client  10.65.0.4", "shop/db-0 db 10.65.0.3", "shop/web-7c9d8f6b5-x2x9z web 10.65.0.2"]
    );
    let knp = |name| id("KubernetesNetworkPolicy", "shop", name);
    let gnp = |name| id("GlobalNetworkPolicy", "", name);
    let want = [
        knp("allow-same-ns"),
        knp("default-deny"),
        knp("web-allow-http"),
        knp("db-allow-web"),
        id("NetworkPolicy", "shop", "web-egress"),
        gnp("allow-monitoring"),
        gnp("deny-bad-net"),
    ];
    let want: BTreeMap<_, _> = want.into_iter().map(|id| (id, TierName::default_tier())).collect();
    assert_eq!(policies(&objects), want);
    assert_eq!(profiles(&objects), BTreeSet::from(["kns.default".into(), "kns.shop".into()]));
}

/// Every account that a real Felix's rules came to belongs to a pod and a policy of the manifests.
#[track_caller]
fn check_felix(version: &str) {
    let folder = fixtures().join("felix").join(version);
    let manifests = folder.join("manifests");
    let objects = objects_of("worker-1", &[manifests.join("policies.yaml"), manifests.join("pods.yaml")]);
    let (workloads, policies) = (workloads(&objects), policies(&objects));
    assert_eq!(workloads.len(), 5);
    let accounts = json(&folder.join("expected.json"));
    let accounts = accounts.as_array().expect("a list");
    assert!(accounts.len() > 10);
    for account in accounts {
        let (namespace, pod) = (text(account, "namespace"), text(account, "pod"));
        let workload = &workloads[pod_interface("cali", namespace, pod).as_str()];
        assert_eq!((&*workload.namespace, &*workload.pod), (namespace, pod));
        if text(account, "family") == "policy" {
            let id =
                id(text(account, "policy_kind"), text(account, "policy_namespace"), text(account, "policy"));
            assert_eq!(policies.get(&id).map(TierName::as_str), Some(text(account, "tier")), "{id:?}");
        }
    }
    let host = |host: &HostEndpoint| format!("{} {} {:?}", host.name, host.interface, host.expected_ips);
    let hosts: Vec<_> = host_endpoints(&objects).iter().map(host).collect();
    assert_eq!(hosts, ["worker-1-eth0 eth0 [192.0.2.11]"]);
}

#[test]
fn every_account_of_felix_3_28_has_its_names() {
    check_felix("v3.28.5-iptables-nft");
}

#[test]
fn every_account_of_felix_3_29_has_its_names() {
    check_felix("v3.29.7-nft");
}

#[test]
fn every_account_of_felix_3_31_has_its_names() {
    check_felix("v3.31.7-legacy");
}

#[test]
fn every_account_of_felix_3_32_has_its_names() {
    check_felix("v3.32.1-iptables-nft");
    check_felix("v3.32.1-legacy-flowlogs");
    check_felix("v3.32.1-bpf");
}

/// Core objects, and what Calico 3.31 keeps in its custom resources.
fn stored(node: &str) -> (Objects, Value) {
    let folder = fixtures().join("datastore");
    let files = [folder.join("k8s-core.yaml"), folder.join("kdd-crd-v1-calico-3.31.yaml")];
    (objects_of(node, &files), json(&folder.join("expected.json")))
}

const GENERATIONS: [(&str, Generation); 5] = [
    ("A_until_3.28", Generation::A),
    ("B_3.29_to_3.31", Generation::B),
    ("C_from_3.32_kdd", Generation::C),
    ("C_from_3.32_kdd_not_yet_renamed", Generation::C),
    ("C_from_3.32_etcd", Generation::C),
];

#[test]
fn stored_policies_have_the_identity_chains_and_label_that_calico_gave_them() {
    let (objects, expected) = stored("worker-1");
    let policies = policies(&objects);
    let expected = expected["policies"].as_array().expect("a list");
    assert_eq!(policies.len(), expected.len());
    for want in expected {
        let id = id(text(want, "kind"), text(want, "namespace"), text(want, "new"));
        let tier = policies.get(&id).unwrap_or_else(|| panic!("{id:?} is among {policies:?}"));
        assert_eq!(tier.as_str(), text(want, "tier"));
        assert_eq!(id.old_label(tier), text(want, "legacy_label"));
        for direction in [Direction::Ingress, Direction::Egress] {
            let chains = id.chains(tier, direction, MAX_IPTABLES);
            for (name, generation) in GENERATIONS {
                let Some(chain) = want["chains"][name][direction.as_str()].as_str() else { continue };
                assert!(
                    chains.contains(&(generation, chain.into())),
                    "{chain} of {name} is among {chains:?}"
                );
            }
        }
    }
}

#[test]
fn stored_pods_have_the_interface_labels_and_addresses_that_calico_gave_them() {
    let (objects, expected) = stored("worker-1");
    let mut workloads = workloads(&objects);
    let hosts = host_endpoints(&objects);
    for want in expected["endpoints"].as_array().expect("a list") {
        let endpoint = text(want, "endpoint");
        let interface = text(want, "interface");
        if let Some(name) = endpoint.strip_prefix("hostendpoint/") {
            let host = hosts.iter().find(|host| &*host.name == name).expect("the host endpoint");
            assert_eq!(&*host.interface, interface);
            continue;
        }
        let networks = want["ipNetworks"].as_array().expect("a list").iter().filter_map(Value::as_str);
        let ips: Vec<_> = networks.map(|net| net.trim_end_matches("/32").trim_end_matches("/128")).collect();
        let workload = workloads.remove(interface).unwrap_or_else(|| panic!("{endpoint} at {interface}"));
        assert_eq!(format!("{}/{}", workload.namespace, workload.pod), endpoint);
        assert_eq!(workload.ips.iter().map(|ip| &**ip).collect::<Vec<_>>(), ips, "{endpoint}");
        let app = want["effectiveLabels"]["app"].as_str();
        assert!(app.is_none_or(|app| *workload.app == *app), "{endpoint}");
    }
    assert!(workloads.is_empty(), "not expected: {workloads:?}");
}

#[test]
fn stored_host_endpoints_are_those_of_the_node() {
    assert_eq!(host_endpoints(&stored("worker-1").0).len(), 1);
    assert!(host_endpoints(&stored("worker-2").0).is_empty());
    assert!(host_endpoints(&stored("Worker-1").0).is_empty());
}

#[test]
fn stored_namespaces_and_service_accounts_are_the_profiles_of_the_endpoints() {
    let (objects, expected) = stored("worker-1");
    let profiles = profiles(&objects);
    for endpoint in expected["endpoints"].as_array().expect("a list") {
        for profile in endpoint["profiles"].as_array().expect("a list").iter().filter_map(Value::as_str) {
            let built_in = profile == "projectcalico-default-allow";
            assert!(built_in || profiles.contains(profile), "{profile} is among {profiles:?}");
        }
    }
}

#[test]
fn ten_thousand_policies_are_read_in_time() {
    let policy = |number| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata:\n  name: policy-{number}\n  namespace: n\n\
             spec:\n  tier: default\n  order: 500\n  selector: app == 'ledger'\n  types:\n  - Ingress\n  ingress:\n\
             \x20 - action: Allow\n    protocol: TCP\n    source:\n      selector: app == 'api'\n\
             \x20   destination:\n      ports:\n      - grpc\n---\n"
        )
    };
    let file: String = (0..10_000).map(policy).collect();
    let begin = std::time::Instant::now();
    let decoded = decode("f.yaml", file.as_bytes(), &Settings::new("n", ""));
    let took = begin.elapsed();
    assert_eq!((decoded.objects.len(), decoded.errors.len()), (10_000, 0));
    println!("{} bytes in {took:?}", file.len());
    let list: Vec<_> = (0..10_000)
        .map(|number| format!(r#"{{"metadata": {{"name": "p{number}", "namespace": "n"}}, "spec": {{}}}}"#))
        .collect();
    let list = format!(
        r#"{{"items": [{}], "kind": "NetworkPolicyList", "apiVersion": "networking.k8s.io/v1"}}"#,
        list.join(",")
    );
    assert_eq!(decode("f.json", list.as_bytes(), &Settings::new("n", "")).objects.len(), 10_000);
    #[cfg(not(debug_assertions))]
    assert!(took.as_secs() < 2, "{took:?}");
}
