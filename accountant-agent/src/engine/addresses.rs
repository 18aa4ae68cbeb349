//! The addresses of this node, by which host endpoints can be known.

use accountant_core::id::Interface;
use std::collections::HashMap;
use std::net::IpAddr;

/// The addresses of each interface. Nothing where the kernel does not tell.
pub(super) fn of_interfaces() -> HashMap<Interface, Vec<IpAddr>> {
    let mut addresses: HashMap<_, Vec<_>> = HashMap::new();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let Some(address) = interface.address else { continue };
        let ip = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let ip = ip.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())));
        if let Some(ip) = ip {
            addresses.entry(interface.interface_name.into()).or_default().push(ip);
        }
    }
    addresses
}
