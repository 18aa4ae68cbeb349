//! Builds the in-kernel programs and leaves their objects in `OUT_DIR`, where `src/kernel` embeds them.
//!
//! A stable toolchain does it: with `RUSTC_BOOTSTRAP=1` it builds `core` for the BPF target from the `rust-src` component,
//! and bpf-linker, which has to be of the same LLVM, links. `cargo xtask setup` installs both.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs, one binary for each family of hooks.
const BINARIES: [&str; 7] = ["calico", "freed", "in_place", "interface", "rewrites", "stand_in", "verdict"];

fn main() {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap());
    let root = manifest.parent().unwrap();
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    let programs = root.join("accountant-ebpf");
    for path in ["accountant-ebpf/src", "accountant-ebpf/Cargo.toml", "accountant-abi/src"] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo:rerun-if-env-changed=ACCOUNTANT_BPF_LINKER");

    // Shared by all profiles; a folder of its own, because cargo holds a lock on the other one.
    let target = root.join("target/bpf");
    let linker = linker(root);
    let status = Command::new(env::var("CARGO").unwrap())
        .args(["build", "--release", "--locked", "-Zbuild-std=core", "--target", "bpfel-unknown-none"])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(&programs)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        // The kernel wants the types of functions that it is to call back.
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", format!("-Clink-arg=--btf {}", remap(root)))
        // Flags of the build for the host are not for this one.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "the in-kernel programs do not build: has `cargo xtask setup` run?");
    for binary in BINARIES {
        let object = target.join("bpfel-unknown-none/release").join(binary);
        std::fs::copy(&object, out.join(binary)).expect("the object was built");
    }
}

/// Flags that leave the machine's paths out of the objects: the same sources give the same programs. `core` is built from the
/// toolchain's folder.
fn remap(root: &Path) -> String {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).unwrap_or_default();
    let sysroot = Command::new(env::var("RUSTC").unwrap()).args(["--print", "sysroot"]).output();
    let sysroot = String::from_utf8(sysroot.expect("rustc can be started").stdout).expect("a path in UTF-8");
    let paths = [(root, "/src"), (&cargo, "/cargo"), (Path::new(sysroot.trim()), "/rust")];
    paths.map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display())).join(" ")
}

/// bpf-linker, where `cargo xtask setup` installs it.
fn linker(root: &Path) -> PathBuf {
    let linker = match env::var_os("ACCOUNTANT_BPF_LINKER") {
        Some(path) => PathBuf::from(path),
        None => root.join("target/tools/bin/bpf-linker"),
    };
    assert!(
        linker.exists(),
        "bpf-linker is not at {}: run `cargo xtask setup` first, or name another with ACCOUNTANT_BPF_LINKER",
        linker.display()
    );
    linker
}
