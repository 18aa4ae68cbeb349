//! Pods as Calico's Kubernetes datastore turns them into workload endpoints
//! (`libcalico-go/lib/backend/k8s/conversion`, 3.18 and later; earlier ones know fewer annotations).

use super::resource::{Annotations, Status};
use super::{ConvertError, Named, Settings};
use accountant_core::calico::names::pod_interface;
use accountant_core::index::{Object, Workload};

/// A pod that has an interface of its own, or will have: on a node, and not in the host's network.
///
/// Which node does not matter: the interface is named after the pod, and only the pod's own node has it. A pod without
/// addresses, which Felix leaves out, is kept for as long as it is listed, because its chain may outlive them.
pub(super) fn workload(pod: &Named<'_>, settings: &Settings) -> Result<Option<Object>, ConvertError> {
    let spec = pod.resource.spec()?;
    let on_node = !spec.node_name.text("spec.nodeName")?.is_empty();
    let in_host_network = *spec.host_network.read("spec.hostNetwork")?.unwrap_or(&false);
    if !on_node || in_host_network {
        return Ok(None);
    }
    let interface = pod_interface(&settings.interface_prefix, pod.namespace, pod.name);
    let workload = Workload {
        namespace: pod.namespace.into(),
        pod: pod.name.into(),
        app: pod.resource.labels()?.app.text("metadata.labels.app")?.into(),
        ips: if finished(pod)? { Vec::new() } else { addresses(pod)? },
    };
    Ok(Some(Object::Workload(interface, workload)))
}

/// Whether the pod's addresses are no longer its own: it ran to an end, or it is going and the CNI plugin has
/// already released them, which it says by emptying an annotation.
fn finished(pod: &Named<'_>) -> Result<bool, ConvertError> {
    let phase = pod.resource.status()?.phase.text("status.phase")?;
    if matches!(phase, "Failed" | "Succeeded" | "Completed") {
        return Ok(true);
    }
    let deleted = pod.resource.metadata()?.deletion_timestamp.read("metadata.deletionTimestamp")?.is_some();
    let Annotations { pod_ip, aws_pod_ips, .. } = pod.resource.annotations()?;
    let released = pod_ip.read(POD_IP)?.is_some_and(|ip| ip.is_empty())
        || aws_pod_ips.read(AWS_POD_IPS)?.is_some_and(|ips| ips.is_empty());
    Ok(deleted && released)
}

const POD_IP: &str = "annotation cni.projectcalico.org/podIP";
const POD_IPS: &str = "annotation cni.projectcalico.org/podIPs";
const AWS_POD_IPS: &str = "annotation vpc.amazonaws.com/pod-ips";

/// The first that is not empty of the status and the annotations that CNI plugins leave before kubelet reports.
fn addresses(pod: &Named<'_>) -> Result<Vec<Box<str>>, ConvertError> {
    let status = pod.resource.status()?;
    let annotations = pod.resource.annotations()?;
    let mut ips = status_ips(status)?;
    let texts = [
        status.pod_ip.text("status.podIP")?,
        annotations.pod_ips.text(POD_IPS)?,
        annotations.pod_ip.text(POD_IP)?,
        annotations.aws_pod_ips.text(AWS_POD_IPS)?,
    ];
    for text in texts {
        if ips.is_empty() {
            ips = text.split(',').filter_map(bare).collect();
        }
    }
    Ok(ips)
}

fn status_ips(status: &Status) -> Result<Vec<Box<str>>, ConvertError> {
    let mut ips = Vec::new();
    for entry in status.pod_ips.read("status.podIPs")?.into_iter().flatten() {
        let ip = entry.read("status.podIPs[]")?.ip.text("status.podIPs[].ip")?;
        ips.extend(bare(ip));
    }
    Ok(ips)
}

/// A network as labels show it: without the length of a single address. Nothing if there is none.
pub(super) fn bare(network: &str) -> Option<Box<str>> {
    let network = network.trim();
    let suffix = if network.contains(':') { "/128" } else { "/32" };
    let bare = network.strip_suffix(suffix).unwrap_or(network);
    (!bare.is_empty()).then(|| bare.into())
}
