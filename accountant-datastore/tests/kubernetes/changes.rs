//! What is stored, and what changes.

use crate::cluster::{CRD, Cluster, V3, datastore};
use crate::common::{Has, Names, check_fixture, set};
use crate::tunnel::Tunnel;
use accountant_datastore::kubernetes::{ApiGroup, Connection, Kubernetes, Source};
use serde_json::{Value, json};
use std::path::PathBuf;

const CALICO: &str = "crd.projectcalico.org";
const NATIVE: &str = "projectcalico.org";
const ADMIN: &str = "policy.networking.k8s.io";

/// The objects of a fixture, as they are.
fn fixture(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(accountant_rigs::fixtures().join(file)).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    documents
        .into_iter()
        .flat_map(|document| match document["items"].as_array() {
            Some(items) => items.clone(),
            None => vec![document],
        })
        .filter(|object| !object.is_null())
        .collect()
}

pub async fn what_calico_3_31_stores_is_named_as_expected(binary: PathBuf) {
    let files = ["datastore/k8s-core.yaml", "datastore/kdd-crd-v1-calico-3.31.yaml"];
    let objects: Vec<_> = files.iter().flat_map(|file| fixture(file)).collect();
    let cluster = Cluster::with(binary, &[CALICO, ADMIN], &objects).await;
    let mut names = cluster.names();
    names.in_sync().await;
    check_fixture(&names, Has::ALL);
    assert!(names.status().errors.is_empty(), "{:?}", names.status());
}

pub async fn changes_are_followed_and_other_nodes_are_not_asked_for(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[CALICO]).await;
    cluster.pod("n", "a", "worker-1").await;
    cluster.pod("n", "other", "worker-2").await;
    cluster.knp("first").await;
    cluster.np(CRD, "default.second").await;
    let (proxy, mut names) = cluster.proxy().await;
    names.in_sync().await;
    assert_eq!((names.pods(), names.policy_names()), (set(&["n/a"]), set(&["n/first", "n/second"])));
    assert_eq!(names.profiles(), set(&["kns.n"]));

    cluster.pod("m", "b", "worker-1").await;
    cluster.delete("/api/v1/namespaces/n/pods/a").await;
    cluster.pod("n", "a", "worker-1").await;
    cluster.np(CRD, "second").await;
    cluster.delete("/apis/crd.projectcalico.org/v1/namespaces/n/networkpolicies/default.second").await;
    cluster.delete("/apis/networking.k8s.io/v1/namespaces/n/networkpolicies/first").await;
    cluster.host("h", "worker-1").await;
    cluster.host("o", "worker-2").await;
    names.until("pods", |names| names.pods() == set(&["m/b", "n/a"])).await;
    names.until("policies", |names| names.policy_names() == set(&["n/second"])).await;
    names.until("hosts", |names| names.hosts().len() == 1).await;
    assert_eq!(names.profiles(), set(&["kns.m", "kns.n"]));
    cluster.delete("/api/v1/namespaces/m/pods/b").await;
    names.until("pods", |names| names.pods() == set(&["n/a"])).await;
    names.until("profiles", |names| names.profiles() == set(&["kns.n"])).await;

    // What it costs the server: its cache answers, pods are asked for by node, and nothing else is read.
    for target in proxy.seen() {
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let discovery = query.is_empty();
        assert!(discovery || query.contains("watch=true") || query.contains("resourceVersion=0"), "{target}");
        assert!(!query.contains("watch=true") || query.contains("allowWatchBookmarks=true"), "{target}");
        assert!(
            !path.ends_with("/pods") || query.contains("fieldSelector=spec.nodeName%3Dworker-1"),
            "{target}"
        );
        let wide = ["namespaces", "serviceaccounts", "nodes", "secrets"];
        assert!(!wide.iter().any(|kind| path.ends_with(kind)), "{target}");
    }
}

pub async fn kinds_that_are_installed_later_are_found(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[]).await;
    cluster.knp("first").await;
    let mut names = cluster.names();
    names.in_sync().await;
    cluster.install(&[CALICO, "policy.networking.k8s.io/AdminNetworkPolicy"]).await;
    cluster.np(CRD, "second").await;
    let admin = json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicy", "metadata": {"name": "third"}});
    cluster.create("/apis/policy.networking.k8s.io/v1alpha1/adminnetworkpolicies", admin).await;
    names.until("all", |names| names.policy_names() == set(&["/third", "n/first", "n/second"])).await;
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    cluster.delete(&format!("{crds}/networkpolicies.crd.projectcalico.org")).await;
    names.until("the rest", |names| names.policy_names() == set(&["/third", "n/first"])).await;
    cluster.knp("fourth").await;
    names
        .until("the rest is followed", |names| {
            names.policy_names() == set(&["/third", "n/first", "n/fourth"])
        })
        .await;
    names.in_sync().await;
}

pub async fn native_objects_of_3_32_are_named(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[NATIVE, ADMIN]).await;
    let policies = format!("/apis/{V3}/namespaces/n/networkpolicies");
    // Made before anything sets the label of the tier.
    let policy = |name: &str, spec: Value| json!({"apiVersion": V3, "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec});
    cluster.create(&policies, policy("plain", json!({"tier": "platform"}))).await;
    cluster.create(&policies, policy("default.old", json!({}))).await;
    cluster.create(&policies, policy("a.b-c", json!({"tier": "default"}))).await;
    cluster.calico(V3, "GlobalNetworkPolicy", "globalnetworkpolicies", "g", json!({"tier": "sec"})).await;
    let kcnp = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
                      "metadata": {"name": "c"}, "spec": {"tier": "Admin"}});
    cluster.create("/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies", kcnp).await;
    let mut names = cluster.names();
    names.in_sync().await;
    let tiers = |names: &Names| {
        let policies = names.policies();
        policies
            .iter()
            .map(|(id, tier)| format!("{} {} {tier} {}", id.kind, id.name, id.old_label(tier)))
            .collect::<Vec<_>>()
    };
    let wanted = [
        "NetworkPolicy a.b-c default n/default.a.b-c",
        "NetworkPolicy old default n/default.old",
        "NetworkPolicy plain platform n/platform.plain",
        "GlobalNetworkPolicy g sec sec.g",
        "KubernetesClusterNetworkPolicy c kube-admin kcnp.c",
    ];
    assert_eq!(tiers(&names), wanted);
}

pub async fn a_migration_from_v1_to_v3_loses_no_name(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[CALICO, NATIVE]).await;
    cluster.np(CRD, "default.a").await;
    cluster.np(CRD, "default.gone").await;
    cluster.np(V3, "a").await;
    cluster.np(V3, "b").await;
    // Both are served: v3 may be an API server before v1. What calico-node is told counts.
    let mut names = cluster.names();
    names.in_sync().await;
    assert_eq!(names.policy_names(), set(&["n/a", "n/gone"]));
    let mut connection = cluster.connection();
    connection.api_group = Some(ApiGroup::V3);
    let mut told = Names::of(datastore(connection));
    told.in_sync().await;
    assert_eq!(told.policy_names(), set(&["n/a", "n/b"]));
    // At last v1 is locked, so that it is not followed any more, and then it is removed.
    let locked = json!({"datastoreReady": false});
    cluster.calico(CRD, "ClusterInformation", "clusterinformations", "default", locked).await;
    names.error("datastoreReady: false").await;
    assert_eq!(names.policy_names(), set(&["n/a", "n/gone"]));
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    for kind in [
        "networkpolicies",
        "globalnetworkpolicies",
        "hostendpoints",
        "felixconfigurations",
        "clusterinformations",
        "tiers",
    ] {
        cluster.delete(&format!("{crds}/{kind}.crd.projectcalico.org")).await;
    }
    names.until("v3", |names| names.policy_names() == set(&["n/a", "n/b"])).await;
    names.in_sync().await;
}

pub async fn a_configuration_and_felixs_own_files_tell_interfaces(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[CALICO]).await;
    cluster.pod("n", "a", "worker-1").await;
    cluster
        .calico(
            CRD,
            "FelixConfiguration",
            "felixconfigurations",
            "default",
            json!({"interfacePrefix": "eni"}),
        )
        .await;
    let folder = tempfile::tempdir().unwrap();
    let kubernetes =
        Kubernetes { endpoint_status: Some(folder.path().into()), ..datastore(cluster.connection()) };
    let mut names = Names::of(kubernetes);
    names.in_sync().await;
    let at = |names: &Names| names.workloads().keys().cloned().collect::<Vec<_>>();
    assert!(at(&names)[0].starts_with("eni"), "{:?}", at(&names));
    let felix = "/apis/crd.projectcalico.org/v1/felixconfigurations/default";
    cluster.patch(felix, json!({"spec": {"interfacePrefix": "azv"}})).await;
    names.until("prefix", |names| at(names).iter().all(|interface| interface.starts_with("azv"))).await;
    // One for some nodes counts before that for all, once the node is known to be among them.
    let node = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "worker-1", "labels": {"cloud": "blue"}}});
    cluster.create("/api/v1/nodes", node).await;
    let scoped = json!({"interfacePrefix": "gke", "nodeSelector": "cloud in {'blue'} && !has(none)"});
    cluster.calico(CRD, "FelixConfiguration", "felixconfigurations", "some", scoped).await;
    names.until("scoped", |names| at(names).iter().all(|interface| interface.starts_with("gke"))).await;
    cluster.patch("/api/v1/nodes/worker-1", json!({"metadata": {"labels": {"cloud": "red"}}})).await;
    names.until("default", |names| at(names).iter().all(|interface| interface.starts_with("azv"))).await;
    let some = "/apis/crd.projectcalico.org/v1/felixconfigurations/some";
    cluster.patch(some, json!({"spec": {"nodeSelector": "cloud in"}})).await;
    names.error("FelixConfiguration some in Kubernetes: spec.nodeSelector does not parse").await;
    cluster.delete(some).await;
    names.until("nothing is wrong", |names| names.status().errors.is_empty()).await;
    let file = folder.path().join("k8s n%2Fa eth0");
    std::fs::write(file, r#"{"ifaceName": "real0"}"#).unwrap();
    names.until("the real one", |names| at(names) == ["real0"]).await;
}

pub async fn the_proxy_of_a_kubeconfig_is_gone_through(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[]).await;
    cluster.knp("first").await;
    let tunnel = Tunnel::start().await;
    let through = |user: &str| {
        let text = std::fs::read_to_string(cluster.server.kubeconfig()).unwrap();
        let mut kubeconfig: Value = serde_saphyr::from_str(&text).unwrap();
        kubeconfig["clusters"][0]["cluster"]["proxy-url"] = tunnel.url(user).into();
        let source = Source::Inline(kubeconfig.to_string().as_str().into());
        Names::of(datastore(Connection { source, ..cluster.connection() }))
    };
    let mut names = through("user:secret");
    names.in_sync().await;
    cluster.knp("second").await;
    names.until("both", |names| names.policy_names() == set(&["n/first", "n/second"])).await;
    assert_eq!(tunnel.opened(), 1, "all watches are on one connection");
    let mut refused = through("user:other");
    refused.error("proxy authorization required").await;
    let told = format!("{:?}", refused.status());
    assert!(!told.contains("other") && told.contains("HTTPS_PROXY"), "{told}");
}
