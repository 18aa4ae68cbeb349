//! Objects of the API server, the number of their kind in the first byte; and, with the same bytes, files in which Felix reports
//! an endpoint. Whatever they are, they give a name, none, or a reason.
#![no_main]

use accountant_datastore::convert::Settings;
use accountant_datastore::decoders::{endpoint_status, kubernetes_object};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, json)) = bytes.split_first() else { return };
    let _ = kubernetes_object(usize::from(kind.wrapping_sub(b'a')), json, &Settings::new("worker-1", "cali"));
    let _ = endpoint_status("k8s n%2Fa eth0", json);
    let _ = endpoint_status(&String::from_utf8_lossy(json), br#"{"ifaceName": "cali1"}"#);
});
