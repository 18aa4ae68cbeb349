//! How to reach the Kubernetes API: plain data, as the configuration gives it.

use crate::secret::{Pem, Secret};
use http::Uri;
use http::uri::InvalidUri;
use std::path::PathBuf;

/// Where the API server is and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// What to begin with.
    pub source: Source,
    /// Single settings that count before those of `source`.
    pub overrides: Overrides,
    /// The group that Calico's objects are in, where it is told.
    pub api_group: Option<ApiGroup>,
    /// The proxies that count where the kubeconfig has none.
    pub proxies: Proxies,
}

/// Proxies, as the environment of most programs tells them. An address may have a user and a password in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// Before servers that speak HTTP.
    pub http: Option<Secret>,
    /// Before servers that speak HTTPS.
    pub https: Option<Secret>,
    /// Servers that are reached without: names, domains, addresses and networks, separated by commas.
    pub except: Box<str>,
}

/// Where the settings of a connection come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The text of a kubeconfig.
    Inline(Secret),
    /// Kubeconfig files, merged as kubectl does: what is first counts. They are read again at every connection.
    Files(Vec<PathBuf>),
    /// The service account of the pod that we are in.
    InCluster,
    /// Nothing but the overrides, which have the server.
    Overrides,
}

/// Single settings of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The server's address.
    pub server: Option<Box<str>>,
    /// Whom to trust.
    pub ca: Option<Pem>,
    /// Our certificate and its key.
    pub identity: Option<(Pem, Pem)>,
    /// A bearer token.
    pub token: Option<Secret>,
    /// Whether to take any certificate of the server.
    pub insecure: bool,
    /// The context of the kubeconfig.
    pub context: Option<Box<str>>,
}

impl Overrides {
    /// The server's address, if one is given. As kubectl has it, an address without a scheme is one of HTTP.
    pub fn server(&self) -> Result<Option<Uri>, InvalidUri> {
        let Some(server) = &self.server else { return Ok(None) };
        let address = if server.contains("://") { server.to_string() } else { format!("http://{server}") };
        address.parse().map(Some)
    }
}

/// The group of Calico's custom resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiGroup {
    /// `crd.projectcalico.org/v1`
    CrdV1,
    /// `projectcalico.org/v3`
    V3,
}

impl ApiGroup {
    /// Group and version as one word; case does not matter.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = |group: &Self| group.as_str().eq_ignore_ascii_case(text);
        [Self::CrdV1, Self::V3].into_iter().find(fits)
    }

    /// Group and version.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CrdV1 => "crd.projectcalico.org/v1",
            Self::V3 => "projectcalico.org/v3",
        }
    }
}
