//! Manifests: any bytes are objects and errors.
#![no_main]

use accountant_datastore::convert::Settings;
use accountant_datastore::manifests::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = decode("fuzz.yaml", bytes, &Settings::new("node1", "cali"));
});
