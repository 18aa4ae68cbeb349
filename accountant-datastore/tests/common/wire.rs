//! A wire between a client and a server. It can be held: then nothing passes, and neither side is told.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The wire.
pub struct Wire {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// Connections with a lower number are held.
    held: watch::Sender<usize>,
}

impl Wire {
    /// To a server at an address.
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let (held, holds) = watch::channel(0);
        let (server, counted) = (server.to_string(), connections.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                let Ok(server) = TcpStream::connect(&server).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(pass(from_client, to_server, number, holds.clone()));
                tokio::spawn(pass(from_server, to_client, number, holds.clone()));
            }
        });
        Self { address, connections, held }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections there were so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Lets nothing pass on the connections that there are. New ones are not held.
    pub fn hold(&self) {
        self.held.send_replace(self.connections());
    }

    /// Lets everything pass, also what came meanwhile.
    pub fn release(&self) {
        self.held.send_replace(0);
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    number: usize,
    mut holds: watch::Receiver<usize>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if holds.wait_for(|held| number >= *held).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
