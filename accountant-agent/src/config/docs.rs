//! docs/configure.md: its text is written by hand, the tables of flags come from the command line itself.
//!
//! In the document, what is between `<!-- flags: COMMAND -->` and `<!-- end -->` is generated ([`crate::generated`]).

use super::Cli;
use crate::generated;
use clap::{Arg, Command, CommandFactory};
use std::collections::BTreeSet;

/// The command whose flags are not told again of the others.
const FIRST: &str = "run";

fn command(name: &str) -> Command {
    let found = Cli::command().find_subcommand(name).cloned();
    found.unwrap_or_else(|| panic!("there is no command {name}"))
}

fn names(command: &Command) -> BTreeSet<&str> {
    command.get_arguments().filter_map(Arg::get_long).collect()
}

/// The flags of a command, but those that the first one has.
fn flags(name: &str) -> String {
    let (first, command) = (command(FIRST), command(name));
    let known = if name == FIRST { BTreeSet::new() } else { names(&first) };
    let own = command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg)));
    let rows = own.filter(|(name, _)| !known.contains(name)).map(|(name, arg)| row(name, arg));
    format!("| flag | environment | default | |\n|---|---|---|---|\n{}", rows.collect::<String>())
}

fn row(name: &str, arg: &Arg) -> String {
    let takes_value = arg.get_action().takes_values();
    let values: Vec<_> = arg.get_possible_values().iter().map(|value| value.get_name().to_string()).collect();
    let value = match arg.get_value_names().filter(|_| takes_value) {
        Some(_) if !values.is_empty() => format!(" {}", values.join("\\|")),
        Some(names) => format!(" {}", names.join(" ")),
        None => String::new(),
    };
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = if takes_value { defaults.join(",") } else { String::new() };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.trim_end_matches('.').replace('|', "\\|");
    format!("| `--{name}{value}` | {} | {} | {help}. |\n", code(&variable), code(&default))
}

#[test]
fn the_document_is_made_from_the_command_line() {
    let tables = generated::keep_fresh("configure.md", "flags", flags);
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        assert!(tables.contains(name), "docs/configure.md lacks {name}");
    }
}
