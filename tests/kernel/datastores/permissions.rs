//! `accountant check` with a service account that lacks one permission of the role that we ship: it names exactly that one.

use super::support::run;
use super::{block_on, client, create, send};
use accountant_lab::Namespace;
use accountant_lab::scenario::NODE_NAME;
use accountant_rigs::ApiServer;
use accountant_rigs::preload::crds;
use accountant_rigs::rbac::{self, Permission};
use kube::Client;
use libtest_mimic::Failed;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Groups that the server of the test has.
const SERVED: [&str; 4] = ["", "networking.k8s.io", "policy.networking.k8s.io", "crd.projectcalico.org"];
const RBAC: &str = "rbac.authorization.k8s.io/v1";

pub(crate) fn check_names_each_that_is_missing(binary: &Path) -> Result<(), Failed> {
    let host = Namespace::new("rbac").unwrap();
    let role = rbac::role().unwrap();
    let server = host.enter(|| ApiServer::start(binary, &[]).unwrap()).unwrap();
    let token = host.enter(|| block_on(prepare(&server, &role))).unwrap();
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    let configuration = json!({"apiVersion": "projectcalico.org/v3", "kind": "CalicoAPIConfig", "spec": {
        "datastoreType": "kubernetes", "k8sAPIEndpoint": server.server(), "k8sCAFile": server.ca(), "k8sAPIToken": token}});
    std::fs::write(file.path(), configuration.to_string()).unwrap();
    let config = file.path().display().to_string();
    let check = || {
        // Sources are not what it is about.
        let node = ["--node-name", NODE_NAME, "--kernel-programs", "off"];
        let (said, ..) = run(&host, &[&["check", "--json", "--calico-config", &config], &node[..]].concat());
        let said: Value = serde_json::from_str(&said).unwrap();
        let names = &said["datastore"];
        (names["in_sync"] == true, names["reason"].as_str().unwrap_or_default().to_string())
    };
    assert_eq!(check(), (true, String::new()), "with the whole role");
    let mut tried = 0;
    for missing in Permission::all(&role) {
        if !SERVED.contains(&missing.group.as_str()) {
            continue;
        }
        if !host.enter(|| block_on(take(&server, &role, &missing))).unwrap() {
            continue;
        }
        let (in_sync, reason) = check();
        assert!(!in_sync && reason.contains(&missing.refusal()), "{missing:?}: {reason}");
        assert_eq!(reason.matches("(403)").count(), 1, "{missing:?}: {reason}");
        tried += 1;
    }
    assert!(tried >= 15, "{tried}");
    Ok(())
}

/// Kinds of Calico, the role, an account that has it, and the agent's node. Returns the account's token.
async fn prepare(server: &ApiServer, role: &Value) -> String {
    let client = client(server).await;
    for crd in
        ["crd.projectcalico.org", "policy.networking.k8s.io"].iter().flat_map(|group| crds(group).unwrap())
    {
        create(&client, "apiextensions.k8s.io/v1", "customresourcedefinitions", &crd).await;
        let at = |pointer: &str| crd.pointer(pointer).unwrap().as_str().unwrap();
        let path = format!(
            "/apis/{}/{}/{}",
            at("/spec/group"),
            at("/spec/versions/0/name"),
            at("/spec/names/plural")
        );
        while send(&client, "GET", &path, "application/json", &Value::Null).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "agent", "namespace": "default"}});
    create(&client, "v1", "serviceaccounts", &account).await;
    create(&client, RBAC, "clusterroles", role).await;
    create(&client, RBAC, "clusterrolebindings", &rbac::binding("default", "agent")).await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}});
    create(&client, "v1", "nodes", &node).await;
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let path = "/api/v1/namespaces/default/serviceaccounts/agent/token";
    let (status, answer) = send(&client, "POST", path, "application/json", &request).await;
    answer["status"]["token"].as_str().unwrap_or_else(|| panic!("{status}: {answer}")).to_string()
}

/// Takes a permission away, and waits until the server goes by it. False if there is no such kind.
async fn take(server: &ApiServer, role: &Value, missing: &Permission) -> bool {
    let client = client(server).await;
    if !serves(&client, missing).await {
        return false;
    }
    if missing.resource == "nodes" {
        // Only with a selector the agent asks for its node's labels, and that after some seconds.
        let configuration = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration",
            "metadata": {"name": "some"}, "spec": {"interfacePrefix": "cali", "nodeSelector": "all()"}});
        create(&client, "crd.projectcalico.org/v1", "felixconfigurations", &configuration).await;
    }
    let path = format!("/apis/{RBAC}/clusterroles/{}", rbac::ROLE);
    let rules = json!({"rules": missing.taken_from(role)});
    let (status, answer) = send(&client, "PATCH", &path, "application/merge-patch+json", &rules).await;
    assert!(status < 300, "{answer}");
    let Permission { group, resource, verb } = missing;
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
        "user": "system:serviceaccount:default:agent",
        "resourceAttributes": {"verb": verb, "group": group, "resource": resource}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    while send(&client, "POST", path, "application/json", &review).await.1["status"]["allowed"] != false {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

async fn serves(client: &Client, missing: &Permission) -> bool {
    let group = &missing.group;
    for version in ["v1", "v1alpha1", "v1alpha2"] {
        let path =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let (_, answer) = send(client, "GET", &path, "application/json", &Value::Null).await;
        let kinds = answer["resources"].as_array().into_iter().flatten();
        if kinds.into_iter().any(|kind| kind["name"] == missing.resource.as_str()) {
            return true;
        }
    }
    false
}
