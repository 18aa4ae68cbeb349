//! Fuzzing every decoder, on a stable toolchain.
//!
//! libFuzzer needs the compiler to count which code ran; those flags are stable. What it finds is a panic, an overflow or a
//! hang: there is no unsafe code in the decoders for a sanitizer to watch. As many targets as there are processors run at a
//! time; what they say goes into fuzz/target.

use crate::command::{cargo, root, say};
use crate::setup;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

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
    // Each has its time however many run: two a processor keep the whole short.
    let abreast = 2 * thread::available_parallelism().map_or(1, usize::from);
    let mut found = Vec::new();
    for some in targets.chunks(abreast) {
        say(&format!("fuzzing {} for {} s", some.join(", "), args.seconds));
        let running: Vec<_> = some.iter().map(|target| start(target, args.seconds)).collect::<Result<_>>()?;
        for run in running {
            found.extend(run.end()?);
        }
    }
    if !found.is_empty() {
        bail!("findings in {}; the inputs are in fuzz/artifacts", found.join(", "));
    }
    Ok(())
}

/// A target that is being fuzzed.
struct Run {
    target: String,
    log: PathBuf,
    child: Child,
}

fn start(target: &str, seconds: u32) -> Result<Run> {
    let artifacts = format!("fuzz/artifacts/{target}");
    let grown = format!("fuzz/target/corpus/{target}");
    for folder in [&artifacts, &grown] {
        fs::create_dir_all(root().join(folder))?;
    }
    let log = root().join(format!("fuzz/target/{target}.log"));
    let child = Command::new(root().join(format!("fuzz/target/{TRIPLE}/release/{target}")))
        .args([&grown, &format!("fuzz/corpus/{target}")])
        .args([format!("-max_total_time={seconds}"), format!("-artifact_prefix={artifacts}/")])
        .args(["-timeout=10", "-rss_limit_mb=2048", "-max_len=65536", "-print_final_stats=1"])
        .current_dir(root())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?)
        .spawn()
        .with_context(|| format!("starting the fuzz target {target}"))?;
    Ok(Run { target: target.into(), log, child })
}

impl Run {
    /// Waits for its end; its name if it found something.
    fn end(mut self) -> Result<Option<String>> {
        let status = self.child.wait()?;
        let log = fs::read_to_string(&self.log)?;
        if !status.success() {
            println!("{log}");
            return Ok(Some(self.target));
        }
        let inputs = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        say(&format!("{}: {} inputs, no finding", self.target, inputs.unwrap_or("?").trim()));
        Ok(None)
    }
}
