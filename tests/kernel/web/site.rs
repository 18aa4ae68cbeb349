//! An agent with a web configuration in a namespace of its own, and curl, which asks it.

use crate::certificates::Authority;
use crate::support::{program, wait_until};
use accountant_lab::agent::ADDRESS;
use accountant_lab::{Agent, Namespace};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// What curl says of a request: its exit status, the answer's, and all that it printed.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) exit: i32,
    pub(crate) status: String,
    pub(crate) version: String,
    pub(crate) text: String,
}

/// Exit statuses of curl.
pub(crate) const TLS_FAILED: i32 = 35;
pub(crate) const CUT: [i32; 4] = [35, 52, 55, 56];
pub(crate) const NOT_TRUSTED: i32 = 60;

/// A folder with a web configuration and certificates, and where the agent is.
pub(crate) struct Site {
    pub(crate) namespace: Namespace,
    pub(crate) folder: TempDir,
    pub(crate) authority: Authority,
}

impl Site {
    /// Without a configuration; `server` and `client` are signed.
    pub(crate) fn new(namespace: Namespace) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "authority");
        authority.sign("server", &[]);
        authority.sign("client", &["prometheus.monitoring"]);
        Self { namespace, folder, authority }
    }

    pub(crate) fn in_a_namespace() -> Self {
        Self::new(Namespace::new("web").unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Writes the configuration, never half of it.
    pub(crate) fn configure(&self, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.config()).unwrap();
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("web.yml")
    }

    /// Starts the agent.
    pub(crate) fn spawn(&self, more: &[&str]) -> Agent {
        let config = self.path("web.yml");
        Agent::spawn(&self.namespace, program(), &[&["--web.config.file", &config], more].concat()).unwrap()
    }

    /// Starts the agent and waits until it listens.
    pub(crate) fn start(&self, more: &[&str]) -> Agent {
        let agent = self.spawn(more);
        wait_until("it serves", || agent.log().contains(ADDRESS));
        agent
    }

    /// Asks for a path; over TLS, trusting our authority.
    pub(crate) fn https(&self, path: &str, more: &[&str]) -> Asked {
        let authority = self.path("authority.crt");
        self.curl(&[&["--cacert", &authority], more, &[&format!("https://{ADDRESS}{path}")]].concat())
    }

    pub(crate) fn http(&self, path: &str, more: &[&str]) -> Asked {
        self.curl(&[more, &[&format!("http://{ADDRESS}{path}")]].concat())
    }

    /// Runs curl, which also says status and version of the answer.
    pub(crate) fn curl(&self, arguments: &[&str]) -> Asked {
        let mut command = self.namespace.command("curl").unwrap();
        command.args(["--silent", "--show-error", "--include", "--max-time", "30", "--globoff"]);
        command.args(["--write-out", "\n%{http_code} %{http_version}"]).args(arguments);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (text, last) = text.rsplit_once('\n').unwrap();
        let (status, version) = last.split_once(' ').unwrap();
        let text = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        let exit = output.status.code().unwrap_or(-1);
        Asked { exit, status: status.into(), version: version.into(), text }
    }
}

/// The configuration of TLS with `server`'s certificate, and more of `tls_server_config`.
pub(crate) fn tls(more: &str) -> String {
    format!("tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n{more}")
}
