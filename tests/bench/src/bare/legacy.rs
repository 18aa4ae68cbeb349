//! iptables-legacy: `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES` of both filter tables.

use super::BareReader;
use accountant_sys::scratch::Scratch;
use accountant_sys::xtables::{Family, Socket};
use anyhow::{Context, Result};

const TABLE: &str = "filter";

/// The filter tables of IPv4 and IPv6, each with a buffer that is used again.
#[derive(Debug)]
pub(super) struct Tables([(Socket, Scratch); 2]);

impl Tables {
    pub(super) fn open() -> Result<Self> {
        let open = |family| Socket::open(family).context("opening a socket");
        Ok(Self([(open(Family::Ip)?, Scratch::default()), (open(Family::Ip6)?, Scratch::default())]))
    }
}

impl BareReader for Tables {
    fn read(&mut self) -> Result<usize> {
        let mut length = 0;
        for (socket, buffer) in &mut self.0 {
            let info = socket.info(TABLE).context("asking the size of a table")?;
            socket.entries(TABLE, info.size, buffer).context("reading a table")?;
            length += buffer.bytes().len();
        }
        Ok(length)
    }
}
