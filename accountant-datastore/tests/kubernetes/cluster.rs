//! A real API server, and what tests do with it.

use crate::common::Names;
use crate::common::wire::Wire;
use crate::proxy::Proxy;
use accountant_datastore::kubernetes::{Connection, KeepAlive, Kubernetes, Overrides, Proxies, Source};
use accountant_rigs::{ApiServer, preload, root};
use kube::Client;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

pub const CRD: &str = "crd.projectcalico.org/v1";
pub const V3: &str = "projectcalico.org/v3";

/// An API server with the custom resources of some groups.
pub struct Cluster {
    pub server: ApiServer,
    pub client: Client,
    pub binary: PathBuf,
}

impl Cluster {
    /// With kinds of these groups. Namespaces `n` and `m` are there.
    pub async fn new(binary: PathBuf, groups: &[&str]) -> Self {
        Self::with(binary, groups, &[]).await
    }

    /// With these objects stored beforehand as they are.
    pub async fn with(binary: PathBuf, groups: &[&str], objects: &[Value]) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        preload::write(file.path(), objects.iter().cloned()).unwrap();
        let at = binary.clone();
        let server =
            tokio::task::spawn_blocking(move || ApiServer::start_with(&at, &[], file.path()).unwrap());
        let server = server.await.unwrap();
        let client = admin(&server).await;
        let cluster = Self { server, client, binary };
        for namespace in ["n", "m"] {
            cluster
                .create(
                    "/api/v1/namespaces",
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
                )
                .await;
        }
        cluster.install(groups).await;
        cluster
    }

    /// Installs the custom resources of groups (`GROUP`, or `GROUP/KIND` for one of them), and waits until they are served.
    pub async fn install(&self, groups: &[&str]) {
        let text = std::fs::read_to_string(root().join("tests/apiserver/crds.json")).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        for crd in list["items"].as_array().unwrap() {
            let (group, kind) = (text_at(crd, "/spec/group"), text_at(crd, "/spec/names/kind"));
            let wanted = [
                "NetworkPolicy",
                "GlobalNetworkPolicy",
                "HostEndpoint",
                "FelixConfiguration",
                "ClusterInformation",
                "AdminNetworkPolicy",
                "BaselineAdminNetworkPolicy",
                "ClusterNetworkPolicy",
                "Tier",
            ]
            .contains(&kind);
            let of_group = groups.contains(&group) && wanted;
            if of_group || groups.contains(&format!("{group}/{kind}").as_str()) {
                self.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd.clone()).await;
                let (version, plural) =
                    (text_at(crd, "/spec/versions/0/name"), text_at(crd, "/spec/names/plural"));
                let path = format!("/apis/{group}/{version}/{plural}");
                while self.send("GET", &path, None).await.0 != 200 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    pub async fn send(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let request = http::Request::builder().method(method).uri(path);
        let request = match method {
            "PATCH" => request.header("content-type", "application/merge-patch+json"),
            _ => request.header("content-type", "application/json"),
        };
        let body = body.map_or(Vec::new(), |body| body.to_string().into_bytes());
        let response = self.client.send(request.body(Body::from(body)).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect_bytes().await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub async fn create(&self, path: &str, object: Value) {
        loop {
            let (status, answer) = self.send("POST", path, Some(object.clone())).await;
            match status {
                200..300 => return,
                // A resource that was just made waits for its cache.
                429 | 404 => tokio::time::sleep(Duration::from_millis(50)).await,
                _ => panic!("{path}: {status}: {answer}"),
            }
        }
    }

    pub async fn delete(&self, path: &str) {
        let (status, answer) = self.send("DELETE", &format!("{path}?gracePeriodSeconds=0"), None).await;
        assert!(status < 300, "{path}: {status}: {answer}");
    }

    pub async fn patch(&self, path: &str, patch: Value) {
        let (status, answer) = self.send("PATCH", path, Some(patch)).await;
        assert!(status < 300, "{path}: {status}: {answer}");
    }

    pub async fn pod(&self, namespace: &str, name: &str, node: &str) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": "a"}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
        self.create(&format!("/api/v1/namespaces/{namespace}/pods"), pod).await;
    }

    /// A policy of Kubernetes.
    pub async fn knp(&self, name: &str) {
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "n"}, "spec": {"podSelector": {}}});
        self.create("/apis/networking.k8s.io/v1/namespaces/n/networkpolicies", policy).await;
    }

    /// A policy of Calico.
    pub async fn np(&self, group: &str, name: &str) {
        let policy = json!({"apiVersion": group, "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "n"}, "spec": {"tier": "default"}});
        self.create(&format!("/apis/{group}/namespaces/n/networkpolicies"), policy).await;
    }

    /// An object of a cluster-wide kind of Calico.
    pub async fn calico(&self, group: &str, kind: &str, plural: &str, name: &str, spec: Value) {
        let object = json!({"apiVersion": group, "kind": kind, "metadata": {"name": name}, "spec": spec});
        self.create(&format!("/apis/{group}/{plural}"), object).await;
    }

    /// A host endpoint of a node.
    pub async fn host(&self, name: &str, node: &str) {
        let spec = json!({"node": node, "interfaceName": "eth0"});
        self.calico(CRD, "HostEndpoint", "hostendpoints", name, spec).await;
    }

    pub fn connection(&self) -> Connection {
        let source = Source::Files(vec![self.server.kubeconfig().into()]);
        Connection { source, overrides: Overrides::default(), api_group: None, proxies: Proxies::default() }
    }

    pub fn names(&self) -> Names {
        Names::of(datastore(self.connection()))
    }

    pub async fn proxy(&self) -> (Proxy, Names) {
        let proxy = Proxy::start(self.client.clone()).await;
        let overrides = Overrides { server: Some(proxy.url().into()), ..Overrides::default() };
        let connection = Connection { overrides, source: Source::Overrides, ..self.connection() };
        (proxy, Names::of(datastore(connection)))
    }

    /// What one gets over a wire that can be held.
    pub async fn wire(&self) -> (Wire, Names) {
        let wire = Wire::to(self.server.server().trim_start_matches("https://")).await;
        let server = Some(format!("https://{}", wire.address()).into());
        let connection =
            Connection { overrides: Overrides { server, ..Overrides::default() }, ..self.connection() };
        let keep_alive = KeepAlive { after: Duration::from_secs(1), patience: Duration::from_secs(5) };
        (wire, Names::of(Kubernetes { keep_alive, ..datastore(connection) }))
    }

    /// A connection with a token of a service account.
    pub async fn as_account(&self, name: &str) -> Connection {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        self.create("/api/v1/namespaces/n/serviceaccounts", account).await;
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let path = format!("/api/v1/namespaces/n/serviceaccounts/{name}/token");
        let (_, answer) = self.send("POST", &path, Some(request)).await;
        let overrides =
            Overrides { token: Some(text_at(&answer, "/status/token").into()), ..Overrides::default() };
        Connection { overrides, ..self.connection() }
    }
}

pub fn datastore(connection: Connection) -> Kubernetes {
    let times = (Duration::from_millis(100), Duration::from_secs(1));
    let kubernetes = Kubernetes::new(connection, "worker-1", None);
    Kubernetes { endpoint_status: None, discover_after: times, ..kubernetes }
}

pub async fn admin(server: &ApiServer) -> Client {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

pub fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer} in {value}"))
}
