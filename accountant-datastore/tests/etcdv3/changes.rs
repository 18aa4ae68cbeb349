//! What is stored, and what changes.

use crate::common::{Has, Names, check_felix, check_fixture, set};
use crate::store::{ROOT, Store, large};
use accountant_core::id::TierName;
use etcd_client::DeleteOptions;

#[tokio::test]
async fn what_calico_3_31_stores_is_named_as_expected() {
    let store = Store::loaded("datastore/etcd-calico-3.31.jsonl").await;
    let mut names = store.names();
    names.in_sync().await;
    // Admin policies are never copied to etcd.
    let has = Has {
        policy: |policy| {
            let never =
                ["AdminNetworkPolicy", "BaselineAdminNetworkPolicy", "KubernetesClusterNetworkPolicy"];
            !never.contains(&policy["kind"].as_str().unwrap_or_default())
        },
        ..Has::ALL
    };
    check_fixture(&names, has);
    assert!(names.status().errors.is_empty());
}

#[tokio::test]
async fn what_felix_ran_with_is_named_as_expected() {
    for version in [
        "v3.28.5-iptables-nft",
        "v3.29.7-nft",
        "v3.31.7-legacy",
        "v3.32.1-iptables-nft",
        "v3.32.1-legacy-flowlogs",
        "v3.32.1-bpf",
    ] {
        let store = Store::loaded(&format!("felix/{version}/etcd.jsonl")).await;
        let mut names = store.names();
        names.in_sync().await;
        check_felix(&names, version, Has::ALL);
    }
}

#[tokio::test]
async fn changes_are_followed_and_other_nodes_left_out() {
    let mut store = Store::new().await;
    store.put("profiles/kns.known", "{}").await;
    store.endpoint("known", "worker-1", "a").await;
    store.endpoint("known", "worker-1-b", "other").await;
    store.policy("default.first").await;
    let mut names = store.names();
    names.in_sync().await;
    assert_eq!((names.pods(), names.policy_names()), (set(&["known/a"]), set(&["n/first"])));
    assert_eq!(names.profiles(), set(&["kns.known"]));

    // Namespaces that come later need no profile first; a pod that is made anew keeps its name.
    store.endpoint("known", "worker-1", "b").await;
    store.endpoint("later", "worker-1", "c").await;
    store.endpoint("later", "worker-2", "other").await;
    store.delete("workloadendpoints/known/worker--1-k8s-a-eth0").await;
    store.endpoint("known", "worker-1", "a").await;
    names.until("pods", |names| names.pods() == set(&["known/a", "known/b", "later/c"])).await;

    // Calico 3.32 renames a policy by making the new one first.
    store.policy("first").await;
    store.delete("networkpolicies/n/default.first").await;
    store.policy("last").await;
    names.until("policies", |names| names.policy_names() == set(&["n/first", "n/last"])).await;
    let old = "cali-pi-n/default.first".into();
    let generation = accountant_core::calico::policy::Generation::A;
    let known = names.index.policy(&old, generation, &TierName::default_tier());
    assert_eq!(known.as_ref().map(|id| &*id.name), Some("first"));
    assert_eq!(names.resets, 1);

    store.delete("workloadendpoints/known/worker--1-k8s-a-eth0").await;
    store.delete("workloadendpoints/known/worker--1-k8s-b-eth0").await;
    names.until("profiles", |names| names.profiles() == set(&["kns.later"])).await;
}

/// A store with so many policies of so many bytes, put in so many at a time, and its names in sync.
async fn many(policies: usize, bytes: usize, at_a_time: usize) -> (Store, Names) {
    let mut store = Store::new().await;
    let policies: Vec<_> = (0..policies).map(|number| large(number, bytes)).collect();
    store.put_all(&policies, at_a_time).await;
    let mut names = store.names();
    names.in_sync().await;
    (store, names)
}

#[tokio::test]
async fn a_store_of_many_pages_is_read_whole() {
    let (mut store, mut names) = many(1500, 0, 100).await;
    assert_eq!(names.policy_names().len(), 1500);
    store.client.delete(ROOT, Some(DeleteOptions::new().with_prefix())).await.unwrap();
    names.until("nothing", |names| names.policy_names().is_empty()).await;
}

/// A page of these has 20 MB.
#[tokio::test]
async fn large_values_are_read_in_smaller_pages() {
    let (_store, names) = many(600, 40_000, 25).await;
    assert_eq!((names.policy_names().len(), names.count("list")), (600, 0));
}

#[tokio::test]
async fn other_nodes_endpoints_never_end_a_session_where_all_are_watched() {
    let mut store = Store::new().await;
    let profiles: Vec<_> = (0..201).map(|number| (format!("profiles/kns.n{number}"), "{}".into())).collect();
    store.put_all(&profiles, 100).await;
    let (wire, mut names) = store.names_by_wire().await;
    names.in_sync().await;
    let other = |number: usize| (format!("workloadendpoints/n1/worker--2-k8s-{number}-eth0"), "{}".into());
    let others: Vec<_> = (0..10_100).map(other).collect();
    store.put_all(&others, 100).await;
    store.endpoint("n1", "worker-1", "own").await;
    names.until("all before it", |names| names.pods() == set(&["n1/own"])).await;
    store.policy("after").await;
    names.until("what comes after it", |names| names.policy_names() == set(&["n/after"])).await;
    assert_eq!(wire.connections(), 1);
}

#[tokio::test]
async fn what_a_watch_that_is_behind_has_missed_is_read_again() {
    let mut store = Store::new().await;
    store.policy("goes").await;
    let (wire, mut names) = store.names_by_wire().await;
    names.in_sync().await;
    wire.hold();
    // More than etcd keeps for one that does not take it.
    for number in 0..2000 {
        let (key, value) = large(number % 10, 8000);
        store.put(&key, &value).await;
    }
    store.delete("networkpolicies/n/goes").await;
    store.compact().await;
    wire.release();
    names.until("all", |names| names.policy_names().len() == 10 && names.count("compacted") > 0).await;
    names.in_sync().await;
    assert!(!names.policy_names().contains("n/goes"));
}
