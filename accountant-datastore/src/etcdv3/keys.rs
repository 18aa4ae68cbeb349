//! Calico's keys in etcd: what they name, and which of them a node needs. Pure.
//!
//! ```text
//! /calico/resources/v3/projectcalico.org/PLURAL/NAME
//! /calico/resources/v3/projectcalico.org/PLURAL/NAMESPACE/NAME
//! ```
//!
//! Workload endpoints are ordered by namespace first and by node then: their names begin with `NODE-`, each dash of the node's
//! name doubled. So a namespace that is known has a range with this node's endpoints and no other's. Whatever lies between
//! such namespaces, the *gaps*, is looked at whole, so that no namespace need be known beforehand.

/// What all keys begin with (`libcalico-go/lib/backend/model/resource.go`).
pub(super) const ROOT: &str = "/calico/resources/v3/projectcalico.org/";
/// Tells whether the datastore is being migrated.
pub(super) const CLUSTER_INFORMATION: &str =
    "/calico/resources/v3/projectcalico.org/clusterinformations/default";
/// The group of all kinds.
pub(super) const GROUP: &str = "projectcalico.org";

/// A kind of which there are names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// As the key has it.
    pub(super) plural: &'static str,
    /// As the object has it.
    pub(super) name: &'static str,
    /// Whether a namespace is part of the key.
    pub(super) namespaced: bool,
}

const fn kind(plural: &'static str, name: &'static str, namespaced: bool) -> Kind {
    Kind { plural, name, namespaced }
}

/// Kinds that every node needs whole.
pub(super) const EVERYWHERE: [Kind; 3] = [
    kind("globalnetworkpolicies", "GlobalNetworkPolicy", false),
    kind("hostendpoints", "HostEndpoint", false),
    kind("networkpolicies", "NetworkPolicy", true),
];
/// The kind of which a node needs its own.
pub(super) const ENDPOINTS: Kind = kind("workloadendpoints", "WorkloadEndpoint", true);

impl Kind {
    /// All keys of the kind.
    pub(super) fn range(&self) -> Range {
        Range::prefix(format!("{ROOT}{}/", self.plural))
    }
}

/// Keys from one on and before another; without that, the one alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) from: Vec<u8>,
    pub(super) to: Vec<u8>,
}

impl Range {
    /// One key.
    pub(super) fn key(key: &str) -> Self {
        Self { from: key.into(), to: Vec::new() }
    }

    /// All keys that begin so. The last byte of our prefixes has a successor.
    pub(super) fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let from = prefix.into();
        let mut to = from.clone();
        if let Some(last) = to.last_mut() {
            *last = last.saturating_add(1);
        }
        Self { from, to }
    }
}

/// What a key names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named<'a> {
    /// An object of a kind of which there are names.
    Object(&'static Kind, &'a str, &'a str),
    /// A key among those of a kind that names none.
    Nothing(&'static Kind, &'a str),
    /// A key of another kind.
    Other,
}

/// What a key names.
pub(super) fn named(key: &str) -> Named<'_> {
    let Some((plural, rest)) = key.strip_prefix(ROOT).and_then(|key| key.split_once('/')) else {
        return Named::Other;
    };
    let all = EVERYWHERE.iter().chain([&ENDPOINTS]);
    let Some(kind) = all.into_iter().find(|kind| kind.plural == plural) else { return Named::Other };
    let (namespace, name) = match (kind.namespaced, rest.split_once('/')) {
        (true, Some((namespace, name))) if !namespace.is_empty() => (namespace, name),
        (false, None) => ("", rest),
        _ => return Named::Nothing(kind, rest),
    };
    if name.is_empty() || name.contains('/') {
        return Named::Nothing(kind, rest);
    }
    Named::Object(kind, namespace, name)
}

/// What the names of this node's endpoints begin with.
pub(super) fn endpoint_prefix(node: &str) -> String {
    format!("{}-", node.replace('-', "--"))
}

/// Whether an endpoint with this name is on the node with this prefix: a further dash would belong to a longer node name.
pub(super) fn is_local(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| !rest.starts_with('-'))
}

/// The namespace of a Kubernetes namespace's profile.
pub(super) fn namespace_of_profile(key: &str) -> Option<&str> {
    key.strip_prefix(ROOT)?.strip_prefix("profiles/kns.").filter(|name| !name.is_empty())
}

/// The profiles of namespaces.
pub(super) fn namespace_profiles() -> Range {
    Range::prefix(format!("{ROOT}profiles/kns."))
}

/// Where this node's endpoints are: a range in each of these namespaces (sorted, each once), and the gaps.
pub(super) fn endpoint_ranges(namespaces: &[String], prefix: &str) -> Vec<Range> {
    let whole = ENDPOINTS.range();
    let mut ranges = Vec::new();
    let mut gap = whole.from.clone();
    for namespace in namespaces {
        let all = Range::prefix(format!("{ROOT}{}/{namespace}/", ENDPOINTS.plural));
        // From the first key whose next byte is behind a dash up to the end of the prefix: `NODE--` is another node's.
        let own = format!("{ROOT}{}/{namespace}/{prefix}", ENDPOINTS.plural).into_bytes();
        let from = [&own[..], b"."].concat();
        ranges.push(Range { from: gap, to: all.from });
        ranges.push(Range { from, to: Range::prefix(own).to });
        gap = all.to;
    }
    ranges.push(Range { from: gap, to: whole.to });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(rest: &str) -> String {
        format!("{ROOT}{rest}")
    }

    #[test]
    fn keys_name_objects_of_the_kinds_that_have_names() {
        let [global, _, policy] = &EVERYWHERE;
        for (rest, want) in [
            ("networkpolicies/n/default.a.b-c", Named::Object(policy, "n", "default.a.b-c")),
            ("globalnetworkpolicies/g", Named::Object(global, "", "g")),
            ("networkpolicies/alone", Named::Nothing(policy, "alone")),
            ("networkpolicies//x", Named::Nothing(policy, "/x")),
            ("networkpolicies/n/", Named::Nothing(policy, "n/")),
            ("networkpolicies/n/a/b", Named::Nothing(policy, "n/a/b")),
            ("globalnetworkpolicies/a/b", Named::Nothing(global, "a/b")),
            ("globalnetworkpolicies/", Named::Nothing(global, "")),
            ("tiers/default", Named::Other),
            ("networkpolicies", Named::Other),
        ] {
            assert_eq!(named(&key(rest)), want, "{rest}");
        }
        assert_eq!(named("/calico/ipam/v2/x"), Named::Other);
    }

    #[test]
    fn an_endpoint_is_of_the_node_whose_name_it_begins_with() {
        let prefix = endpoint_prefix("worker-1");
        assert_eq!(prefix, "worker--1-");
        assert!(is_local("worker--1-k8s-web-eth0", &prefix));
        assert!(!is_local("worker--1--x-k8s-web-eth0", &prefix));
        assert!(!is_local("worker--11-k8s-web-eth0", &prefix));
    }

    /// The ranges cover every endpoint of the node and, in known namespaces, none of other nodes.
    #[test]
    fn ranges_cover_what_is_local_and_what_is_unknown() {
        let namespaces = ["a".to_string(), "ab".into(), "b-c".into()];
        let prefix = endpoint_prefix("w-1");
        let ranges = endpoint_ranges(&namespaces, &prefix);
        assert_eq!(ranges.len(), 7);
        let covered = |rest: &str| {
            let key = key(&format!("workloadendpoints/{rest}")).into_bytes();
            ranges.iter().filter(|range| range.from <= key && key < range.to).count()
        };
        for namespace in ["a", "ab", "b-c"] {
            assert_eq!(covered(&format!("{namespace}/w--1-k8s-x-eth0")), 1, "{namespace}");
            assert_eq!(covered(&format!("{namespace}/w--1-cni-x-eth0")), 1, "{namespace}");
            assert_eq!(covered(&format!("{namespace}/w--1--2-k8s-x-eth0")), 0, "{namespace}");
            assert_eq!(covered(&format!("{namespace}/w--2-k8s-x-eth0")), 0, "{namespace}");
        }
        for namespace in ["0", "a-b", "aa", "b", "b-c-d", "z"] {
            assert_eq!(covered(&format!("{namespace}/w--1-k8s-x-eth0")), 1, "{namespace}");
        }
        assert_eq!(endpoint_ranges(&[], &prefix), [ENDPOINTS.range()]);
    }

    #[test]
    fn profiles_of_namespaces_name_them() {
        assert_eq!(namespace_of_profile(&key("profiles/kns.shop")), Some("shop"));
        assert_eq!(namespace_of_profile(&key("profiles/ksa.shop.x")), None);
    }
}
