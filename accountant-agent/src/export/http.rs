//! The HTTP endpoint: `/metrics`, `/accounts`, `/healthz`, `/readyz`.
//!
//! A scrape asks for a fresh tick when what is published is older than it may be. A port that is taken is tried again and
//! again: counting does not wait for it.

use super::{json, prometheus};
use crate::engine::Handle;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use prometheus::{Exporter, Format};
use serde::Deserialize;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;

/// How long a client may take for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How many connections are served at once.
const CONNECTIONS: usize = 128;
/// How soon an address that cannot be had is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long a scrape waits for a fresh tick before it takes what there is.
const TICK_PATIENCE: Duration = Duration::from_secs(8);

/// What requests are answered from.
#[derive(Clone)]
pub struct Service {
    /// The engine.
    pub engine: Handle,
    /// Renders `/metrics`.
    pub exporter: Arc<Exporter>,
    /// Beyond this age a scrape asks for a fresh tick.
    pub max_age: Duration,
}

impl Service {
    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/", get(landing))
            .route("/metrics", get(metrics))
            .route("/accounts", get(accounts))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .layer(CompressionLayer::new().quality(CompressionLevel::Fastest))
            .with_state(self)
    }

    async fn fresh(&self) -> Arc<crate::engine::Published> {
        tokio::time::timeout(TICK_PATIENCE, self.engine.fresh(self.max_age))
            .await
            .unwrap_or_else(|_| self.engine.latest())
    }
}

async fn landing() -> Html<&'static str> {
    Html(
        "<!doctype html><title>Calico packet accountant</title><h1>Calico packet accountant</h1>\
         <ul><li><a href=/metrics>metrics</a><li><a href=/accounts>accounts</a> (JSON)\
         <li><a href=/healthz>healthz</a><li><a href=/readyz>readyz</a></ul>\n",
    )
}

async fn metrics(State(service): State<Service>, headers: HeaderMap) -> Response {
    let published = service.fresh().await;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::negotiate(accept);
    ([(header::CONTENT_TYPE, format.content_type())], service.exporter.render(&published, format))
        .into_response()
}

#[derive(Deserialize)]
struct AccountsQuery {
    #[serde(default)]
    all: bool,
}

async fn accounts(State(service): State<Service>, Query(query): Query<AccountsQuery>) -> Response {
    let published = service.fresh().await;
    axum::Json(json::render(&published, query.all)).into_response()
}

async fn ready(State(service): State<Service>) -> Response {
    let reasons = service.engine.latest().status.not_ready();
    if reasons.is_empty() {
        (StatusCode::OK, "ready\n".to_string()).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
    }
}

/// Serves on an address, for ever.
pub async fn serve(address: SocketAddr, service: Service) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listen(address).await {
            Ok(listener) => {
                tracing::info!(%address, "serving");
                accept(&listener, &service, &connections).await;
            }
            Err(error) => {
                tracing::error!(
                    %address, %error,
                    "cannot listen: is another program on this port? choose another with --listen-address; trying again"
                );
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Listens; where the host has no IPv6, the wildcard is that of IPv4.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.ip().is_unspecified()
                && address.is_ipv6()
                && error.kind() != io::ErrorKind::AddrInUse =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Accepts connections until the listener fails.
async fn accept(listener: &TcpListener, service: &Service, connections: &Arc<Semaphore>) {
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = service.clone();
                tokio::spawn(async move {
                    converse(stream, service).await;
                    drop(permit);
                });
            }
            // Out of descriptors, or the client is gone already.
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, service: Service) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let service = TowerToHyperService::new(service.router());
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "connection ended");
    }
}
