//! The kinds that names come from, and which of them a cluster has. Pure.

use super::connection::ApiGroup;
use kube::discovery::ApiResource;

/// What a kind is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Pods of this node.
    Pods,
    /// Names.
    Names,
    /// Whether the datastore is in use.
    Ready,
    /// What the names of interfaces begin with.
    Prefix,
}

/// How much of an object is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: what is wanted stands in `spec`.
    Whole,
    /// Its metadata, which has the name.
    Metadata,
}

/// A kind.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) name: &'static str,
    pub(super) plural: &'static str,
    pub(super) part: Part,
    pub(super) role: Role,
}

const fn kind(
    (group, version): (&'static str, &'static str),
    name: &'static str,
    plural: &'static str,
    part: Part,
    role: Role,
) -> Kind {
    Kind { group, version, name, plural, part, role }
}

const CRD: (&str, &str) = ("crd.projectcalico.org", "v1");
const V3: (&str, &str) = ("projectcalico.org", "v3");
const ADMIN: (&str, &str) = ("policy.networking.k8s.io", "v1alpha1");
const CLUSTER: (&str, &str) = ("policy.networking.k8s.io", "v1alpha2");
const KUBERNETES: (&str, &str) = ("networking.k8s.io", "v1");

/// All kinds. Policies of Calico are read whole because their tier stands in `spec` alone where no API of Calico's wrote
/// them. The profiles of namespaces and service accounts follow from the pods that have them.
pub(super) const KINDS: [Kind; 15] = [
    kind(("", "v1"), "Pod", "pods", Part::Whole, Role::Pods),
    kind(KUBERNETES, "NetworkPolicy", "networkpolicies", Part::Metadata, Role::Names),
    kind(ADMIN, "AdminNetworkPolicy", "adminnetworkpolicies", Part::Metadata, Role::Names),
    kind(ADMIN, "BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies", Part::Metadata, Role::Names),
    kind(CLUSTER, "ClusterNetworkPolicy", "clusternetworkpolicies", Part::Whole, Role::Names),
    kind(CRD, "ClusterInformation", "clusterinformations", Part::Whole, Role::Ready),
    kind(CRD, "FelixConfiguration", "felixconfigurations", Part::Whole, Role::Prefix),
    kind(CRD, "GlobalNetworkPolicy", "globalnetworkpolicies", Part::Whole, Role::Names),
    kind(CRD, "HostEndpoint", "hostendpoints", Part::Whole, Role::Names),
    kind(CRD, "NetworkPolicy", "networkpolicies", Part::Whole, Role::Names),
    kind(V3, "ClusterInformation", "clusterinformations", Part::Whole, Role::Ready),
    kind(V3, "FelixConfiguration", "felixconfigurations", Part::Whole, Role::Prefix),
    kind(V3, "GlobalNetworkPolicy", "globalnetworkpolicies", Part::Whole, Role::Names),
    kind(V3, "HostEndpoint", "hostendpoints", Part::Whole, Role::Names),
    kind(V3, "NetworkPolicy", "networkpolicies", Part::Whole, Role::Names),
];

impl Kind {
    /// As kubectl spells it, to tell the kinds of NetworkPolicy apart.
    pub(super) fn full_name(&self) -> String {
        if self.group.is_empty() { self.plural.into() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Group and version.
    pub(super) fn group_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    /// For the client.
    pub(super) fn resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.into(),
            version: self.version.into(),
            api_version: self.group_version(),
            kind: self.name.into(),
            plural: self.plural.into(),
        }
    }

    /// Where it is listed and watched.
    pub(super) fn path(&self) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        format!("/{root}/{}/{}", self.group_version(), self.plural)
    }

    /// Whether it is one of Calico's own.
    pub(super) fn is_calicos(&self) -> bool {
        [CRD.0, V3.0].contains(&self.group)
    }
}

/// The group that Calico's objects are in: what is told counts; else v3 only where it is served and v1 is not, because v3 may
/// be an API server in front of v1 (`libcalico-go/lib/backend/k8s/discovery.go`).
pub(super) fn api_group(told: Option<ApiGroup>, served: impl Fn(&str) -> bool) -> ApiGroup {
    let only_v3 = served(V3.0) && !served(CRD.0);
    told.unwrap_or(if only_v3 { ApiGroup::V3 } else { ApiGroup::CrdV1 })
}

/// The kinds to follow where this group is Calico's.
pub(super) fn wanted(group: ApiGroup) -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(move |kind| !kind.is_calicos() || kind.group_version() == group.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_chosen_as_calico_does() {
        let choose = |told, groups: &[&str]| api_group(told, |group| groups.contains(&group));
        assert_eq!(choose(None, &[]), ApiGroup::CrdV1);
        assert_eq!(choose(None, &["projectcalico.org"]), ApiGroup::V3);
        assert_eq!(choose(None, &["projectcalico.org", "crd.projectcalico.org"]), ApiGroup::CrdV1);
        assert_eq!(choose(Some(ApiGroup::V3), &["crd.projectcalico.org"]), ApiGroup::V3);
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let paths: Vec<_> = wanted(ApiGroup::V3).map(Kind::path).collect();
        assert_eq!(paths[0], "/api/v1/pods");
        assert!(paths.contains(&"/apis/projectcalico.org/v3/networkpolicies".into()), "{paths:?}");
        assert_eq!(paths.len(), 10);
    }
}
