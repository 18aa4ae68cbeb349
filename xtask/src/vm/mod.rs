//! Tests of the agent on kernels of Debian's releases, each booted in a machine of its own.
//!
//! On each kernel the agent is asked first what it can do there (`accountant check`, by the test `choices`, which also sees
//! that it then does so); tests of what it can do have to pass, and for the others the table has the agent's own reason.

mod debian;
mod initramfs;
mod machine;
mod report;
mod tests;

use crate::command::{root, say};
use crate::{setup, test};
use anyhow::{Result, bail};
use debian::Kernel;
use machine::Machine;
use report::{Findings, Outcome};
use std::fs;
use std::time::{Duration, Instant};

/// Tools, and Debian's packages that have them: the machine, its first process, and what loads modules.
const TOOLS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("xz", "xz-utils"),
];
/// Debian's releases with the kernels 5.10, 6.1, 6.12, and the newest.
const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "sid"];
/// How long one test binary may take. There is no hardware's help: everything is slower, and nobody waits for a person.
const LIMIT: Duration = Duration::from_secs(1200);

/// What people wrote into docs/kernels.md from here on stays there.
const BY_HAND: &str = "\n<!-- by hand -->";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Code names of Debian's releases whose kernels are tried.
    #[arg(default_values = SUITES)]
    suites: Vec<String>,
    /// Only these tests.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Write the table to docs/kernels.md, of the tests that were run.
    #[arg(long, conflicts_with = "run")]
    docs: bool,
    /// How many processors the machines have: kernels keep counters of rules elsewhere where there is one.
    #[arg(long, value_name = "N", default_value_t = 2, conflicts_with = "docs")]
    processors: u8,
    /// Run this in the machine's shell instead, and print what it says.
    #[arg(long, value_name = "COMMAND")]
    run: Option<String>,
}

/// Runs them.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::packages(&TOOLS)?;
    let kernels = args.suites.iter().map(|suite| Kernel::fetch(suite)).collect::<Result<Vec<_>>>()?;
    if let Some(command) = &args.run {
        for kernel in &kernels {
            let ended = Machine::boot(kernel, args.processors)?.run(command, LIMIT)?;
            println!("{}{}: exit status {}", ended.log, kernel.release, ended.status);
        }
        return Ok(());
    }
    setup::everything()?;
    say("building the tests");
    let binaries = test::binaries(&tests::cargo_arguments())?;
    let mut all = Vec::new();
    for kernel in &kernels {
        all.push(try_kernel(kernel, &binaries, args)?);
        if args.docs {
            // What was found on one kernel stands, whatever becomes of the next.
            let path = root().join("docs/kernels.md");
            let old = fs::read_to_string(&path).unwrap_or_default();
            let by_hand = old.find(BY_HAND).map_or("", |at| &old[at..]);
            fs::write(path, format!("{}{by_hand}", report::markdown(&all)))?;
        }
    }
    println!("{}", report::markdown(&all));
    let failed: Vec<_> = all.iter().flat_map(Findings::failures).collect();
    if !failed.is_empty() {
        bail!("failed: {} (what they said is in target/vm/*/*.log)", failed.join(", "));
    }
    Ok(())
}

fn try_kernel(kernel: &Kernel, binaries: &[test::Binary], args: &Args) -> Result<Findings> {
    say(&format!("booting Linux {} of Debian {}", kernel.release, kernel.suite));
    let mut machine = Machine::boot(kernel, args.processors)?;
    let mut findings = Findings::new(kernel);
    let only = &args.only;
    for test in tests::TESTS.iter().filter(|test| only.is_empty() || test.is_among(only)) {
        let begun = Instant::now();
        let outcome = match test.cannot_run(&findings.choices) {
            Some(reason) => Outcome::NotRun(reason),
            None => {
                let binary = test::named(binaries, test.binary)?;
                let job = Machine::bounded(&binary.executable, &binary.package, &test.arguments(), LIMIT);
                let job =
                    format!("export ACCOUNTANT_KERNEL_LACKS={}\n{job}", tests::lacks(&findings.choices));
                let ended = machine.run(&job, LIMIT)?;
                fs::write(kernel.folder.join(format!("{}.log", test.name)), &ended.log)?;
                findings.learn(&ended.log)?;
                Outcome::of(&ended)
            }
        };
        say(&format!("{}, {}: {outcome} ({} s)", kernel.release, test.name, begun.elapsed().as_secs()));
        findings.outcomes.push((test.name, outcome));
    }
    Ok(findings)
}
