//! Running other programs, visibly.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Tells the person what is being done.
pub(crate) fn say(what: &str) {
    println!("xtask: {what}");
}

/// A program to run in the workspace's folder.
pub(crate) struct Program(Command);

/// A program.
pub(crate) fn program(name: impl AsRef<OsStr>, arguments: &[&str]) -> Program {
    let mut command = Command::new(name);
    command.args(arguments).current_dir(root());
    Program(command)
}

/// The cargo that runs us.
pub(crate) fn cargo(arguments: &[&str]) -> Program {
    program(std::env::var_os("CARGO").unwrap_or("cargo".into()), arguments)
}

impl Program {
    /// With more arguments.
    pub(crate) fn args(mut self, arguments: &[String]) -> Self {
        self.0.args(arguments);
        self
    }

    /// With an environment variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// In a folder of the workspace.
    pub(crate) fn within(mut self, folder: impl AsRef<Path>) -> Self {
        self.0.current_dir(root().join(folder));
        self
    }

    /// Runs it; its failure is ours.
    pub(crate) fn run(mut self) -> Result<()> {
        let status = self.0.status().with_context(|| format!("starting {:?}", self.0.get_program()))?;
        if !status.success() {
            bail!("{:?} failed: {status}", self.0);
        }
        Ok(())
    }

    /// Runs it and returns what it prints, as text.
    pub(crate) fn output(self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }

    /// Runs it and returns what it prints.
    pub(crate) fn bytes(mut self) -> Result<Vec<u8>> {
        let output = self
            .0
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("starting {:?}", self.0.get_program()))?;
        if !output.status.success() {
            bail!("{:?} failed: {}", self.0, output.status);
        }
        Ok(output.stdout)
    }
}

/// Whether a program is there.
pub(crate) fn exists(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.into_iter().any(|folder| folder.join(name).exists())
}
