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
pub use udp::{UdpEcho, udp, udp_answered, udp_as};

use crate::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// How long to wait for something that is on this machine and should come at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// Any port of any address, of the same version of IP.
fn anywhere(like: IpAddr) -> SocketAddr {
    let any =
        if like.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    SocketAddr::new(any, 0)
}

fn socket_error(operation: &'static str, at: impl ToString) -> impl FnOnce(std::io::Error) -> Error {
    Error::io(operation, at)
}
