//! A booted systemd: the machine's own, as the first process of namespaces of its own (boot.sh).

use crate::support::{program, wait_until};
use accountant_lab::Namespace;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

pub(crate) const UNIT: &str = "calico-packet-accountant.service";

/// A package that `cargo xtask deb` made, to be installed in place of the files that it would have.
fn package() -> Option<PathBuf> {
    std::env::var_os("ACCOUNTANT_DEB").map(PathBuf::from)
}

/// A running machine; it ends when dropped.
pub(crate) struct Machine {
    namespace: Namespace,
    folder: TempDir,
    shell: Child,
}

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path).canonicalize().unwrap()
}

impl Machine {
    /// Boots it in a network namespace, with these files in /etc, and the agent installed: from its package, or as docs/install.md
    /// says where there is no package.
    pub(crate) fn boot(namespace: &Namespace, etc: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = folder.path().join("etc").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        fs::create_dir(folder.path().join("layer")).unwrap();
        etc.iter().for_each(|(path, text)| put(path, text));
        let unit = fs::read_to_string(repository(&format!("deploy/systemd/{UNIT}"))).unwrap();
        if package().is_none() {
            put(&format!("systemd/system/{UNIT}"), &unit);
        }
        let mut command = namespace.command("unshare").unwrap();
        command.args(["--mount", "sh"]).arg(repository("tests/kernel/systemd/boot.sh")).arg(folder.path());
        command.arg(if package().is_none() { program() } else { Path::new("") });
        let shell = command.stdin(Stdio::piped()).spawn().unwrap();
        let machine = Self { namespace: namespace.clone(), folder, shell };
        wait_until("systemd is started", || machine.folder.path().join("pid").exists());
        wait_until("systemd is up", || machine.ask("systemctl", &["is-system-running"]).0 == "running\n");
        if let Some(package) = package() {
            // Settings are the administrator's, and there already.
            machine.run("dpkg", &["--force-confold", "--install", package.to_str().unwrap()]);
        }
        machine
    }

    fn command(&self, tool: &str, arguments: &[&str]) -> Output {
        let pid = fs::read_to_string(self.folder.path().join("pid")).unwrap();
        let mut command = Command::new("nsenter");
        command.args(["--target", pid.trim(), "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]);
        command.args(["--root", "--wd", tool]).args(arguments);
        command.env("SYSTEMD_COLORS", "0").env("SYSTEMD_PAGER", "").output().unwrap()
    }

    /// What a tool says in it, and whether it succeeded.
    pub(crate) fn ask(&self, tool: &str, arguments: &[&str]) -> (String, bool) {
        let output = self.command(tool, arguments);
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
    }

    /// The same; it has to succeed.
    pub(crate) fn run(&self, tool: &str, arguments: &[&str]) -> String {
        let output = self.command(tool, arguments);
        let [out, err] = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        assert!(output.status.success(), "{tool} {arguments:?}: {out}{err}{}", self.log());
        out
    }

    /// What the agent said.
    pub(crate) fn log(&self) -> String {
        self.ask("journalctl", &["--no-pager", "--output=cat", "--unit", UNIT]).0
    }

    /// The agent's process; 0 while there is none.
    pub(crate) fn main_pid(&self) -> u32 {
        let said = self.ask("systemctl", &["show", "--property=MainPID", "--value", UNIT]).0;
        said.trim().parse().unwrap_or(0)
    }

    /// Writes a file, as its administrator.
    pub(crate) fn write(&self, path: &str, text: &str) {
        self.run("sh", &["-c", "printf %s \"$1\" >\"$2\"", "sh", text, path]);
    }

    /// What the agent answers on this port, if it does.
    pub(crate) fn get(&self, port: u16, path: &str) -> Option<String> {
        let url = format!("http://127.0.0.1:{port}{path}");
        self.namespace.run("curl", &["--silent", "--fail", &url]).ok()
    }

    /// All accounts.
    pub(crate) fn accounts(&self, port: u16) -> Value {
        let text = self.get(port, "/accounts").unwrap_or_else(|| panic!("no accounts: {}", self.log()));
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what systemd said\n{}", self.ask("journalctl", &["--no-pager", "--lines=60"]).0);
        }
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
