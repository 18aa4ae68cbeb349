//! Comments of rules, in both spellings.
#![no_main]

use accountant_core::calico::comment::{forbids_encapsulation, naming, qos, tier_start};
use accountant_core::rule::{Action, Matches, Rule};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (hash, comments) = Rule::split_comments(text.split('\n'));
    let rule =
        Rule { hash, comments, matches: Matches::default(), action: Action::None, content: 0, counted: true };
    let _ = (naming(&rule), tier_start(&rule), qos(&rule), forbids_encapsulation(&rule));
});
