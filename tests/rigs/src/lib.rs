//! Real servers and tools for tests: etcd and Prometheus as Debian packages them; a Kubernetes API server, helm and kustomize
//! that are built with Go.
//!
//! All of it is on loopback with free ports and in temporary folders, and ends with the test, however that ends.

#![forbid(unsafe_code)]

mod apiserver;
mod certificates;
mod etcd;
mod go;
mod platform;
pub mod preload;
mod process;
pub mod rbac;

pub use apiserver::{ApiServer, binary};
pub use certificates::Certificates;
pub use etcd::Etcd;
pub use go::Unavailable;
pub use platform::{output, platform, promtool};

use std::path::{Path, PathBuf};

/// The folder of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder of all fixtures.
pub fn fixtures() -> PathBuf {
    root().join("tests/fixtures")
}

/// The entries of a fixture `etcd.jsonl`: key and value.
pub fn etcd_entries(file: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let entry = |line: &str| {
        let entry: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
        let field = |name: &str| entry[name].as_str().expect("a text").to_string();
        (field("key"), field("value"))
    };
    text.lines().filter(|line| !line.is_empty()).map(entry).collect()
}
