//! Descriptions of a kernel's types: whatever they say, fields are found or not, and nothing is read beyond them.
#![no_main]

use accountant_dataplane::in_place::btf::Btf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(kernel) = Btf::parse(bytes, None) else { return };
    for (structure, path) in [("a", "x"), ("a", "z.g"), ("b", "h"), ("net", "nf.hooks_ipv4")] {
        kernel.place(structure, path);
        kernel.size(structure);
    }
    if let Ok(module) = Btf::parse(bytes, Some(&kernel)) {
        module.place("a", "z.h");
    }
});
