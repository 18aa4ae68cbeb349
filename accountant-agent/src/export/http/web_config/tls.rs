//! TLS as the web configuration wants it.
//!
//! Versions, cipher suites and curves have Go's names there. What TLS of today no longer has (versions before 1.2, CBC
//! suites, P-521) is left out with a word in the log, as long as something is left.

use super::clients;
use super::error::Error;
use super::file::Tls;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{NamedGroup, ServerConfig, SupportedProtocolVersion, version};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Go's names of versions, oldest first.
const VERSIONS: [&str; 4] = ["TLS10", "TLS11", "TLS12", "TLS13"];

/// A value that stands in the configuration itself or in a file that it names.
pub(super) struct Given {
    /// What to call it in messages.
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// The files that are named, relative to the folder of the configuration.
pub(super) fn files(tls: &Tls, folder: &Path) -> Vec<PathBuf> {
    let named = [&tls.cert_file, &tls.key_file, &tls.client_ca_file];
    named.into_iter().filter(|name| !name.is_empty()).map(|name| folder.join(name)).collect()
}

/// What to speak TLS with.
pub(super) fn config(tls: &Tls, folder: &Path, http2: bool) -> Result<Arc<ServerConfig>, Error> {
    let certificate = given("cert", &tls.cert, &tls.cert_file, folder)?.ok_or(Error::Missing("cert"))?;
    let key = given("key", &tls.key, &tls.key_file, folder)?.ok_or(Error::Missing("key"))?;
    let authorities = given("client_ca", &tls.client_ca, &tls.client_ca_file, folder)?;
    let provider = Arc::new(provider(tls)?);
    let clients = clients::verifier(tls, authorities, &provider)?;
    let impossible = |_| Error::NothingLeft("look at min_version, max_version and cipher_suites");
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(tls)?)
        .map_err(impossible)?
        .with_client_cert_verifier(clients);
    let (chain, private) = (chain(&certificate)?, private_key(&key)?);
    let mut config = builder.with_single_cert(chain, private).map_err(|error| Error::Pair {
        certificate: certificate.name,
        key: key.name,
        reason: error.to_string(),
    })?;
    config.ignore_client_order = tls.prefer_server_cipher_suites.unwrap_or(true);
    config.alpn_protocols = if http2 { vec![b"h2".to_vec()] } else { Vec::new() };
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(Arc::new(config))
}

fn given(key: &'static str, inline: &str, file: &str, folder: &Path) -> Result<Option<Given>, Error> {
    match (inline.is_empty(), file.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Err(Error::Both(key)),
        (false, true) => Ok(Some(Given { name: key.into(), bytes: inline.as_bytes().to_vec() })),
        (true, false) => {
            let path = folder.join(file);
            let bytes =
                fs::read(&path).map_err(|error| Error::Read { what: key, path: path.clone(), error })?;
            Ok(Some(Given { name: path.display().to_string(), bytes }))
        }
    }
}

/// Certificates in PEM; at least one.
pub(super) fn chain(given: &Given) -> Result<Vec<CertificateDer<'static>>, Error> {
    let missing = || Error::Pem { what: given.name.clone(), wanted: "certificate" };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&given.bytes).collect();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(missing)
}

fn private_key(given: &Given) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(&given.bytes)
        .map_err(|_| Error::Pem { what: given.name.clone(), wanted: "private key" })
}

fn versions(tls: &Tls) -> Result<Vec<&'static SupportedProtocolVersion>, Error> {
    let position = |key: &'static str, value: &Option<String>, default: usize| match value {
        None => Ok(default),
        Some(value) => VERSIONS.iter().position(|version| version == value).ok_or_else(|| Error::Value {
            key,
            value: value.clone(),
            wanted: "TLS10, TLS11, TLS12 or TLS13",
        }),
    };
    let least = position("min_version", &tls.min_version, 2)?;
    let most = position("max_version", &tls.max_version, 3)?;
    if least < 2 {
        tracing::warn!("TLS before 1.2 is not spoken any more: min_version is taken as TLS12");
    }
    let spoken = [(2, &version::TLS12), (3, &version::TLS13)];
    let versions: Vec<_> =
        spoken.into_iter().filter(|(n, _)| (least..=most).contains(n)).map(|(_, version)| version).collect();
    if versions.is_empty() {
        return Err(Error::NothingLeft("TLS 1.2 and 1.3 are spoken; look at min_version and max_version"));
    }
    Ok(versions)
}

/// Cipher suites and curves in the order that is wanted.
fn provider(tls: &Tls) -> Result<CryptoProvider, Error> {
    let mut provider = ring::default_provider();
    if let Some(wanted) = tls.cipher_suites.as_ref().filter(|wanted| !wanted.is_empty()) {
        let all = std::mem::take(&mut provider.cipher_suites);
        // As in Go, those of TLS 1.3 are not chosen by this.
        provider.cipher_suites = all.iter().filter(|suite| suite.tls13().is_some()).copied().collect();
        for name in wanted {
            let named =
                all.iter().find(|suite| suite.suite().as_str() == Some(name) && suite.tls13().is_none());
            match named {
                Some(suite) => provider.cipher_suites.push(*suite),
                None if name.starts_with("TLS_") => {
                    tracing::warn!(%name, "this cipher suite is not to be had here, and is left out");
                }
                None => {
                    return Err(Error::Value {
                        key: "cipher_suites",
                        value: name.clone(),
                        wanted: "names like TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
                    });
                }
            }
        }
    }
    if let Some(wanted) = tls.curve_preferences.as_ref().filter(|wanted| !wanted.is_empty()) {
        let all = std::mem::take(&mut provider.kx_groups);
        for name in wanted {
            provider.kx_groups.extend(group(name, &all)?);
        }
        if provider.kx_groups.is_empty() {
            return Err(Error::NothingLeft("curve_preferences needs X25519, CurveP256 or CurveP384"));
        }
    }
    Ok(provider)
}

fn group(
    name: &str,
    all: &[&'static dyn SupportedKxGroup],
) -> Result<Option<&'static dyn SupportedKxGroup>, Error> {
    let wanted = match name {
        "CurveP256" => NamedGroup::secp256r1,
        "CurveP384" => NamedGroup::secp384r1,
        "CurveP521" => NamedGroup::secp521r1,
        "X25519" => NamedGroup::X25519,
        "X25519MLKEM768" => NamedGroup::X25519MLKEM768,
        _ => {
            let wanted = "CurveP256, CurveP384, CurveP521, X25519 or X25519MLKEM768";
            return Err(Error::Value { key: "curve_preferences", value: name.into(), wanted });
        }
    };
    let found = all.iter().find(|group| group.name() == wanted).copied();
    if found.is_none() {
        tracing::warn!(%name, "this curve is not to be had here, and is left out");
    }
    Ok(found)
}
