//! Tables as `IPT_SO_GET_ENTRIES` returns them: any bytes are a table or an error, and what is a table has its counters
//! within the blob, and chains that can be read.
#![no_main]

use accountant_core::calico::endpoint::EndpointChain;
use accountant_core::calico::shared::{PolicyChain, group_members};
use accountant_dataplane::iptables_legacy::blob::{IPV4, IPV6, decode, fingerprint};
use libfuzzer_sys::fuzz_target;
use std::collections::HashMap;

fuzz_target!(|blob: &[u8]| {
    for layout in [IPV4, IPV6] {
        let print = fingerprint(blob, layout);
        let Ok(table) = decode(blob, layout, &HashMap::new()) else { continue };
        assert_eq!(print, Ok(table.fingerprint));
        for chain in &table.chains {
            assert_eq!(chain.read(blob).len(), chain.chain.rules().len());
            let marks = EndpointChain::read(&chain.chain).marks;
            PolicyChain::read(&chain.chain, marks);
            group_members(&chain.chain);
        }
        // Known chains are found again, whatever they are.
        let known =
            table.chains.iter().map(|chain| (chain.chain.name.clone(), chain.chain.clone())).collect();
        assert!(decode(blob, layout, &known).is_ok());
    }
});
