//! What can go wrong with etcd.

use crate::secret::PemError;
use std::time::Duration;

/// Why etcd cannot be read or followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum EtcdError {
    #[error("cannot find etcd by the SRV records of {domain}")]
    Dns { domain: Box<str>, source: hickory_resolver::net::NetError },
    #[error("{domain} has no SRV records of etcd-client-ssl or etcd-client")]
    NoRecords { domain: Box<str> },
    #[error("cannot speak TLS to etcd")]
    Certificate(#[from] PemError),
    #[error("there is no address of etcd")]
    NoServers,
    #[error("cannot connect to etcd at {server}")]
    Connect { server: Box<str>, source: etcd_client::Error },
    #[error("cannot list {what} in etcd")]
    List { what: &'static str, source: etcd_client::Error },
    #[error("etcd did not answer within {} s to listing {what}", patience.as_secs())]
    Silent { what: &'static str, patience: Duration },
    #[error("cannot watch etcd")]
    Watch { source: etcd_client::Error },
    #[error("etcd cancelled a watch: {why}")]
    Cancelled { why: String },
    #[error("etcd ended the watch")]
    Ended,
    #[error("etcd was compacted up to revision {up_to}, beyond what was read")]
    Compacted { up_to: i64 },
}

impl EtcdError {
    /// The kind of failure, for counting.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Dns { .. } | Self::NoRecords { .. } => "dns",
            Self::Certificate(_) => "certificate",
            Self::Connect { .. } | Self::NoServers => "connect",
            Self::List { .. } | Self::Silent { .. } => "list",
            Self::Watch { .. } | Self::Cancelled { .. } | Self::Ended => "watch",
            Self::Compacted { .. } => "compacted",
        }
    }

    /// What to do about it.
    pub(super) fn advice(&self) -> &'static str {
        match self {
            Self::Dns { .. } | Self::NoRecords { .. } => {
                "see ETCD_DISCOVERY_SRV and the resolver; it is tried again"
            }
            Self::Certificate(_) => "see ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE; it is tried again",
            Self::NoServers
            | Self::Connect { .. }
            | Self::List { .. }
            | Self::Silent { .. }
            | Self::Watch { .. } => {
                "see ETCD_ENDPOINTS and its certificates, user and password; it is tried again"
            }
            Self::Cancelled { .. } | Self::Ended | Self::Compacted { .. } => "all is read again",
        }
    }

    /// Whether the user may not read this part, and others perhaps may be read.
    pub(super) fn is_denied(&self) -> bool {
        const PERMISSION_DENIED: i32 = 7;
        matches!(self, Self::List { source: etcd_client::Error::GRpcStatus(status), .. }
            if i32::from(status.code()) == PERMISSION_DENIED)
    }

    /// Whether an answer was larger than we take, so that less is to be asked for.
    pub(super) fn is_too_large(&self) -> bool {
        matches!(self, Self::List { source: etcd_client::Error::GRpcStatus(status), .. }
            if status.message().contains("message length too large"))
    }

    /// Whether what was to be read is gone, so that reading anew right now helps.
    pub(super) fn is_compaction(&self) -> bool {
        match self {
            Self::Compacted { .. } => true,
            Self::List { source: etcd_client::Error::GRpcStatus(status), .. } => {
                status.message().contains("compacted")
            }
            _ => false,
        }
    }
}
