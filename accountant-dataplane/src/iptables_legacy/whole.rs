//! Whole tables by getsockopt, and which tables there are.

use super::table::describe;
use crate::SourceError;
use accountant_core::snapshot::{Source, TableId};
use accountant_core::{IpVersion, Table};
use accountant_sys::scratch::Scratch;
use accountant_sys::xtables::{Family, Socket};
use std::collections::{HashMap, HashSet};
use std::io;

/// How often a table that changes its size between two calls is asked for again.
const TRIES: u32 = 8;
/// How many buffers are kept to be used again.
const SPARE: usize = 2;
/// Memory for a bigger table is given back to the kernel between polls, when nobody needs it. For a smaller one having it
/// anew costs more than it is worth: at 23 500 rules, which are 13 MB, a third of an idle agent's processor time on a
/// virtual machine whose host takes free pages away.
const KEPT: usize = 16 << 20;

/// Tables of iptables-legacy that the namespace has, by the text of `/proc/net/ip{,6}_tables_names`.
///
/// `None` is a kernel without the modules. A table that is not listed must not be asked for: the kernel would load
/// modules and register it.
fn tables_in(names: Option<&str>) -> Vec<Table> {
    let names: HashSet<&str> = names.unwrap_or_default().lines().map(str::trim).collect();
    Table::ALL.into_iter().filter(|table| names.contains(table.as_str())).collect()
}

fn names_file(ip_version: IpVersion) -> &'static str {
    match ip_version {
        IpVersion::V4 => "/proc/thread-self/net/ip_tables_names",
        IpVersion::V6 => "/proc/thread-self/net/ip6_tables_names",
    }
}

/// The tables that the calling thread's network namespace has, whether or not Calico uses them.
pub(super) fn present() -> Result<Vec<TableId>, SourceError> {
    let mut present = Vec::new();
    for ip_version in IpVersion::BOTH {
        let file = names_file(ip_version);
        let names = match std::fs::read_to_string(file) {
            Ok(names) => Some(names),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // Whoever may not read the names cannot tell that there are none.
            Err(error) => return Err(SourceError::io("reading", file, error)),
        };
        let id = |table| TableId { source: Source::IptablesLegacy, native: false, ip_version, table };
        present.extend(tables_in(names.as_deref()).into_iter().map(id));
    }
    Ok(present)
}

/// Reads tables into buffers that are used again.
#[derive(Debug, Default)]
pub(super) struct WholeReader {
    sockets: HashMap<IpVersion, Socket>,
    spare: Vec<Scratch>,
}

/// A table as the kernel handed it out.
#[derive(Debug)]
pub(super) struct Blob(Scratch);

impl Blob {
    pub(super) fn bytes(&self) -> &[u8] {
        Socket::blob(&self.0)
    }
}

impl WholeReader {
    /// Takes a buffer that is done with.
    pub(super) fn take_back(&mut self, blob: Blob) {
        if self.spare.len() < SPARE && blob.0.capacity() <= KEPT {
            self.spare.push(blob.0);
        }
    }

    /// Gives the buffers' memory back.
    pub(super) fn release(&mut self) {
        self.spare = Vec::new();
    }

    /// Reads a table.
    pub(super) fn read(&mut self, id: TableId) -> Result<Blob, SourceError> {
        let failed = |operation, error| SourceError::io(operation, describe(id), error);
        let socket = match self.sockets.entry(id.ip_version) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let family = match id.ip_version {
                    IpVersion::V4 => Family::Ip,
                    IpVersion::V6 => Family::Ip6,
                };
                entry.insert(Socket::open(family).map_err(|e| failed("opening a socket for", e))?)
            }
        };
        let table = id.table.as_str();
        let mut buffer = self.spare.pop().unwrap_or_default();
        for _ in 0..TRIES {
            let info = socket.info(table).map_err(|e| failed("asking the size of", e))?;
            match socket.entries(table, info.size, &mut buffer) {
                Ok(_) => return Ok(Blob(buffer)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(failed("reading", error)),
            }
        }
        Err(SourceError::Unstable { object: describe(id), tries: TRIES })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_that_are_listed_are_read() {
        assert_eq!(tables_in(None), []);
        assert_eq!(tables_in(Some("")), []);
        assert_eq!(tables_in(Some("nat\nfilter\n")), [Table::Filter]);
        assert_eq!(tables_in(Some("raw\nmangle\nfilter")), Table::ALL);
    }
}
