//! Everything a person runs. `cargo xtask --help` lists it.
//!
//! Each command installs what it needs and is missing, says what it does, and cleans up behind itself.

#![forbid(unsafe_code)]

mod arm64;
mod command;
mod datastore;
mod demo;
mod fuzz;
mod package;
mod setup;
mod test;
mod vm;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use command::{cargo, say};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, try, test and measure the packet accountant")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing: rust-src, bpf-linker, Debian packages.
    Setup,
    /// Build target/release/accountant, programs embedded.
    Build,
    /// Make a small Calico node, send known traffic, and show the accounts beside it.
    Demo(demo::Args),
    /// Run all tests.
    Test {
        /// Arguments for `cargo test`: then these tests only.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run unit tests that are built for arm64, under qemu-user.
    TestArm64,
    /// Run tests of real traffic on other kernels, in virtual machines; says what the agent can do on each.
    VmTest(vm::Args),
    /// Measure, and compare with what others need.
    Bench {
        /// Arguments for the benchmark; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure what names of a large cluster cost, with real servers: the table of docs/datastore.md. Needs Go.
    Scale,
    /// Write what is generated in docs.
    Docs,
    /// Write what is generated in deploy: dashboards, plain manifests, the PrometheusRule. Needs Go.
    Deploy,
    /// Build the container image: target/image and target/image.tar.
    Image(package::image::Args),
    /// Build the Debian package: target/calico-packet-accountant_*.deb.
    Deb(package::deb::Args),
    /// Formatting and lints, as errors.
    Lint,
    /// Fuzz every decoder for a while.
    Fuzz(fuzz::Args),
    /// All that CI runs.
    Ci,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Setup => setup::everything(),
        Command::Build => build(),
        Command::Demo(args) => demo::run(&args),
        Command::Test { arguments } => test::run(&arguments),
        Command::TestArm64 => arm64::test(),
        Command::VmTest(args) => vm::run(&args),
        Command::Bench { arguments } => bench(&arguments),
        Command::Scale => scale(),
        Command::Docs => docs(),
        Command::Deploy => deploy(),
        Command::Image(args) => package::image::run(&args),
        Command::Deb(args) => package::deb::run(&args),
        Command::Lint => lint(),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Ci => {
            test::run(&[])?;
            lint()?;
            fuzz::run(&fuzz::Args::default())
        }
    }
}

fn build() -> Result<()> {
    setup::toolchain()?;
    say("building target/release/accountant");
    cargo(&["build", "--release", "--package", "accountant-agent", "--bin", "accountant"]).run()
}

fn bench(arguments: &[String]) -> Result<()> {
    setup::everything()?;
    build()?;
    let mut arguments = arguments.to_vec();
    // A whole run is put on record.
    if !arguments.iter().any(|argument| {
        ["--quick", "--only", "--markdown", "--help"].iter().any(|part| argument.starts_with(part))
    }) {
        arguments.extend(["--markdown".into(), "docs/performance.md".into()]);
    }
    cargo(&["run", "--release", "--quiet", "--package", "accountant-bench", "--"]).args(&arguments).run()
}

fn scale() -> Result<()> {
    setup::everything()?;
    build()?;
    let program = command::root().join("target/release/accountant");
    say("measuring with 10 000 policies and 50 000 pods");
    let test = ["test", "--workspace", "--test", "datastores", "--", "--ignored", "--nocapture", "measure"];
    cargo(&test).env("ACCOUNTANT_PROGRAM", program).env("ACCOUNTANT_REQUIRE_SERVERS", "1").run()
}

/// Tests compare documents with what they are made from, and write them when asked to: package, kind of test, name.
const DOCUMENTS: [(&str, &[&str], &str); 3] = [
    ("accountant-agent", &["--lib"], "config::docs::the_document_is_made_from_the_command_line"),
    ("accountant-agent", &["--lib"], "export::prometheus::docs::the_document_is_made_from_the_table"),
    ("accountant-deploy", &["--test", "rules"], "the_table_of_the_document_is_made_from_the_rules"),
];

fn docs() -> Result<()> {
    setup::toolchain()?;
    say("writing what is generated in docs");
    for (package, kind, name) in DOCUMENTS {
        let arguments = [&["test", "--quiet", "--package", package], kind, &["--", "--exact", name]].concat();
        cargo(&arguments).env("ACCOUNTANT_REWRITE", "1").run()?;
    }
    Ok(())
}

fn deploy() -> Result<()> {
    match accountant_rigs::platform()? {
        Ok(tools) => accountant_deploy::write(&tools)?.iter().for_each(|file| say(&format!("wrote {file}"))),
        Err(accountant_rigs::Unavailable(reason)) => bail!("it {reason}"),
    }
    Ok(())
}

fn lint() -> Result<()> {
    setup::toolchain()?;
    say("checking the format");
    cargo(&["fmt", "--all", "--check"]).run()?;
    for folder in ["accountant-ebpf", "fuzz"] {
        cargo(&["fmt", "--check"]).within(folder).run()?;
    }
    say("linting");
    cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]).run()
}
