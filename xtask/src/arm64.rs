//! Unit tests built for arm64 and run under qemu-user: what decodes a kernel's bytes, and the brain.
//!
//! Only crates that meet bytes, words and system calls of the machine: abi, sys, core, dataplane. Of the datastores and the agent all
//! is text, and their dependencies would cost more to build than all of this. Qemu passes system calls on but for bpf(2) and nf_tables'
//! sockets, so tests of the real kernel are left out.

use crate::command::{cargo, program, say};
use crate::setup;
use anyhow::Result;

const TRIPLE: &str = "aarch64-unknown-linux-musl";
/// Emulates a process, not a machine.
const QEMU: (&str, &str) = ("qemu-aarch64", "qemu-user");
/// What is tested, in cargo's words.
const TESTS: [&[&str]; 2] = [
    &[
        "--lib",
        "-p",
        "accountant-abi",
        "-p",
        "accountant-sys",
        "-p",
        "accountant-core",
        "-p",
        "accountant-dataplane",
    ],
    // What a real Felix wrote, and what the programs tell of a packet's path.
    &[
        "-p",
        "accountant-core",
        "--test",
        "captures",
        "--test",
        "bpf_capture",
        "--test",
        "view",
        "--test",
        "watch",
    ],
];

/// Runs them; where the machine itself is arm64, all tests are of it.
pub(crate) fn test() -> Result<()> {
    if cfg!(target_arch = "aarch64") {
        return Ok(());
    }
    setup::toolchain()?;
    setup::packages(&[QEMU])?;
    program("rustup", &["target", "add", TRIPLE]).run()?;
    say("running unit tests for arm64 under qemu-user");
    for tests in TESTS {
        cargo(&[&["test", "--quiet", "--target", TRIPLE], tests].concat())
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER", QEMU.0)
            // It comes with Rust, and links for every architecture.
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
            .run()?;
    }
    Ok(())
}
