//! Traffic in known numbers.
//!
//! Everything here says exactly how many packets were sent, so that counters can be compared, not guessed:
//!
//! * [`udp`] sends packets that nobody answers, so that every one of them is new to connection tracking and is decided
//!   by policy; with an [`UdpEcho`] at the other end, all but the first of a flow are established.
//! * [`connect`] opens TCP connections with exactly one SYN each: it gives up before the kernel would send a second.
//! * [`ping`] sends echo requests, each a flow of its own.
//! * [`Flood`] sends UDP as fast as it can, or at a rate, for minutes, and counts what it sent by class.
//!
//! All sockets are opened inside the sender's namespace and are unconnected, so an ICMP error does not disturb them.

mod echo;
mod flood;
mod tcp;
mod udp;

pub use echo::ping;
pub use flood::{Flood, Flooded, Flooding, Until};
pub use tcp::{Connected, TcpListening, connect};
pub use udp::{AS_PAYLOAD, QUESTION, UdpEcho, udp, udp_answered, udp_as};

use crate::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// How long to wait for something that is on this machine and should come at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// The length of an IP header without options.
fn header(to: IpAddr) -> u64 {
    if to.is_ipv4() { 20 } else { 40 }
}

/// The length of a UDP packet with so much payload, from the IP header on: what rules count.
pub fn udp_length(to: IpAddr, payload: usize) -> u64 {
    header(to) + 8 + payload as u64
}

/// The length of a SYN of [`connect`]: TCP's 20 bytes, and 20 of options (segment size, selective acknowledgements,
/// timestamps, window scale) as Linux sends them unless it is told otherwise.
pub fn syn_length(to: IpAddr) -> u64 {
    header(to) + 40
}

/// The length of an echo request of [`ping`].
pub fn ping_length(to: IpAddr) -> u64 {
    header(to) + echo::LENGTH
}

/// Any port of any address, of the same version of IP.
fn anywhere(like: IpAddr) -> SocketAddr {
    let any =
        if like.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    SocketAddr::new(any, 0)
}

fn socket_error(operation: &'static str, at: impl ToString) -> impl FnOnce(std::io::Error) -> Error {
    Error::io(operation, at)
}
