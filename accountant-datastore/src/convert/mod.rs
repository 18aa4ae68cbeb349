//! From objects of Kubernetes and Calico to names. Pure, and the same for every datastore.
//!
//! In goes a [`Resource`], read by serde from wherever it was; out come its key and an
//! [`accountant_core::index::Object`], nothing when it gives no name (an unknown kind, another node, the host's
//! network), or an error that says which field is amiss.
//!
//! Invariant: what comes out depends on the object and the settings alone, and an object gives at most one name.

mod endpoint;
mod error;
pub(crate) mod field;
mod pod;
mod policy;
pub(crate) mod profile;
pub(crate) mod resource;
mod selectors;

pub use error::ConvertError;
pub use resource::Resource;

use accountant_core::index::{Object, ObjectKey};

/// Longest name and namespace that Kubernetes takes (a DNS subdomain).
const MAX_NAME: usize = 253;

/// What conversion must know of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its name, as Felix spells it: host endpoints of other nodes are left out.
    pub node: Box<str>,
    /// What the names of pods' interfaces begin with.
    pub interface_prefix: Box<str>,
}

impl Settings {
    /// `interface_prefixes` is `FELIX_INTERFACEPREFIX`: the first of a comma list counts, and `cali` if it is empty.
    pub fn new(node: &str, interface_prefixes: &str) -> Self {
        let first = interface_prefixes.split(',').next().unwrap_or_default().trim();
        let interface_prefix = if first.is_empty() { "cali" } else { first };
        Self { node: node.into(), interface_prefix: interface_prefix.into() }
    }
}

/// An object of a kind that we know, under its name.
struct Named<'a> {
    resource: &'a Resource,
    group: &'a str,
    /// Empty for cluster-wide kinds.
    namespace: &'a str,
    name: &'a str,
}

type Conversion = fn(&Named<'_>, &Settings) -> Result<Option<Object>, ConvertError>;

/// A kind that we know.
struct Kind {
    groups: &'static [&'static str],
    name: &'static str,
    namespaced: bool,
    convert: Conversion,
}

const CORE: &[&str] = &[""];
const KUBERNETES: &[&str] = &["networking.k8s.io"];
const ADMIN: &[&str] = &["policy.networking.k8s.io"];
/// The group of Calico's custom resources whose names and labels are as Calico stores them, not as users wrote them.
const STORED: &str = "crd.projectcalico.org";
const CALICO: &[&str] = &["projectcalico.org", STORED];

const fn kind(
    groups: &'static [&'static str],
    name: &'static str,
    namespaced: bool,
    convert: Conversion,
) -> Kind {
    Kind { groups, name, namespaced, convert }
}

const KINDS: [Kind; 16] = [
    kind(CORE, "Pod", true, pod::workload),
    kind(CORE, "Namespace", false, profile::of_namespace),
    kind(CORE, "ServiceAccount", true, profile::of_service_account),
    kind(KUBERNETES, "NetworkPolicy", true, policy::kubernetes),
    kind(ADMIN, "AdminNetworkPolicy", false, policy::admin),
    kind(ADMIN, "BaselineAdminNetworkPolicy", false, policy::baseline_admin),
    kind(ADMIN, "ClusterNetworkPolicy", false, policy::cluster),
    kind(CALICO, "NetworkPolicy", true, policy::calico),
    kind(CALICO, "GlobalNetworkPolicy", false, policy::calico_global),
    kind(CALICO, "HostEndpoint", false, endpoint::host),
    kind(CALICO, "WorkloadEndpoint", true, endpoint::workload),
    kind(CALICO, "Profile", false, profile::of_calico),
    kind(CALICO, "Tier", false, nameless),
    kind(CALICO, "StagedNetworkPolicy", true, nameless),
    kind(CALICO, "StagedGlobalNetworkPolicy", false, nameless),
    kind(CALICO, "StagedKubernetesNetworkPolicy", true, nameless),
];

/// The name that an object gives, and its key: kind (`KIND`, or `KIND.GROUP` outside of Kubernetes' core, as kubectl
/// spells it, because three groups have a NetworkPolicy), namespace and name as they are in the datastore.
pub fn convert(
    resource: &Resource,
    settings: &Settings,
) -> Result<Option<(ObjectKey, Object)>, ConvertError> {
    let kind_name = resource.kind.required("kind")?;
    let version = resource.api_version.required("apiVersion")?;
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    let Some(kind) = KINDS.iter().find(|kind| kind.name == kind_name && kind.groups.contains(&group)) else {
        tracing::debug!(kind = kind_name, group, "left out an object of a kind that gives no names");
        return Ok(None);
    };
    let metadata = resource.metadata()?;
    let name = short(metadata.name.required("metadata.name")?, "metadata.name")?;
    let namespace = match kind.namespaced {
        true => short(metadata.namespace.required("metadata.namespace")?, "metadata.namespace")?,
        false => "",
    };
    let object = (kind.convert)(&Named { resource, group, namespace, name }, settings)?;
    let key = || (key_kind(kind.name, group), namespace.into(), name.into());
    Ok(object.map(|object| (key(), object)))
}

/// What is wrong with an object that gives a name all the same: a policy of Calico's with a selector that is none.
pub fn complaint(resource: &Resource) -> Option<ConvertError> {
    let kind = resource.kind.text("kind").ok()?;
    let version = resource.api_version.text("apiVersion").ok()?;
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    let has_selectors = CALICO.contains(&group) && ["NetworkPolicy", "GlobalNetworkPolicy"].contains(&kind);
    if has_selectors { selectors::check(resource.spec().ok()?).err() } else { None }
}

/// What tells an object apart, as [`convert`] keys it, without looking into the object.
pub(crate) fn object_key(kind: &str, group: &str, namespace: &str, name: &str) -> ObjectKey {
    (key_kind(kind, group), namespace.into(), name.into())
}

fn short<'a>(name: &'a str, field: &'static str) -> Result<&'a str, ConvertError> {
    if name.len() > MAX_NAME { Err(ConvertError::TooLong { field, length: name.len() }) } else { Ok(name) }
}

fn key_kind(kind: &str, group: &str) -> Box<str> {
    if group.is_empty() { kind.into() } else { format!("{kind}.{group}").into() }
}

/// Known, and no chain is named after it: tiers, and staged policies, which Felix never programs.
fn nameless(_: &Named<'_>, _: &Settings) -> Result<Option<Object>, ConvertError> {
    Ok(None)
}

#[cfg(test)]
mod tests;
