//! An object as it comes from the API server: any JSON is taken, and only what names need is kept.
//!
//! The library's own types refuse a whole list for one object that they cannot read, and keep all fields of the others.

use super::kinds::Kind;
use crate::cache::{Came, Told};
use crate::convert::field::{Field, Group};
use crate::convert::{Resource, Settings, object_key};
use accountant_core::index::ObjectKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicResourceScope;
use kube::discovery::ApiResource;
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;

/// An object; with `META`, the API server is asked for its metadata only.
#[derive(Clone, Debug)]
pub(super) struct Item<const META: bool> {
    resource: Resource,
    /// What the watcher reads: name, namespace, version.
    meta: ObjectMeta,
}

impl<const META: bool> Item<META> {
    /// The object.
    pub(super) fn into_resource(self) -> Resource {
        self.resource
    }
}

impl<'de, const META: bool> Deserialize<'de> for Item<META> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let resource = match Field::<Resource>::deserialize(deserializer)? {
            Field::Is(resource) => resource,
            Field::Absent | Field::Wrong(_) => Resource::default(),
        };
        let text = |field: &Field<Box<str>>| match field {
            Field::Is(text) => Some(text.to_string()),
            Field::Absent | Field::Wrong(_) => None,
        };
        let mut meta = ObjectMeta::default();
        if let Group::Is(metadata) = &resource.metadata {
            meta.name = text(&metadata.name);
            meta.namespace = text(&metadata.namespace);
            meta.resource_version = text(&metadata.resource_version);
        }
        Ok(Self { resource, meta })
    }
}

impl<const META: bool> kube::Resource for Item<META> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn metadata_api() -> bool {
        META
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// What an object is, and its key. Items of a list do not tell their kind, and metadata tells that it is metadata.
pub(super) fn identify(kind: &Kind, resource: &mut Resource) -> ObjectKey {
    resource.kind = Field::Is(kind.name.into());
    resource.api_version = Field::Is(kind.group_version().into());
    let text = |field: &Field<Box<str>>| match field {
        Field::Is(text) => text.clone(),
        Field::Absent | Field::Wrong(_) => "".into(),
    };
    let (namespace, name) = match &resource.metadata {
        Group::Is(metadata) => (text(&metadata.namespace), text(&metadata.name)),
        Group::Wrong(_) => Default::default(),
    };
    object_key(kind.name, kind.group, &namespace, &name)
}

/// What an object tells.
pub(super) fn told(resource: &Resource, settings: &Settings) -> Came {
    Told::of(resource, settings, || format!("{} in Kubernetes", resource.describe()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::kinds::KINDS;
    use kube::ResourceExt;

    #[test]
    fn any_json_is_an_item() {
        for json in
            ["null", "3", "[]", "{}", r#"{"metadata": [], "spec": 1}"#, r#"{"metadata": {"name": 7}}"#]
        {
            let item: Item<false> = serde_json::from_str(json).unwrap();
            assert_eq!(item.resource_version(), None, "{json}");
        }
        let json =
            r#"{"metadata": {"name": "p", "namespace": "n", "resourceVersion": "7", "managedFields": [{}]}}"#;
        let item: Item<true> = serde_json::from_str(json).unwrap();
        assert_eq!((item.name_any().as_str(), item.resource_version().as_deref()), ("p", Some("7")));
    }

    #[test]
    fn metadata_alone_names_a_policy() {
        let json = r#"{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                       "metadata": {"name": "p", "namespace": "n"}}"#;
        let mut resource = serde_json::from_str::<Item<true>>(json).unwrap().into_resource();
        let key = identify(&KINDS[1], &mut resource);
        assert_eq!(key, ("NetworkPolicy.networking.k8s.io".into(), "n".into(), "p".into()));
        assert!(told(&resource, &Settings::new("w", "")).unwrap().is_some());
    }
}
