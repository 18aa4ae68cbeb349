//! The way to the API server: one client for all watches, behind which the real one can be exchanged.
//!
//! When a certificate, an authority or a token was replaced, a new client is made of the settings as they are then, and the
//! watches go on from where they were: they need not list again. It also tells which watches were opened, which the library
//! keeps to itself.

use super::connection::{Connection, Overrides, Source};
use super::follow::CONNECTION;
use super::{KeepAlive, Kubernetes, kubeconfigs, proxy};
use crate::cache::Cache;
use crate::health::Health;
use crate::patience::Waits;
use crate::secret::{Pem, PemError};
use crate::{Outlet, explain};
use http::{Request, Response};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Client;
use kube::client::{Body, ConfigExt};
use kube::config::{Config, InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tower::ServiceBuilder;
use tower_http::decompression::DecompressionLayer;

/// How long a connection may take to come about, and how long an answer may be silent: longer than any watch lasts, so only
/// what hangs is ended.
const CONNECT: Duration = Duration::from_secs(10);
const READ: Duration = Duration::from_secs(330);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(super) enum DoorError {
    #[error("cannot use the kubeconfig")]
    Kubeconfig(#[from] KubeconfigError),
    #[error("cannot use the service account of this pod")]
    InCluster(#[from] InClusterError),
    #[error("cannot use the address of the API server {server:?}")]
    Server { server: Box<str>, source: http::uri::InvalidUri },
    #[error("there is no address of an API server")]
    NoServer,
    #[error("cannot speak TLS to the API server")]
    Certificate(#[from] PemError),
    #[error("cannot make a client for the API server")]
    Client(#[from] kube::Error),
}

/// The way.
#[derive(Clone)]
pub(super) struct Door {
    connection: Arc<Connection>,
    keep_alive: KeepAlive,
    real: Arc<Mutex<Client>>,
}

impl Door {
    /// Opens it. Paths of watches that the server opens are sent to `opened`.
    pub(super) async fn open(
        connection: &Connection,
        keep_alive: KeepAlive,
        opened: mpsc::UnboundedSender<String>,
    ) -> Result<(Self, Client), DoorError> {
        let real = Arc::new(Mutex::new(client(connection, keep_alive).await?));
        let door = Self { connection: Arc::new(connection.clone()), keep_alive, real: real.clone() };
        let service = tower::service_fn(move |request: Request<Body>| {
            let real = real.lock().unwrap_or_else(PoisonError::into_inner).clone();
            send(real, request, opened.clone())
        });
        Ok((door, Client::new(service, "default")))
    }

    /// Exchanges the client for one of the settings as they are now.
    pub(super) async fn renew(&self) -> Result<(), DoorError> {
        let fresh = client(&self.connection, self.keep_alive).await?;
        *self.real.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

/// Makes the first client. Its settings may come to be right later.
pub(super) async fn open(
    kubernetes: &Kubernetes,
    health: &mut Health,
    outlet: &Outlet,
    opened: mpsc::UnboundedSender<String>,
) -> (Door, Client) {
    let mut waits = Waits::default();
    loop {
        match Door::open(&kubernetes.connection, kubernetes.keep_alive, opened.clone()).await {
            Ok(open) => return open,
            Err(error) => {
                let advice = "see KUBECONFIG, K8S_API_ENDPOINT and the files they name; it is tried again";
                health.fail(CONNECTION, "certificate", explain(&error, advice));
                health.report(&Cache::default(), outlet);
                tokio::time::sleep(waits.next().unwrap_or_default()).await;
            }
        }
    }
}

async fn send(
    real: Client,
    request: Request<Body>,
    opened: mpsc::UnboundedSender<String>,
) -> Result<Response<Body>, kube::Error> {
    let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    let path = request.uri().path().to_string();
    let response = real.send(request).await?;
    if watch && response.status().is_success() {
        // Nobody is there to listen when everything ends.
        let _ = opened.send(path);
    }
    Ok(response)
}

/// Makes a client: one connection for all watches where the server speaks HTTP/2, and never one that is dead without our
/// being told, as behind a firewall or load balancer that has forgotten it. (The library's own has a connection for each
/// watch, and believes in it until the watch would end.)
async fn client(connection: &Connection, keep_alive: KeepAlive) -> Result<Client, DoorError> {
    let (config, own_proxy) = config(connection).await?;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(keep_alive.after));
    tcp.set_keepalive_interval(Some(keep_alive.patience / 3));
    tcp.set_keepalive_retries(Some(3));
    let tls = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    let tls = match config.tls_server_name.as_deref().map(|name| name.to_string().try_into()) {
        None => tls,
        Some(Ok(name)) => tls.with_server_name_resolver(FixedServerNameResolver::new(name)),
        Some(Err(_)) => return Ok(Client::try_from(config)?),
    };
    let proxy = proxy::choose(own_proxy.as_deref(), &connection.proxies, &config.cluster_url);
    let wire = proxy::through(proxy.as_ref(), tcp, &config)?;
    let mut connector = TimeoutConnector::new(tls.enable_all_versions().wrap_connector(wire));
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(keep_alive.after)
        .http2_keep_alive_timeout(keep_alive.patience)
        .http2_keep_alive_while_idle(true)
        .build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(DecompressionLayer::new())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}

/// The settings as they are now, and the proxy of the kubeconfig.
async fn config(connection: &Connection) -> Result<(Config, Option<String>), DoorError> {
    let overrides = &connection.overrides;
    let options =
        KubeConfigOptions { context: overrides.context.as_deref().map(Into::into), ..Default::default() };
    let mut proxy = None;
    let mut of = async |kubeconfig: Kubeconfig| {
        let cluster = kubeconfigs::cluster(&kubeconfig, overrides.context.as_deref());
        proxy = cluster.and_then(|cluster| cluster.proxy_url.clone());
        Config::from_custom_kubeconfig(kubeconfig, &options).await
    };
    let mut config = match &connection.source {
        Source::Inline(text) => of(Kubeconfig::from_yaml(text.reveal())?).await?,
        Source::Files(files) => {
            let mut merged = Kubeconfig::default();
            for file in files {
                merged = merged.merge(Kubeconfig::read_from(file)?)?;
            }
            of(merged).await?
        }
        Source::InCluster => Config::incluster()?,
        Source::Overrides => Config::new(server(overrides)?.ok_or(DoorError::NoServer)?),
    };
    apply(overrides, &mut config)?;
    // The watches try again by themselves, and tell why.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(READ);
    Ok((config, proxy))
}

fn server(overrides: &Overrides) -> Result<Option<http::Uri>, DoorError> {
    let server = overrides.server.clone().unwrap_or_default();
    overrides.server().map_err(|source| DoorError::Server { server, source })
}

fn apply(overrides: &Overrides, config: &mut Config) -> Result<(), DoorError> {
    if let Some(server) = server(overrides)? {
        config.cluster_url = server;
    }
    if let Some(ca) = &overrides.ca {
        let text = ca.read()?;
        let certificates = pem::parse_many(text).map_err(KubeconfigError::ParseCertificates)?;
        let certificates = certificates.into_iter().filter(|part| part.tag() == "CERTIFICATE");
        config.root_cert = Some(certificates.map(pem::Pem::into_contents).collect());
        config.root_cert_file = None;
    }
    if let Some((cert, key)) = &overrides.identity {
        let file = |pem: &Pem| match pem {
            Pem::File(file) => Some(file.display().to_string()),
            Pem::Inline(_) => None,
        };
        config.auth_info.client_certificate = file(cert);
        config.auth_info.client_certificate_data = None;
        config.auth_info.client_key = file(key);
        config.auth_info.client_key_data = None;
    }
    if let Some(token) = &overrides.token {
        config.auth_info.token = Some(token.reveal().to_string().into());
        config.auth_info.token_file = None;
    }
    config.accept_invalid_certs |= overrides.insecure;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::connection::Proxies;
    use super::*;
    use crate::secret::Secret;

    const ONE: &str = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://one:6443'}}]\n\
                       users: [{name: u, user: {token: t}}]\ncontexts: [{name: a, context: {cluster: c, user: u}}]\n\
                       current-context: a\n";
    const TWO: &str = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://no'}}, \
                       {name: d, cluster: {server: 'https://two:6443'}}]\n\
                       contexts: [{name: b, context: {cluster: d, user: u}}]\ncurrent-context: b\n";

    async fn url(source: Source, overrides: Overrides) -> String {
        let connection = Connection { source, overrides, api_group: None, proxies: Proxies::default() };
        config(&connection).await.unwrap().0.cluster_url.to_string()
    }

    #[tokio::test]
    async fn kubeconfigs_are_merged_and_overridden() {
        let folder = tempfile::tempdir().unwrap();
        let files = [("one", ONE), ("two", TWO)].map(|(name, text)| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        });
        let files = Source::Files(files.into());
        let none = Overrides::default;
        assert_eq!(url(files.clone(), none()).await, "https://one:6443/");
        let other = Overrides { context: Some("b".into()), ..none() };
        assert_eq!(url(files.clone(), other).await, "https://two:6443/");
        let server = Overrides { server: Some("127.0.0.1:8080".into()), ..none() };
        assert_eq!(url(files, server.clone()).await, "http://127.0.0.1:8080/");
        assert_eq!(url(Source::Overrides, server).await, "http://127.0.0.1:8080/");
        assert_eq!(url(Source::Inline(Secret::from(ONE)), none()).await, "https://one:6443/");
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_told() {
        let error = |source, overrides| async {
            let connection = Connection { source, overrides, api_group: None, proxies: Proxies::default() };
            config(&connection).await.unwrap_err().to_string()
        };
        let none = Overrides::default;
        assert!(error(Source::Files(vec!["/nowhere".into()]), none()).await.contains("kubeconfig"));
        assert!(error(Source::Overrides, none()).await.contains("no address"));
        let ca = Overrides { ca: Some(Pem::File(std::path::Path::new("/nowhere").into())), ..none() };
        assert!(error(Source::Inline(Secret::from(ONE)), ca).await.contains("TLS"));
    }
}
