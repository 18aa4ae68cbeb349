//! One connection: TLS or not, HTTP/1.1 or 2, until its client or its time is over.

use super::Server;
use super::crowd::{Crowd, Place};
use super::stream::{PIECE, Watched};
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// What a TLS client's first byte is: a record of a handshake (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;
/// Requests that an HTTP/2 connection may have open.
const STREAMS: u32 = 8;

/// Whoever asks without TLS where TLS is spoken is told so, in words that it understands.
const NO_TLS: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n\
    this port speaks TLS: ask with https://\n";

/// Converses until one of the two is done, or the place is needed.
pub(super) async fn converse(stream: TcpStream, place: Place, server: Arc<Server>) {
    let member = place.member.clone();
    tokio::select! {
        () = speak(stream, &place, server) => {}
        () = member.has_to_go() => tracing::debug!("connection cut: its time is over, or others need its place"),
    }
}

async fn speak(stream: TcpStream, place: &Place, server: Arc<Server>) {
    let Some(web) = server.web.current() else { return };
    let Some(tls) = web.tls.clone() else {
        let stream = Watched { stream, member: place.member.clone() };
        place.member.waits();
        return serve(stream, false, place, &server).await;
    };
    let mut first = [0];
    if !matches!(stream.peek(&mut first).await, Ok(1)) {
        return;
    }
    let mut stream = Watched { stream, member: place.member.clone() };
    if first != [HANDSHAKE] {
        // Whether it is heard is its own concern.
        let _ = stream.write_all(NO_TLS).await;
        let _ = stream.shutdown().await;
        return;
    }
    match TlsAcceptor::from(tls).accept(stream).await {
        Ok(stream) => {
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            place.member.waits();
            serve(stream, http2, place, &server).await;
        }
        Err(error) => tracing::debug!(%error, "no TLS with a client"),
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http2: bool,
    place: &Place,
    server: &Server,
) {
    let member = place.member.clone();
    let router = TowerToHyperService::new(server.router.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(member.clone());
        router.call(request)
    });
    let (io, head) = (TokioIo::new(stream), server.crowd.limits.head);
    let served = if http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(u32::try_from(head).unwrap_or(u32::MAX))
            .max_send_buf_size(PIECE);
        builder.serve_connection(io, service).await
    } else {
        let mut builder = http1::Builder::new();
        // Time is limited by the crowd, which knows more of it.
        builder.header_read_timeout(None).max_header_size(head).max_buf_size(2 * head);
        builder.serve_connection(io, service).await
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

/// Takes the place that a new connection needs, and converses with it.
pub(super) fn begin(stream: TcpStream, crowd: &Arc<Crowd>, server: &Arc<Server>) {
    if let Some(place) = crowd.enter() {
        // A scrape is asked and answered in few packets: none of them should wait for others.
        let _ = stream.set_nodelay(true);
        tokio::spawn(converse(stream, place, server.clone()));
    }
}
