//! Configurations that make no sense: what was given, where, and what to give.

use super::setting::Origin;
use std::path::PathBuf;

/// A configuration that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// `manifests` without a folder.
    #[error("datastore type manifests needs a folder: give --manifests DIR or ACCOUNTANT_MANIFESTS")]
    NoFolder,
    /// A folder with another datastore.
    #[error("--manifests is given together with datastore type {0} ({1}): give one of the two")]
    TwoDatastores(&'static str, Origin),
    /// A value that cannot be.
    #[error("{origin} is {value:?}, which must be {wanted}")]
    Value {
        /// The value.
        value: String,
        /// Where it stands.
        origin: Origin,
        /// What it may be.
        wanted: &'static str,
    },
    /// A file that cannot be used.
    #[error("cannot use {path:?}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Two settings that exclude each other.
    #[error("{0} and {1} are both given: give one of the two")]
    Both(&'static str, &'static str),
    /// Two daemons that could not be told apart.
    #[error(
        "--bird-socket names two daemons {0:?}: give them names, like --bird-socket host=/run/bird/bird.ctl"
    )]
    SameDaemon(String),
    /// A certificate without its key, or the other way round.
    #[error("{0} is given without {1}: give both or none")]
    OneOfTwo(&'static str, &'static str),
    /// `etcdv3` without endpoints.
    #[error("datastore type etcdv3 needs ETCD_ENDPOINTS or ETCD_DISCOVERY_SRV: give one of the two")]
    NoEndpoints,
    /// `kubernetes` without a way to it.
    #[error(
        "datastore type kubernetes needs a way to the API server: give KUBECONFIG or K8S_API_ENDPOINT, or run in a pod \
         with a service account"
    )]
    NoServer,
}
