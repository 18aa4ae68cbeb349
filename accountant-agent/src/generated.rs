//! Documents whose text is written by hand, with parts that are made from the code.
//!
//! What is between `<!-- WHAT: NAME -->` and `<!-- end -->` is generated. Tests fail when it is stale; `cargo xtask docs` writes
//! it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Set, it makes the tests write the documents.
const REWRITE: &str = "ACCOUNTANT_REWRITE";
const END: &str = "<!-- end -->";

fn path(document: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(document)
}

/// A document in docs.
pub(crate) fn read(document: &str) -> String {
    fs::read_to_string(path(document)).unwrap()
}

/// Checks that the generated parts are fresh, or writes them; says which there are.
pub(crate) fn keep_fresh(document: &str, what: &str, make: impl Fn(&str) -> String) -> BTreeSet<String> {
    let text = read(document);
    let begin = format!("<!-- {what}: ");
    let (mut renewed, mut names, mut rest) = (String::new(), BTreeSet::new(), &*text);
    while let Some((before, after)) = rest.split_once(&begin) {
        let (name, after) = after.split_once(" -->").unwrap();
        let (_, after) = after.split_once(END).unwrap();
        renewed += &format!("{before}{begin}{name} -->\n{}{END}", make(name));
        names.insert(name.to_string());
        rest = after;
    }
    renewed += rest;
    if std::env::var_os(REWRITE).is_some() {
        fs::write(path(document), &renewed).unwrap();
    } else {
        assert!(renewed == text, "docs/{document} is stale: `cargo xtask docs` writes it");
    }
    names
}
