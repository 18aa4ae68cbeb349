//! UDP: flows of one-way packets, and a listener that answers.

use super::{PATIENCE, anywhere, socket_error};
use crate::error::Result;
use crate::netns::Namespace;
use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often a listener looks whether it should end.
const GLANCE: Duration = Duration::from_millis(20);

/// Payload of what [`udp_as`] sends, in bytes.
pub const AS_PAYLOAD: usize = 32;
/// What [`udp_answered`] sends.
pub const QUESTION: &[u8] = b"hello";

/// Sends `flows` times `packets` UDP packets with `size` bytes of payload, each flow from a port of its own, and
/// returns how many were sent in all. Nobody is waited for.
pub fn udp(from: &Namespace, to: IpAddr, port: u16, flows: u32, packets: u32, size: usize) -> Result<u64> {
    send(from, anywhere(to), SocketAddr::new(to, port), flows, packets, size)
}

/// The same with [`AS_PAYLOAD`] bytes from one of the sender's addresses, for those that have several.
pub fn udp_as(from: &Namespace, source: IpAddr, to: SocketAddr, flows: u32, packets: u32) -> Result<u64> {
    send(from, SocketAddr::new(source, 0), to, flows, packets, AS_PAYLOAD)
}

fn send(
    from: &Namespace,
    source: SocketAddr,
    to: SocketAddr,
    flows: u32,
    packets: u32,
    size: usize,
) -> Result<u64> {
    from.enter(|| {
        let payload = vec![0; size];
        // All sockets stay open until the end, so that no two flows get the same port.
        let sockets = (0..flows).map(|_| open(source)).collect::<Result<Vec<_>>>()?;
        let mut sent = 0;
        for _ in 0..packets {
            for socket in &sockets {
                socket.send_to(&payload, to).map_err(socket_error("send UDP to", to))?;
                sent += 1;
            }
        }
        drained(&sockets)?;
        Ok(sent)
    })?
}

/// The same, but waits for the answer to each packet before the next of its flow. Returns how many were sent and how
/// many were answered; after the first that is not answered within the `patience`, a flow is given up.
pub fn udp_answered(
    from: &Namespace,
    to: IpAddr,
    port: u16,
    flows: u32,
    packets: u32,
    patience: Duration,
) -> Result<(u64, u64)> {
    from.enter(|| {
        let (mut sent, mut answered) = (0, 0);
        let mut buffer = [0; 64];
        let sockets = (0..flows).map(|_| open(anywhere(to))).collect::<Result<Vec<_>>>()?;
        for socket in &sockets {
            socket.set_read_timeout(Some(patience)).map_err(socket_error("set a timeout on", to))?;
            for _ in 0..packets {
                socket.send_to(QUESTION, (to, port)).map_err(socket_error("send UDP to", to))?;
                sent += 1;
                if socket.recv_from(&mut buffer).is_err() {
                    break;
                }
                answered += 1;
            }
        }
        Ok((sent, answered))
    })?
}

fn open(source: SocketAddr) -> Result<UdpSocket> {
    UdpSocket::bind(source).map_err(socket_error("open a UDP socket on", source))
}

/// Waits until everything that the calling thread's sockets sent has been received at the other end of the link, so
/// that whoever reads counters now finds all of it. The kernel tells how much is still on its way (`tx_queue`).
pub(super) fn drained(sockets: &[UdpSocket]) -> Result<()> {
    let ports: HashSet<u16> =
        sockets.iter().filter_map(|socket| Some(socket.local_addr().ok()?.port())).collect();
    let end = Instant::now() + PATIENCE;
    for list in ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"] {
        while fs::read_to_string(list).is_ok_and(|text| text.lines().any(|line| is_sending(line, &ports))) {
            if Instant::now() > end {
                return Err(socket_error("send all of", "a flood")(ErrorKind::TimedOut.into()));
            }
            thread::yield_now();
        }
    }
    Ok(())
}

/// `  12: 00000000:9C40 00000000:0000 07 00000300:00000000 …`: local address, remote, state, queues.
fn is_sending(line: &str, ports: &HashSet<u16>) -> bool {
    let mut columns = line.split_whitespace().skip(1);
    let port = columns.next().and_then(|local| u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok());
    let queue = columns.nth(2).and_then(|queues| u64::from_str_radix(queues.split(':').next()?, 16).ok());
    port.is_some_and(|port| ports.contains(&port)) && queue.is_some_and(|queue| queue > 0)
}

/// A UDP listener that sends every packet back, until it is dropped.
#[derive(Debug)]
pub struct UdpEcho {
    over: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl UdpEcho {
    /// Listens on this address and port, inside the namespace.
    pub fn new(on: &Namespace, address: IpAddr, port: u16) -> Result<Self> {
        let at = SocketAddr::new(address, port);
        let socket = on.enter(|| UdpSocket::bind(at))?.map_err(socket_error("listen on UDP", at))?;
        socket.set_read_timeout(Some(GLANCE)).map_err(socket_error("set a timeout on", at))?;
        let (over, echoed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (Arc::clone(&over), Arc::clone(&echoed));
        let thread = on.spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !ends.load(Ordering::Relaxed) {
                if let Ok((length, whom)) = socket.recv_from(&mut buffer) {
                    // Counted first, so that whoever has the answer finds it counted.
                    counts.fetch_add(1, Ordering::Relaxed);
                    let _ = socket.send_to(&buffer[..length], whom);
                }
            }
        });
        Ok(Self { over, echoed, thread: Some(thread) })
    }

    /// How many packets were sent back so far.
    pub fn echoed(&self) -> u64 {
        self.echoed.load(Ordering::Relaxed)
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_is_not_empty_is_seen() {
        let ports = HashSet::from([0x9c40]);
        let line = |local: &str, queue: &str| {
            format!("  12: 00000000:{local} 00000000:0000 07 {queue}:00000000 00:0")
        };
        assert!(is_sending(&line("9C40", "00000300"), &ports));
        assert!(!is_sending(&line("9C40", "00000000"), &ports));
        assert!(!is_sending(&line("9C41", "00000300"), &ports));
        assert!(!is_sending("  sl  local_address rem_address   st tx_queue rx_queue", &ports));
    }
}
