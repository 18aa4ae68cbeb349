//! The container image: the binary, its licences and its bill of materials, and nothing else.
//!
//! In goes the workspace; out come `target/image`, an OCI image layout with an image for each architecture, and the same as one
//! file, `target/image.tar`.

use super::archive::Entry;
use super::layout::Layout;
use super::{Arch, Shipped, twin};
use crate::command::{cargo, root, say};
use crate::setup;
use anyhow::Result;

/// Arguments of `image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Architectures; can be given several times.
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Vec<Arch>,
    /// Build everything once more, from a copy of the sources in another folder, and compare: the image has to be the same.
    #[arg(long)]
    twice: bool,
    /// Run the tests of the container on the image, in place of the binary that they build.
    #[arg(long)]
    test: bool,
}

/// Builds the image.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut layout = Layout::new(&root().join("target/image"))?;
    for &arch in &args.arch {
        let shipped = Shipped::new(arch)?;
        if args.twice {
            twin::compare(arch, &shipped)?;
        }
        let Shipped { binary, licences, sbom } = shipped;
        let entries = [
            Entry::new("accountant", 0o755, binary),
            Entry::new("licenses.txt", 0o644, licences),
            Entry::new("sbom.spdx.json", 0o644, sbom),
        ];
        let digest = layout.add(arch.name(), &entries)?;
        say(&format!("{}: {digest}", arch.name()));
    }
    let archive = root().join("target/image.tar");
    let digest = layout.finish(env!("CARGO_PKG_VERSION"), &archive)?;
    say(&format!("target/image and target/image.tar have the image {digest}"));
    if args.test {
        setup::everything()?;
        say("running the tests of the container on it");
        let tests = ["test", "--package", "accountant-agent", "--test", "container"];
        cargo(&tests).env("ACCOUNTANT_IMAGE", root().join("target/image")).run()?;
    }
    Ok(())
}
