//! Debian's etcd, as `cargo xtask setup` unpacks it.

use crate::certificates::Certificates;
use crate::process::{Process, free_ports, wait_until};
use crate::root;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::path::PathBuf;
use tempfile::TempDir;

/// A running etcd: alone, or a member of a cluster.
#[derive(Debug)]
pub struct Etcd {
    folder: TempDir,
    process: Option<Process>,
    port: u16,
    peer: u16,
    health: u16,
    /// Its name in its cluster, and the cluster as its members are told of it.
    name: String,
    cluster: String,
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

    /// Starts three empty ones that are one cluster.
    pub fn start_members() -> Result<[Self; 3]> {
        let ports: [u16; 9] = free_ports()?;
        let peer = |member: usize| ports[3 * member + 1];
        let cluster = [0, 1, 2].map(|member| initial(&format!("member-{member}"), peer(member))).join(",");
        let mut members = Vec::new();
        for (member, ports) in ports.chunks(3).enumerate() {
            let ports = [ports[0], ports[1], ports[2]];
            let mut etcd = Self::new(tempfile::tempdir()?, ports, format!("member-{member}"));
            etcd.cluster.clone_from(&cluster);
            etcd.launch()?;
            members.push(etcd);
        }
        members.iter_mut().try_for_each(Self::wait)?;
        members.try_into().map_err(|_| anyhow::anyhow!("three members"))
    }

    fn with(tls: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let certificates = tls.then(|| Certificates::make(folder.path())).transpose()?;
        let mut etcd = Self { certificates, ..Self::new(folder, free_ports()?, "default".into()) };
        etcd.restart()?;
        Ok(etcd)
    }

    fn new(folder: TempDir, [port, peer, health]: [u16; 3], name: String) -> Self {
        let cluster = initial(&name, peer);
        Self { folder, process: None, port, peer, health, name, cluster, certificates: None }
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

    /// Its own metrics, as text.
    pub fn metrics(&self) -> Result<String> {
        let url = format!("http://127.0.0.1:{}/metrics", self.health);
        Ok(ureq::get(&url).call()?.body_mut().read_to_string()?)
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

    /// Starts it (again) with the data that it has. A member of a cluster is there only when most of them are.
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        self.wait()
    }

    /// Starts those that do not run, all at once.
    pub fn restart_members(members: &mut [Self]) -> Result<()> {
        let mut gone: Vec<_> = members.iter_mut().filter(|member| member.process.is_none()).collect();
        gone.iter_mut().try_for_each(|member| member.launch())?;
        gone.iter_mut().try_for_each(|member| member.wait())
    }

    fn launch(&mut self) -> Result<()> {
        self.kill();
        self.process = Some(Process::start_behind_shell(&program()?, &self.arguments(), &self.log())?);
        Ok(())
    }

    /// Waits until it can be asked.
    fn wait(&mut self) -> Result<()> {
        let health = format!("http://127.0.0.1:{}/health", self.health);
        let (log, healthy) = (self.log(), || ureq::get(&health).call().is_ok());
        let process = self.process.as_mut().context("etcd was not started")?;
        wait_until(healthy, process, &log).context("starting etcd")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn arguments(&self) -> Vec<String> {
        let (endpoint, peer) = (self.endpoint(), self.peer);
        // Alone it elects itself at once; several must hear of each other on a busy machine.
        let (heartbeat, election) = if self.cluster.contains(',') { (50, 500) } else { (10, 100) };
        let mut arguments = vec![
            format!("--name={}", self.name),
            format!("--data-dir={}", self.folder.path().join("data").display()),
            format!("--listen-client-urls={endpoint}"),
            format!("--advertise-client-urls={endpoint}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-cluster={}", self.cluster),
            format!("--listen-metrics-urls=http://127.0.0.1:{}", self.health),
            format!("--heartbeat-interval={heartbeat}"),
            format!("--election-timeout={election}"),
            "--unsafe-no-fsync".into(),
        ];
        if let Some(certificates) = &self.certificates {
            for (flag, file) in [("cert", "server.crt"), ("key", "server.key"), ("trusted-ca", "ca.crt")] {
                arguments.push(format!("--{flag}-file={}", certificates.file(file).display()));
            }
            arguments.push("--client-cert-auth".into());
        }
        arguments
    }
}

/// A member as its cluster is told of it.
fn initial(name: &str, peer: u16) -> String {
    format!("{name}=http://127.0.0.1:{peer}")
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
