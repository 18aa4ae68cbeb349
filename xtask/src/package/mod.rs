//! What is shipped: one static binary for each architecture, in a container image and in a Debian package, with its licences and
//! its bill of materials. Paths of the machine are left out of the binary, and nothing has a time: the same sources give the same
//! bytes in whatever folder (`image --twice` compares). No tools of containers or of Debian are needed, and no daemon.

mod archive;
pub(crate) mod deb;
pub(crate) mod image;
mod layout;
mod materials;
mod twin;

use crate::command::{cargo, program, root, say};
use crate::setup;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Architectures by the name that OCI and Debian have for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Arch {
    /// 64-bit x86.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Arch {
    /// This machine's.
    const HERE: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }
}

/// The agent for an architecture, and what belongs to it.
#[derive(PartialEq, Eq)]
struct Shipped {
    binary: Vec<u8>,
    licences: String,
    sbom: String,
}

impl Shipped {
    /// Builds it.
    fn new(arch: Arch) -> Result<Self> {
        setup::toolchain()?;
        setup::static_builds(arch == Arch::Arm64)?;
        program("rustup", &["target", "add", arch.triple()]).run()?;
        Self::from(&root(), arch)
    }

    /// Builds it from the sources in this folder.
    fn from(folder: &Path, arch: Arch) -> Result<Self> {
        let binary = build(folder, arch)?;
        let materials = materials::of(folder, arch.triple())?;
        let binary = fs::read(&binary).with_context(|| binary.display().to_string())?;
        Ok(Self { binary, licences: materials.licences()?, sbom: materials.sbom()? })
    }
}

/// The static binary for an architecture.
fn build(folder: &Path, arch: Arch) -> Result<PathBuf> {
    let triple = arch.triple();
    say(&format!("building the static binary for {}", arch.name()));
    let variable = |name: &str| name.replace("TRIPLE", &triple.replace('-', "_"));
    let arguments =
        ["build", "--release", "--target", triple, "--package", "accountant-agent", "--bin", "accountant"];
    let target = folder.join("target");
    let mut build = cargo(&arguments)
        .within(folder)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", remap(folder)?)
        .env("ACCOUNTANT_BPF_LINKER", setup::linker());
    if arch == Arch::Arm64 {
        // For what of the cryptography is written in C; and the linker that comes with Rust links for every architecture.
        build = build
            .env(&variable("CC_TRIPLE"), "aarch64-linux-gnu-gcc")
            .env(&variable("CARGO_TARGET_TRIPLE_LINKER").to_uppercase(), "rust-lld");
    }
    build.run()?;
    Ok(target.join(triple).join("release/accountant"))
}

/// Flags that leave the machine's paths out of the binary.
fn remap(folder: &Path) -> Result<String> {
    let sysroot = program("rustc", &["--print", "sysroot"]).output()?;
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).context("HOME is not set")?;
    let paths = [(folder, "/src"), (&cargo, "/cargo"), (Path::new(sysroot.trim()), "/rust")];
    let flag = |(path, name): &(&Path, &str)| format!("--remap-path-prefix={}={name}", path.display());
    Ok(paths.iter().map(flag).collect::<Vec<_>>().join("\x1f"))
}
