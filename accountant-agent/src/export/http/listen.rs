//! Where connections come from: addresses, or sockets that systemd opened for us.
//!
//! An address that cannot be had is tried again and again, and nothing is listened to before the web configuration can be
//! used: counting waits for neither.

use super::Server;
use super::connection;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that the kernel keeps until we take them; with few, a scrape behind a burst of others waits a second for its
/// next try.
const QUEUE: u32 = 4096;
/// How soon an address that cannot be had is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How soon a web configuration that cannot be used is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Something to listen on.
#[derive(Debug)]
pub enum Listen {
    /// An address.
    Address(SocketAddr),
    /// A socket that listens already.
    Socket(std::net::TcpListener),
}

impl Listen {
    /// The sockets that systemd (or whoever speaks its protocol) handed over.
    pub fn from_systemd() -> io::Result<Vec<Self>> {
        let mut handed = listenfd::ListenFd::from_env();
        let mut sockets = Vec::new();
        for number in 0..handed.len() {
            sockets.extend(handed.take_tcp_listener(number)?.map(Self::Socket));
        }
        if sockets.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no TCP socket was handed over: start the agent by a systemd socket unit with ListenStream=",
            ));
        }
        Ok(sockets)
    }
}

/// Serves on one of them, for ever.
pub(super) async fn serve(on: Listen, server: Arc<Server>) {
    while server.web.current().is_none() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    match on {
        Listen::Address(address) => serve_address(address, &server).await,
        Listen::Socket(socket) => {
            let name = socket.local_addr().map_or("?".into(), |address| address.to_string());
            let listener = socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket));
            match listener {
                Ok(listener) => {
                    tracing::info!(address = name, "serving on a socket of systemd");
                    accept(&listener, &server).await;
                }
                Err(error) => tracing::error!(address = name, %error, "cannot serve on a socket of systemd"),
            }
        }
    }
}

async fn serve_address(address: SocketAddr, server: &Arc<Server>) {
    loop {
        match listen(address) {
            Ok(listener) => {
                tracing::info!(%address, "serving");
                accept(&listener, server).await;
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
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match listen_on(address) {
        Err(error)
            if address.ip().is_unspecified()
                && address.is_ipv6()
                && error.kind() != io::ErrorKind::AddrInUse =>
        {
            listen_on((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        result => result,
    }
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// Accepts connections, for ever.
async fn accept(listener: &TcpListener, server: &Arc<Server>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connection::begin(stream, &server.crowd, server),
            // Out of descriptors, or the client is gone already.
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
