//! Certificates for tests: an authority, a server on loopback, a client.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder of certificates and keys in PEM.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes new ones, in place of those that are there.
    pub fn make(folder: &Path) -> Result<Self> {
        let mut params = named("test authority")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(folder.join("ca.crt"), authority.pem())?;
        for (name, usage) in
            [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
        {
            let key = KeyPair::generate()?;
            let mut params = named(name)?;
            params.extended_key_usages = vec![usage];
            let certificate = params.signed_by(&key, &authority)?;
            fs::write(folder.join(format!("{name}.crt")), certificate.pem())?;
            fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
        }
        Ok(Self { folder: folder.into() })
    }

    /// One of `ca.crt`, `server.crt`, `server.key`, `client.crt`, `client.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn named(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(["localhost".to_string(), "127.0.0.1".into()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
