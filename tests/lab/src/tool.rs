//! The external tools that set a node up: found, started, fed, and their complaints made readable.
//!
//! Only the lab starts external programs; the agent never does.

use crate::error::{Error, Result};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::{env, thread};

/// Which Debian package has which tool.
const PACKAGES: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("ip6tables", "iptables"),
    ("ipset", "ipset"),
    ("nft", "nftables"),
];

/// The tool's full path, or the error that names its package.
pub(crate) fn find(tool: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(tool))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Error::MissingTool { tool: tool.to_string(), package: package(tool) })
}

fn package(tool: &str) -> &'static str {
    let family = tool.split('-').next().unwrap_or(tool);
    PACKAGES.iter().find(|p| p.0 == family).map_or("the package that has it", |p| p.1)
}

/// Runs the command to its end and returns what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().map_err(Error::io("start", line(command)))?;
    printed(command, output, "")
}

/// Runs the command with `input` as its standard input and returns what it printed.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("start", line(command)))?;
    let pipe = child.stdin.take();
    let output = thread::scope(|scope| {
        // A tool that fails stops reading: its own words say more than our broken pipe.
        scope.spawn(move || pipe.map(|mut pipe| pipe.write_all(input.as_bytes())));
        child.wait_with_output()
    });
    printed(command, output.map_err(Error::io("wait for", line(command)))?, input)
}

fn printed(command: &Command, output: Output, input: &str) -> Result<String> {
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_string();
    if !output.status.success() {
        let context = complained_lines(&stderr, input);
        return Err(Error::Tool { command: line(command), status: output.status, stderr, context });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The lines of `input` whose numbers a restore tool names (`line 17`, `line: 17`, `stdin:17:`).
fn complained_lines(stderr: &str, input: &str) -> String {
    let mut context = String::new();
    let numbers = stderr.split("line").skip(1).chain(stderr.split("stdin:").skip(1));
    for rest in numbers.take(3) {
        let digits: String =
            rest.trim_start_matches([':', ' ']).chars().take_while(char::is_ascii_digit).collect();
        let number = digits.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
        if let Some(text) = number.and_then(|n| input.lines().nth(n)) {
            context.push_str("\n  ");
            context.push_str(text);
        }
    }
    context
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_names_its_package() {
        let missing = |tool| find(tool).unwrap_err().to_string();
        assert_eq!(
            missing("iptables-legacy-restore-x"),
            "`iptables-legacy-restore-x` is not installed here: `apt-get install iptables`"
        );
        assert!(find("ip").is_ok());
    }

    #[test]
    fn a_complaint_quotes_the_line_it_is_about() {
        assert_eq!(
            complained_lines("iptables-restore: line 2 failed", "*filter\n-A X -j Y\n"),
            "\n  -A X -j Y"
        );
        assert_eq!(complained_lines("/dev/stdin:1:3-4: Error: syntax error", "add x\n"), "\n  add x");
        assert_eq!(complained_lines("no numbers here", "add x\n"), "");
    }
}
