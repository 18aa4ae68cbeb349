//! Entries of etcd, a key on the first line and its value behind it: whatever they are, they give a name, none, or a reason.
#![no_main]

use accountant_datastore::convert::Settings;
use accountant_datastore::decoders::etcd_entry;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let (key, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let _ = etcd_entry(key, value, &Settings::new("worker-1", "cali"));
});
