//! Chain names: read, and made anew from the policies that they name.
#![no_main]

use accountant_core::Direction;
use accountant_core::calico::ChainKind;
use accountant_core::calico::names::{MAX_IPTABLES, limited};
use accountant_core::calico::policy::{Generation, Spelling};
use accountant_core::id::TierName;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = ChainKind::of(&text.into());
    for generation in [Generation::A, Generation::B, Generation::C] {
        let Some(spelling) = Spelling::of_chain(text, generation) else { continue };
        for tier in [TierName::default_tier(), "t".into()] {
            let id = spelling.in_tier(&tier);
            let _ = id.old_label(&tier);
            for (_, chain) in id.chains(&tier, Direction::Ingress, MAX_IPTABLES) {
                assert!(chain.as_str().len() <= MAX_IPTABLES);
            }
        }
    }
    for max in [0, 1, 8, 28, 256] {
        let _ = limited("cali-pi-", text, max);
    }
});
