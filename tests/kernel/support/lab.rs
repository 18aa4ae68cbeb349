//! A node of the lab with its manifests in a folder, and the agent in it.

use super::{program, start};
use accountant_lab::felix::{Backend, Dialect, Version};
use accountant_lab::policy::Rule;
use accountant_lab::scenario::{NODE_NAME, Scenario};
use accountant_lab::traffic::Flooded;
use accountant_lab::{Agent, Node};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::net::IpAddr;

/// A node without rules, and its manifests.
pub struct Lab {
    pub node: Node,
    pub manifests: tempfile::TempDir,
}

impl Lab {
    pub fn new(scenario: &Scenario) -> Self {
        let manifests = tempfile::tempdir().unwrap();
        scenario.write_manifests(manifests.path()).unwrap();
        Self { node: scenario.node().unwrap(), manifests }
    }

    /// What tells the agent about the node and its manifests.
    pub fn arguments(&self) -> [&str; 4] {
        ["--manifests", self.manifests.path().to_str().unwrap(), "--node-name", NODE_NAME]
    }

    /// Takes the xtables lock as a writer would; its path goes with it.
    pub fn hold_lock(&self) -> (Flock<File>, String) {
        let path = self.node.host().lock_file();
        let held = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusive).unwrap();
        (held, path.display().to_string())
    }

    /// The same, without waiting for it to be ready.
    pub fn spawn(&self, more: &[&str]) -> Agent {
        Agent::spawn(self.node.host(), program(), &[&self.arguments()[..], more].concat()).unwrap()
    }

    /// Starts the agent with these arguments more.
    pub fn agent(&self, more: &[&str]) -> Agent {
        start(self.node.host(), &[&self.arguments()[..], more].concat())
    }
}

/// The dialect that is tried where one of each backend is enough.
pub fn dialect(backend: Backend) -> Dialect {
    Dialect::new(Version::V3_31, backend).unwrap()
}

/// The pod's IPv4 address.
pub fn v4(node: &Node, namespace: &str, pod: &str) -> IpAddr {
    node.pod(namespace, pod).unwrap().v4().unwrap()
}

/// Puts a rule in front of a policy's ingress rules.
pub fn prepend(scenario: &mut Scenario, (namespace, policy): (&str, &str), rule: Rule) {
    let policy = scenario.model.policy_mut(namespace, policy).unwrap();
    let old = policy.ingress.take().unwrap_or_default();
    policy.ingress = Some([rule].into_iter().chain(old).collect());
}

/// What a flood sent, if its link dropped nothing: rules saw all of it.
pub fn arrived(flooded: Flooded) -> Flooded {
    assert_eq!(flooded.lost, 0, "the sender's link dropped packets: {flooded:?}");
    flooded
}
