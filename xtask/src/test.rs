//! Running all tests, in two lanes.
//!
//! Tests of datastores wait for servers most of the time, those of the kernel keep processors busy. One test binary after
//! the other, as `cargo test` does it, costs the sum of both; here each kind has a lane.

use crate::command::{cargo, say};
use crate::{arm64, setup};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

/// What has a lane of its own: test binaries of which this is the package or the name.
const WAITS_FOR_SERVERS: [&str; 2] = ["accountant-datastore", "datastores"];

/// Runs all tests, or what the arguments ask of `cargo test`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    setup::everything()?;
    if !arguments.is_empty() {
        return cargo(&["test", "--workspace", "--all-targets"]).args(arguments).run();
    }
    say("building all tests");
    let (servers, kernel): (Vec<Binary>, Vec<Binary>) =
        binaries(&["--workspace".into(), "--all-targets".into()])?
            .into_iter()
            .partition(Binary::waits_for_servers);
    say("running all tests: those with servers aside, what they say comes at the end");
    let aside = thread::spawn(move || servers.iter().map(Binary::run_aside).collect::<Result<Vec<_>>>());
    let (mut failed, mut took) = (Vec::new(), Vec::new());
    for binary in &kernel {
        let begun = Instant::now();
        if !binary.run()? {
            failed.push(binary.name.clone());
        }
        took.push((begun.elapsed().as_secs(), &binary.name));
    }
    tell_the_slowest(took);
    let aside = aside.join().map_err(|_| anyhow::anyhow!("the lane of tests with servers panicked"))??;
    for (name, said, passed) in aside {
        println!("{said}");
        if !passed {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("tests failed in: {}", failed.join(", "));
    }
    cargo(&["test", "--workspace", "--doc"]).run()?;
    arm64::test()
}

/// A whole run has to stay short: these are where to look.
fn tell_the_slowest(mut took: Vec<(u64, &String)>) {
    took.sort_unstable();
    let all: u64 = took.iter().map(|(seconds, _)| seconds).sum();
    let slowest = took.iter().rev().take(8).map(|(seconds, name)| format!("{name} {seconds} s"));
    say(&format!("the lane of the kernel took {all} s: {}", slowest.collect::<Vec<_>>().join(", ")));
}

/// A test binary that cargo built.
pub(crate) struct Binary {
    name: String,
    /// Where it runs.
    pub(crate) package: PathBuf,
    pub(crate) executable: PathBuf,
}

/// Builds the test binaries that these arguments of cargo's choose.
pub(crate) fn binaries(which: &[String]) -> Result<Vec<Binary>> {
    let format = "--message-format=json-render-diagnostics";
    let messages = cargo(&["test", "--no-run", format]).args(which).output()?;
    let mut binaries = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).with_context(|| format!("cargo said: {line}"))?;
        if message["profile"]["test"] == true {
            binaries.extend(Binary::of(&message));
        }
    }
    if binaries.is_empty() {
        bail!("cargo built no test binaries");
    }
    Ok(binaries)
}

/// The one of this name.
pub(crate) fn named<'a>(binaries: &'a [Binary], name: &str) -> Result<&'a Binary> {
    binaries.iter().find(|binary| binary.name == name).with_context(|| format!("cargo built no test {name}"))
}

impl Binary {
    /// From cargo's message about an artifact; none if it is not to be run.
    fn of(artifact: &Value) -> Option<Self> {
        Some(Self {
            name: artifact["target"]["name"].as_str()?.into(),
            package: Path::new(artifact["manifest_path"].as_str()?).parent()?.into(),
            executable: artifact["executable"].as_str()?.into(),
        })
    }

    fn waits_for_servers(&self) -> bool {
        let package = self.package.file_name().unwrap_or_default();
        WAITS_FOR_SERVERS.iter().any(|name| self.name == *name || package == *name)
    }

    /// Runs it; whether it passed.
    fn run(&self) -> Result<bool> {
        let status = self.as_cargo_would(Command::new(&self.executable)).status();
        Ok(status.with_context(|| format!("running {}", self.name))?.success())
    }

    /// Where and with what `cargo test` would run it.
    fn as_cargo_would(&self, mut command: Command) -> Command {
        command.current_dir(&self.package).env("CARGO_MANIFEST_DIR", &self.package);
        command
    }

    /// Runs it and keeps what it says: its name, that, and whether it passed. It gives way to the tests of the kernel, which
    /// want an agent that is woken at once.
    fn run_aside(&self) -> Result<(String, String, bool)> {
        let begun = Instant::now();
        let mut nice = Command::new("nice");
        nice.args(["-n", "15"]).arg(&self.executable);
        let output = self.as_cargo_would(nice).output().with_context(|| format!("running {}", self.name))?;
        let said =
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        say(&format!("{} ended after {} s", self.name, begun.elapsed().as_secs()));
        Ok((self.name.clone(), said, output.status.success()))
    }
}
