//! What goes wrong, and that all is well afterwards.

use crate::common::set;
use crate::store::{ROOT, Store, follow};
use accountant_datastore::etcdv3::{Connection, Servers};
use accountant_datastore::secret::Pem;
use etcd_client::{Client, ConnectOptions, Permission, RoleRevokePermissionOptions};

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
        "NetworkPolicy n/not-selectable in etcd: spec.selector does not parse",
    ] {
        assert!(errors.contains(part), "{part} is in {errors}");
    }
    assert_eq!(names.count("object"), 9);
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
