//! Certificates of all sorts: of two authorities, expired, with names.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType, date_time_ymd,
};
use std::fs;
use std::path::{Path, PathBuf};

/// An authority, and the folder that its certificates are written to.
pub(crate) struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one; `NAME.crt` is its own certificate.
    pub(crate) fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(folder.join(format!("{name}.crt")), issuer.pem()).unwrap();
        Self { folder: folder.into(), issuer }
    }

    /// Writes `NAME.crt` and `NAME.key`, for 127.0.0.1 and `names`.
    pub(crate) fn sign(&self, name: &str, names: &[&str]) {
        self.write(name, names, 2100);
    }

    /// The same, over since long ago.
    pub(crate) fn sign_expired(&self, name: &str) {
        self.write(name, &[], 2001);
    }

    fn write(&self, name: &str, names: &[&str], until: i32) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        for name in names {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into().unwrap()));
        }
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        // As deployments do it: never half a file.
        for (end, text) in [("crt", certificate.pem()), ("key", key.serialize_pem())] {
            let new = self.folder.join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, self.folder.join(format!("{name}.{end}"))).unwrap();
        }
    }
}
