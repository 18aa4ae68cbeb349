//! How to reach etcd: plain data, as the configuration gives it.

use crate::secret::{Pem, Secret};

/// Where etcd is and how to speak to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Where it is.
    pub servers: Servers,
    /// Name and password.
    pub user: Option<(Box<str>, Secret)>,
    /// Whom to trust; the system's authorities if not given.
    pub ca: Option<Pem>,
    /// Our certificate and its key.
    pub identity: Option<(Pem, Pem)>,
}

/// Where etcd is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// Addresses: `http://HOST:PORT` or `https://HOST:PORT`.
    Endpoints(Vec<Box<str>>),
    /// A domain whose DNS has SRV records of the services `etcd-client-ssl` and `etcd-client`.
    Domain(Box<str>),
}

impl Default for Servers {
    fn default() -> Self {
        Self::Endpoints(Vec::new())
    }
}
