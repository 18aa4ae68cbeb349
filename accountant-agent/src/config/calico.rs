//! Calico's own client configuration, as it is written: a file, or the environment, and never both
//! (`libcalico-go/lib/apiconfig`).
//!
//! In go the file's text or the environment; out come the fields that are set, each with where it was found. Of a variable
//! the name with `CALICO_` in front is looked up first, and set but empty is set, as Calico's library has it. What the
//! fields mean together is for [`super::datastore`].

use super::ConfigError;
use super::setting::{Given, Origin, Setting};
use super::surroundings::Surroundings;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Addresses,
    Secret,
    Truth,
    Number,
}

impl Kind {
    fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::Addresses | Self::Secret)
    }
}

/// A field: its name in the file, its variables without `CALICO_`, what it holds.
type Field = (&'static str, &'static str, Kind);

/// The fields (`libcalico-go/lib/apiconfig/apiconfig.go`). Those without a variable can only be in the file.
const FIELDS: [Field; 25] = [
    ("datastoreType", "DATASTORE_TYPE", Kind::Text),
    ("etcdEndpoints", "ETCD_ENDPOINTS", Kind::Addresses),
    ("etcdDiscoverySrv", "ETCD_DISCOVERY_SRV", Kind::Text),
    ("etcdUsername", "ETCD_USERNAME", Kind::Text),
    ("etcdPassword", "ETCD_PASSWORD", Kind::Secret),
    ("etcdKeyFile", "ETCD_KEY_FILE", Kind::Text),
    ("etcdCertFile", "ETCD_CERT_FILE", Kind::Text),
    ("etcdCACertFile", "ETCD_CA_CERT_FILE", Kind::Text),
    ("etcdKey", "", Kind::Secret),
    ("etcdCert", "", Kind::Secret),
    ("etcdCACert", "", Kind::Secret),
    ("kubeconfig", "KUBECONFIG", Kind::Text),
    ("kubeconfigInline", "", Kind::Secret),
    ("k8sAPIEndpoint", "K8S_API_ENDPOINT", Kind::Addresses),
    ("k8sKeyFile", "K8S_KEY_FILE", Kind::Text),
    ("k8sCertFile", "K8S_CERT_FILE", Kind::Text),
    ("k8sCAFile", "K8S_CA_FILE", Kind::Text),
    // Calico's library misses K8S_API_TOKEN by a misspelt tag, and reads CALICO_K8SAPITOKEN instead. We take both.
    ("k8sAPIToken", "K8S_API_TOKEN", Kind::Secret),
    ("k8sInsecureSkipTLSVerify", "K8S_INSECURE_SKIP_TLS_VERIFY", Kind::Truth),
    ("k8sDisableNodePoll", "K8S_DISABLE_NODE_POLL", Kind::Truth),
    ("usePodCIDR", "USE_POD_CIDR", Kind::Truth),
    ("k8sClientQPS", "K8S_CLIENT_QPS", Kind::Number),
    ("k8sClientBurst", "K8S_CLIENT_BURST", Kind::Number),
    ("k8sCurrentContext", "K8S_CURRENT_CONTEXT", Kind::Text),
    ("calicoAPIGroup", "CALICO_API_GROUP", Kind::Text),
];

/// What a file must say that it is.
const API_VERSION: &str = "projectcalico.org/v3";
const KIND: &str = "CalicoAPIConfig";

/// The fields that are set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    set: BTreeMap<&'static str, Given<String>>,
}

impl Fields {
    /// From the environment.
    pub(super) fn from_environment(around: &dyn Surroundings) -> Result<Self, ConfigError> {
        let mut set = BTreeMap::new();
        for (field, variable, kind) in FIELDS {
            let Some(given) = look_up(variable, around) else { continue };
            if !kind.is_text() && given.value.is_empty() {
                tracing::warn!(variable = %given.origin, "variable is empty and counts as not set");
                continue;
            }
            check(kind, &given)?;
            set.insert(field, given);
        }
        Ok(Self { set })
    }

    /// From a file; nothing of the environment is looked at then.
    pub(super) fn from_file(path: &Path, around: &dyn Surroundings) -> Result<Self, ConfigError> {
        let wrong = |reason: String| ConfigError::File { path: path.into(), reason };
        let text = around.read(path).map_err(|error| wrong(error.to_string()))?;
        let document: Value = serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let Value::Object(document) = document else { return Err(wrong("it is no object".into())) };
        for (field, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            if document.get(field).and_then(Value::as_str) != Some(wanted) {
                return Err(wrong(format!("{field} must be {wanted}")));
            }
        }
        let known = ["apiVersion", "kind", "metadata", "spec"];
        if let Some(unknown) = document.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(wrong(format!("it has the unknown field {unknown:?}")));
        }
        let mut set = BTreeMap::new();
        match document.get("spec") {
            None | Some(Value::Null) => {}
            Some(Value::Object(spec)) => {
                for (name, value) in spec {
                    let field = FIELDS.iter().find(|field| field.0 == name);
                    let Some((field, _, kind)) = field else {
                        return Err(wrong(format!("its spec has the unknown field {name:?}")));
                    };
                    let value = text_of(*kind, value)
                        .ok_or_else(|| wrong(format!("spec.{name} must be {}", wanted(*kind))))?;
                    let given = Given::new(value, Origin::File(path.into()));
                    check(*kind, &given)?;
                    set.insert(*field, given);
                }
            }
            Some(_) => return Err(wrong("its spec is no object".into())),
        }
        Ok(Self { set })
    }

    /// Sets a field, which something else than Calico's own configuration decides.
    pub(super) fn put(&mut self, field: &'static str, given: Given<String>) {
        debug_assert!(FIELDS.iter().any(|(name, ..)| *name == field));
        self.set.insert(field, given);
    }

    /// A field that is set to something.
    pub(super) fn get(&self, field: &'static str) -> Option<&Given<String>> {
        debug_assert!(FIELDS.iter().any(|(name, ..)| *name == field));
        self.set.get(field).filter(|given| !given.value.trim().is_empty())
    }

    /// The value of a field; nothing if it is empty.
    pub(super) fn text(&self, field: &'static str) -> Option<&str> {
        self.get(field).map(|given| given.value.trim())
    }

    /// Whether a field is set to true.
    pub(super) fn is_true(&self, field: &'static str) -> bool {
        self.text(field).and_then(truth).unwrap_or(false)
    }

    /// All that is set, to be shown.
    pub(super) fn shown(&self) -> Vec<Setting> {
        let show = |(field, _, kind): &Field| {
            let given = self.set.get(field)?;
            Some(match kind {
                Kind::Secret => Setting::hidden(field, given),
                Kind::Addresses => Setting::addresses(field, given),
                _ => Setting::shown(field, given),
            })
        };
        FIELDS.iter().filter_map(show).collect()
    }
}

fn look_up(variable: &str, around: &dyn Surroundings) -> Option<Given<String>> {
    let first = match variable {
        "" => return None,
        "K8S_API_TOKEN" => "CALICO_K8SAPITOKEN".to_string(),
        variable => format!("CALICO_{variable}"),
    };
    let names = [first, variable.to_string()];
    names.into_iter().find_map(|name| Some(Given::new(around.variable(&name)?, Origin::Variable(name))))
}

/// As Go's `strconv.ParseBool` takes it.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

fn wanted(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Addresses | Kind::Secret => "text",
        Kind::Truth => "true or false",
        Kind::Number => "a number",
    }
}

fn check(kind: Kind, given: &Given<String>) -> Result<(), ConfigError> {
    let good = match kind {
        Kind::Text | Kind::Addresses | Kind::Secret => true,
        Kind::Truth => truth(&given.value).is_some(),
        Kind::Number => given.value.parse::<f64>().is_ok_and(f64::is_finite),
    };
    let (value, origin) = (given.value.clone(), given.origin.clone());
    if good { Ok(()) } else { Err(ConfigError::Value { value, origin, wanted: wanted(kind) }) }
}

fn text_of(kind: Kind, value: &Value) -> Option<String> {
    match (kind, value) {
        (_, Value::Null) => Some(String::new()).filter(|_| kind.is_text()),
        (_, Value::String(text)) if kind.is_text() => Some(text.clone()),
        (Kind::Truth, Value::Bool(truth)) => Some(truth.to_string()),
        (Kind::Number, Value::Number(number)) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::surroundings::fake::Fake;
    use super::*;

    fn of_environment(variables: &[(&str, &str)]) -> Result<Fields, ConfigError> {
        Fields::from_environment(&Fake::with(variables))
    }

    fn of_file(text: &str) -> Result<Fields, String> {
        let around = Fake::with(&[("ETCD_USERNAME", "no")]).file("f", text);
        Fields::from_file(Path::new("f"), &around).map_err(|error| error.to_string())
    }

    #[test]
    fn calicos_prefix_counts_first_also_when_it_is_empty() {
        let fields = of_environment(&[("CALICO_ETCD_USERNAME", "a"), ("ETCD_USERNAME", "b")]).unwrap();
        assert_eq!(fields.text("etcdUsername"), Some("a"));
        assert_eq!(fields.shown()[0].origin, "$CALICO_ETCD_USERNAME");
        let fields = of_environment(&[("CALICO_ETCD_ENDPOINTS", ""), ("ETCD_ENDPOINTS", "b")]).unwrap();
        assert_eq!(fields.text("etcdEndpoints"), None);
        let fields = of_environment(&[("CALICO_CALICO_API_GROUP", "a"), ("CALICO_API_GROUP", "b")]).unwrap();
        assert_eq!(fields.text("calicoAPIGroup"), Some("a"));
    }

    #[test]
    fn the_token_is_found_under_both_names() {
        for name in ["CALICO_K8SAPITOKEN", "K8S_API_TOKEN"] {
            assert_eq!(of_environment(&[(name, "t")]).unwrap().text("k8sAPIToken"), Some("t"));
        }
        assert!(of_environment(&[("CALICO_K8S_API_TOKEN", "t")]).unwrap().text("k8sAPIToken").is_none());
    }

    #[test]
    fn pem_texts_are_not_taken_from_the_environment() {
        let around =
            [("ETCD_KEY", "k"), ("ETCD_CA_CERT", "c"), ("KUBECONFIG_INLINE", "k"), ("APIV1_ETCD_KEY", "k")];
        assert_eq!(of_environment(&around).unwrap(), Fields::default());
    }

    #[test]
    fn truth_is_spelt_as_in_go() {
        let insecure = |value| of_environment(&[("K8S_INSECURE_SKIP_TLS_VERIFY", value)]);
        assert!(insecure("T").unwrap().is_true("k8sInsecureSkipTLSVerify"));
        assert!(!insecure("0").unwrap().is_true("k8sInsecureSkipTLSVerify"));
        assert!(!insecure("").unwrap().is_true("k8sInsecureSkipTLSVerify"));
        let error = insecure("yes").unwrap_err().to_string();
        assert!(
            error.contains("$K8S_INSECURE_SKIP_TLS_VERIFY") && error.contains("true or false"),
            "{error}"
        );
        assert!(of_environment(&[("K8S_CLIENT_QPS", "many")]).is_err());
    }

    #[test]
    fn secrets_are_hidden() {
        let fields = of_environment(&[("ETCD_PASSWORD", "geheim"), ("ETCD_USERNAME", "u")]).unwrap();
        let shown: Vec<_> = fields.shown().into_iter().map(|s| (s.name, s.value)).collect();
        assert_eq!(shown, [("etcdUsername", "u".into()), ("etcdPassword", "***".into())]);
    }

    #[test]
    fn a_file_is_read_strictly_and_alone() {
        let head = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\n";
        let fields =
            of_file(&format!("{head}spec:\n  etcdEndpoints: http://e:2379\n  usePodCIDR: true\n")).unwrap();
        assert_eq!(fields.text("etcdEndpoints"), Some("http://e:2379"));
        assert_eq!(fields.text("etcdUsername"), None);
        assert!(fields.is_true("usePodCIDR"));
        for (text, want) in [
            (format!("{head}spec:\n  etcdEndpoint: x\n"), "unknown field \"etcdEndpoint\""),
            (format!("{head}more: 1\n"), "unknown field \"more\""),
            (format!("{head}spec:\n  usePodCIDR: maybe\n"), "spec.usePodCIDR must be true or false"),
            (format!("{head}spec: 3\n"), "spec is no object"),
            ("kind: CalicoAPIConfig\n".into(), "apiVersion must be"),
            ("- a\n".into(), "no object"),
            ("{".into(), "f"),
        ] {
            let error = of_file(&text).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
