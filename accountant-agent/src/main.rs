//! The binary `accountant`.

#![forbid(unsafe_code)]

use accountant_agent::commands;
use accountant_agent::config::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => commands::run::run(args),
        Command::Show(args) => commands::show::show(&args),
        Command::Check(args) => commands::check::check(&args),
        Command::Detach(args) => commands::detach::detach(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("accountant: {error:#}");
            ExitCode::FAILURE
        }
    }
}
