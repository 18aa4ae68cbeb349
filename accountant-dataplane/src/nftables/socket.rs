//! The two netlink sockets: one to ask, one to be told.

use super::wire::{self, Message};
use crate::SourceError;
use netlink_bindings::traits::{NetlinkRequest, Protocol};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Dumps come in pieces of up to this size when the reader offers so much room (`NLMSG_GOODSIZE` grows with it).
const BUFFER: usize = 1 << 16;
/// What the kernel may hold back for us before it drops notifications.
const NOTIFICATIONS: usize = 32 << 20;
/// The group of `NFNLGRP_NFTABLES` (7) as a bit.
const NFTABLES_GROUP: u32 = 1 << 6;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END` and the header of both (`struct nfgenmsg` of `NFNL_SUBSYS_NFTABLES`),
/// linux/netfilter/nfnetlink.h.
const BATCH: [u16; 2] = [0x10, 0x11];
const OF_NFTABLES: [u8; 4] = [0, 0, 0, 10];
/// How long to wait for an answer of the kernel before the socket is given up.
const PATIENCE: i64 = 5;

/// How a dump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dump {
    Whole,
    /// The rules changed while they were dumped: what was read is of no use.
    Interrupted,
    /// The object that was asked for does not exist.
    Absent,
}

/// A socket to ask.
#[derive(Debug)]
pub(crate) struct Query {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Query {
    pub(crate) fn open() -> Result<Self, SourceError> {
        let fd = open(SockFlag::SOCK_CLOEXEC, 0)?;
        let patience = TimeVal::new(PATIENCE, 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience).map_err(|e| failed("setting up", e))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Waits until no commit is under way, with a batch that has nothing in it: the kernel takes the lock of commits for it,
    /// and changes nothing.
    pub(crate) fn wait_for_commits(&mut self) -> Result<(), SourceError> {
        // What it is answered, if anything, is not listened to: the next question has another number.
        self.sequence = self.sequence.wrapping_add(1);
        let batch =
            BATCH.map(|kind| wire::request(kind, NLM_F_REQUEST, self.sequence, &OF_NFTABLES)).concat();
        send(self.fd.as_raw_fd(), &batch, MsgFlags::empty()).map_err(|e| failed("asking", e))?;
        Ok(())
    }

    /// Sends a request and hands every message of the answer to `each`, with the kind that it has.
    pub(crate) fn ask<R: NetlinkRequest>(
        &mut self,
        request: &R,
        each: impl FnMut(u16, &[u8]) -> Result<(), SourceError>,
    ) -> Result<Dump, SourceError> {
        let Protocol::Raw { request_type, .. } = request.protocol() else { return Ok(Dump::Absent) };
        self.ask_raw(request_type, request.flags(), request.payload(), each)
    }

    /// The same with a request that was put together elsewhere.
    pub(crate) fn ask_raw(
        &mut self,
        kind: u16,
        flags: u16,
        payload: &[u8],
        mut each: impl FnMut(u16, &[u8]) -> Result<(), SourceError>,
    ) -> Result<Dump, SourceError> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = wire::request(kind, flags | NLM_F_REQUEST | NLM_F_ACK, self.sequence, payload);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(|e| failed("asking", e))?;
        let mut outcome = Dump::Whole;
        loop {
            let length = receive(&self.fd, &mut self.buffer).map_err(|e| failed("reading from", e))?;
            for message in wire::messages(&self.buffer[..length]) {
                let message = message.map_err(|e| SourceError::decode("an answer of nf_tables", e))?;
                if message.sequence != self.sequence {
                    continue;
                }
                if message.is_interrupted() {
                    outcome = Dump::Interrupted;
                }
                match message.kind {
                    wire::DONE | wire::ERROR => return ending(&message, outcome),
                    kind => each(kind, message.payload)?,
                }
            }
        }
    }
}

fn ending(message: &Message<'_>, outcome: Dump) -> Result<Dump, SourceError> {
    match Errno::from_raw(message.error_code()) {
        _ if message.error_code() == 0 => Ok(outcome),
        Errno::ENOENT => Ok(Dump::Absent),
        // The kernel noticed by itself that the rules changed.
        Errno::EINTR | Errno::EAGAIN => Ok(Dump::Interrupted),
        error => Err(failed("asking", error)),
    }
}

/// A socket to be told of rule changes.
#[derive(Debug)]
pub(crate) struct Notifications {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

/// What came of looking for notifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing more at the moment.
    Nothing,
    /// A message of so many bytes.
    Bytes(usize),
    /// The kernel dropped some.
    Lost,
}

impl Notifications {
    pub(crate) fn open() -> Result<Self, SourceError> {
        let fd = open(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, NFTABLES_GROUP)?;
        if setsockopt(&fd, sockopt::RcvBufForce, &NOTIFICATIONS).is_err() {
            // Without CAP_NET_ADMIN over the host the usual limit applies; losses are noticed.
            let _ = setsockopt(&fd, sockopt::RcvBuf, &NOTIFICATIONS);
        }
        Ok(Self { fd, buffer: vec![0; BUFFER] })
    }

    /// Sets how much the kernel may hold back.
    pub(crate) fn hold_back(&self, bytes: usize) -> Result<(), SourceError> {
        setsockopt(&self.fd, sockopt::RcvBuf, &bytes).map_err(|e| failed("setting up", e))
    }

    pub(crate) fn hear(&mut self) -> Result<Heard, SourceError> {
        match receive(&self.fd, &mut self.buffer) {
            Ok(length) => Ok(Heard::Bytes(length)),
            Err(Errno::EAGAIN) => Ok(Heard::Nothing),
            Err(Errno::ENOBUFS) => Ok(Heard::Lost),
            Err(error) => Err(failed("hearing from", error)),
        }
    }

    pub(crate) fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open(flags: SockFlag, groups: u32) -> Result<OwnedFd, SourceError> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter);
    let fd = fd.map_err(|e| failed("opening a socket to", e))?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(|e| failed("binding a socket to", e))?;
    Ok(fd)
}

fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match recv(fd.as_raw_fd(), buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

fn failed(operation: &'static str, error: Errno) -> SourceError {
    SourceError::io(operation, "nf_tables (netlink)", error)
}
