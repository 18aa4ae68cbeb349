//! Endpoints: the pods of a node and the node's own interfaces.

use super::selector::Labels;
use accountant_core::calico::names::pod_interface;
use accountant_core::{Direction, Interface};
use std::net::IpAddr;

/// A pod of the node.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's labels.
    pub labels: Labels,
    /// The pod's addresses, at most one of each IP version.
    pub addresses: Vec<IpAddr>,
    /// The host's side of the pod's veth.
    pub interface: Interface,
    /// Administratively down: everything is denied.
    pub admin_down: bool,
    /// The profiles that decide where no policy applies.
    pub profiles: Vec<String>,
    /// Limits on what goes to the pod (3.30 and later).
    pub ingress_limits: Limits,
    /// Limits on what comes from the pod (3.30 and later).
    pub egress_limits: Limits,
}

/// Quality-of-service limits of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Packets a second, and the burst that is let through.
    pub packets: Option<(u32, u32)>,
    /// Open TCP connections.
    pub connections: Option<u32>,
}

impl Endpoint {
    /// A pod with the interface name that Calico computes and the profiles that Calico gives it.
    pub fn new(namespace: &str, pod: &str, addresses: &[IpAddr]) -> Self {
        Self {
            namespace: namespace.to_string(),
            pod: pod.to_string(),
            labels: Labels::new(),
            addresses: addresses.to_vec(),
            interface: pod_interface("cali", namespace, pod),
            admin_down: false,
            profiles: vec![format!("kns.{namespace}"), format!("ksa.{namespace}.default")],
            ingress_limits: Limits::default(),
            egress_limits: Limits::default(),
        }
    }

    /// This pod with one more label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_string(), value.to_string());
        self
    }

    /// The limits in this direction.
    pub fn limits(&self, direction: Direction) -> Limits {
        match direction {
            Direction::Ingress => self.ingress_limits,
            Direction::Egress => self.egress_limits,
        }
    }

    /// The pod's address of the same IP version as `like`.
    pub fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == like.is_ipv4())
    }
}

/// An interface of the node itself that policies apply to.
#[derive(Clone, Debug)]
pub struct HostEndpoint {
    /// The object's name.
    pub name: String,
    /// The interface, or `*` for all of them.
    pub interface: String,
    /// The object's labels.
    pub labels: Labels,
    /// The interface's addresses.
    pub addresses: Vec<IpAddr>,
}

impl HostEndpoint {
    /// The name that the endpoint's chains carry.
    pub fn chain_name(&self) -> &str {
        if self.is_wildcard() { "any-interface-at-all" } else { &self.interface }
    }

    /// Whether this endpoint stands for all interfaces that have none of their own.
    pub fn is_wildcard(&self) -> bool {
        self.interface == "*"
    }
}
