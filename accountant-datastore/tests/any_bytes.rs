//! Any bytes give objects and errors, never a panic.

use accountant_datastore::convert::Settings;
use accountant_datastore::manifests::decode;
use proptest::prelude::*;

const SEEDS: [&str; 3] = [
    include_str!("../../tests/fixtures/datastore/kdd-crd-v1-calico-3.31.yaml"),
    include_str!("../../tests/fixtures/datastore/k8s-core.yaml"),
    include_str!("../../tests/fixtures/felix/v3.32.1-bpf/manifests/pods.yaml"),
];

/// What to put into a file to break it.
const WEDGES: [&str; 16] = [
    "---\n",
    "...\n",
    "\n",
    "- ",
    "? ",
    "{",
    "]",
    "'",
    "\"",
    "&a ",
    "*a",
    "<<: ",
    "!!binary ",
    "\t",
    "\u{85}",
    "null",
];

fn check(bytes: &[u8]) {
    let decoded = decode("f.yaml", bytes, &Settings::new("worker-1", ""));
    for error in &decoded.errors {
        assert!(!accountant_datastore::explain(error, error.advice()).is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn noise(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        check(&bytes);
    }

    #[test]
    fn yaml_like(text in r#"[-a:{}\[\]'"&*?|>,#!% \n]{0,200}"#) {
        check(text.as_bytes());
    }

    #[test]
    fn broken_manifests(seed in 0..SEEDS.len(), cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0..WEDGES.len(), 0..40_usize), 1..6)) {
        let mut bytes = SEEDS[seed].as_bytes().to_vec();
        for (at, wedge, removed) in cuts {
            let at = at.index(bytes.len() + 1);
            let end = (at + removed).min(bytes.len());
            bytes.splice(at..end, WEDGES[wedge].bytes());
        }
        check(&bytes);
    }
}
