//! Selectors of Calico's: any text is one, or an error with its place.
#![no_main]

use accountant_core::calico::selector::Selector;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Selector::parse(text) {
        Ok(selector) => {
            let _ = selector.selects(|name| (name == "a").then_some("x"));
        }
        Err(error) => assert!(error.at <= text.len()),
    }
});
