//! A small proxy before the API server, which can be told to answer otherwise, slowly, or not at all.

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fate {
    /// The API server answers it.
    Pass,
    /// It is answered with this status.
    Answer(u16),
    /// It is answered well, and the first event of the watch says that it is over (410).
    Expire,
    /// The API server answers it, after this time.
    Slow(Duration),
}

type Rule = Box<dyn Fn(&str) -> Fate + Send>;

struct State {
    rule: Rule,
    /// Paths and queries of all requests.
    seen: Vec<String>,
    connections: JoinSet<()>,
}

/// The proxy.
pub struct Proxy {
    address: SocketAddr,
    client: Client,
    state: Arc<Mutex<State>>,
    listening: Option<tokio::task::JoinHandle<()>>,
}

impl Proxy {
    pub async fn start(client: Client) -> Self {
        let state = State { rule: Box::new(|_| Fate::Pass), seen: Vec::new(), connections: JoinSet::new() };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut proxy = Self { address, client, state: Arc::new(Mutex::new(state)), listening: None };
        proxy.listen(listener);
        proxy
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Decides by path and query what happens to requests from now on.
    pub fn rule(&self, rule: impl Fn(&str) -> Fate + Send + 'static) {
        self.state.lock().unwrap().rule = Box::new(rule);
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<String> {
        self.state.lock().unwrap().seen.clone()
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.state.lock().unwrap().connections = JoinSet::new();
    }

    /// Does not listen any more, and cuts all connections.
    pub async fn stop(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            let _ = listening.await;
        }
        self.cut();
    }

    /// Listens again, at the same address.
    pub async fn resume(&mut self) {
        self.listen(TcpListener::bind(self.address).await.unwrap());
    }

    fn listen(&mut self, listener: TcpListener) {
        let (client, state) = (self.client.clone(), self.state.clone());
        self.listening = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (client, at) = (client.clone(), state.clone());
                let service = service_fn(move |request| answer(client.clone(), at.clone(), request));
                let serving = async move {
                    // A connection that was cut is no failure of the test.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                };
                state.lock().unwrap_or_else(PoisonError::into_inner).connections.spawn(serving);
            }
        }));
    }
}

async fn answer(
    client: Client,
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (mut parts, _) = request.into_parts();
    let target = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let fate = {
        let mut state = state.lock().unwrap();
        state.seen.push(target.clone());
        (state.rule)(&target)
    };
    match fate {
        Fate::Pass => {}
        Fate::Answer(status) => return Ok(refuse(status)),
        Fate::Expire => {
            let event = format!(r#"{{"type": "ERROR", "object": {}}}"#, made_up(410));
            return Ok(Response::new(Body::from(event.into_bytes())));
        }
        Fate::Slow(time) => tokio::time::sleep(time).await,
    }
    parts.uri = target.parse().unwrap();
    parts.headers.remove("host");
    parts.headers.remove("authorization");
    Ok(client.send(Request::from_parts(parts, Body::empty())).await.unwrap_or_else(|_| refuse(502)))
}

fn refuse(status: u16) -> Response<Body> {
    let response = Response::builder().status(status).header("content-type", "application/json");
    let response = response.header("retry-after", "1");
    response.body(Body::from(made_up(status).into_bytes())).unwrap()
}

fn made_up(status: u16) -> String {
    format!(
        r#"{{"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "made up", "reason": "Test", "code": {status}}}"#
    )
}
