//! What the settings mean together: which datastore, how to reach it, or the one thing that is wrong with them.

use super::calico::Fields;
use super::felix::Felix;
use super::proxy;
use super::setting::{Given, Origin, Setting, without_users};
use super::surroundings::Surroundings;
use super::{ConfigError, DatastoreType, NameArgs};
use accountant_datastore::etcdv3::{self, Servers};
use accountant_datastore::kubernetes::{self, ApiGroup, Kubeconfigs, Overrides, Source, WrongKubeconfig};
use accountant_datastore::secret::{Pem, Secret};
use std::path::{Path, PathBuf};

/// The datastore that the agent takes names from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datastore {
    /// None.
    None,
    /// A folder of YAML.
    Manifests(PathBuf),
    /// etcd.
    Etcdv3(etcdv3::Connection),
    /// The Kubernetes API.
    Kubernetes(kubernetes::Connection),
}

impl Datastore {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Manifests(_) => "manifests",
            Self::Etcdv3(_) => "etcdv3",
            Self::Kubernetes(_) => "kubernetes",
        }
    }

    /// What was chosen beyond what the settings say themselves.
    pub(super) fn shown(&self, settings: &[Setting]) -> Option<Setting> {
        let origin =
            |name: &str| settings.iter().find(|setting| setting.name == name).map(|s| s.origin.clone());
        let (name, value, setting, otherwise) = match self {
            Self::None | Self::Etcdv3(_) => return None,
            Self::Manifests(folder) => ("manifests", folder.display().to_string(), "", "--manifests"),
            Self::Kubernetes(connection) => {
                let (value, setting, otherwise) = match &connection.source {
                    Source::Inline(_) => ("the kubeconfig in the text".into(), "kubeconfigInline", ""),
                    Source::Files(files) => {
                        let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
                        (format!("the kubeconfig {}", files.join(":")), "kubeconfig", "default")
                    }
                    Source::InCluster => ("the service account of this pod".into(), "", "default"),
                    Source::Overrides => {
                        let server = connection.overrides.server.as_deref().unwrap_or_default();
                        (format!("the server {}", without_users(server)), "k8sAPIEndpoint", "")
                    }
                };
                ("connection", value, setting, otherwise)
            }
        };
        Some(Setting { name, value, origin: origin(setting).unwrap_or_else(|| otherwise.into()) })
    }
}

/// Files that are in every pod with a service account (`client-go/rest.InClusterConfig`).
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Chooses the datastore. Beside it: the settings that led to it.
pub(super) fn choose(
    args: &NameArgs,
    felix: &Felix,
    around: &dyn Surroundings,
) -> Result<(Given<Datastore>, Vec<Setting>), ConfigError> {
    let file = args.calico_config.as_deref();
    let fields = match file {
        Some(path) => Fields::from_file(path, around)?,
        None => {
            let mut fields = Fields::from_environment(around)?;
            felix.overrule(&mut fields);
            fields
        }
    };
    let typed = typed(args, &fields)?;
    let chosen = match (typed, &args.manifests) {
        (Some(typed), Some(folder)) if typed.value == DatastoreType::Manifests => {
            Given::new(Datastore::Manifests(folder.clone()), typed.origin)
        }
        (Some(typed), Some(_)) => return Err(ConfigError::TwoDatastores(typed.value.as_str(), typed.origin)),
        (None, Some(folder)) => {
            Given::new(Datastore::Manifests(folder.clone()), Origin::Derived("--manifests is given"))
        }
        (Some(typed), None) => {
            let datastore = match typed.value {
                DatastoreType::Manifests => return Err(ConfigError::NoFolder),
                DatastoreType::None => Datastore::None,
                DatastoreType::Etcdv3 => Datastore::Etcdv3(etcd(&fields)?),
                DatastoreType::Kubernetes => {
                    let connection = kubernetes(&fields, around)?;
                    Datastore::Kubernetes(connection.ok_or(ConfigError::NoServer)?)
                }
            };
            Given::new(datastore, typed.origin)
        }
        (None, None) => detect(&fields, around)?,
    };
    let mut settings = fields.shown();
    if let Datastore::Kubernetes(_) = &chosen.value {
        settings.extend(proxy::shown(around));
    }
    Ok((chosen, settings))
}

fn typed(args: &NameArgs, fields: &Fields) -> Result<Option<Given<DatastoreType>>, ConfigError> {
    if let Some(typed) = args.datastore_type {
        return Ok(Some(Given::new(typed, Origin::Flag("--datastore-type"))));
    }
    let Some(given) = fields.get("datastoreType") else { return Ok(None) };
    let (value, origin) = (given.value.trim().to_string(), given.origin.clone());
    match DatastoreType::parse(&value) {
        Some(typed) => Ok(Some(Given::new(typed, origin))),
        None => Err(ConfigError::Value { value, origin, wanted: "kubernetes, etcdv3, manifests or none" }),
    }
}

/// Calico's own rule (3.17 and later): etcd if there are endpoints of it, else Kubernetes; for us only where there is a
/// Kubernetes to be found.
fn detect(fields: &Fields, around: &dyn Surroundings) -> Result<Given<Datastore>, ConfigError> {
    if fields.get("etcdEndpoints").is_some() {
        let origin = Origin::Derived("etcdEndpoints are given");
        return Ok(Given::new(Datastore::Etcdv3(etcd(fields)?), origin));
    }
    Ok(match kubernetes(fields, around)? {
        Some(connection) => {
            Given::new(Datastore::Kubernetes(connection), Origin::Derived("no etcdEndpoints are given"))
        }
        None => Given::new(
            Datastore::None,
            Origin::Derived("neither etcdEndpoints nor a kubeconfig is given, and this is no pod"),
        ),
    })
}

fn etcd(fields: &Fields) -> Result<etcdv3::Connection, ConfigError> {
    let servers = match (fields.text("etcdEndpoints"), fields.text("etcdDiscoverySrv")) {
        (Some(_), Some(_)) => return Err(ConfigError::Both("etcdEndpoints", "etcdDiscoverySrv")),
        (None, None) => return Err(ConfigError::NoEndpoints),
        (None, Some(domain)) => Servers::Domain(domain.into()),
        (Some(list), None) => Servers::Endpoints(endpoints(list, fields)?),
    };
    let inline = ["etcdKey", "etcdCert", "etcdCACert"];
    let files = ["etcdKeyFile", "etcdCertFile", "etcdCACertFile"];
    let first = |names: [&'static str; 3]| names.into_iter().find(|name| fields.get(name).is_some());
    let (key, cert, ca) = match (first(inline), first(files)) {
        (Some(inline), Some(file)) => return Err(ConfigError::Both(inline, file)),
        (Some(_), None) => inline.into(),
        (None, _) => files.into(),
    };
    let user = match (fields.text("etcdUsername"), fields.get("etcdPassword")) {
        (Some(name), Some(password)) => Some((name.into(), Secret::from(password.value.as_str()))),
        _ => None,
    };
    Ok(etcdv3::Connection { servers, user, ca: pem(ca, fields), identity: identity(cert, key, fields)? })
}

fn endpoints(list: &str, fields: &Fields) -> Result<Vec<Box<str>>, ConfigError> {
    let mut endpoints = Vec::new();
    for endpoint in list.split(',').map(str::trim).filter(|endpoint| !endpoint.is_empty()) {
        let good = endpoint.parse::<hyper::Uri>().is_ok_and(|uri| {
            uri.host().is_some_and(|host| !host.is_empty())
                && matches!(uri.scheme_str(), Some("http" | "https"))
        });
        if !good {
            let origin = fields.get("etcdEndpoints").map_or(Origin::Default, |given| given.origin.clone());
            let value = without_users(endpoint);
            return Err(ConfigError::Value {
                value,
                origin,
                wanted: "http://HOST:PORT or https://HOST:PORT",
            });
        }
        // As etcd's own client has it, a user in the address is not used.
        endpoints.push(without_users(endpoint).into());
    }
    if endpoints.is_empty() { Err(ConfigError::NoEndpoints) } else { Ok(endpoints) }
}

/// Whether a field holds a text or the name of a file shows in its own name.
fn pem(field: &'static str, fields: &Fields) -> Option<Pem> {
    let value = fields.text(field)?;
    Some(match field.ends_with("File") {
        true => Pem::File(Path::new(value).into()),
        false => Pem::Inline(value.into()),
    })
}

fn identity(
    cert: &'static str,
    key: &'static str,
    fields: &Fields,
) -> Result<Option<(Pem, Pem)>, ConfigError> {
    match (pem(cert, fields), pem(key, fields)) {
        (Some(cert), Some(key)) => Ok(Some((cert, key))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(ConfigError::OneOfTwo(cert, key)),
        (None, Some(_)) => Err(ConfigError::OneOfTwo(key, cert)),
    }
}

/// How to reach Kubernetes; nothing if there is no trace of it.
fn kubernetes(
    fields: &Fields,
    around: &dyn Surroundings,
) -> Result<Option<kubernetes::Connection>, ConfigError> {
    let Some(connection) = api_server(fields, around)? else { return Ok(None) };
    Ok(Some(kubernetes::Connection { proxies: proxy::find(around)?, ..connection }))
}

/// The same without what may stand before it.
fn api_server(
    fields: &Fields,
    around: &dyn Surroundings,
) -> Result<Option<kubernetes::Connection>, ConfigError> {
    let api_group = match fields.get("calicoAPIGroup") {
        None => None,
        Some(given) => Some(ApiGroup::parse(given.value.trim()).ok_or_else(|| ConfigError::Value {
            value: given.value.clone(),
            origin: given.origin.clone(),
            wanted: "crd.projectcalico.org/v1 or projectcalico.org/v3",
        })?),
    };
    if let Some(given) = fields.get("kubeconfigInline") {
        let wrong = |error: WrongKubeconfig| match &given.origin {
            Origin::File(path) => {
                ConfigError::File { path: path.clone(), reason: format!("kubeconfigInline: {error}") }
            }
            origin => ConfigError::File { path: origin.to_string().into(), reason: error.to_string() },
        };
        Kubeconfigs::default().and(&given.value).and_then(|all| all.check(None)).map_err(wrong)?;
        // The overrides of single fields are not applied to it.
        let source = Source::Inline(given.value.as_str().into());
        let overrides = Overrides::default();
        return Ok(Some(kubernetes::Connection {
            source,
            overrides,
            api_group,
            proxies: Default::default(),
        }));
    }
    let insecure = fields.is_true("k8sInsecureSkipTLSVerify");
    if insecure && fields.get("k8sCAFile").is_some() {
        return Err(ConfigError::Both("k8sInsecureSkipTLSVerify", "k8sCAFile"));
    }
    let overrides = Overrides {
        server: fields.text("k8sAPIEndpoint").map(Into::into),
        ca: pem("k8sCAFile", fields),
        identity: identity("k8sCertFile", "k8sKeyFile", fields)?,
        token: fields.text("k8sAPIToken").map(Into::into),
        insecure,
        context: fields.text("k8sCurrentContext").map(Into::into),
    };
    if let (Err(_), Some(given)) = (overrides.server(), fields.get("k8sAPIEndpoint")) {
        let (value, origin) = (without_users(&given.value), given.origin.clone());
        return Err(ConfigError::Value { value, origin, wanted: "an address like https://HOST:PORT" });
    }
    let context = overrides.context.as_deref();
    let connection = |source| kubernetes::Connection {
        source,
        overrides: overrides.clone(),
        api_group,
        proxies: Default::default(),
    };
    if let Some(given) = fields.get("kubeconfig") {
        return Ok(Some(connection(Source::Files(kubeconfigs(&given.value, context, around)?))));
    }
    if overrides.server.is_some() {
        return Ok(Some(connection(Source::Overrides)));
    }
    let own = around.variable("HOME").map(|home| Path::new(&home).join(".kube/config"));
    if let Some(file) = own.filter(|file| around.read(file).is_ok()) {
        return Ok(Some(connection(Source::Files(kubeconfigs(&file.to_string_lossy(), context, around)?))));
    }
    Ok(in_cluster(around).then(|| connection(Source::InCluster)))
}

/// A list of paths as `$PATH` is one. What is there twice counts once, what does not exist is left out, as kubectl does.
/// Together they must lead to a server.
fn kubeconfigs(
    list: &str,
    context: Option<&str>,
    around: &dyn Surroundings,
) -> Result<Vec<PathBuf>, ConfigError> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut all = Kubeconfigs::default();
    let mut missing = None;
    for path in list.split(':').map(PathBuf::from).filter(|path| !path.as_os_str().is_empty()) {
        match around.read(&path) {
            Ok(_) if files.contains(&path) => {}
            Ok(text) => {
                let wrong = |error: WrongKubeconfig| error.to_string();
                all = all
                    .and(&text)
                    .map_err(|error| ConfigError::File { path: path.clone(), reason: wrong(error) })?;
                files.push(path);
            }
            Err(error) => missing = missing.or(Some((path, error.to_string()))),
        }
    }
    match missing {
        Some((path, reason)) if files.is_empty() => return Err(ConfigError::File { path, reason }),
        _ => {}
    }
    let wrong = |error: WrongKubeconfig| ConfigError::File { path: list.into(), reason: error.to_string() };
    all.check(context).map_err(wrong)?;
    Ok(files)
}

fn in_cluster(around: &dyn Surroundings) -> bool {
    let set = |name| around.variable(name).is_some_and(|value| !value.is_empty());
    set("KUBERNETES_SERVICE_HOST")
        && set("KUBERNETES_SERVICE_PORT")
        && around.read(Path::new(SERVICE_ACCOUNT)).is_ok()
}

#[cfg(test)]
#[path = "datastore/tests.rs"]
mod tests;
