//! The HTTP endpoint: `/metrics`, `/accounts`, `/denied`, `/denied/follow`, `/flows`, `/healthz`, `/readyz`, and a page that links them.
//!
//! It has a thread of its own: whatever clients do, the books are kept meanwhile. A scrape asks for a fresh tick when what is
//! published is older than it may be. How clients are kept from costing much is in [`crowd`], who may ask in
//! [`web_config`].

mod connection;
mod crowd;
mod follow;
mod gate;
mod listen;
mod stream;
pub mod web_config;

pub use crowd::Limits;
pub use listen::Listen;

use super::json;
use super::prometheus::{Exporter, Format, Selection};
use crate::engine::Handle;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use crowd::Crowd;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use stream::Pieces;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use web_config::Followed;

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

/// What connections are served by.
struct Server {
    router: Router,
    web: Arc<Followed>,
    crowd: Arc<Crowd>,
}

/// Starts the thread that serves.
pub fn start(on: Vec<Listen>, service: Service, web: Arc<Followed>, limits: Limits) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let router = service.router().layer(axum::middleware::from_fn_with_state(web.clone(), gate::pass));
    let server = Arc::new(Server { router, web, crowd: Crowd::new(limits) });
    std::thread::Builder::new().name("http".into()).spawn(move || {
        runtime.block_on(async {
            let serving: Vec<_> =
                on.into_iter().map(|on| tokio::spawn(listen::serve(on, server.clone()))).collect();
            for one in serving {
                // A task that panicked is gone; the others serve on.
                let _ = one.await;
            }
        });
    })?;
    Ok(())
}

impl Service {
    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/", get(landing))
            .route("/metrics", get(metrics))
            .route("/accounts", get(accounts))
            .route("/denied", get(denied))
            .route("/flows", get(flows))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .layer(CompressionLayer::new().quality(CompressionLevel::Fastest))
            // Behind it, because compression holds back what is to be seen at once.
            .route("/denied/follow", get(follow::follow))
            .with_state(self)
    }

    async fn fresh(&self) -> Arc<crate::engine::Published> {
        tokio::time::timeout(TICK_PATIENCE, self.engine.fresh(self.max_age))
            .await
            .unwrap_or_else(|_| self.engine.latest())
    }
}

/// What is always served, and what is where it is wanted.
const LANDING: &str = concat!(
    "<!doctype html><html lang=en><meta charset=utf-8><title>Calico packet accountant</title>",
    "<h1>Calico packet accountant</h1><p>Version ",
    env!("CARGO_PKG_VERSION"),
    "<ul><li><a href=/metrics>/metrics</a>: for Prometheus; ",
    "<code>?collect[]=NAME</code> chooses families",
    "<li><a href=/accounts>/accounts</a>: the accounts as JSON",
    "<li><a href=/denied>/denied</a>: flows that were denied lately, as JSON",
    "<li><a href=/denied/follow>/denied/follow</a>: flows as they are denied, a JSON object a line",
    "<li><a href=/readyz>/readyz</a>: whether all that applies is read, or why not",
    "<li><a href=/healthz>/healthz</a>: whether the agent lives",
);
const FLOWS: &str = "<li><a href=/flows>/flows</a>: flows that were accepted lately, as JSON";

async fn landing(State(service): State<Service>) -> Html<String> {
    let flows = if service.engine.latest().accepted.is_some() { FLOWS } else { "" };
    Html([LANDING, flows, "</ul>\n"].concat())
}

async fn metrics(State(service): State<Service>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let selection = match Selection::parse(query.as_deref().unwrap_or_default()) {
        Ok(selection) => selection,
        Err(unknown) => return (StatusCode::BAD_REQUEST, format!("{unknown}\n")).into_response(),
    };
    let published = service.fresh().await;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::negotiate(accept);
    Pieces::response(format.content_type(), service.exporter.render(&published, format, &selection))
}

async fn accounts(State(service): State<Service>) -> Response {
    let published = service.fresh().await;
    Pieces::response("application/json", json::render(&published).to_string())
}

async fn denied(State(service): State<Service>) -> Response {
    let published = service.fresh().await;
    let denied = super::denied::json(&published.denied);
    Pieces::response("application/json", denied.to_string())
}

async fn flows(State(service): State<Service>) -> Response {
    match &service.fresh().await.accepted {
        Some(accepted) => Pieces::response("application/json", super::denied::json(accepted).to_string()),
        None => (StatusCode::NOT_FOUND, "accepted flows are not noted (--accepted-flows)\n").into_response(),
    }
}

async fn ready(State(service): State<Service>) -> Response {
    let reasons = service.engine.latest().status.not_ready();
    if reasons.is_empty() {
        (StatusCode::OK, "ready\n".to_string()).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
    }
}
