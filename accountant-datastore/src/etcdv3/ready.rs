//! Whether the datastore is in use: ClusterInformation says so while it is being migrated to another.

use crate::convert::Resource;
use crate::convert::field::Field;

/// False only if the object says so.
pub(crate) fn is_ready(value: &[u8]) -> bool {
    match serde_json::from_slice::<Field<Resource>>(value) {
        Ok(Field::Is(information)) => is_ready_now(&information),
        _ => true,
    }
}

/// The same of an object that was read.
pub(crate) fn is_ready_now(information: &Resource) -> bool {
    let spec = information.spec().ok();
    spec.and_then(|spec| spec.datastore_ready.read("spec.datastoreReady").ok().flatten()) != Some(&false)
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_a_plain_no_is_one() {
        for (value, ready) in [
            (r#"{"spec": {"datastoreReady": false}}"#, false),
            (r#"{"spec": {"datastoreReady": true}}"#, true),
            (r#"{"spec": {"datastoreReady": 0}}"#, true),
            (r#"{"spec": {}}"#, true),
            ("nonsense", true),
        ] {
            assert_eq!(super::is_ready(value.as_bytes()), ready, "{value}");
        }
    }
}
