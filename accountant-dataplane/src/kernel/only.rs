//! One agent at a time in a network namespace.
//!
//! An abstract socket's name belongs to a network namespace, and to one socket in it; the kernel takes it back when the
//! process ends, however it ends.

use crate::in_place::CannotHere;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

const NAME: &str = "calico-packet-accountant";

/// Shows that this is the only one, as long as it lives.
#[derive(Debug)]
pub(super) struct Only {
    _socket: UnixDatagram,
}

impl Only {
    /// Is the only one in the calling thread's network namespace, or not at all.
    pub(super) fn claim() -> Result<Self, CannotHere> {
        let refused = |error: std::io::Error| match error.kind() {
            ErrorKind::AddrInUse => CannotHere::AnotherAgent,
            _ => {
                CannotHere::Refused { operation: format!("taking the name {NAME}"), error: error.to_string() }
            }
        };
        let address = SocketAddr::from_abstract_name(NAME).map_err(refused)?;
        Ok(Self { _socket: UnixDatagram::bind_addr(&address).map_err(refused)? })
    }
}
