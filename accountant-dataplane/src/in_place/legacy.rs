//! Counters of iptables-legacy, read in place.
//!
//! A table's rules stay where they are until the whole table is replaced; then its `private` is another. Rules are named
//! by the offsets of their counters in the table as `IPT_SO_GET_ENTRIES` returned it, which is how the kernel has it.
//!
//! The address of `private` can come again after two replacements. Who holds counters by a [`Stamp`] therefore has to know
//! by other means that nobody replaced the table meanwhile: by the lock file's news, or by having read while it was true.

use super::fields::Rules;
use super::{CannotHere, Reader};
use accountant_abi::in_place::{CAPACITY, Outcome, Reads, Stamp};
use accountant_core::snapshot::TableId;
use accountant_core::{Counter, IpVersion, Table};
use std::sync::atomic::Ordering::Relaxed;

/// Hooks that tables are called from: `NF_INET_PRE_ROUTING`, `NF_INET_FORWARD`.
const PRE_ROUTING: u64 = 0;
const FORWARD: u64 = 2;

/// How many pointers are looked up in one run.
const RESOLVED_AT_ONCE: usize = 1 << 13;
const _: () = assert!(RESOLVED_AT_ONCE <= CAPACITY as usize);

/// Reads tables of the calling thread's network namespace.
#[derive(Debug)]
pub(crate) struct LegacyReader(Reader);

impl LegacyReader {
    pub(crate) fn load() -> Result<Self, CannotHere> {
        let programs = ["find_legacy", "locate_legacy", "resolve_legacy", "read_legacy"];
        Ok(Self(Reader::load(Rules::Legacy, &programs, &[])?))
    }

    /// What the table is now; none if it is not there.
    pub(crate) fn stamp(&self, id: TableId) -> Result<Option<Stamp>, CannotHere> {
        Ok(match self.0.run("find_legacy", &which(id))? {
            Outcome::Done => {
                let words = self.0.stamp.words();
                let word = |index: usize| words[index].load(Relaxed);
                let (size, number) = (word(2) as u32, (word(2) >> 32) as u32);
                Some(Stamp { net: word(0), private: word(1), size, number })
            }
            _ => None,
        })
    }

    /// Where the kernel says what the table is, and where rules are behind what it says.
    pub(crate) fn locate(&self, id: TableId) -> Result<Option<(u64, u64)>, CannotHere> {
        let outcome = self.0.run("locate_legacy", &which(id))?;
        let place = self.0.addresses().next().filter(|_| outcome == Outcome::Done);
        Ok(place.map(|place| (place, u64::from(self.0.fields.info_entries))))
    }

    /// Whether rules have pointers to their counters, as they have where there is more than one processor.
    pub(crate) fn has_pointers(&self) -> bool {
        self.0.cpus > 1
    }

    /// The per-CPU pointers of the counters at these offsets.
    pub(crate) fn resolve(
        &self,
        id: TableId,
        stamp: &Stamp,
        offsets: &[u32],
    ) -> Result<Result<Vec<u64>, Outcome>, CannotHere> {
        let mut pointers = Vec::with_capacity(offsets.len());
        for part in offsets.chunks(RESOLVED_AT_ONCE) {
            self.demand(stamp);
            self.0.put_addresses(part.iter().map(|&offset| u64::from(offset)));
            let [name, family, hook] = which(id);
            match self.0.run("resolve_legacy", &[name, family, hook, part.len() as u64])? {
                Outcome::Done => pointers.extend(self.0.addresses().take(part.len())),
                outcome => return Ok(Err(outcome)),
            }
        }
        Ok(Ok(pointers))
    }

    /// The counters behind these pointers, if the table still is what it was when they were looked up.
    pub(crate) fn read(
        &self,
        id: TableId,
        stamp: &Stamp,
        pointers: &[u64],
        reads: Reads,
    ) -> Result<Result<Vec<Counter>, Outcome>, CannotHere> {
        let mut counters = Vec::with_capacity(pointers.len());
        for part in pointers.chunks(self.0.at_once()) {
            self.demand(stamp);
            self.0.put_addresses(part.iter().copied());
            let [name, family, hook] = which(id);
            let cpus = u64::from(self.0.cpus);
            let arguments = [name, family, hook, part.len() as u64, cpus, reads as u64];
            match self.0.run("read_legacy", &arguments)? {
                Outcome::Done => {
                    let sums = self.0.sums().take(part.len());
                    counters.extend(sums.map(|(packets, bytes)| Counter::new(packets, bytes)));
                }
                outcome => return Ok(Err(outcome)),
            }
        }
        Ok(Ok(counters))
    }

    /// Tells the programs what the table has to be.
    fn demand(&self, stamp: &Stamp) {
        let last = u64::from(stamp.size) | u64::from(stamp.number) << 32;
        for (word, value) in self.0.stamp.words().iter().zip([stamp.net, stamp.private, last]) {
            word.store(value, Relaxed);
        }
    }
}

/// The table as programs want to be told: name, address family, and a hook that it is called from.
fn which(id: TableId) -> [u64; 3] {
    let mut name = [0; 8];
    for (to, from) in name.iter_mut().zip(id.table.as_str().bytes()) {
        *to = from;
    }
    // NFPROTO_IPV4, NFPROTO_IPV6
    let family = match id.ip_version {
        IpVersion::V4 => 2,
        IpVersion::V6 => 10,
    };
    let hook = match id.table {
        Table::Filter => FORWARD,
        Table::Mangle | Table::Raw => PRE_ROUTING,
    };
    [u64::from_ne_bytes(name), family, hook]
}
