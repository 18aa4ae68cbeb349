//! States of packets of Calico's eBPF dataplane, in every layout.
#![no_main]

use accountant_core::calico::bpf::{PacketState, StateLayout};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for layout in StateLayout::ALL {
        let state = PacketState::read(layout, bytes);
        assert_eq!(state.is_some(), bytes.len() >= layout.size);
        if let Some(verdict) = state.and_then(|state| state.verdict()) {
            assert!(verdict.path.len() <= StateLayout::MAX_HITS);
        }
    }
});
