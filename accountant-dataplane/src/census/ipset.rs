//! IP sets by the headers that the kernel tells of them, without their members.
//!
//! Source: `include/uapi/linux/netfilter/ipset/ip_set.h`, Linux 6.18; numbers are big-endian. `IPSET_ATTR_ELEMENTS` is told
//! since 4.10. Checked with sets that `ipset` made.
//!
//! Invariant: decoding is total; a set of which something is missing is left out.

use super::Set;
use crate::SourceError;
use crate::nftables::socket::Query;
use accountant_core::IpVersion;
use std::path::Path;

/// `NFNL_SUBSYS_IPSET << 8 | IPSET_CMD_LIST`
const LIST: u16 = 6 << 8 | 7;
/// `NLM_F_DUMP`
const DUMP: u16 = 0x300;
/// `IPSET_PROTOCOL`; all kernels that Calico runs on take it.
const PROTOCOL: u8 = 6;
/// `IPSET_ATTR_...` of a message.
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_FAMILY: u16 = 5;
const ATTR_FLAGS: u16 = 6;
const ATTR_DATA: u16 = 7;
/// ... of a set's data.
const ATTR_MAXELEM: u16 = 19;
const ATTR_ELEMENTS: u16 = 24;
/// `IPSET_FLAG_LIST_HEADER`
const LIST_HEADER: u32 = 1 << 2;
/// `NLA_F_NET_BYTEORDER`, and the bits of an attribute's type that are no flags.
const BIG_ENDIAN: u16 = 1 << 14;
const TYPE: u16 = 0x3fff;
/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// There when ip_set is built in or loaded. Asking without it would load it.
const MODULE: &str = "/sys/module/ip_set";
/// What Calico's sets begin with.
const CALICO: &str = "cali";

/// Calico's sets in the calling thread's network namespace.
pub(super) fn list() -> Result<Vec<Set>, SourceError> {
    let mut sets = Vec::new();
    if Path::new(MODULE).exists() {
        Query::open()?.ask_raw(LIST, DUMP, &request(), |kind, payload| {
            sets.extend(Some(payload).filter(|_| kind == LIST).and_then(decode));
            Ok(())
        })?;
    }
    sets.retain(|set| set.name.starts_with(CALICO));
    Ok(sets)
}

fn request() -> Vec<u8> {
    let mut bytes = vec![IPV4, 0, 0, 0];
    let mut attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    };
    attribute(ATTR_PROTOCOL, &[PROTOCOL]);
    attribute(ATTR_FLAGS | BIG_ENDIAN, &LIST_HEADER.to_be_bytes());
    bytes
}

/// A set as a message of a list tells it, behind the netlink header.
pub fn decode(payload: &[u8]) -> Option<Set> {
    let message = payload.get(4..)?;
    let text = find(message, ATTR_SETNAME)?;
    let name = std::str::from_utf8(text.split(|byte| *byte == 0).next()?).ok()?.to_string();
    let ip_version = match *find(message, ATTR_FAMILY)?.first()? {
        IPV4 => IpVersion::V4,
        IPV6 => IpVersion::V6,
        _ => return None,
    };
    let data = find(message, ATTR_DATA)?;
    let number = |kind| Some(u32::from_be_bytes(find(data, kind)?.get(..4)?.try_into().ok()?));
    Some(Set { name, ip_version, entries: number(ATTR_ELEMENTS)?, most: number(ATTR_MAXELEM)? })
}

/// The value of the first attribute of a kind.
fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let u16_at = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(u16_at(0)?), u16_at(2)? & TYPE);
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as Linux 6.18 tells it, with attributes in its order.
    fn message(family: u8) -> Vec<u8> {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = [(4 + value.len() as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let data: Vec<u8> = [(18, 64u32), (ATTR_MAXELEM, 1_048_576), (25, 1), (26, 500), (ATTR_ELEMENTS, 7)]
            .iter()
            .flat_map(|(kind, value)| attribute(kind | BIG_ENDIAN, &value.to_be_bytes()))
            .collect();
        let parts = [
            attribute(ATTR_PROTOCOL, &[PROTOCOL]),
            attribute(ATTR_SETNAME, b"cali40s:x\0"),
            attribute(3, b"hash:net\0"),
            attribute(ATTR_FAMILY, &[family]),
            attribute(ATTR_DATA | 0x8000, &data),
        ];
        [vec![IPV4, 0, 0, 0], parts.concat()].concat()
    }

    #[test]
    fn a_set_and_every_part_of_it() {
        let set = Set { name: "cali40s:x".into(), ip_version: IpVersion::V4, entries: 7, most: 1_048_576 };
        let whole = message(IPV4);
        assert_eq!(decode(&whole), Some(set));
        assert_eq!(decode(&message(IPV6)).unwrap().ip_version, IpVersion::V6);
        assert_eq!(decode(&message(0)), None);
        for end in 0..whole.len() {
            assert_eq!(decode(&whole[..end]), None, "{end}");
        }
    }
}
