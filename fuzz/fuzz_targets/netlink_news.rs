//! Streams of notifications: whatever they say, the mirror stays of one piece.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| accountant_dataplane::nftables::hear_any(stream));
