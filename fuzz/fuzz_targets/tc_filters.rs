//! What the kernel says of filters and qdiscs of an interface: whatever it says, it is read or left out.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| accountant_dataplane::clsact::read_any(stream));
