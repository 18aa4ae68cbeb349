//! What programs counted at endpoints' interfaces: accounts of their traffic where nobody sees what becomes of it.
//!
//! In go counts that never fall, of each interface by its index, out come postings of what is new in them. Two sources can hand
//! over the same counts; those that were read before what is known say nothing.

use accountant_core::id::{Endpoint, EndpointKind};
use accountant_core::ledger::{AccountKey, Key, Ledger, Posting, What};
use accountant_core::{Counter, Direction, IpVersion};
use accountant_dataplane::kernel::InterfaceCounts;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was posted of each interface.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct AtInterfaces {
    /// Who counted that.
    counted_by: u32,
    posted: BTreeMap<(u32, Endpoint), Posted>,
    /// Changes whenever interfaces come or go.
    version: u64,
    /// The last reading that was taken.
    #[serde(skip)]
    turn: u64,
}

/// What came in by it, and what was sent, by IP version, as far as that is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Posted([Option<[Counter; 2]>; 2]);

impl AtInterfaces {
    /// Posts what was counted since.
    pub(super) fn take(&mut self, counts: InterfaceCounts, ledger: &mut Ledger) {
        if self.counted_by != counts.counted_by {
            *self = Self { counted_by: counts.counted_by, version: self.version + 1, ..Self::default() };
        }
        if counts.turn <= self.turn {
            return;
        }
        self.turn = counts.turn;
        let mut known = std::mem::take(&mut self.posted);
        let (before, mut changed) = (known.len(), false);
        for at in counts.all {
            let place = (at.index, at.endpoint);
            let posted = known.remove(&place);
            let now = Posted([at.received, at.sent]);
            changed |= posted.is_none_or(|posted| posted.counted() != now.counted());
            let Posted(was) = posted.unwrap_or_default();
            for (sent, (was, now)) in [false, true].into_iter().zip(was.into_iter().zip(now.0)) {
                let (was, now) = (was.unwrap_or_default(), now.unwrap_or_default());
                for (version, (was, now)) in IpVersion::BOTH.into_iter().zip(was.into_iter().zip(now)) {
                    let amount = now.since(was);
                    if !amount.is_zero() {
                        ledger.post(Posting { key: key(&place.1, sent, version), amount });
                    }
                }
            }
            self.posted.insert(place, now);
        }
        if changed || before != self.posted.len() {
            self.version += 1;
        }
    }

    /// Changes whenever [`Self::keys`] may be others than before.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// How many interfaces are counted on both sides; nothing where none ever was.
    pub(super) fn counted(&self) -> Option<usize> {
        let both = self.posted.values().filter(|posted| posted.counted() == [true; 2]).count();
        (self.turn > 0).then_some(both)
    }

    /// The accounts that can be posted to.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        let of_one = |((_, endpoint), posted): (&(u32, Endpoint), &Posted)| {
            let sides = [false, true].into_iter().zip(posted.counted()).filter(|(_, counted)| *counted);
            let keys =
                sides.flat_map(|(sent, _)| IpVersion::BOTH.map(|version| key(endpoint, sent, version)));
            keys.collect::<Vec<_>>()
        };
        self.posted.iter().flat_map(of_one)
    }
}

impl Posted {
    fn counted(&self) -> [bool; 2] {
        self.0.map(|counts| counts.is_some())
    }
}

/// What the host sends out of a workload's interface goes to the workload, and what it sends out of its own comes from it.
fn key(endpoint: &Endpoint, sent: bool, ip_version: IpVersion) -> Key {
    let is_to_endpoint = sent == (endpoint.kind == EndpointKind::Workload);
    let direction = if is_to_endpoint { Direction::Ingress } else { Direction::Egress };
    Key::from(AccountKey {
        endpoint: endpoint.clone(),
        direction,
        ip_version,
        what: What::AtInterface { sent },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use accountant_dataplane::kernel::AtInterface;

    fn packets(n: u64) -> Counter {
        Counter::new(n, 100 * n)
    }

    fn told(turn: u64, interfaces: &[(u32, &Endpoint, u64, Option<u64>)]) -> InterfaceCounts {
        let at = |&(index, endpoint, received, sent): &(u32, &Endpoint, u64, Option<u64>)| AtInterface {
            endpoint: endpoint.clone(),
            index,
            received: Some([packets(received), Counter::ZERO]),
            sent: sent.map(|sent| [packets(sent), packets(1)]),
        };
        InterfaceCounts { counted_by: 1, turn, all: interfaces.iter().map(at).collect() }
    }

    #[test]
    fn each_packet_is_posted_once_whoever_tells_it_and_however_often() {
        let pod = Endpoint { kind: EndpointKind::Workload, interface: "cali1".into() };
        let host = Endpoint { kind: EndpointKind::Host, interface: "eth0".into() };
        let (mut at, mut ledger) = (AtInterfaces::default(), Ledger::default());
        let balance = |ledger: &Ledger, endpoint, sent| {
            ledger.balance(&key(endpoint, sent, IpVersion::V4)).map(|balance| balance.packets)
        };
        at.take(told(1, &[(3, &pod, 5, None), (4, &host, 7, Some(2))]), &mut ledger);
        assert_eq!(at.keys().count(), 6, "nobody counts what is sent to the pod");
        let version = at.version();
        // The third was read before the second, by another source.
        for (turn, received) in [(2, 6), (4, 9), (3, 8)] {
            at.take(told(turn, &[(3, &pod, received, Some(1)), (4, &host, 7, Some(2))]), &mut ledger);
        }
        assert_ne!(at.version(), version);
        assert_eq!([false, true].map(|sent| balance(&ledger, &pod, sent)), [Some(9), Some(1)]);
        assert_eq!([false, true].map(|sent| balance(&ledger, &host, sent)), [Some(7), Some(2)]);
        // The pod's interface went, and another has its name.
        at.take(told(5, &[(3, &pod, 10, Some(1)), (9, &pod, 3, Some(0))]), &mut ledger);
        at.take(told(6, &[(9, &pod, 4, Some(0))]), &mut ledger);
        assert_eq!(balance(&ledger, &pod, false), Some(14));
        // Other programs begin anew.
        let others = InterfaceCounts { counted_by: 2, ..told(1, &[(9, &pod, 5, Some(0))]) };
        at.take(others, &mut ledger);
        assert_eq!(balance(&ledger, &pod, false), Some(19));
        let directions = [(&pod, true), (&host, false)].map(|(endpoint, sent)| {
            let Key::Account(account) = key(endpoint, sent, IpVersion::V4) else { panic!() };
            account.direction
        });
        assert_eq!(directions, [Direction::Ingress; 2]);
    }
}
