//! Felix's own settings, which count before Calico's client configuration (`felix/config/config_params.go`,
//! `DatastoreConfig`): variables `FELIX_...`, and `/etc/calico/felix.cfg` behind them.
//!
//! In go both; out come the few settings that concern names, each with where it was found. Felix compares the names in its
//! file without regard to case, looks into all sections alike, and takes the value `none` for one that is not set.

use super::ConfigError;
use super::calico::Fields;
use super::setting::{Given, Origin};
use super::surroundings::Surroundings;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Where Felix looks for it.
const FILE: &str = "/etc/calico/felix.cfg";

/// The settings, as the file spells them; the variable is the same in capitals behind `FELIX_`.
const NAMES: [&str; 8] = [
    "DatastoreType",
    "EtcdEndpoints",
    "EtcdScheme",
    "EtcdAddr",
    "EtcdKeyFile",
    "EtcdCertFile",
    "EtcdCaFile",
    "InterfacePrefix",
];

/// The settings that are the same as a field of Calico's configuration.
const SAME: [(&str, &str); 4] = [
    ("DatastoreType", "datastoreType"),
    ("EtcdKeyFile", "etcdKeyFile"),
    ("EtcdCertFile", "etcdCertFile"),
    ("EtcdCaFile", "etcdCACertFile"),
];

/// What is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Felix {
    set: BTreeMap<&'static str, Given<String>>,
}

impl Felix {
    /// What the environment and the file say.
    pub(super) fn find(around: &dyn Surroundings) -> Result<Self, ConfigError> {
        let mut set = match around.read(Path::new(FILE)) {
            Ok(text) => parse(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(wrong(error.to_string())),
        };
        for name in NAMES {
            let variable = format!("FELIX_{}", name.to_uppercase());
            if let Some(value) = around.variable(&variable) {
                set.insert(name, Given::new(value, Origin::Variable(variable)));
            }
        }
        set.retain(|_, given| {
            let value = given.value.trim();
            !value.is_empty() && !value.eq_ignore_ascii_case("none")
        });
        Ok(Self { set })
    }

    /// A setting.
    pub(super) fn get(&self, name: &'static str) -> Option<&Given<String>> {
        debug_assert!(NAMES.contains(&name));
        self.set.get(name)
    }

    /// Puts these settings before those of Calico's client. Endpoints of etcd decide for etcd.
    pub(super) fn overrule(&self, fields: &mut Fields) {
        for (name, field) in SAME {
            if let Some(given) = self.get(name) {
                fields.put(field, given.clone());
            }
        }
        if let Some(endpoints) = self.endpoints() {
            fields.put("datastoreType", Given::new("etcdv3".into(), endpoints.origin.clone()));
            fields.put("etcdEndpoints", endpoints);
        }
    }

    fn endpoints(&self) -> Option<Given<String>> {
        if let Some(endpoints) = self.get("EtcdEndpoints") {
            return Some(endpoints.clone());
        }
        let address = self.get("EtcdAddr")?;
        let scheme = self.get("EtcdScheme").map_or("http", |scheme| scheme.value.trim());
        let endpoint = format!("{scheme}://{}", address.value.trim());
        Some(Given::new(endpoint, address.origin.clone()))
    }
}

fn wrong(reason: String) -> ConfigError {
    ConfigError::File { path: FILE.into(), reason }
}

/// The settings of a file: lines `name = value` or `name: value`, sections, comments.
fn parse(text: &str) -> Result<BTreeMap<&'static str, Given<String>>, ConfigError> {
    let mut set = BTreeMap::new();
    for (number, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with(['#', ';', '[']) {
            continue;
        }
        let Some((name, value)) = line.split_once(['=', ':']) else {
            return Err(wrong(format!("line {} is no setting: write NAME = VALUE", number + 1)));
        };
        let known = NAMES.into_iter().find(|known| known.eq_ignore_ascii_case(name.trim()));
        if let Some(known) = known {
            let value = value.trim().trim_matches(['"', '\'', '`']).to_string();
            set.insert(known, Given::new(value, Origin::File(FILE.into())));
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::super::surroundings::fake::Fake;
    use super::*;

    /// What Calico's fields come to under Felix's settings, as `value (origin)`.
    #[track_caller]
    fn check(around: &Fake, wanted: &[(&'static str, &str)]) {
        let mut fields = Fields::from_environment(around).unwrap();
        Felix::find(around).unwrap().overrule(&mut fields);
        let shown = fields.shown().into_iter().map(|s| (s.name, format!("{} ({})", s.value, s.origin)));
        let wanted: Vec<_> = wanted.iter().map(|(name, text)| (*name, text.to_string())).collect();
        assert_eq!(shown.collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn felixs_variables_count_before_its_file_and_that_before_calicos() {
        let file = "# comment\n[global]\nEtcdKeyFile = /file/key\netcdcertfile: \"/file/cert\"\nLogFilePath = None\n";
        let around = Fake::with(&[("ETCD_KEY_FILE", "/key"), ("ETCD_CA_CERT_FILE", "/ca")]).file(FILE, file);
        check(
            &around.and(&[("FELIX_ETCDKEYFILE", "/felix/key"), ("FELIX_DATASTORETYPE", "kubernetes")]),
            &[
                ("datastoreType", "kubernetes ($FELIX_DATASTORETYPE)"),
                ("etcdKeyFile", "/felix/key ($FELIX_ETCDKEYFILE)"),
                ("etcdCertFile", "/file/cert (/etc/calico/felix.cfg)"),
                ("etcdCACertFile", "/ca ($ETCD_CA_CERT_FILE)"),
            ],
        );
    }

    #[test]
    fn endpoints_decide_for_etcd() {
        let kubernetes = ("DATASTORE_TYPE", "kubernetes");
        let around = Fake::with(&[kubernetes, ("FELIX_ETCDENDPOINTS", "https://e:2379")]);
        check(
            &around.and(&[("FELIX_ETCDADDR", "other:1"), ("ETCD_ENDPOINTS", "http://f:2379")]),
            &[
                ("datastoreType", "etcdv3 ($FELIX_ETCDENDPOINTS)"),
                ("etcdEndpoints", "https://e:2379 ($FELIX_ETCDENDPOINTS)"),
            ],
        );
        let around = Fake::with(&[kubernetes, ("FELIX_ETCDSCHEME", "https")]);
        check(&around, &[("datastoreType", "kubernetes ($DATASTORE_TYPE)")]);
        check(
            &around.file(FILE, "EtcdAddr = e:2379\nEtcdEndpoints = none\n"),
            &[
                ("datastoreType", "etcdv3 (/etc/calico/felix.cfg)"),
                ("etcdEndpoints", "https://e:2379 (/etc/calico/felix.cfg)"),
            ],
        );
    }

    #[test]
    fn a_file_that_is_none_is_told() {
        let around = Fake::default().file(FILE, "[global]\nDatastoreType\n");
        let error = Felix::find(&around).unwrap_err().to_string();
        assert!(error.contains("felix.cfg") && error.contains("line 2"), "{error}");
        assert_eq!(Felix::find(&Fake::default()).unwrap(), Felix::default());
    }
}
