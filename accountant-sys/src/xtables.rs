//! Reading tables of iptables-legacy: `getsockopt` with `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`.
//!
//! Source: `include/uapi/linux/netfilter_ipv4/ip_tables.h`, `.../netfilter_ipv6/ip6_tables.h` (Linux 6.18; unchanged
//! since 2.6). The structures are in host byte order and have the alignment of 64-bit kernels. Needs CAP_NET_ADMIN in
//! the network namespace; any IP socket will do, so a datagram socket saves CAP_NET_RAW.
//!
//! Asking for a table that the namespace does not have makes the kernel load modules and register the table. Who calls
//! this looks into `/proc/net/ip_tables_names` first.

use crate::scratch::Scratch;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `XT_TABLE_MAXNAMELEN`, with its terminating zero.
const NAME_LENGTH: usize = 32;
/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// What precedes the entries in `struct ipt_get_entries`: name, size, padding to eight bytes.
const ENTRIES_HEADER: usize = 40;

/// The IP version of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `ip_tables`.
    Ip,
    /// `ip6_tables`.
    Ip6,
}

/// `struct ipt_getinfo`, `struct ip6t_getinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    name: [u8; NAME_LENGTH],
    /// Bit mask of the hooks that the table is called from.
    pub valid_hooks: u32,
    /// Offset of the first entry of each hook's built-in chain.
    pub hook_entry: [u32; 5],
    /// Offset of the policy of each hook's built-in chain.
    pub underflow: [u32; 5],
    /// Number of entries.
    pub num_entries: u32,
    /// Size of all entries in bytes.
    pub size: u32,
}

const _: () = assert!(size_of::<Info>() == 84);

/// A socket to ask for tables.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    level: libc::c_int,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(family: Family) -> io::Result<Self> {
        let (domain, level) = match family {
            Family::Ip => (libc::AF_INET, libc::IPPROTO_IP),
            Family::Ip6 => (libc::AF_INET6, libc::IPPROTO_IPV6),
        };
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is fresh, and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, level })
    }

    /// Size and layout of a table.
    pub fn info(&self, table: &str) -> io::Result<Info> {
        let mut info = Info { name: name(table)?, ..Info::default() };
        let mut length = size_of::<Info>() as libc::socklen_t;
        // SAFETY: `info` is a plain structure of the size that is passed; the kernel writes at most that much.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                self.level,
                GET_INFO,
                (&raw mut info).cast(),
                &raw mut length,
            )
        };
        check(result)?;
        Ok(info)
    }

    /// Reads all entries of a table of `size` bytes into `scratch`. Fails with `EAGAIN` if the table has another size by
    /// now.
    pub fn entries(&self, table: &str, size: u32, scratch: &mut Scratch) -> io::Result<()> {
        let total = ENTRIES_HEADER + size as usize;
        scratch.resize(total)?;
        let buffer = scratch.bytes_mut();
        buffer[..NAME_LENGTH].copy_from_slice(&name(table)?);
        buffer[NAME_LENGTH..NAME_LENGTH + 4].copy_from_slice(&size.to_ne_bytes());
        let mut length = libc::socklen_t::try_from(total).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // SAFETY: `buffer` has `length` initialised bytes; the kernel writes at most that much.
        let result = unsafe {
            let into = buffer.as_mut_ptr().cast();
            libc::getsockopt(self.fd.as_raw_fd(), self.level, GET_ENTRIES, into, &raw mut length)
        };
        check(result)
    }

    /// The entries in what was read into.
    pub fn blob(scratch: &Scratch) -> &[u8] {
        scratch.bytes().get(ENTRIES_HEADER..).unwrap_or_default()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn name(table: &str) -> io::Result<[u8; NAME_LENGTH]> {
    let mut name = [0; NAME_LENGTH];
    let fits = table.len() < NAME_LENGTH;
    let room = name.get_mut(..table.len()).filter(|_| fits).ok_or(io::ErrorKind::InvalidInput)?;
    room.copy_from_slice(table.as_bytes());
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_too_long_is_refused() {
        assert!(name("filter").is_ok());
        assert_eq!(name(&"x".repeat(32)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
