//! Tables of iptables-legacy, as far as the namespace has them.

use super::{Table, TableName};
use crate::SourceError;
use crate::iptables_legacy::blob::{self, Layout};
use accountant_core::IpVersion;
use accountant_core::snapshot::Source;
use accountant_sys::scratch::Scratch;
use accountant_sys::xtables::{Family, Socket};
use std::collections::BTreeMap;
use std::io;

/// How often a table that changes its size between two calls is asked for again.
const TRIES: u32 = 8;

const FAMILIES: [(IpVersion, Family, Layout, &str); 2] = [
    (IpVersion::V4, Family::Ip, blob::IPV4, "/proc/thread-self/net/ip_tables_names"),
    (IpVersion::V6, Family::Ip6, blob::IPV6, "/proc/thread-self/net/ip6_tables_names"),
];

pub(super) fn count() -> Result<BTreeMap<TableName, Table>, SourceError> {
    let mut tables = BTreeMap::new();
    for (ip_version, family, layout, names) in FAMILIES {
        let text = match std::fs::read_to_string(names) {
            Ok(text) => text,
            // A kernel without the modules.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(SourceError::io("reading", names, error)),
        };
        for name in text.lines().map(str::trim).filter(|name| !name.is_empty()) {
            let object = || format!("table {name} of iptables-legacy");
            let read = entries(family, name).map_err(|error| SourceError::io("reading", object(), error))?;
            let table = blob::count(Socket::blob(&read.0), read.1, layout)
                .map_err(|error| SourceError::decode(object(), error))?;
            tables.insert((Source::IptablesLegacy, ip_version, name.into()), table);
        }
    }
    Ok(tables)
}

/// A table's entries, and how many built-in chains it has.
fn entries(family: Family, name: &str) -> io::Result<(Scratch, u32)> {
    let socket = Socket::open(family)?;
    let mut scratch = Scratch::default();
    for _ in 0..TRIES {
        let info = socket.info(name)?;
        match socket.entries(name, info.size, &mut scratch) {
            Ok(()) => return Ok((scratch, info.valid_hooks.count_ones())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}
