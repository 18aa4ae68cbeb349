//! News of interfaces: something is called whenever the kernel tells of one (rtnetlink, `RTMGRP_LINK`).
//!
//! What changed is not looked at: whoever wants to know asks for the interfaces that matter.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;

/// `RTMGRP_LINK`
const LINKS: u32 = 1;

/// Calls something at each change, until it is dropped.
#[derive(Debug)]
pub(super) struct LinkNews {
    /// Closed when this is dropped, which ends the thread.
    _end: OwnedFd,
}

impl LinkNews {
    /// Listens in the calling thread's network namespace.
    pub(super) fn start(changed: impl Fn() + Send + 'static) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINKS))?;
        let (ends, end) = nix::unistd::pipe()?;
        thread::Builder::new().name("links".into()).spawn(move || listen(&socket, &ends, &changed))?;
        Ok(Self { _end: end })
    }
}

fn listen(socket: &OwnedFd, ends: &OwnedFd, changed: &dyn Fn()) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut fds =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(ends.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => {
                tracing::warn!(%error, "news of interfaces are not heard any more");
                return;
            }
            Ok(_) => {}
        }
        if fds[1].revents().is_some_and(|events| !events.is_empty()) {
            return;
        }
        // Lost news (ENOBUFS) are news, too.
        while recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).is_ok() {}
        changed();
    }
}
