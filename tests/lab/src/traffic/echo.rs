//! ICMP echo, through the kernel's unprivileged ping sockets.

use super::{anywhere, socket_error};
use crate::error::Result;
use crate::netns::Namespace;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Echo requests of ICMP and ICMPv6; the kernel fills in checksum and identifier.
const REQUEST_V4: [u8; 12] = [8, 0, 0, 0, 0, 0, 0, 1, b'l', b'a', b'b', 0];
const REQUEST_V6: [u8; 12] = [128, 0, 0, 0, 0, 0, 0, 1, b'l', b'a', b'b', 0];

/// The length of a request, from the ICMP header on.
pub(super) const LENGTH: u64 = REQUEST_V4.len() as u64;

/// Sends `count` echo requests, each from a socket and so an identifier of its own: each is a new flow to connection
/// tracking. Returns how many were answered within the `patience`.
pub fn ping(from: &Namespace, to: IpAddr, count: u32, patience: Duration) -> Result<u64> {
    from.enter(|| {
        let sockets = (0..count).map(|_| request(to, patience)).collect::<Result<Vec<_>>>()?;
        let mut buffer = [0; 64];
        let answered = sockets.into_iter().filter_map(|mut socket| socket.read(&mut buffer).ok());
        Ok(answered.count() as u64)
    })?
}

fn request(to: IpAddr, patience: Duration) -> Result<Socket> {
    let (domain, protocol, request) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, REQUEST_V4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, REQUEST_V6),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol));
    let socket = socket.map_err(socket_error("open a ping socket for", to))?;
    socket.set_read_timeout(Some(patience)).map_err(socket_error("set a timeout on", to))?;
    socket.bind(&SockAddr::from(anywhere(to))).map_err(socket_error("bind a ping socket for", to))?;
    let there = SockAddr::from(SocketAddr::new(to, 0));
    socket.send_to(&request, &there).map_err(socket_error("ping", to))?;
    Ok(socket)
}
