//! Ready models: a small shop to show everything once, and nodes of any size.
//!
//! A [`Scenario`] is a model with the pods that are to be real; [`Scenario::node`] makes the node,
//! [`Scenario::manifests`] says the model as a user would write it.

mod demo;
mod hosts;
mod manifests;
mod scale;
mod stored;

pub use demo::{Visit, demo};
pub use hosts::{HOST_TRAFFIC, HostTraffic, HostVisit, hosts, without_untracked};
pub use scale::scale;
pub use stored::etcd_entry;

use crate::error::{Error, Result};
use crate::node::Node;
use crate::policy::Model;
use std::fs;
use std::path::Path;

/// The name of the node in manifests.
pub const NODE_NAME: &str = "lab-node";

/// A model, and which of its pods are real.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it is called.
    pub name: String,
    /// What the node is told.
    pub model: Model,
    /// How many of the model's pods, from the first on, get a namespace. The others are only in the rules.
    pub real_pods: usize,
}

/// A manifest file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The file's name.
    pub file: &'static str,
    /// YAML, one document for each object.
    pub text: String,
}

impl Scenario {
    /// A node with the real pods, and nothing in its tables.
    pub fn node(&self) -> Result<Node> {
        Node::new(&self.model.endpoints[..self.real_pods.min(self.model.endpoints.len())])
    }

    /// The node's pods and policies as a user would list them: what the agent reads names from.
    pub fn manifests(&self) -> [Manifest; 2] {
        [
            Manifest { file: "pods.yaml", text: manifests::pods(&self.model) },
            Manifest { file: "policies.yaml", text: manifests::policies(&self.model) },
        ]
    }

    /// Writes the manifests into a folder, which is made if need be.
    pub fn write_manifests(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).map_err(Error::file("make the folder", folder))?;
        for manifest in self.manifests() {
            let path = folder.join(manifest.file);
            fs::write(&path, manifest.text).map_err(Error::file("write", &path))?;
        }
        Ok(())
    }
}
