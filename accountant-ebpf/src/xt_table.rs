//! Tables of iptables-legacy: finding one in the network namespace, and the addresses of its rules' counters.
//!
//! A table's hook functions are registered with the table itself as their private data (since Linux 5.15), so the way to
//! it is namespace, hooks of the IP version, entries of one hook. What is found is checked by name and address family.

use crate::field;
use crate::memory::{net_of_current, read};
use accountant_abi::in_place::Stamp;

/// `NFPROTO_IPV6`
const IPV6: u8 = 10;
/// More entries than a hook has.
const MAX_ENTRIES: u32 = 64;

/// Which table is meant.
#[derive(Clone, Copy)]
pub struct Which {
    /// Its name as eight bytes, zeros behind it.
    pub name: u64,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub family: u8,
    /// A hook that it is called from.
    pub hook: u32,
}

/// What the table is now.
#[inline(always)]
pub fn stamp(which: &Which) -> Option<Stamp> {
    stamp_in(net_of_current()?, which)
}

/// What the table of a network namespace is now.
#[inline(always)]
pub fn stamp_in(net: u64, which: &Which) -> Option<Stamp> {
    let table = find(net, which)?;
    let private: u64 = read(table + field!(table_private))?;
    let size: u32 = read(private + field!(info_size))?;
    let number: u32 = read(private + field!(info_number))?;
    Some(Stamp { net, private, size, number })
}

/// Where the table of the caller's network namespace has the pointer to what it is.
#[inline(always)]
pub fn place(which: &Which) -> Option<u64> {
    Some(find(net_of_current()?, which)? + field!(table_private))
}

#[inline(always)]
fn find(net: u64, which: &Which) -> Option<u64> {
    let hooks = if which.family == IPV6 { field!(net_hooks_ipv6) } else { field!(net_hooks_ipv4) };
    let entries: u64 = read(net + hooks + 8 * u64::from(which.hook & 7))?;
    let count: u16 = read(entries + field!(entries_count))?;
    let mut index = 0;
    while index < MAX_ENTRIES && index < u32::from(count) {
        let entry = entries + field!(entries_hooks) + u64::from(index) * field!(entry_size);
        let table: u64 = read(entry + field!(entry_priv)).unwrap_or(0);
        if table != 0
            && read::<u64>(table + field!(table_name)) == Some(which.name)
            && read::<u8>(table + field!(table_af)) == Some(which.family)
        {
            return Some(table);
        }
        index += 1;
    }
    None
}
