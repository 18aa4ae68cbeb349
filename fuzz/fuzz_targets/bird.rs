//! Replies of BIRD: any text is protocols or an error, and any words are times or none.
#![no_main]

use accountant_dataplane::bird::decode;
use accountant_dataplane::bird::moment::{Moment, Since};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let now = text.lines().find_map(Moment::parse);
    if let Some(now) = now.or_else(|| Moment::parse("2026-08-20 13:05:44")) {
        for protocol in decode::protocols(&text).unwrap_or_default() {
            let since = Since::parse(&protocol.since, now);
            let _ = since.map(|since| (since.age(now), since.agreed(since)));
        }
        for line in text.lines() {
            let _ = Since::parse(line, now).map(|since| since.age(now));
        }
    }
});
