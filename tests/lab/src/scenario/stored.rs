//! A scenario's objects as datastores keep them.

use super::{NODE_NAME, Scenario};
use crate::error::{Error, Result};
use accountant_core::calico::names::pod_interface;
use serde_json::{Value, json};

impl Scenario {
    /// All objects of its manifests.
    pub fn objects(&self) -> Result<Vec<Value>> {
        let mut objects = Vec::new();
        for manifest in self.manifests() {
            let documents = serde_saphyr::from_multiple::<Value>(&manifest.text);
            let wrong = |error| Error::io("read the manifest", manifest.file)(std::io::Error::other(error));
            objects.extend(documents.map_err(wrong)?);
        }
        Ok(objects)
    }
}

/// Key and value of an object as a user lists it, as Calico 3.31 keeps it with etcd.
pub fn etcd_entry(object: &Value) -> (String, Value) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (kind, name, namespace) = (text("/kind"), text("/metadata/name"), text("/metadata/namespace"));
    let tier = text("/spec/tier");
    // Calico puts the tier in front where a user left it out.
    let prefix = if tier == "default" && !name.starts_with("default.") { "default." } else { "" };
    let (key, value) = match (text("/apiVersion"), kind) {
        ("v1", "Namespace") => (format!("profiles/kns.{name}"), json!({"kind": "Profile"})),
        ("v1", "Pod") => {
            let escaped = |name: &str| name.replace('-', "--");
            let key =
                format!("workloadendpoints/{namespace}/{}-k8s-{}-eth0", escaped(NODE_NAME), escaped(name));
            let ips = object["status"]["podIPs"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|ip| ip["ip"].as_str());
            let networks =
                ips.map(|ip| if ip.contains(':') { format!("{ip}/128") } else { format!("{ip}/32") });
            let spec = json!({"orchestrator": "k8s", "node": NODE_NAME, "pod": name, "endpoint": "eth0",
                "interfaceName": pod_interface("cali", namespace, name).as_str(),
                "ipNetworks": networks.collect::<Vec<_>>(),
                "profiles": [format!("kns.{namespace}"), format!("ksa.{namespace}.default")]});
            (key, json!({"kind": "WorkloadEndpoint", "metadata": object["metadata"], "spec": spec}))
        }
        ("networking.k8s.io/v1", _) => {
            let key = format!("networkpolicies/{namespace}/knp.default.{name}");
            (key, json!({"kind": "NetworkPolicy", "spec": {"tier": "default", "order": 1000}}))
        }
        (_, "NetworkPolicy") => (format!("networkpolicies/{namespace}/{prefix}{name}"), object.clone()),
        (_, "GlobalNetworkPolicy") => (format!("globalnetworkpolicies/{prefix}{name}"), object.clone()),
        (_, other) => (format!("{}s/{name}", other.to_lowercase()), object.clone()),
    };
    (format!("/calico/resources/v3/projectcalico.org/{key}"), value)
}
