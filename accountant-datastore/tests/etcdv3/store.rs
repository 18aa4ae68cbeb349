//! A real etcd, and what tests do with it.

use crate::common::Names;
use crate::common::wire::Wire;
use accountant_datastore::convert::Settings;
use accountant_datastore::etcdv3::{Connection, Etcd, Servers};
use accountant_rigs::{etcd_entries, fixtures};
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use std::fmt::Display;
use std::time::Duration;

pub const ROOT: &str = "/calico/resources/v3/projectcalico.org/";

/// An etcd, and a client that may write.
pub struct Store {
    pub etcd: accountant_rigs::Etcd,
    pub client: Client,
}

impl Store {
    pub async fn new() -> Self {
        let etcd = accountant_rigs::Etcd::start().unwrap();
        let client = Client::connect([etcd.endpoint()], None).await.unwrap();
        Self { etcd, client }
    }

    pub async fn loaded(file: &str) -> Self {
        let mut store = Self::new().await;
        for (key, value) in etcd_entries(&fixtures().join(file)) {
            store.client.put(key, value, None).await.unwrap();
        }
        store
    }

    pub async fn put(&mut self, key: &str, value: &str) {
        self.client.put(format!("{ROOT}{key}"), value, None).await.unwrap();
    }

    pub async fn policy(&mut self, name: &str) {
        self.put(&format!("networkpolicies/n/{name}"), r#"{"spec": {"tier": "default"}}"#).await;
    }

    pub async fn endpoint(&mut self, namespace: &str, node: &str, pod: &str) {
        let escaped = node.replace('-', "--");
        let value = format!(
            r#"{{"metadata": {{"labels": {{"app": "a"}}}}, "spec": {{"node": "{node}", "orchestrator": "k8s",
                "pod": "{pod}", "interfaceName": "cali-{pod}", "profiles": ["kns.{namespace}"]}}}}"#
        );
        self.put(&format!("workloadendpoints/{namespace}/{escaped}-k8s-{pod}-eth0"), &value).await;
    }

    pub async fn delete(&mut self, key: &str) {
        self.client.delete(format!("{ROOT}{key}"), None).await.unwrap();
    }

    /// Forgets all history, so that only what is now can be read.
    pub async fn compact(&mut self) {
        let revision = self.client.get("x", None).await.unwrap().header().unwrap().revision();
        self.client.compact(revision, None).await.unwrap();
    }

    pub fn names(&self) -> Names {
        self.names_with(|_| {})
    }

    pub fn names_with(&self, change: impl FnOnce(&mut Connection)) -> Names {
        let servers = Servers::Endpoints(vec![self.etcd.endpoint().into()]);
        let mut connection = Connection { servers, ..Connection::default() };
        change(&mut connection);
        follow(connection)
    }

    /// What one gets over a wire that can be held.
    pub async fn names_by_wire(&self) -> (Wire, Names) {
        let wire = Wire::to(self.etcd.endpoint().trim_start_matches("http://")).await;
        let servers = Servers::Endpoints(vec![format!("http://{}", wire.address()).into()]);
        let names = self.names_with(|connection| connection.servers = servers);
        (wire, names)
    }

    /// Stores many objects, some at once.
    pub async fn put_all(&mut self, objects: &[(String, String)], at_once: usize) {
        for some in objects.chunks(at_once) {
            let puts = some.iter().map(|(key, value)| TxnOp::put(format!("{ROOT}{key}"), &**value, None));
            let puts: Vec<_> = puts.collect();
            let always = Compare::version("none", CompareOp::Equal, 0);
            self.client.txn(Txn::new().when([always]).and_then(puts)).await.unwrap();
        }
    }
}

pub fn follow(connection: Connection) -> Names {
    let etcd = Etcd::new(connection, Settings::new("worker-1", ""));
    Names::of(Etcd { again_within: Duration::from_millis(100), ..etcd })
}

/// A policy of about this many bytes.
pub fn large(name: impl Display, bytes: usize) -> (String, String) {
    let value = format!(r#"{{"spec": {{"tier": "default", "selector": "a == '{}'"}}}}"#, "x".repeat(bytes));
    (format!("networkpolicies/n/{name}"), value)
}
