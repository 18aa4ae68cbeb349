//! The number of a network namespace that no other has until the next boot (Linux 5.14).
//!
//! Source: `SO_NETNS_COOKIE` of `include/uapi/asm-generic/socket.h`; a 64-bit number in host byte order.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// The number of the calling thread's network namespace.
pub fn cookie() -> io::Result<u64> {
    // Any socket of the namespace knows it; this one is never connected to anything.
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is what there is room for.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
