//! Certificates of clients: whether one is asked for, must be there, is verified, and whose it may be.
//!
//! The five policies are Go's, by whose names the web configuration calls them.

use super::error::Error;
use super::file::Tls;
use super::tls::{self, Given};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use std::net::IpAddr;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What to do about certificates of clients.
pub(super) fn verifier(
    tls: &Tls,
    authorities: Option<Given>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let unverified = |mandatory| -> Arc<dyn ClientCertVerifier> {
        Arc::new(Unverified { provider: provider.clone(), mandatory })
    };
    let policy = match tls.client_auth_type.as_str() {
        "" | "NoClientCert" => {
            let unasked = [
                ("client_ca or client_ca_file", authorities.is_some()),
                ("client_allowed_sans", tls.client_allowed_sans.is_some()),
            ];
            return match unasked.into_iter().find(|(_, given)| *given) {
                Some((name, _)) => Err(Error::NotAsked(name)),
                None => Ok(WebPkiClientVerifier::no_client_auth()),
            };
        }
        "RequestClientCert" => unverified(false),
        // The second is the older name.
        "RequireAnyClientCert" | "RequireClientCert" => unverified(true),
        "VerifyClientCertIfGiven" => verified(authorities, provider, false)?,
        "RequireAndVerifyClientCert" => verified(authorities, provider, true)?,
        other => {
            return Err(Error::Value {
                key: "client_auth_type",
                value: other.into(),
                wanted: "NoClientCert, RequestClientCert, RequireAnyClientCert, VerifyClientCertIfGiven or \
                         RequireAndVerifyClientCert",
            });
        }
    };
    match &tls.client_allowed_sans {
        None => Ok(policy),
        Some(_) if !policy.client_auth_mandatory() => Err(Error::NotAsked("client_allowed_sans")),
        Some(names) => Ok(Arc::new(Named { policy, names: names.clone() })),
    }
}

/// Only certificates that an authority vouches for.
fn verified(
    authorities: Option<Given>,
    provider: &Arc<CryptoProvider>,
    mandatory: bool,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let Some(authorities) = authorities else {
        return Err(Error::Authorities(
            "client_auth_type".into(),
            "neither client_ca nor client_ca_file says which authority vouches for them".into(),
        ));
    };
    let wrong = |reason: String| Error::Authorities(authorities.name.clone(), reason);
    let mut roots = RootCertStore::empty();
    for certificate in tls::chain(&authorities)? {
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let builder = if mandatory { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| wrong(error.to_string()))
}

/// Any certificate whose key the client has.
#[derive(Debug)]
struct Unverified {
    provider: Arc<CryptoProvider>,
    mandatory: bool,
}

impl ClientCertVerifier for Unverified {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Only certificates with one of these names beside what the policy asks.
#[derive(Debug)]
struct Named {
    policy: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.policy.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.policy.verify_client_cert(certificate, chain, now)?;
        if names(certificate).iter().any(|name| self.names.contains(name)) {
            Ok(verified)
        } else {
            Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.policy.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.policy.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.policy.supported_verify_schemes()
    }
}

/// The subject's alternative names: of DNS, e-mail, URIs and addresses.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    extension.value.general_names.iter().filter_map(name).collect()
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => {
            Some((*text).to_string())
        }
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|ip| ip.to_string())
        }
        _ => None,
    }
}
