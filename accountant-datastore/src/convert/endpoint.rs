//! Endpoints that Calico itself keeps: host endpoints, and workload endpoints with the interface's real name.

use super::pod::bare;
use super::resource::cut;
use super::{ConvertError, Named, Settings};
use crate::convert::field::Field;
use accountant_core::Interface;
use accountant_core::index::{HostEndpoint, Object, Workload};
use std::net::IpAddr;

/// A host endpoint of this node; node names are compared as Felix does, byte for byte.
pub(super) fn host(endpoint: &Named<'_>, settings: &Settings) -> Result<Option<Object>, ConvertError> {
    let spec = endpoint.resource.spec()?;
    if *spec.node.required("spec.node")? != *settings.node {
        return Ok(None);
    }
    let interface = spec.interface_name.text("spec.interfaceName")?;
    let mut expected_ips = Vec::new();
    for ip in texts(&spec.expected_ips, "spec.expectedIPs")? {
        expected_ips.push(address(ip, "spec.expectedIPs")?);
    }
    if interface.is_empty() && expected_ips.is_empty() {
        return Err(ConvertError::Missing { field: "spec.interfaceName (or spec.expectedIPs)" });
    }
    let name = endpoint.name.into();
    Ok(Some(Object::HostEndpoint(HostEndpoint { name, interface: interface.into(), expected_ips })))
}

/// A workload endpoint. Those that Kubernetes does not run are named after their workload, else after themselves.
pub(super) fn workload(endpoint: &Named<'_>, _: &Settings) -> Result<Option<Object>, ConvertError> {
    let spec = endpoint.resource.spec()?;
    let interface = spec.interface_name.required("spec.interfaceName")?;
    let names = [spec.pod.text("spec.pod")?, spec.workload.text("spec.workload")?, endpoint.name];
    let workload = Workload {
        namespace: endpoint.namespace.into(),
        pod: names.into_iter().find(|name| !name.is_empty()).unwrap_or_default().into(),
        app: endpoint.resource.labels()?.app.text("metadata.labels.app")?.into(),
        ips: texts(&spec.ip_networks, "spec.ipNetworks")?.into_iter().filter_map(bare).collect(),
    };
    Ok(Some(Object::Workload(Interface::from(interface), workload)))
}

pub(super) fn texts<'a>(
    list: &'a Field<Vec<Field<Box<str>>>>,
    name: &'static str,
) -> Result<Vec<&'a str>, ConvertError> {
    list.read(name)?.into_iter().flatten().map(|item| item.text(name)).collect()
}

fn address(text: &str, field: &'static str) -> Result<IpAddr, ConvertError> {
    text.parse().map_err(|_| ConvertError::Value { field, value: cut(text), wanted: "IP addresses" })
}
