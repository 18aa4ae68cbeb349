//! nftables: `NFT_MSG_GETRULE` dumps, chain by chain, over a netlink socket.
//!
//! Requests are made before anything is measured. Of an answer only the heads of messages are looked at, because the
//! last one ends the dump.

use super::BareReader;
use crate::rules::KernelChain;
use accountant_core::IpVersion;
use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::os::fd::{AsRawFd, OwnedFd};

/// As much room as the source offers.
const BUFFER: usize = 1 << 16;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE`
const GETRULE: u16 = 0xa07;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x301;
/// `NFTA_RULE_TABLE`, `NFTA_RULE_CHAIN`
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
/// `NLMSG_ERROR`, `NLMSG_DONE`
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The dumps of all chains of endpoints.
#[derive(Debug)]
pub(super) struct Dumps {
    fd: OwnedFd,
    requests: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Dumps {
    pub(super) fn open(chains: &[KernelChain]) -> Result<Self> {
        let family = (AddressFamily::Netlink, SockProtocol::NetlinkNetFilter);
        let fd =
            socket(family.0, SockType::Raw, SockFlag::SOCK_CLOEXEC, family.1).context("opening netlink")?;
        Ok(Self { fd, requests: chains.iter().map(request).collect(), buffer: vec![0; BUFFER] })
    }
}

impl BareReader for Dumps {
    fn read(&mut self) -> Result<usize> {
        let mut total = 0;
        for request in &self.requests {
            send(self.fd.as_raw_fd(), request, MsgFlags::empty()).context("asking for a chain")?;
            loop {
                let length = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
                total += length;
                if is_last(&self.buffer[..length])? {
                    break;
                }
            }
        }
        Ok(total)
    }
}

/// Whether the dump ends with these messages.
fn is_last(mut messages: &[u8]) -> Result<bool> {
    while let [a, b, c, d, kind, kind_high, ..] = messages {
        match u16::from_ne_bytes([*kind, *kind_high]) {
            DONE => return Ok(true),
            ERROR => bail!("the kernel refused to dump a chain"),
            _ => {}
        }
        let length = u32::from_ne_bytes([*a, *b, *c, *d]) as usize;
        messages = messages.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `struct nlmsghdr`, `struct nfgenmsg`, and the names of table and chain.
fn request(chain: &KernelChain) -> Vec<u8> {
    let family = match chain.ip_version {
        IpVersion::V4 => 2,
        IpVersion::V6 => 10,
    };
    let mut body = vec![family, 0, 0, 0];
    for (kind, name) in [(RULE_TABLE, chain.table), (RULE_CHAIN, &chain.chain)] {
        let length = 4 + name.len() + 1;
        body.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(name.as_bytes());
        body.resize(body.len() + 1 + length.next_multiple_of(4) - length, 0);
    }
    let mut message = Vec::new();
    message.extend(u32::try_from(16 + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(GETRULE.to_ne_bytes());
    message.extend(DUMP.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}
