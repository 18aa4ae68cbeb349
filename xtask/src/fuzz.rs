//! Fuzzing every decoder, on a stable toolchain.
//!
//! libFuzzer needs the compiler to count which code ran; those flags are stable. What it finds is a panic, an overflow or a
//! hang: there is no unsafe code in the decoders for a sanitizer to watch.

use crate::command::{cargo, program, root, say};
use crate::setup;
use anyhow::{Result, bail};
use std::fs;

/// Arguments of `fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long to fuzz each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only these targets.
    targets: Vec<String>,
}

impl Default for Args {
    fn default() -> Self {
        Self { seconds: 60, targets: Vec::new() }
    }
}

const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=on -Coverflow-checks=on -Ccodegen-units=1";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Builds and runs the targets.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::toolchain()?;
    let mut targets: Vec<String> = fs::read_dir(root().join("fuzz/fuzz_targets"))?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    targets.sort();
    if let Some(unknown) = args.targets.iter().find(|target| !targets.contains(target)) {
        bail!("there is no fuzz target {unknown}; there are {}", targets.join(", "));
    }
    if !args.targets.is_empty() {
        targets.retain(|target| args.targets.contains(target));
    }
    say("building the fuzz targets");
    // With an explicit target the flags do not reach build scripts and macros.
    cargo(&["build", "--release", "--target", TRIPLE]).within("fuzz").env("RUSTFLAGS", FLAGS).run()?;
    for target in &targets {
        say(&format!("fuzzing {target} for {} s", args.seconds));
        let found = format!("fuzz/artifacts/{target}");
        let grown = format!("fuzz/target/corpus/{target}");
        fs::create_dir_all(root().join(&found))?;
        fs::create_dir_all(root().join(&grown))?;
        program(
            root().join(format!("fuzz/target/{TRIPLE}/release/{target}")),
            &[&grown, &format!("fuzz/corpus/{target}")],
        )
        .args(&[
            format!("-max_total_time={}", args.seconds),
            format!("-artifact_prefix={found}/"),
            "-timeout=10".into(),
            "-rss_limit_mb=2048".into(),
            "-max_len=65536".into(),
            "-verbosity=0".into(),
            "-print_final_stats=1".into(),
        ])
        .run()?;
    }
    Ok(())
}
