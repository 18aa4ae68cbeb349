//! The web configuration as it is typed: the file that Prometheus' exporter-toolkit and all exporters built on it take.
//!
//! In goes YAML; out come its fields, unchecked. A key that the format does not have is an error, as it is there. Keys and
//! passwords are in here, so nothing of it can be printed.

use serde::Deserialize;
use std::collections::BTreeMap;

/// The whole file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) tls_server_config: Option<Tls>,
    pub(super) http_server_config: Option<Http>,
    /// Names and bcrypt hashes.
    pub(super) basic_auth_users: Option<BTreeMap<String, String>>,
    pub(super) rate_limit: Option<Rate>,
}

/// `tls_server_config`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tls {
    pub(super) cert: String,
    pub(super) key: String,
    pub(super) client_ca: String,
    pub(super) cert_file: String,
    pub(super) key_file: String,
    pub(super) client_ca_file: String,
    pub(super) client_auth_type: String,
    pub(super) client_allowed_sans: Option<Vec<String>>,
    pub(super) min_version: Option<String>,
    pub(super) max_version: Option<String>,
    pub(super) cipher_suites: Option<Vec<String>>,
    pub(super) prefer_server_cipher_suites: Option<bool>,
    pub(super) curve_preferences: Option<Vec<String>>,
}

/// `http_server_config`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Http {
    pub(super) http2: Option<bool>,
    pub(super) headers: Option<BTreeMap<String, String>>,
}

/// `rate_limit`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rate {
    /// Time for one more request, as Go writes durations; none or 0 means no limit.
    pub(super) interval: String,
    /// How many requests can come at once.
    pub(super) burst: u32,
}

impl Tls {
    /// Whether any of it asks for TLS; versions and ciphers alone do not.
    pub(super) fn is_wanted(&self) -> bool {
        let asks = [
            &self.cert,
            &self.key,
            &self.client_ca,
            &self.cert_file,
            &self.key_file,
            &self.client_ca_file,
            &self.client_auth_type,
        ];
        asks.iter().any(|text| !text.is_empty())
    }
}

impl File {
    /// Reads the text of a file. An empty one asks for nothing.
    pub(super) fn parse(text: &str) -> Result<Self, serde_saphyr::Error> {
        serde_saphyr::from_str::<Option<Self>>(text).map(Option::unwrap_or_default)
    }
}
