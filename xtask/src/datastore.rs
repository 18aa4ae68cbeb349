//! Where the demo's agent takes names from: a folder, or a real server with the same objects in it.

use crate::command::say;
use accountant_lab::Namespace;
use accountant_lab::scenario::{Scenario, etcd_entry};
use accountant_rigs::{ApiServer, Etcd, Unavailable, preload};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// The group that Calico's objects of the demo are of.
const GROUP: &str = "projectcalico.org";

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Datastore {
    /// A folder of YAML.
    Manifests,
    /// A real etcd, with what Calico 3.31 keeps there.
    Etcd,
    /// A real Kubernetes API server; it is built with Go.
    Kubernetes,
}

/// A datastore that is ready, for as long as this lives.
pub(crate) struct Names {
    /// The arguments that lead the agent to it.
    pub(crate) arguments: [String; 2],
    _server: Server,
    _folder: TempDir,
}

#[expect(dead_code, reason = "a server runs for as long as it is held")]
enum Server {
    None,
    Etcd(Etcd),
    Kubernetes(ApiServer),
}

impl Datastore {
    /// Starts it in the node's namespace, with everything that a scenario has names of.
    pub(crate) fn start(self, scenario: &Scenario, node: &Namespace) -> Result<Names> {
        let folder = tempfile::tempdir()?;
        let (argument, server) = match self {
            Self::Manifests => {
                scenario.write_manifests(folder.path())?;
                (["--manifests".into(), readable(folder.path())?], Server::None)
            }
            Self::Etcd => {
                say("starting etcd, with the objects as Calico 3.31 keeps them");
                let etcd = node.enter(|| start_etcd(scenario))??;
                let spec = json!({"datastoreType": "etcdv3", "etcdEndpoints": etcd.endpoint()});
                (configuration(folder.path(), &spec)?, Server::Etcd(etcd))
            }
            Self::Kubernetes => {
                let server = start_api_server(scenario, node, folder.path())?;
                let spec = json!({"datastoreType": "kubernetes", "kubeconfig": server.kubeconfig()});
                (configuration(folder.path(), &spec)?, Server::Kubernetes(server))
            }
        };
        Ok(Names { arguments: argument, _server: server, _folder: folder })
    }
}

fn start_etcd(scenario: &Scenario) -> Result<Etcd> {
    let etcd = Etcd::start()?;
    for (key, value) in scenario.objects()?.iter().map(etcd_entry) {
        etcd.put(&key, &value.to_string())?;
    }
    Ok(etcd)
}

fn start_api_server(scenario: &Scenario, node: &Namespace, folder: &Path) -> Result<ApiServer> {
    let binary = match accountant_rigs::binary()? {
        Ok(binary) => binary,
        Err(Unavailable(reason)) => bail!("there is no API server for the demo: it {reason}"),
    };
    say("starting an API server, with the objects as kubectl would list them");
    let file = folder.join("objects.jsonl");
    let objects = preload::established_crds(GROUP)?.into_iter().chain(scenario.objects()?);
    preload::write(&file, objects)?;
    node.enter(|| ApiServer::start_with(&binary, &[], &file))?
}

/// A configuration file of Calico's, and the flag for it.
fn configuration(folder: &Path, spec: &Value) -> Result<[String; 2]> {
    let file = folder.join("calico.yaml");
    let text = json!({"apiVersion": "projectcalico.org/v3", "kind": "CalicoAPIConfig", "spec": spec});
    fs::write(&file, text.to_string())?;
    Ok(["--calico-config".into(), readable(&file)?])
}

fn readable(path: &Path) -> Result<String> {
    Ok(path.to_str().context("the folder of temporary files has no readable name")?.into())
}
