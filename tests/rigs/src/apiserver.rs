//! A Kubernetes API server with its etcd in one process: `tests/apiserver`, built with Go once and kept.

use crate::go::{self, Unavailable};
use crate::process::{Process, first_line};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What the server tells when it is ready.
#[derive(Clone, Debug, Deserialize)]
struct Ready {
    server: String,
    ca: PathBuf,
    token: String,
    kubeconfig: PathBuf,
    pid: u32,
}

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    folder: TempDir,
    process: Option<Process>,
    ready: Ready,
    flags: Vec<String>,
    etcd: String,
}

impl ApiServer {
    /// Starts an empty one. `flags` go to kube-apiserver.
    pub fn start(binary: &Path, flags: &[&str]) -> Result<Self> {
        Self::with(binary, flags, None)
    }

    /// Starts one with these objects in it: lines of `{"key": "/registry/...", "value": {...}}`.
    pub fn start_with(binary: &Path, flags: &[&str], preload: &Path) -> Result<Self> {
        Self::with(binary, flags, Some(preload))
    }

    fn with(binary: &Path, flags: &[&str], preload: Option<&Path>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let flags: Vec<_> = flags.iter().map(ToString::to_string).collect();
        let [etcd] = crate::process::free_ports()?;
        let etcd = format!("127.0.0.1:{etcd}");
        let first: Vec<_> = preload.map(|file| format!("-preload={}", file.display())).into_iter().collect();
        let first = [first, vec!["-preload-batch=50".into()]].concat();
        let (process, ready) = start(binary, folder.path(), "127.0.0.1:0", &etcd, &first, &flags)?;
        Ok(Self { folder, process: Some(process), ready, flags, etcd })
    }

    /// Its address.
    pub fn server(&self) -> &str {
        &self.ready.server
    }

    /// The file with its authority.
    pub fn ca(&self) -> &Path {
        &self.ready.ca
    }

    /// A token that may do anything.
    pub fn token(&self) -> &str {
        &self.ready.token
    }

    /// A kubeconfig that may do anything.
    pub fn kubeconfig(&self) -> &Path {
        &self.ready.kubeconfig
    }

    /// The address of its own etcd.
    pub fn etcd(&self) -> String {
        format!("http://{}", self.etcd)
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.ready.pid
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.end();
        }
    }

    /// Makes it have new certificates of a new authority, and a new token, when it is started again.
    pub fn replace_certificates(&mut self) -> Result<()> {
        for file in ["ca.crt", "ca.key", "server.crt", "server.key", "tokens.csv", "admin.token"] {
            fs::remove_file(self.folder.path().join(file)).with_context(|| file.to_string())?;
        }
        Ok(())
    }

    /// Starts it again, with the data that it has, at the same address.
    pub fn restart(&mut self, binary: &Path) -> Result<()> {
        self.kill();
        let address = self.ready.server.trim_start_matches("https://").to_string();
        let (process, ready) = start(binary, self.folder.path(), &address, &self.etcd, &[], &self.flags)?;
        (self.process, self.ready) = (Some(process), ready);
        Ok(())
    }
}

fn start(
    binary: &Path,
    folder: &Path,
    address: &str,
    etcd: &str,
    first: &[String],
    flags: &[String],
) -> Result<(Process, Ready)> {
    let own = ["-dir", &folder.display().to_string(), "-addr", address, "-etcd-addr", etcd, "-stdin-eof"];
    let own = own.map(String::from).into_iter().chain(first.iter().cloned()).chain(["--".into()]);
    let arguments: Vec<_> = own.chain(flags.iter().cloned()).collect();
    let log = folder.join("log");
    let (mut process, out) = Process::start(binary, &arguments, &log)?;
    let line = first_line(out);
    if line.is_empty() {
        process.check(&log)?;
        bail!("the API server said nothing: {}", fs::read_to_string(log).unwrap_or_default());
    }
    let ready = serde_json::from_str(&line).with_context(|| format!("the API server says {line}"))?;
    Ok((process, ready))
}

/// The server's program, built if it is not there yet.
pub fn binary() -> Result<std::result::Result<PathBuf, Unavailable>> {
    go::built("apiserver")
}
