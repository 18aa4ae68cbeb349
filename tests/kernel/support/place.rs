//! A node of the lab whose agents leave something to the next ones: programs in the kernel, and their books.

use super::bpffs::BpfFilesystem;
use super::lab::{Lab, dialect, prepend};
use super::streams::shop;
use super::{run, scrape, wait_until};
use accountant_lab::apply::Felix;
use accountant_lab::felix::Backend;
use accountant_lab::policy::Rule;
use accountant_lab::{Agent, Scenario};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A port of the web's whose flows are answered.
pub const ANSWERED: u16 = 5001;

/// A lab, and a folder for what outlives its agents.
pub struct Place {
    pub felix: Felix,
    pub lab: Lab,
    pub scenario: Scenario,
    bpffs: BpfFilesystem,
    state: TempDir,
}

impl Place {
    pub fn new(backend: Backend) -> Self {
        let mut scenario = shop();
        prepend(&mut scenario, ("shop", "web"), Rule::allow().udp(&[ANSWERED]));
        let lab = Lab::new(&scenario);
        let mut felix = lab.node.felix(dialect(backend));
        felix.apply(&scenario.model).unwrap();
        Self { felix, lab, scenario, bpffs: BpfFilesystem::new(), state: tempfile::tempdir().unwrap() }
    }

    pub fn pins(&self) -> PathBuf {
        self.bpffs.pins()
    }

    /// Starts the agent and waits until it is ready.
    pub fn agent(&self) -> Agent {
        let mut agent = self.spawn();
        wait_until("the agent is ready", || agent.get("/readyz").is_ok_and(|answer| answer.status == 200));
        assert!(!agent.has_ended());
        agent
    }

    /// Starts it without waiting until it is ready.
    pub fn spawn(&self) -> Agent {
        let pins = self.pins().display().to_string();
        let lock = self.lab.node.host().lock_file().display().to_string();
        self.lab.spawn(&[
            "--kernel-pins",
            &pins,
            "--state-dir",
            &self.state.path().display().to_string(),
            "--max-age",
            "0s",
            "--poll-interval",
            "1s",
            "--xtables-lock-file",
            &lock,
            "--kernel-program-statistics=true",
        ])
    }

    pub fn detach(&self) -> (String, String, i32) {
        run(self.lab.node.host(), &["detach", "--kernel-pins", self.pins().to_str().unwrap()])
    }

    /// What `check` says is in the way of a folder's use.
    pub fn why_nothing_stays(&self, folder: &Path) -> Option<String> {
        let folder = folder.to_str().unwrap();
        let more = ["check", "--json", "--kernel-pins", folder];
        let (said, error, _) = run(self.lab.node.host(), &[&more[..], &self.lab.arguments()].concat());
        let said: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said} {error}"));
        let kept = &said["kernel_programs"]["kept"];
        assert_eq!(kept["folder"], folder, "{said:#}");
        kept["reason"].as_str().map(String::from)
    }

    /// The folder of this node's network namespace, and what is in it.
    pub fn left(&self) -> (PathBuf, Vec<String>) {
        let namespace = names(&self.pins());
        let folder = self.pins().join(namespace.first().cloned().unwrap_or_default());
        let left = if namespace.is_empty() { Vec::new() } else { names(&folder) };
        (folder, left)
    }
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

pub fn is_attached(agent: &Agent) -> bool {
    scrape(agent).sum("calico_accountant_kernel_programs_attached", &[]) > 0.0
}
