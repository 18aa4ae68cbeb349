//! A proxy as a company has one before its servers: it connects whoever tells user and password.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// `user:secret`, as HTTP has it.
const AUTHORIZATION: &str = "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=";

/// The proxy.
pub struct Tunnel {
    address: SocketAddr,
    opened: Arc<AtomicUsize>,
}

impl Tunnel {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, opened) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = opened.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, counted.clone()));
            }
        });
        Self { address, opened }
    }

    /// Its address, for this user.
    pub fn url(&self, user: &str) -> String {
        format!("http://{user}@{}", self.address)
    }

    /// How many connections it made.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

async fn serve(client: TcpStream, opened: Arc<AtomicUsize>) -> Option<()> {
    let mut client = BufReader::new(client);
    let (mut head, mut line) = (Vec::new(), String::new());
    while client.read_line(&mut line).await.ok()? > 2 {
        head.push(std::mem::take(&mut line).trim().to_string());
    }
    if !head.iter().any(|line| line.eq_ignore_ascii_case(AUTHORIZATION)) {
        client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await.ok()?;
        return None;
    }
    let server = head[0].strip_prefix("CONNECT ")?.split(' ').next()?;
    let mut server = TcpStream::connect(server).await.ok()?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.ok()?;
    opened.fetch_add(1, Ordering::Relaxed);
    tokio::io::copy_bidirectional(&mut client, &mut server).await.ok().map(drop)
}
