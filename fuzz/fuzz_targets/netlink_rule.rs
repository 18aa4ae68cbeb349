//! Rules as nf_tables tells them.
#![no_main]

use accountant_core::calico::endpoint::EndpointChain;
use accountant_core::calico::shared::{PolicyChain, group_members};
use accountant_core::rule::Chain;
use accountant_dataplane::nftables::counter::handle_and_counter;
use accountant_dataplane::nftables::rule::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    for native in [false, true] {
        let quick = handle_and_counter(payload);
        if let Some(message) = decode(payload, native) {
            if let Some((handle, _)) = quick {
                assert_eq!(handle, message.handle);
            }
            let chain = Chain::new("cali-tw-cali1".into(), vec![message.rule.clone(), message.rule]);
            let marks = EndpointChain::read(&chain).marks;
            PolicyChain::read(&chain, marks);
            group_members(&chain);
        }
    }
});
