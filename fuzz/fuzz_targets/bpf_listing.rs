//! Listings of policy programs of Calico's eBPF dataplane: JSON, comments and instructions.
#![no_main]

use accountant_core::Direction;
use accountant_dataplane::calico_bpf::listing::{decode, whose};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(program) = decode(bytes, Direction::Ingress) {
        assert!(program.meanings.keys().all(|id| id.0 != 0));
    }
    let _ = std::str::from_utf8(bytes).map(whose);
});
