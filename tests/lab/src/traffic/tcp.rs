//! TCP: connections with one SYN each, and a listener.
//!
//! A connection that is denied would send its SYN again after a second. Here every socket is closed before that: a
//! connection that did not answer in [`ONE_SYN`] never will, on one machine. So a denied connection is exactly one
//! packet, whatever the load.

use super::{anywhere, socket_error};
use crate::error::Result;
use crate::netns::Namespace;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a SYN is waited for: less than the second after which it would be sent again.
const ONE_SYN: Duration = Duration::from_millis(500);
/// How long an open connection may take to move its payload.
const TRANSFER: Duration = Duration::from_secs(5);

/// What became of a number of connections. Each sent exactly one SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connected {
    /// Accepted, and their payload sent and echoed.
    pub established: u64,
    /// Refused, by the host or by a rule that rejects.
    pub refused: u64,
    /// Not answered.
    pub unanswered: u64,
}

/// Opens `count` connections at once, sends `payload` bytes over each that opens, waits for the end of the answer, and
/// closes them.
pub fn connect(from: &Namespace, to: IpAddr, port: u16, count: u32, payload: usize) -> Result<Connected> {
    let there = SocketAddr::new(to, port);
    from.enter(|| {
        let end = Instant::now() + ONE_SYN;
        let sockets = (0..count).map(|_| start(there)).collect::<Result<Vec<_>>>()?;
        let (mut connected, mut streams) = (Connected::default(), Vec::new());
        for socket in sockets {
            match outcome(&socket, end) {
                Outcome::Established => streams.push(TcpStream::from(socket)),
                Outcome::Refused => connected.refused += 1,
                Outcome::Unanswered => connected.unanswered += 1,
            }
        }
        for mut stream in streams {
            transfer(&mut stream, payload).map_err(socket_error("send over a connection to", there))?;
            connected.established += 1;
        }
        Ok(connected)
    })?
}

enum Outcome {
    Established,
    Refused,
    Unanswered,
}

fn start(to: SocketAddr) -> Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP));
    let socket = socket.map_err(socket_error("open a TCP socket for", to))?;
    socket.bind(&SockAddr::from(anywhere(to.ip()))).map_err(socket_error("bind a TCP socket for", to))?;
    // "In progress" is what it should be; anything else shows when the outcome is asked for.
    let _ = socket.connect(&SockAddr::from(to));
    Ok(socket)
}

fn outcome(socket: &Socket, end: Instant) -> Outcome {
    let left = end.saturating_duration_since(Instant::now()).as_millis();
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
    let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut waiting, timeout) {
        Ok(ready) if ready > 0 => match socket.take_error() {
            Ok(None) if socket.peer_addr().is_ok() => Outcome::Established,
            _ => Outcome::Refused,
        },
        _ => Outcome::Unanswered,
    }
}

fn transfer(stream: &mut TcpStream, payload: usize) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TRANSFER))?;
    stream.write_all(&vec![0; payload])?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// A TCP listener that takes what it is sent and closes when the other side does, until it is dropped.
#[derive(Debug)]
pub struct TcpListening {
    over: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl TcpListening {
    /// Listens on this address and port, inside the namespace.
    pub fn new(on: &Namespace, address: IpAddr, port: u16) -> Result<Self> {
        let at = SocketAddr::new(address, port);
        let listener = on.enter(|| TcpListener::bind(at))?.map_err(socket_error("listen on TCP", at))?;
        listener.set_nonblocking(true).map_err(socket_error("listen on TCP", at))?;
        let (over, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (Arc::clone(&over), Arc::clone(&accepted));
        let thread = on.spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut waiting, 20_u8);
                while let Ok((stream, _)) = listener.accept() {
                    counts.fetch_add(1, Ordering::Relaxed);
                    thread::spawn(move || take_all(stream));
                }
            }
        });
        Ok(Self { over, accepted, thread: Some(thread) })
    }

    /// How many connections were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

fn take_all(mut stream: TcpStream) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(TRANSFER));
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

impl Drop for TcpListening {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
