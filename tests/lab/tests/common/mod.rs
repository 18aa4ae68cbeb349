//! What several tests of the lab share.

#![allow(dead_code, reason = "each test uses some of it")]

pub(crate) mod books;
pub(crate) mod captured;
pub(crate) mod shop;

use std::path::{Path, PathBuf};

/// The fixtures that all of the project shares.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}
