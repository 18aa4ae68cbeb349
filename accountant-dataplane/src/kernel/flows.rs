//! Flows that were dropped in the packet filter, as the programs note them and as sources hand them over: all of them when
//! the rules are read, and the first packet of each as it is dropped ([`Events`]).
//!
//! Invariant: total. A record that is cut short is left out.

use crate::bytes::{u32_at, u64_at};
use crate::in_place::CannotHere;
use accountant_abi::verdict::{Flow, FlowKey};
use accountant_core::snapshot::TableId;
use accountant_core::watch::WatchList;
use accountant_core::{ChainName, Counter};
use accountant_sys::bpf;
use aya::maps::{MapData, RingBuf};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// Packets of one flow that were dropped; or accepted, by the chain.
#[derive(Clone, Debug)]
pub struct SeenFlow {
    /// The table of the chain.
    pub table: TableId,
    /// The chain of the endpoint that they were from or to.
    pub chain: ChainName,
    /// Whether no endpoint's chain dropped them, but something else in the packet filter.
    pub elsewhere: bool,
    /// Which of a list's rules its packets hit. None if that is not known.
    pub path: Option<(Arc<WatchList>, u64)>,
    /// Who sent it.
    pub source: IpAddr,
    /// Whom to.
    pub destination: IpAddr,
    /// Number of the protocol.
    pub protocol: u8,
    /// Source and destination port, of protocols that have any.
    pub ports: Option<(u16, u16)>,
    /// How much.
    pub counter: Counter,
    /// When the first packet was, on the monotonic clock.
    pub first: Duration,
    /// When the last was.
    pub last: Duration,
}

/// A flow as the programs have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) slot: u32,
    /// Zero if the path is not known.
    pub(super) generation: u32,
    moved: u64,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    elsewhere: bool,
    ports: (u16, u16),
    counter: Counter,
    first: u64,
    last: u64,
}

const KEY: usize = size_of::<FlowKey>();
const VALUE: usize = size_of::<Flow>();

/// The ring buffer of flows that are dropped, as it happens.
pub(super) struct Events(RingBuf<MapData>);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
    }

    /// Ready when there are any.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes the next ones out, `most` at once.
    pub(super) fn take(&mut self, most: usize) -> Vec<Record> {
        std::iter::from_fn(|| self.0.next().map(|record| event(&record))).take(most).flatten().collect()
    }
}

/// The record of one packet.
fn event(record: &[u8]) -> Option<Record> {
    let word = |place: usize| record.get(place..place + 8);
    let (at, length) = (word(KEY)?, word(KEY + 8)?);
    let value = [&1u64.to_ne_bytes(), length, at, at].concat();
    self::record(record.get(..KEY)?, &value)
}

/// Takes all flows out of the map.
pub(super) fn take(map: BorrowedFd<'_>) -> Result<Vec<Record>, CannotHere> {
    let (keys, values) = bpf::drain_hash(map, KEY, VALUE, 512).map_err(|error| CannotHere::Refused {
        operation: "reading dropped flows".into(),
        error: error.to_string(),
    })?;
    let both = keys.chunks_exact(KEY).zip(values.chunks_exact(VALUE));
    Ok(both.filter_map(|(key, value)| record(key, value)).collect())
}

fn record(key: &[u8], value: &[u8]) -> Option<Record> {
    let version = *key.get(53)?;
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = key.get(at..at + 16)?.try_into().ok()?;
        let [a, b, c, d, ..] = bytes;
        Some(if version == 0 { Ipv4Addr::new(a, b, c, d).into() } else { Ipv6Addr::from(bytes).into() })
    };
    let port = |at: usize| Some(u16::from_be_bytes(key.get(at..at + 2)?.try_into().ok()?));
    Some(Record {
        moved: u64_at(key, 0)?,
        slot: u32_at(key, 8)?,
        generation: u32_at(key, 12)?,
        source: address(16)?,
        destination: address(32)?,
        ports: (port(48)?, port(50)?),
        protocol: *key.get(52)?,
        elsewhere: *key.get(54)? != 0,
        counter: Counter::new(u64_at(value, 0)?, u64_at(value, 8)?),
        first: u64_at(value, 16)?,
        last: u64_at(value, 24)?,
    })
}

impl Record {
    pub(super) fn flow(self, table: TableId, chain: &ChainName, list: Option<Arc<WatchList>>) -> SeenFlow {
        SeenFlow {
            table,
            chain: chain.clone(),
            elsewhere: self.elsewhere,
            path: list.map(|list| (list, self.moved)),
            source: self.source,
            destination: self.destination,
            protocol: self.protocol,
            ports: (self.ports != (0, 0)).then_some(self.ports),
            counter: self.counter,
            first: Duration::from_nanos(self.first),
            last: Duration::from_nanos(self.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use accountant_abi::verdict::FlowEvent;

    #[test]
    fn records_of_both_ip_versions_and_of_any_length() {
        let mut key = [0; KEY];
        key[0] = 5;
        key[8] = 3;
        key[12] = 9;
        key[16..20].copy_from_slice(&[10, 65, 0, 2]);
        key[32..36].copy_from_slice(&[10, 65, 0, 3]);
        key[48..52].copy_from_slice(&[0x9c, 0x40, 0, 53]);
        key[52] = 17;
        let mut value = [0; VALUE];
        (value[0], value[8], value[16], value[24]) = (2, 120, 7, 8);
        let found = record(&key, &value).unwrap();
        assert_eq!((found.slot, found.generation, found.moved), (3, 9, 5));
        assert_eq!(found.source, "10.65.0.2".parse::<IpAddr>().unwrap());
        assert_eq!(found.ports, (40000, 53));
        assert!(!found.elsewhere);
        assert_eq!((found.counter, found.first, found.last), (Counter::new(2, 120), 7, 8));
        (key[53], key[16], key[31], key[54]) = (1, 0xfd, 1, 1);
        let found = record(&key, &value).unwrap();
        assert!(found.elsewhere);
        assert!(found.source.is_ipv6() && found.source.to_string().ends_with('1'));
        for length in 0..KEY - 1 {
            assert_eq!(record(&key[..length], &value), None, "{length}");
        }
        assert_eq!(record(&key, &value[..VALUE - 1]), None);
    }

    #[test]
    fn the_record_of_a_packet_is_a_flow_of_one() {
        let event = FlowEvent { at: 7, length: 60, ..FlowEvent::default() };
        let words = [0, 0, 0, 0, 0, 0, 0, event.at, event.length];
        let bytes: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_ne_bytes()).collect();
        let found = super::event(&bytes).unwrap();
        assert_eq!((found.counter, found.first, found.last), (Counter::new(1, 60), 7, 7));
        assert_eq!(super::event(&bytes[..bytes.len() - 1]), None);
    }
}
