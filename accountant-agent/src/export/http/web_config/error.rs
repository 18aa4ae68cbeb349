//! What can be wrong with a web configuration: what was tried, on what, and what to do.

use std::path::PathBuf;

/// A web configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read.
    #[error("cannot read {what} {path:?}: {error}")]
    Read {
        /// Which of the files.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// Not the format.
    #[error("{0}; the format is that of Prometheus' exporter-toolkit")]
    Format(Box<str>),
    /// A value that cannot be.
    #[error("{key} is {value:?}, which must be {wanted}")]
    Value {
        /// Its key.
        key: &'static str,
        /// The value; never a secret.
        value: String,
        /// What it may be.
        wanted: &'static str,
    },
    /// The same thing twice.
    #[error("{0} and {0}_file are both given: give one of the two")]
    Both(&'static str),
    /// TLS without one of the things that it needs.
    #[error("tls_server_config has neither {0} nor {0}_file: TLS needs both a certificate and its key")]
    Missing(&'static str),
    /// Client certificates that nobody asks for.
    #[error(
        "{0} is given, and client_auth_type does not ask for a certificate: give RequireAndVerifyClientCert"
    )]
    NotAsked(&'static str),
    /// PEM in which what is wanted is not.
    #[error("{what} has no {wanted} in PEM")]
    Pem {
        /// Which file or value.
        what: String,
        /// What was looked for.
        wanted: &'static str,
    },
    /// A certificate and a key of different pairs, or of a kind that is not known.
    #[error("the certificate {certificate} and the key {key} cannot be used together: {reason}")]
    Pair {
        /// Where the certificate is.
        certificate: String,
        /// Where the key is.
        key: String,
        /// Why not.
        reason: String,
    },
    /// Authorities of clients that cannot be used.
    #[error("cannot verify certificates of clients by {0}: {1}")]
    Authorities(String, String),
    /// TLS that nobody could speak.
    #[error("no TLS version and cipher suite is left: {0}")]
    NothingLeft(&'static str),
    /// A password that is not hashed.
    #[error("basic_auth_users: the password of {0:?} is no bcrypt hash; `htpasswd -nBC 10 \"\"` makes one")]
    Hash(String),
}
