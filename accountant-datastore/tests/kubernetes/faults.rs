//! What goes wrong, and that all is well afterwards.

use crate::cluster::{CRD, Cluster, V3, admin, datastore};
use crate::common::{Names, set};
use crate::proxy::Fate;
use accountant_datastore::kubernetes::{Connection, Source};
use accountant_rigs::rbac::{self, Permission};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

const CALICO: &str = "crd.projectcalico.org";
const NATIVE: &str = "projectcalico.org";

pub async fn a_server_that_is_gone_takes_no_name_and_afterwards_all_is_as_stored(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[CALICO]).await;
    cluster.pod("n", "a", "worker-1").await;
    cluster.knp("stays").await;
    cluster.np(CRD, "goes").await;
    let (mut proxy, mut names) = cluster.proxy().await;
    names.in_sync().await;
    // A watch that is cut goes on where it was.
    let lists = |proxy: &crate::proxy::Proxy| {
        proxy.seen().iter().filter(|seen| seen.contains("resourceVersion=0")).count()
    };
    let before = lists(&proxy);
    proxy.cut();
    cluster.knp("cut").await;
    names.until("after the cut", |names| names.policy_names() == set(&["n/cut", "n/goes", "n/stays"])).await;
    names.in_sync().await;
    assert_eq!(lists(&proxy), before, "what was cut off is watched again, not listed");

    proxy.stop().await;
    names.until("the loss", |names| !names.status().in_sync && !names.status().errors.is_empty()).await;
    assert_eq!(names.pods(), set(&["n/a"]));
    cluster.delete("/apis/crd.projectcalico.org/v1/namespaces/n/networkpolicies/goes").await;
    cluster.delete("/api/v1/namespaces/n/pods/a").await;
    cluster.pod("n", "b", "worker-1").await;
    proxy.resume().await;
    names.until("policies", |names| names.policy_names() == set(&["n/cut", "n/stays"])).await;
    names.until("pods", |names| names.pods() == set(&["n/b"])).await;
    names.in_sync().await;
    assert!(names.count("connect") > 0);
    assert!(names.status().errors.is_empty(), "{:?}", names.status());
}

pub async fn answers_that_refuse_are_outlasted(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[CALICO]).await;
    cluster.knp("k0").await;
    let (proxy, mut names) = cluster.proxy().await;
    proxy.rule(|target| if target.contains("resourceVersion=0") { Fate::Answer(429) } else { Fate::Pass });
    names.error("(429)").await;
    proxy.rule(|_| Fate::Slow(Duration::from_millis(200)));
    names.in_sync().await;
    let mut wanted = vec!["n/k0".to_string()];
    let fates = [Fate::Answer(410), Fate::Answer(429), Fate::Answer(500), Fate::Answer(503), Fate::Expire];
    for (number, fate) in fates.into_iter().enumerate() {
        let expires = matches!(fate, Fate::Answer(410) | Fate::Expire);
        let of_watches = move |target: &str| {
            if target.contains("watch=true") { fate.clone() } else { Fate::Pass }
        };
        proxy.rule(of_watches);
        let lists = || proxy.seen().iter().filter(|seen| seen.contains("resourceVersion=0")).count();
        let (before, expired) = (lists(), names.count("expired"));
        proxy.cut();
        let refused = |names: &Names| match expires {
            true => names.count("expired") > expired,
            false => !names.status().in_sync,
        };
        names.until("refused", refused).await;
        let name = format!("k{}", number + 1);
        cluster.knp(&name).await;
        wanted.push(format!("n/{name}"));
        proxy.rule(|_| Fate::Pass);
        let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
        names.until("after it", |names| names.policy_names() == set(&wanted)).await;
        names.in_sync().await;
        assert_eq!(lists() > before, expires, "only what is gone is listed anew: {:?}", proxy.seen());
    }
    // A whole server that answers nothing but errors, discovery included.
    proxy.rule(|_| Fate::Answer(500));
    let mut late = Names::of(datastore(Connection {
        overrides: accountant_datastore::kubernetes::Overrides {
            server: Some(proxy.url().into()),
            ..Default::default()
        },
        source: Source::Overrides,
        ..cluster.connection()
    }));
    late.error("(500)").await;
    proxy.rule(|_| Fate::Pass);
    late.in_sync().await;
    assert_eq!(late.policy_names(), names.policy_names());
}

pub async fn what_the_server_does_not_tell_takes_no_name(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[NATIVE]).await;
    cluster.np(V3, "a").await;
    let (proxy, mut names) = cluster.proxy().await;
    names.in_sync().await;
    let refuse = async |status: u16, names: &mut Names| {
        proxy.rule(move |target| if target == "/apis" { Fate::Answer(status) } else { Fate::Pass });
        let asked = || proxy.seen().iter().filter(|target| *target == "/apis").count();
        // When it is asked again, what came of the last answer is done.
        let before = asked();
        while asked() < before + 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let after = format!("after-{status}");
        cluster.np(V3, &after).await;
        let after = format!("n/{after}");
        names.until(&after, |names| names.policy_names().contains(&after)).await;
        assert!(names.policy_names().contains("n/a"), "{status}");
    };
    for status in [403, 404, 500, 429] {
        refuse(status, &mut names).await;
    }
    assert!(names.count("discover") > 0 && names.count("throttled") > 0);
    proxy.rule(|_| Fate::Pass);
    names.in_sync().await;
    assert_eq!(names.policy_names().len(), 5);
}

pub async fn a_connection_that_is_dead_is_given_up(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[CALICO]).await;
    cluster.knp("first").await;
    let (wire, mut names) = cluster.wire().await;
    names.in_sync().await;
    cluster.np(CRD, "second").await;
    names.until("all", |names| names.policy_names() == set(&["n/first", "n/second"])).await;
    assert_eq!(wire.connections(), 1, "all watches are on one connection");
    wire.hold();
    cluster.knp("third").await;
    names.until("what nobody told us", |names| names.policy_names().contains("n/third")).await;
    names.in_sync().await;
}

pub async fn tokens_and_authorities_are_checked_and_read_again(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[CALICO]).await;
    cluster.knp("a").await;
    let folder = tempfile::tempdir().unwrap();
    let [token, ca] = ["token", "ca.crt"].map(|name| folder.path().join(name));
    std::fs::write(&token, "expired").unwrap();
    accountant_rigs::Certificates::make(folder.path()).unwrap();
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": {"server": cluster.server.server(), "certificate-authority": ca}}],
        "users": [{"name": "u", "user": {"tokenFile": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]});
    let source = Source::Inline(kubeconfig.to_string().as_str().into());
    let mut names = Names::of(datastore(Connection { source, ..cluster.connection() }));
    names.error("certificate").await;
    assert_eq!(names.count("unauthorized"), 0, "a server that is not known is told no token");
    std::fs::copy(cluster.server.ca(), &ca).unwrap();
    names.error("(401)").await;
    assert!(names.count("unauthorized") > 0);
    std::fs::write(&token, cluster.server.token()).unwrap();
    names.in_sync().await;
    assert_eq!(names.policy_names(), set(&["n/a"]));
}

pub async fn a_restart_with_other_certificates_is_followed(binary: PathBuf) {
    let mut cluster = Cluster::new(binary, &[CALICO]).await;
    cluster.knp("before").await;
    cluster.pod("n", "a", "worker-1").await;
    let mut names = cluster.names();
    names.in_sync().await;
    cluster.server.kill();
    names.until("the loss", |names| !names.status().in_sync).await;
    cluster.server.replace_certificates().unwrap();
    let binary = cluster.binary.clone();
    let mut server = cluster.server;
    server = tokio::task::spawn_blocking(move || {
        server.restart(&binary).unwrap();
        server
    })
    .await
    .unwrap();
    cluster.client = admin(&server).await;
    cluster.server = server;
    cluster.knp("after").await;
    names.until("policies", |names| names.policy_names() == set(&["n/after", "n/before"])).await;
    names.in_sync().await;
    assert_eq!(names.pods(), set(&["n/a"]));
}

pub async fn objects_that_cannot_be_used_are_told_by_name(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[CALICO]).await;
    cluster
        .calico(
            CRD,
            "GlobalNetworkPolicy",
            "globalnetworkpolicies",
            "a.good-one",
            json!({"tier": "a", "selector": "x =="}),
        )
        .await;
    cluster
        .calico(CRD, "GlobalNetworkPolicy", "globalnetworkpolicies", "wrong-tier", json!({"tier": 7}))
        .await;
    cluster.calico(CRD, "GlobalNetworkPolicy", "globalnetworkpolicies", "no-spec", Value::Null).await;
    cluster.calico(CRD, "GlobalNetworkPolicy", "globalnetworkpolicies", "list.spec", json!([1])).await;
    cluster.calico(CRD, "HostEndpoint", "hostendpoints", "no-node", json!({})).await;
    let hidden = json!({"apiVersion": CRD, "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "hidden", "annotations": {"projectcalico.org/metadata": "nonsense"}}});
    cluster.create("/apis/crd.projectcalico.org/v1/globalnetworkpolicies", hidden).await;
    let mut names = cluster.names();
    names.in_sync().await;
    assert_eq!(names.policy_names(), set(&["/a.good-one", "/no-spec"]));
    let errors = names.status().errors.join("\n");
    for part in [
        "GlobalNetworkPolicy wrong-tier in Kubernetes: spec.tier must not be a number",
        "GlobalNetworkPolicy list.spec in Kubernetes: spec must not be a list",
        "HostEndpoint no-node in Kubernetes: spec.node is missing",
        "GlobalNetworkPolicy hidden in Kubernetes: annotation",
        "GlobalNetworkPolicy a.good-one in Kubernetes: spec.selector does not parse",
    ] {
        assert!(errors.contains(part), "{part} is in {errors}");
    }
    assert_eq!(names.count("object"), 5);
    let path = "/apis/crd.projectcalico.org/v1/globalnetworkpolicies";
    cluster.patch(&format!("{path}/wrong-tier"), json!({"spec": {"tier": "t"}})).await;
    cluster.patch(&format!("{path}/no-spec"), json!({"spec": {"tier": []}})).await;
    names.until("turned", |names| names.policy_names() == set(&["/a.good-one", "/wrong-tier"])).await;
}

pub async fn the_role_that_we_ship_is_enough_and_less_is_told(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[CALICO, "policy.networking.k8s.io"]).await;
    cluster.pod("n", "a", "worker-1").await;
    cluster.knp("k").await;
    cluster.np(CRD, "c").await;
    cluster.host("h", "worker-1").await;
    let connection = cluster.as_account("agent").await;

    // Without any role.
    let mut names = Names::of(datastore(connection.clone()));
    names.error("cannot list pods").await;
    names.until("forbidden", |names| names.count("forbidden") >= 8).await;

    // With exactly the one that we ship.
    let role = rbac::role().unwrap();
    let api = "/apis/rbac.authorization.k8s.io/v1";
    cluster.create(&format!("{api}/clusterroles"), role.clone()).await;
    cluster.create(&format!("{api}/clusterrolebindings"), rbac::binding("n", "agent")).await;
    names.in_sync().await;
    let scoped = json!({"interfacePrefix": "gke", "nodeSelector": "all()"});
    cluster.calico(CRD, "FelixConfiguration", "felixconfigurations", "some", scoped).await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-1"}});
    cluster.create("/api/v1/nodes", node).await;
    names.until("the prefix", |names| names.workloads().keys().all(|at| at.starts_with("gke"))).await;
    names.in_sync().await;
    assert_eq!((names.pods(), names.policy_names()), (set(&["n/a"]), set(&["n/c", "n/k"])));
    assert_eq!(names.hosts().len(), 1);
    assert!(names.status().errors.is_empty(), "{:?}", names.status());

    // Without one kind, that is told, and all others go on. (Each other permission: tests/kernel/datastores.)
    let path = format!("{api}/clusterroles/{}", rbac::ROLE);
    let [group, resource, verb] = ["networking.k8s.io", "networkpolicies", "list"].map(String::from);
    let listing = Permission { group, resource, verb };
    cluster.patch(&path, json!({"rules": listing.taken_from(&role)})).await;
    let mut less = Names::of(datastore(connection.clone()));
    less.error("cannot list networkpolicies.networking.k8s.io").await;
    less.until("the rest", |less| less.policy_names() == set(&["n/c"]) && less.pods() == set(&["n/a"])).await;
    assert!(!less.status().in_sync);
    let errors = &less.status().errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
}

pub async fn a_datastore_that_is_not_ready_keeps_its_last_names(binary: PathBuf) {
    let cluster = Cluster::new(binary, &[CALICO]).await;
    let ready = |ready: bool| json!({"datastoreReady": ready});
    cluster.calico(CRD, "ClusterInformation", "clusterinformations", "default", ready(true)).await;
    cluster.np(CRD, "stays").await;
    let mut names = cluster.names();
    names.in_sync().await;
    let path = "/apis/crd.projectcalico.org/v1/clusterinformations/default";
    cluster.patch(path, json!({"spec": ready(false)})).await;
    names.error("datastoreReady: false").await;
    assert!(!names.status().in_sync);
    cluster.delete("/apis/crd.projectcalico.org/v1/namespaces/n/networkpolicies/stays").await;
    cluster.np(CRD, "new").await;
    // Pods and Kubernetes' own policies are followed all the while.
    cluster.knp("own").await;
    names.until("own", |names| names.policy_names() == set(&["n/own", "n/stays"])).await;
    cluster.patch(path, json!({"spec": ready(true)})).await;
    names.in_sync().await;
    assert_eq!(names.policy_names(), set(&["n/new", "n/own"]), "in sync is said when all is followed again");
}
