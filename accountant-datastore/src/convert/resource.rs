//! An object of Kubernetes or Calico, as far as names need it, whatever its kind and wherever it was read.
//!
//! One slim struct for all kinds: the kind may come last in an object, and no field that we read means two things.
//! Everything else (ports, containers, `managedFields`) is skipped while reading.

use super::ConvertError;
use super::field::{Field, Group, read_from_maps};
use super::selectors::{Checked, CheckedRules};
use serde::Deserialize;

/// An object as it is in the datastore. Read it with serde from anything that describes itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Resource {
    pub(crate) api_version: Field<Box<str>>,
    pub(crate) kind: Field<Box<str>>,
    pub(crate) metadata: Group<Metadata>,
    pub(crate) spec: Group<Spec>,
    pub(crate) status: Group<Status>,
}

/// What all objects have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub(crate) name: Field<Box<str>>,
    pub(crate) namespace: Field<Box<str>>,
    /// What a watch goes on from.
    pub(crate) resource_version: Field<Box<str>>,
    /// FelixConfiguration: the oldest counts.
    pub(crate) creation_timestamp: Field<Box<str>>,
    /// Only whether it is there matters.
    pub(crate) deletion_timestamp: Field<Box<str>>,
    pub(crate) labels: Group<Labels>,
    pub(crate) annotations: Group<Annotations>,
}

/// The labels that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Labels {
    pub(crate) app: Field<Box<str>>,
    #[serde(rename = "projectcalico.org/tier")]
    pub(crate) tier: Field<Box<str>>,
}

/// The annotations that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Annotations {
    /// JSON with the real labels and annotations of an object of `crd.projectcalico.org/v1`.
    #[serde(rename = "projectcalico.org/metadata")]
    pub(crate) hidden: Field<Box<str>>,
    #[serde(rename = "cni.projectcalico.org/podIP")]
    pub(crate) pod_ip: Field<Box<str>>,
    #[serde(rename = "cni.projectcalico.org/podIPs")]
    pub(crate) pod_ips: Field<Box<str>>,
    #[serde(rename = "vpc.amazonaws.com/pod-ips")]
    pub(crate) aws_pod_ips: Field<Box<str>>,
}

/// What kinds specify.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Spec {
    /// Pod: the node it runs on.
    pub(crate) node_name: Field<Box<str>>,
    /// Pod: it has no interface of its own.
    pub(crate) host_network: Field<bool>,
    /// Pod: its service account.
    pub(crate) service_account_name: Field<Box<str>>,
    /// Policies of Calico: the tier. ClusterNetworkPolicy: `Admin` or `Baseline`.
    pub(crate) tier: Field<Box<str>>,
    /// Policies of Calico: whom they are for.
    pub(crate) selector: Field<Checked>,
    pub(crate) namespace_selector: Field<Checked>,
    pub(crate) service_account_selector: Field<Checked>,
    /// Policies of Calico: their rules.
    pub(crate) ingress: Field<CheckedRules>,
    pub(crate) egress: Field<CheckedRules>,
    /// HostEndpoint: the node it is on.
    pub(crate) node: Field<Box<str>>,
    /// HostEndpoint and WorkloadEndpoint: the interface.
    pub(crate) interface_name: Field<Box<str>>,
    /// HostEndpoint: addresses that tell the interface.
    #[serde(rename = "expectedIPs")]
    pub(crate) expected_ips: Field<Vec<Field<Box<str>>>>,
    /// WorkloadEndpoint: the pod, where Kubernetes runs it.
    pub(crate) pod: Field<Box<str>>,
    /// WorkloadEndpoint: the workload, where another orchestrator runs it.
    pub(crate) workload: Field<Box<str>>,
    /// WorkloadEndpoint: its networks.
    pub(crate) ip_networks: Field<Vec<Field<Box<str>>>>,
    /// HostEndpoint and WorkloadEndpoint: their profiles.
    pub(crate) profiles: Field<Vec<Field<Box<str>>>>,
    /// ClusterInformation: false while the datastore is being migrated.
    pub(crate) datastore_ready: Field<bool>,
    /// FelixConfiguration: the nodes that it is for.
    pub(crate) node_selector: Field<Box<str>>,
    /// FelixConfiguration: what the names of workload interfaces begin with.
    pub(crate) interface_prefix: Field<Box<str>>,
}

/// What a Pod's status says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) phase: Field<Box<str>>,
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: Field<Box<str>>,
    #[serde(rename = "podIPs")]
    pub(crate) pod_ips: Field<Vec<Group<PodIp>>>,
}

/// One address of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct PodIp {
    pub(crate) ip: Field<Box<str>>,
}

read_from_maps!(Resource, Metadata, Labels, Annotations, Spec, Status, PodIp);

impl Resource {
    pub(crate) fn metadata(&self) -> Result<&Metadata, ConvertError> {
        self.metadata.read("metadata")
    }

    pub(crate) fn labels(&self) -> Result<&Labels, ConvertError> {
        self.metadata()?.labels.read("metadata.labels")
    }

    pub(crate) fn annotations(&self) -> Result<&Annotations, ConvertError> {
        self.metadata()?.annotations.read("metadata.annotations")
    }

    pub(crate) fn spec(&self) -> Result<&Spec, ConvertError> {
        self.spec.read("spec")
    }

    pub(crate) fn status(&self) -> Result<&Status, ConvertError> {
        self.status.read("status")
    }

    /// Kind, namespace and name for a message, as far as they can be told: `Pod shop/web`.
    pub fn describe(&self) -> String {
        let metadata = match &self.metadata {
            Group::Is(metadata) => metadata,
            Group::Wrong(_) => return shown(&self.kind),
        };
        match &metadata.namespace {
            Field::Is(namespace) if !namespace.is_empty() => {
                format!("{} {}/{}", shown(&self.kind), cut(namespace), shown(&metadata.name))
            }
            _ => format!("{} {}", shown(&self.kind), shown(&metadata.name)),
        }
    }
}

fn shown(field: &Field<Box<str>>) -> String {
    match field {
        Field::Is(text) => cut(text),
        Field::Absent | Field::Wrong(_) => "?".into(),
    }
}

/// A foreign text fit for a log line.
pub(crate) fn cut(text: &str) -> String {
    const LONGEST: usize = 120;
    match text.char_indices().nth(LONGEST) {
        None => text.escape_debug().to_string(),
        Some((end, _)) => format!("{}...", text[..end].escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, want: &str) {
        let resource: Resource = serde_json::from_str(json).expect("a map");
        assert_eq!(resource.describe(), want);
    }

    #[test]
    fn objects_are_described_as_far_as_they_can_be() {
        check(r#"{"kind": "Pod", "metadata": {"namespace": "shop", "name": "web"}}"#, "Pod shop/web");
        check(r#"{"kind": "Tier", "metadata": {"name": "sec"}}"#, "Tier sec");
        check(r#"{"kind": "Pod", "metadata": {"namespace": "shop"}}"#, "Pod shop/?");
        check(r#"{"kind": "Pod", "metadata": []}"#, "Pod");
        check(r#"{"metadata": {"name": 1}}"#, "? ?");
        check(r#"{"kind": "Pod", "metadata": {"name": "a\nb"}}"#, "Pod a\\nb");
        assert_eq!(cut(&"é".repeat(500)).chars().count(), 123);
    }
}
