//! Debian's etcd, as `cargo xtask setup` unpacks it.

use crate::certificates::Certificates;
use crate::process::{Process, free_ports, wait_until};
use crate::root;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::path::PathBuf;
use tempfile::TempDir;

/// A running etcd.
#[derive(Debug)]
pub struct Etcd {
    folder: TempDir,
    process: Option<Process>,
    port: u16,
    health: u16,
    /// Its certificates, if it speaks TLS.
    pub certificates: Option<Certificates>,
}

impl Etcd {
    /// Starts an empty one.
    pub fn start() -> Result<Self> {
        Self::with(false)
    }

    /// Starts an empty one that speaks TLS and wants certificates of its clients.
    pub fn start_with_tls() -> Result<Self> {
        Self::with(true)
    }

    fn with(tls: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let certificates = tls.then(|| Certificates::make(folder.path())).transpose()?;
        let [port, health] = free_ports()?;
        let mut etcd = Self { folder, process: None, port, health, certificates };
        etcd.restart()?;
        Ok(etcd)
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Stores an entry. Only where it speaks no TLS.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        let [key64, value] = [key, value].map(|text| STANDARD.encode(text));
        let request = format!(r#"{{"key": "{key64}", "value": "{value}"}}"#);
        let url = format!("{}/v3/kv/put", self.endpoint());
        ureq::post(&url).send(request).with_context(|| format!("putting {key} into etcd"))?;
        Ok(())
    }

    /// Its process number.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::only_child)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.end();
        }
    }

    /// Makes new certificates, of a new authority. It takes them when it is started again.
    pub fn replace_certificates(&mut self) -> Result<()> {
        self.certificates = Some(Certificates::make(self.folder.path())?);
        Ok(())
    }

    /// Starts it (again) with the data that it has.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let program = program()?;
        let log = self.folder.path().join("log");
        let mut process = Process::start_behind_shell(&program, &self.arguments()?, &log)?;
        let health = format!("http://127.0.0.1:{}/health", self.health);
        let healthy = || ureq::get(&health).call().is_ok();
        wait_until(healthy, &mut process, &log).context("starting etcd")?;
        self.process = Some(process);
        Ok(())
    }

    fn arguments(&self) -> Result<Vec<String>> {
        let [peer] = free_ports()?;
        let endpoint = self.endpoint();
        let mut arguments = vec![
            format!("--data-dir={}", self.folder.path().join("data").display()),
            format!("--listen-client-urls={endpoint}"),
            format!("--advertise-client-urls={endpoint}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-cluster=default=http://127.0.0.1:{peer}"),
            format!("--listen-metrics-urls=http://127.0.0.1:{}", self.health),
            "--heartbeat-interval=10".into(),
            "--election-timeout=100".into(),
            "--unsafe-no-fsync".into(),
        ];
        if let Some(certificates) = &self.certificates {
            for (flag, file) in [("cert", "server.crt"), ("key", "server.key"), ("trusted-ca", "ca.crt")] {
                arguments.push(format!("--{flag}-file={}", certificates.file(file).display()));
            }
            arguments.push("--client-cert-auth".into());
        }
        Ok(arguments)
    }
}

fn program() -> Result<PathBuf> {
    let unpacked = root().join("target/tools/debian/usr/bin/etcd");
    if unpacked.exists() {
        return Ok(unpacked);
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let installed =
        std::env::split_paths(&paths).map(|folder| folder.join("etcd")).find(|file| file.exists());
    installed.context("there is no etcd: run cargo xtask setup")
}
