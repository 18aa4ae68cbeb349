//! What servers and Felix' files send, decoded just as the datastores decode it, one object at a time. For fuzzing, and for
//! tests of any bytes: whatever comes gives a name, none, or a reason.

use crate::convert::Settings;
use crate::etcdv3::ready::is_ready;
use crate::kubernetes::any_object;
use crate::{etcdv3, local, reported};
use accountant_core::index::{Object, ObjectKey};

/// What a datastore takes from something: the name it gives, none, or why it cannot be used.
pub type Taken = Result<Option<Object>, String>;

/// An entry of etcd. Nothing if it does not concern the node, or names.
pub fn etcd_entry(key: &[u8], value: &[u8], settings: &Settings) -> Option<(ObjectKey, Taken)> {
    is_ready(value);
    let (key, came) = etcdv3::decode::came(key, value, settings)?;
    Some((key, came.map(|told| told.map(|told| told.object().clone()))))
}

/// An object of the API server, of the kind with this number. What it says of the whole node (prefixes, readiness) is read as
/// well. Nothing if it is no JSON: the library of the API ends the answer there.
pub fn kubernetes_object(kind: usize, json: &[u8], settings: &Settings) -> Option<(ObjectKey, Taken)> {
    let (key, came) = any_object(kind, json, settings)?;
    Some((key, came.map(|told| told.map(|told| told.object().clone()))))
}

/// A file in which Felix reports an endpoint, by its name and bytes.
pub fn endpoint_status(file: &str, json: &[u8]) -> Option<(ObjectKey, Object)> {
    let ((namespace, pod), endpoint) = local::decode(file, json)?;
    Some(reported::reported(&namespace, &pod, &endpoint.ok()?))
}
