//! docs/configure.md: its text is written by hand, the tables of flags come from the command line itself.
//!
//! In the document, what is between `<!-- flags: COMMAND -->` and `<!-- end -->` is generated. The test fails when it is stale;
//! `cargo xtask docs` writes it.

use super::Cli;
use clap::{Arg, Command, CommandFactory};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// Set, it makes the test write the document.
const REWRITE: &str = "ACCOUNTANT_REWRITE";
const BEGIN: &str = "<!-- flags: ";
const END: &str = "<!-- end -->";

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/configure.md")
}

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

/// The document with its tables made anew.
fn renewed(document: &str) -> String {
    let (mut text, mut rest) = (String::new(), document);
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let (command, after) = after.split_once(" -->").unwrap();
        let (_, after) = after.split_once(END).unwrap();
        text += &format!("{before}{BEGIN}{command} -->\n{}{END}", flags(command));
        rest = after;
    }
    text + rest
}

#[test]
fn the_document_is_made_from_the_command_line() {
    let document = fs::read_to_string(path()).unwrap();
    let renewed = renewed(&document);
    if std::env::var_os(REWRITE).is_some() {
        fs::write(path(), &renewed).unwrap();
    } else {
        assert!(renewed == document, "docs/configure.md is stale: `cargo xtask docs` writes it");
    }
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        assert!(document.contains(&format!("{BEGIN}{name} -->")), "docs/configure.md lacks {name}");
    }
}
