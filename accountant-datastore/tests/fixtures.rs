//! The fixtures: manifests as a user lists them, and objects as Calico 3.31 stores them, against what is known of them.

mod common;

use accountant_core::id::TierName;
use accountant_datastore::convert::Settings;
use accountant_datastore::manifests::decode;
use accountant_rigs::fixtures;
use common::{Has, Objects, check_felix, check_fixture, id, set};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// All objects of some files, none of which may have an error.
fn objects_of(node: &str, files: &[PathBuf]) -> Objects {
    let mut objects = Objects::default();
    for file in files {
        let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let decoded = decode(&file.to_string_lossy(), &bytes, &Settings::new(node, ""));
        assert!(decoded.errors.is_empty(), "{:?}", decoded.errors);
        objects.0.extend(decoded.objects);
    }
    objects
}

#[test]
fn the_chain_fixtures_have_three_pods_and_seven_policies() {
    let folder = fixtures().join("chains/manifests");
    let objects = objects_of("node1", &[folder.join("policies.yaml"), folder.join("workloads.yaml")]);
    let pods: Vec<_> = objects
        .workloads()
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
    assert_eq!(objects.policies(), want);
    assert_eq!(objects.profiles(), set(&["kns.default", "kns.shop"]));
}

/// The manifests of a capture of a real Felix.
#[track_caller]
fn check_manifests(version: &str) {
    let folder = fixtures().join("felix").join(version).join("manifests");
    let objects = objects_of("worker-1", &[folder.join("policies.yaml"), folder.join("pods.yaml")]);
    assert_eq!(objects.workloads().len(), 5);
    // Namespaces are not listed.
    check_felix(&objects, version, Has { profile: |_| false, ..Has::ALL });
}

#[test]
fn every_account_of_felix_3_28_has_its_names() {
    check_manifests("v3.28.5-iptables-nft");
}

#[test]
fn every_account_of_felix_3_29_has_its_names() {
    check_manifests("v3.29.7-nft");
}

#[test]
fn every_account_of_felix_3_31_has_its_names() {
    check_manifests("v3.31.7-legacy");
}

#[test]
fn every_account_of_felix_3_32_has_its_names() {
    check_manifests("v3.32.1-iptables-nft");
    check_manifests("v3.32.1-legacy-flowlogs");
    check_manifests("v3.32.1-bpf");
}

/// Core objects, and what Calico 3.31 keeps in its custom resources.
fn stored(node: &str) -> Objects {
    let folder = fixtures().join("datastore");
    objects_of(node, &[folder.join("k8s-core.yaml"), folder.join("kdd-crd-v1-calico-3.31.yaml")])
}

#[test]
fn what_calico_3_31_stores_is_named_as_expected() {
    // The profile that is built in is in no datastore; servers tell it because an endpoint has it. Pods are those that are
    // listed, of whichever node.
    let has = Has { profile: |profile| profile != "projectcalico-default-allow", node: |_| true, ..Has::ALL };
    check_fixture(&stored("worker-1"), has);
}

#[test]
fn stored_host_endpoints_are_those_of_the_node() {
    assert_eq!(stored("worker-1").hosts().len(), 1);
    assert!(stored("worker-2").hosts().is_empty());
    assert!(stored("Worker-1").hosts().is_empty());
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
