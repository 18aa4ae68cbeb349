//! Helm and kustomize (`tests/platform`), and promtool as `cargo xtask setup` unpacks it.

use crate::go::{self, Unavailable};
use crate::root;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with `helm` and `kustomize`, built if it is not there yet.
pub fn platform() -> Result<std::result::Result<PathBuf, Unavailable>> {
    go::built("platform")
}

/// Prometheus' tool.
pub fn promtool() -> Result<PathBuf> {
    debian("promtool")
}

/// A program of a Debian package that is unpacked only.
fn debian(name: &str) -> Result<PathBuf> {
    let path = root().join("target/tools/debian/usr/bin").join(name);
    if path.is_file() { Ok(path) } else { bail!("{} is not there: run `cargo xtask setup`", path.display()) }
}

/// What a program prints; an error with all it said, if it fails.
pub fn output(program: &Path, arguments: &[&str]) -> Result<String> {
    let name = program.display();
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("starting {name}"))?;
    let [said, complained] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if !output.status.success() {
        bail!("{name} {}: {}\n{said}{complained}", arguments.join(" "), output.status);
    }
    Ok(said)
}
