//! The datastore `etcdv3` against a real etcd: what Calico's own client wrote, changes, and faults. Afterwards the names are
//! what the store has.

mod common;

use accountant_core::id::TierName;
use accountant_datastore::convert::Settings;
use accountant_datastore::etcdv3::{Connection, Etcd, Servers};
use accountant_datastore::secret::Pem;
use accountant_rigs::{etcd_entries, fixtures};
use common::wire::Wire;
use common::{Has, Names, check_felix, check_fixture, set};
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Permission, RoleRevokePermissionOptions, Txn,
    TxnOp,
};
use std::fmt::Display;
use std::time::Duration;

const ROOT: &str = "/calico/resources/v3/projectcalico.org/";

/// An etcd, and a client that may write.
struct Store {
    etcd: accountant_rigs::Etcd,
    client: Client,
}

impl Store {
    async fn new() -> Self {
        let etcd = accountant_rigs::Etcd::start().unwrap();
        let client = Client::connect([etcd.endpoint()], None).await.unwrap();
        Self { etcd, client }
    }

    async fn loaded(file: &str) -> Self {
        let mut store = Self::new().await;
        for (key, value) in etcd_entries(&fixtures().join(file)) {
            store.client.put(key, value, None).await.unwrap();
        }
        store
    }

    async fn put(&mut self, key: &str, value: &str) {
        self.client.put(format!("{ROOT}{key}"), value, None).await.unwrap();
    }

    async fn policy(&mut self, name: &str) {
        self.put(&format!("networkpolicies/n/{name}"), r#"{"spec": {"tier": "default"}}"#).await;
    }

    async fn endpoint(&mut self, namespace: &str, node: &str, pod: &str) {
        let escaped = node.replace('-', "--");
        let value = format!(
            r#"{{"metadata": {{"labels": {{"app": "a"}}}}, "spec": {{"node": "{node}", "orchestrator": "k8s",
                "pod": "{pod}", "interfaceName": "cali-{pod}", "profiles": ["kns.{namespace}"]}}}}"#
        );
        self.put(&format!("workloadendpoints/{namespace}/{escaped}-k8s-{pod}-eth0"), &value).await;
    }

    async fn delete(&mut self, key: &str) {
        self.client.delete(format!("{ROOT}{key}"), None).await.unwrap();
    }

    /// Forgets all history, so that only what is now can be read.
    async fn compact(&mut self) {
        let revision = self.client.get("x", None).await.unwrap().header().unwrap().revision();
        self.client.compact(revision, None).await.unwrap();
    }

    fn names(&self) -> Names {
        self.names_with(|_| {})
    }

    fn names_with(&self, change: impl FnOnce(&mut Connection)) -> Names {
        let servers = Servers::Endpoints(vec![self.etcd.endpoint().into()]);
        let mut connection = Connection { servers, ..Connection::default() };
        change(&mut connection);
        follow(connection)
    }

    /// What one gets over a wire that can be held.
    async fn names_by_wire(&self) -> (Wire, Names) {
        let wire = Wire::to(self.etcd.endpoint().trim_start_matches("http://")).await;
        let servers = Servers::Endpoints(vec![format!("http://{}", wire.address()).into()]);
        let names = self.names_with(|connection| connection.servers = servers);
        (wire, names)
    }

    /// Stores many objects, some at once.
    async fn put_all(&mut self, objects: &[(String, String)], at_once: usize) {
        for some in objects.chunks(at_once) {
            let puts = some.iter().map(|(key, value)| TxnOp::put(format!("{ROOT}{key}"), &**value, None));
            let puts: Vec<_> = puts.collect();
            let always = Compare::version("none", CompareOp::Equal, 0);
            self.client.txn(Txn::new().when([always]).and_then(puts)).await.unwrap();
        }
    }
}

fn follow(connection: Connection) -> Names {
    let etcd = Etcd::new(connection, Settings::new("worker-1", ""));
    Names::of(Etcd { again_within: Duration::from_millis(100), ..etcd })
}

/// A policy of about this many bytes.
fn large(name: impl Display, bytes: usize) -> (String, String) {
    let value = format!(r#"{{"spec": {{"tier": "default", "selector": "{}"}}}}"#, "x".repeat(bytes));
    (format!("networkpolicies/n/{name}"), value)
}

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

#[tokio::test]
async fn a_store_of_many_pages_is_read_whole() {
    let mut store = Store::new().await;
    let policies: Vec<_> = (0..1500).map(|number| large(number, 0)).collect();
    store.put_all(&policies, 100).await;
    let mut names = store.names();
    names.in_sync().await;
    assert_eq!(names.policy_names().len(), 1500);
    store.client.delete(ROOT, Some(DeleteOptions::new().with_prefix())).await.unwrap();
    names.until("nothing", |names| names.policy_names().is_empty()).await;
}

/// A page of these has 20 MB.
#[tokio::test]
async fn large_values_are_read_in_smaller_pages() {
    let mut store = Store::new().await;
    let policies: Vec<_> = (0..600).map(|number| large(number, 40_000)).collect();
    store.put_all(&policies, 25).await;
    let mut names = store.names();
    names.in_sync().await;
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

#[tokio::test]
async fn a_server_that_is_gone_takes_no_name_and_afterwards_all_is_as_stored() {
    let mut store = Store::new().await;
    store.endpoint("n", "worker-1", "a").await;
    store.policy("stays").await;
    store.policy("goes").await;
    let mut names = store.names();
    names.in_sync().await;
    store.etcd.kill();
    names.until("the loss", |names| !names.status().in_sync && !names.status().errors.is_empty()).await;
    assert_eq!(names.policy_names(), set(&["n/goes", "n/stays"]));
    store.etcd.restart().unwrap();
    // Whether it is back already or not: what happens meanwhile, and is forgotten, is made up for.
    store.delete("networkpolicies/n/goes").await;
    store.policy("new").await;
    store.compact().await;
    names.in_sync().await;
    names.until("policies", |names| names.policy_names() == set(&["n/new", "n/stays"])).await;
    assert_eq!(names.pods(), set(&["n/a"]));
    assert!(names.count("connect") + names.count("watch") + names.count("list") > 0);
}

#[tokio::test]
async fn a_datastore_that_is_not_ready_keeps_its_last_names() {
    let mut store = Store::new().await;
    let ready = |ready| format!(r#"{{"spec": {{"datastoreReady": {ready}}}}}"#);
    store.put("clusterinformations/default", &ready(true)).await;
    store.policy("stays").await;
    let mut names = store.names();
    names.in_sync().await;
    store.put("clusterinformations/default", &ready(false)).await;
    names.error("datastoreReady: false").await;
    assert!(!names.status().in_sync);
    store.delete("networkpolicies/n/stays").await;
    store.policy("new").await;
    store.put("clusterinformations/default", &ready(true)).await;
    names.in_sync().await;
    assert_eq!(names.policy_names(), set(&["n/new"]));
    // One that is not ready from the start is read, and is stale.
    store.put("clusterinformations/default", &ready(false)).await;
    let mut late = store.names();
    late.error("datastoreReady: false").await;
    late.until("names", |names| names.policy_names() == set(&["n/new"])).await;
    assert!(!late.status().in_sync);
}

#[tokio::test]
async fn what_cannot_be_used_is_told_by_name_and_harms_nothing() {
    let mut store = Store::new().await;
    store.policy("good").await;
    store.policy("turns").await;
    store.put("networkpolicies/n/default.no-json.at-all", "nonsense").await;
    store.put("networkpolicies/n/empty", "").await;
    store.put("networkpolicies/n/a/b", "{}").await;
    store.put("networkpolicies/alone", "{}").await;
    store
        .put("networkpolicies/n/not-selectable", r#"{"spec": {"tier": "default", "selector": "a =="}}"#)
        .await;
    store.put("globalnetworkpolicies/wrong-tier", r#"{"spec": {"tier": 7}}"#).await;
    store.put("hostendpoints/without-node", r#"{"spec": {}}"#).await;
    store.put("workloadendpoints/n/worker--1-k8s-x-eth0", r#"{"spec": {}}"#).await;
    store.put("unknownkinds/x", "nonsense").await;
    store.client.put(format!("{ROOT}networkpolicies/n/\u{fffd}"), "[]", None).await.unwrap();
    let mut names = store.names();
    names.in_sync().await;
    assert_eq!(names.policy_names(), set(&["n/good", "n/not-selectable", "n/turns"]));
    let errors = names.status().errors.join("\n");
    for part in [
        "NetworkPolicy n/default.no-json.at-all in etcd: its value is no JSON",
        "NetworkPolicy n/empty in etcd: its value is no JSON",
        "networkpolicies/n/a/b\": it names no NetworkPolicy",
        "networkpolicies/alone\": it names no NetworkPolicy",
        "GlobalNetworkPolicy wrong-tier in etcd: spec.tier must not be a number",
        "HostEndpoint without-node in etcd: spec.node is missing",
        "WorkloadEndpoint n/worker--1-k8s-x-eth0 in etcd: spec.interfaceName is missing",
        "its value is a list",
    ] {
        assert!(errors.contains(part), "{part} is in {errors}");
    }
    assert_eq!(names.count("object"), 8);
    // One that turns bad is gone, and is back when it is good again.
    store.put("networkpolicies/n/turns", "nonsense").await;
    names.error("NetworkPolicy n/turns").await;
    assert_eq!(names.policy_names(), set(&["n/good", "n/not-selectable"]));
    store.policy("turns").await;
    names.until("again", |names| names.policy_names().len() == 3).await;
    assert!(names.status().in_sync);
}

#[tokio::test]
async fn certificates_are_checked_and_read_again() {
    let mut etcd = accountant_rigs::Etcd::start_with_tls().unwrap();
    let file = |etcd: &accountant_rigs::Etcd, name| {
        Pem::File(etcd.certificates.as_ref().unwrap().file(name).into_boxed_path())
    };
    let servers = Servers::Endpoints(vec![etcd.endpoint().into()]);
    let good = Connection {
        servers,
        user: None,
        ca: Some(file(&etcd, "ca.crt")),
        identity: Some((file(&etcd, "client.crt"), file(&etcd, "client.key"))),
    };
    let mut names = follow(good.clone());
    names.in_sync().await;

    let other = tempfile::tempdir().unwrap();
    let wrong = accountant_rigs::Certificates::make(other.path()).unwrap();
    let ca = Some(Pem::File(wrong.file("ca.crt").into()));
    follow(Connection { ca, ..good.clone() }).error("ETCD_ENDPOINTS").await;
    follow(Connection { ca: None, ..good.clone() }).error("ETCD_ENDPOINTS").await;
    follow(Connection { identity: None, ..good.clone() }).error("ETCD_ENDPOINTS").await;
    let ca = Some(Pem::File(other.path().join("none").into()));
    follow(Connection { ca, ..good.clone() }).error("none").await;
    let text = |name| {
        Pem::Inline(
            std::fs::read_to_string(etcd.certificates.as_ref().unwrap().file(name)).unwrap().as_str().into(),
        )
    };
    let inline = Connection {
        ca: Some(text("ca.crt")),
        identity: Some((text("client.crt"), text("client.key"))),
        ..good
    };
    follow(inline).in_sync().await;

    etcd.kill();
    etcd.replace_certificates().unwrap();
    names.until("the loss", |names| !names.status().in_sync).await;
    etcd.restart().unwrap();
    names.in_sync().await;
}

#[tokio::test]
async fn a_user_reads_what_it_may() {
    let mut store = Store::new().await;
    store.policy("hidden").await;
    store.endpoint("n", "worker-1", "a").await;
    let client = &mut store.client;
    client.user_add("root", "r", None).await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.user_add("reader", "right", None).await.unwrap();
    client.role_add("reader").await.unwrap();
    for part in
        ["clusterinformations", "globalnetworkpolicies", "hostendpoints", "profiles", "workloadendpoints"]
    {
        let allowed = Permission::read(format!("{ROOT}{part}/")).with_prefix();
        client.role_grant_permission("reader", allowed).await.unwrap();
    }
    client.user_grant_role("reader", "reader").await.unwrap();
    client.auth_enable().await.unwrap();

    let user = |password: &'static str| {
        move |connection: &mut Connection| {
            connection.user = Some(("reader".into(), password.into()));
        }
    };
    let mut names = store.names_with(user("right"));
    names.error("cannot list networkpolicies in etcd").await;
    names.until("the rest", |names| names.pods() == set(&["n/a"])).await;
    assert_eq!((names.count("forbidden"), names.status().in_sync), (1, false));
    let mut refused = store.names_with(user("wrong"));
    refused.error("cannot connect to etcd").await;
    assert!(!format!("{:?}", refused.status()).contains("wrong"), "{:?}", refused.status());
    store.names().error("cannot list").await;

    // What is allowed later is read then: a session ends when it is told to look again.
    let endpoint = store.etcd.endpoint();
    let root = async || {
        let options = ConnectOptions::new().with_user("root", "r");
        Client::connect([&endpoint], Some(options)).await.unwrap()
    };
    root().await.role_grant_permission("reader", Permission::read(ROOT).with_prefix()).await.unwrap();
    store.etcd.restart().unwrap();
    names.in_sync().await;
    assert_eq!(names.policy_names(), set(&["n/hidden"]));

    // Without all of this again, what was read before stays, and is followed as far as it may be.
    for part in ["", "clusterinformations/"] {
        let options = RoleRevokePermissionOptions::new().with_prefix();
        root().await.role_revoke_permission("reader", format!("{ROOT}{part}"), Some(options)).await.unwrap();
    }
    store.etcd.restart().unwrap();
    names.error("cannot list networkpolicies in etcd").await;
    names.error("cannot list clusterinformations in etcd").await;
    let value =
        r#"{"spec": {"node": "worker-1", "orchestrator": "k8s", "pod": "b", "interfaceName": "cali-b"}}"#;
    root().await.put(format!("{ROOT}workloadendpoints/n/worker--1-k8s-b-eth0"), value, None).await.unwrap();
    names.until("the rest", |names| names.pods() == set(&["n/a", "n/b"])).await;
    assert_eq!((names.policy_names(), names.status().in_sync), (set(&["n/hidden"]), false));
}
