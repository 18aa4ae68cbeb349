//! An entry of etcd to what it tells. Pure; any bytes give a name, nothing, or a reason.

use super::keys::{self, ENDPOINTS, GROUP, Named};
use crate::cache::{Came, Told};
use crate::convert::field::{Field, Group};
use crate::convert::resource::{Metadata, cut};
use crate::convert::{Resource, Settings, object_key};
use accountant_core::index::ObjectKey;

/// What an entry tells; nothing if it is of another node, or of a kind without names.
pub(crate) fn came(key: &[u8], value: &[u8], settings: &Settings) -> Option<(ObjectKey, Came)> {
    let text = String::from_utf8_lossy(key);
    match keys::named(&text) {
        Named::Other => None,
        Named::Nothing(kind, rest) => {
            let error = format!("cannot use etcd's key {text:?}: it names no {}; remove it", kind.name);
            Some((object_key(kind.name, GROUP, "", rest), Err(error)))
        }
        Named::Object(kind, _, name)
            if *kind == ENDPOINTS && !keys::is_local(name, &keys::endpoint_prefix(&settings.node)) =>
        {
            None
        }
        Named::Object(kind, namespace, name) => {
            let key = object_key(kind.name, GROUP, namespace, name);
            Some((key, decode(kind.name, namespace, name, value, settings)))
        }
    }
}

/// What a value tells. Kind, namespace and name are those of its key, as Calico has it: up to 3.31 the name in the value may
/// be another, and Felix goes by the key.
fn decode(kind: &str, namespace: &str, name: &str, value: &[u8], settings: &Settings) -> Came {
    let slash = if namespace.is_empty() { "" } else { "/" };
    let object = || format!("{kind} {}{slash}{} in etcd", cut(namespace), cut(name));
    let mut resource = match serde_json::from_slice::<Field<Resource>>(value) {
        Ok(Field::Is(resource)) => resource,
        Ok(Field::Absent) => return Err(format!("cannot use {}: its value is null; correct it", object())),
        Ok(Field::Wrong(found)) => {
            return Err(format!("cannot use {}: its value is {found}, not an object; correct it", object()));
        }
        Err(error) => {
            return Err(format!("cannot use {}: its value is no JSON: {error}; correct it", object()));
        }
    };
    let text = |text: &str| Field::Is(text.into());
    let metadata = match resource.metadata {
        Group::Is(metadata) => Metadata { name: text(name), namespace: text(namespace), ..metadata },
        Group::Wrong(_) => Metadata { name: text(name), namespace: text(namespace), ..Metadata::default() },
    };
    resource.kind = text(kind);
    resource.api_version = Field::Is(format!("{GROUP}/v3").into());
    resource.metadata = Group::Is(metadata);
    Told::of(&resource, settings, object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    fn check(kind: &str, value: &str, want: &str) {
        let told = decode(kind, "n", "default.x", value.as_bytes(), &Settings::new("w", ""));
        let mut text = String::new();
        match told {
            Ok(told) => write!(text, "{told:?}").unwrap(),
            Err(error) => text = error,
        }
        assert!(text.contains(want), "{text:?} contains {want:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_key_and_value_are_taken(
            key in "\\PC{0,40}(/\\PC{0,10}){0,3}",
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100),
            json in r#"\{("(metadata|spec)":[\[{]?("[a-zA-Z]{1,12}":)?(null|1|"x"|\[\]|\{\})[\]}]?,?){0,3}\}"#,
        ) {
            for plural in ["networkpolicies", "workloadendpoints", "hostendpoints", "profiles"] {
                let key = format!("{}{plural}/{key}", crate::etcdv3::keys::ROOT);
                let _ = crate::etcdv3::keys::named(&key);
                let _ = crate::etcdv3::keys::namespace_of_profile(&key);
            }
            for kind in ["NetworkPolicy", "GlobalNetworkPolicy", "WorkloadEndpoint", "HostEndpoint"] {
                for value in [&bytes[..], json.as_bytes()] {
                    if let Err(error) = decode(kind, "n", "x", value, &Settings::new("w", "")) {
                        proptest::prop_assert!(error.starts_with(&format!("cannot use {kind} n/x in etcd: ")), "{}", error);
                    }
                }
            }
        }
    }

    #[test]
    fn the_key_names_the_object_and_the_value_the_rest() {
        let value = r#"{"kind": "Pod", "metadata": {"name": "other"}, "spec": {"tier": "sec"}}"#;
        check("NetworkPolicy", value, r#"namespace: "n", name: "default.x", bare: false }, "sec""#);
        check("NetworkPolicy", r#"{"spec": {}}"#, r#"name: "x", bare: false }, "default""#);
        check("NetworkPolicy", r#"{"metadata": 3}"#, r#"name: "x""#);
    }

    #[test]
    fn what_cannot_be_used_is_told_by_name() {
        let at = "cannot use NetworkPolicy n/default.x in etcd: ";
        check("NetworkPolicy", "nonsense", &format!("{at}its value is no JSON"));
        check("NetworkPolicy", "", &format!("{at}its value is no JSON"));
        check("NetworkPolicy", "[]", &format!("{at}its value is a list"));
        check("NetworkPolicy", "null", &format!("{at}its value is null"));
        check("NetworkPolicy", r#"{"spec": {"tier": 3}}"#, &format!("{at}spec.tier must not be a number"));
        check("WorkloadEndpoint", r#"{"spec": {}}"#, "spec.interfaceName is missing");
    }
}
