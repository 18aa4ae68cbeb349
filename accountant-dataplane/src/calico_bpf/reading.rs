//! From what our programs counted to readings: interfaces become endpoints, hooks directions, frames packets.

use super::Running;
use super::links::Links;
use super::listing::Listings;
use super::pins::{OwnMaps, Pins};
use accountant_abi::calico::{ALLOWED, ALLOWED_THEN_DROPPED, DENIED, EGRESS, PathKey, VerdictKey};
use accountant_core::calico::bpf::accountant::Way;
use accountant_core::calico::bpf::layout::is_workload;
use accountant_core::calico::bpf::{Outcome, Path, Reading, Verdict};
use accountant_core::id::{Endpoint, EndpointKind};
use accountant_core::snapshot::{Source, TableId};
use accountant_core::{Counter, Direction, Interface, IpVersion, Table};
use aya::maps::MapError;
use nix::libc::ARPHRD_ETHER;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Length of an Ethernet header: rules count from the IP header on.
const ETHERNET: u64 = 14;

/// What an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    endpoint: Endpoint,
    /// Length of the link layer's header.
    header: u64,
}

/// Everything counted so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    known: HashMap<u32, Known>,
    /// What programs counted that are there no more, or interfaces whose name another one has now.
    kept: BTreeMap<Key, Counter>,
    /// What the programs of now counted.
    current: BTreeMap<(u32, Key), Counter>,
    paths: HashMap<PathKey, Path>,
    /// Interfaces that were gone the last time.
    gone: HashSet<u32>,
}

type Key = (IpVersion, Way, Verdict);

impl Counts {
    /// Takes what the programs counted. Returns how many verdicts of policy there are at hooks that are there.
    pub(super) fn take(&mut self, running: &mut Running) -> Result<u64, MapError> {
        if let Err(error) = running.programs.settle() {
            // The next packet on each processor settles what is pending.
            tracing::debug!(error = %crate::in_place::chain(&error), "pending verdicts are not read");
        }
        self.meet(&running.pins, &running.links);
        self.forget(running)?;
        let mut decided = 0;
        self.current.clear();
        for (key, counter) in running.programs.verdicts()? {
            let by_policy = [ALLOWED, DENIED, ALLOWED_THEN_DROPPED].contains(&key.outcome);
            if by_policy && running.links.is_counted((key.interface, key.hook)) {
                decided += counter.packets;
            }
            if let Some((named, header)) = self.name(running, &key)? {
                let bytes = counter.bytes.saturating_sub(header * counter.packets);
                // Two paths that found no room and end alike are one.
                let counted = self.current.entry((key.interface, named)).or_default();
                *counted += Counter::new(counter.packets, bytes);
            }
        }
        Ok(decided)
    }

    /// Whether policy decided at workloads, and no rule was ever noted.
    pub(super) fn notes_no_rules(&self) -> bool {
        let verdicts = || self.current.keys().map(|(_, (_, (endpoint, _), verdict))| (endpoint, verdict));
        let nameless = |(endpoint, verdict): (&Endpoint, &Verdict)| {
            endpoint.kind == EndpointKind::Workload
                && matches!(verdict.outcome, Outcome::Allowed | Outcome::Denied)
                && verdict.path.is_empty()
        };
        verdicts().any(nameless) && verdicts().all(|(_, verdict)| verdict.path.is_empty())
    }

    /// Keeps what was counted by programs that go now.
    pub(super) fn keep_all(&mut self) {
        for ((_, key), counter) in std::mem::take(&mut self.current) {
            *self.kept.entry(key).or_default() += counter;
        }
        self.known.clear();
        self.paths.clear();
    }

    /// What was counted and can be, for both IP versions.
    pub(super) fn readings(&self, links: Option<&Links>, listings: &Listings) -> Vec<(TableId, Reading)> {
        let mut counted = self.kept.clone();
        for ((_, key), counter) in &self.current {
            *counted.entry(key.clone()).or_default() += *counter;
        }
        let readings = IpVersion::BOTH.map(|ip_version| {
            let id = TableId { source: Source::CalicoBpf, native: false, ip_version, table: Table::Filter };
            let programs = links.map(|links| self.programs(links, listings, ip_version)).unwrap_or_default();
            (id, Reading { counted: BTreeMap::new(), programs })
        });
        let [mut v4, mut v6] = readings;
        for ((ip_version, way, verdict), counter) in counted {
            let reading = if ip_version == IpVersion::V4 { &mut v4.1 } else { &mut v6.1 };
            reading.counted.insert((way, verdict), counter);
        }
        vec![v4, v6]
    }

    /// The policy programs of all endpoints that are there. What has no listing is an endpoint if it is a workload: of the
    /// host's interfaces only those with policy are.
    fn programs(
        &self,
        links: &Links,
        listings: &Listings,
        ip_version: IpVersion,
    ) -> BTreeMap<Way, Option<std::sync::Arc<accountant_core::calico::bpf::PolicyProgram>>> {
        let ways = links
            .hooks()
            .filter_map(|(interface, hook)| Some(way(&self.known.get(&interface)?.endpoint, hook)));
        let programs = ways.map(|way| {
            let whose = (way.0.interface.clone(), way.1, ip_version);
            let program = listings.program(&whose);
            (way, program)
        });
        programs
            .filter(|((endpoint, _), program)| {
                program.is_some() || endpoint.kind == EndpointKind::Workload && ip_version == IpVersion::V4
            })
            .collect()
    }

    fn meet(&mut self, pins: &Pins, links: &Links) {
        let missing: Vec<_> =
            links.names().iter().filter(|(index, _)| !self.known.contains_key(*index)).collect();
        if missing.is_empty() {
            return;
        }
        let ethernet = ethernet();
        for (&index, name) in missing {
            let header = if ethernet.contains(name) { ETHERNET } else { 0 };
            let endpoint = endpoint(&pins.own, index, name);
            self.known.insert(index, Known { endpoint, header });
        }
    }

    /// Forgets interfaces that have been gone for a whole reading, in which their last verdicts were told.
    fn forget(&mut self, running: &mut Running) -> Result<(), MapError> {
        let there = running.links.names();
        let gone: HashSet<u32> =
            self.known.keys().copied().filter(|index| !there.contains_key(index)).collect();
        let names: HashSet<&str> = there.values().map(String::as_str).collect();
        let over: Vec<u32> = gone.intersection(&self.gone).copied().collect();
        for &index in &over {
            let again = self.known.get(&index).is_some_and(|k| names.contains(k.endpoint.interface.as_str()));
            let keys = self.current.keys().filter(|(interface, _)| *interface == index);
            for key in keys.cloned().collect::<Vec<_>>() {
                // An interface of the same name goes on counting where this one stopped.
                let counter = self.current.remove(&key).filter(|_| again);
                if let Some(counter) = counter {
                    *self.kept.entry(key.1).or_default() += counter;
                }
            }
            self.known.remove(&index);
            running.programs.forget(index)?;
        }
        // All that was counted under a name goes at once, so that what is told of it never falls.
        let left: HashSet<_> = self.known.values().map(|known| known.endpoint.interface.clone()).collect();
        let is_left = |name: &Interface| left.contains(name) || names.contains(name.as_str());
        self.kept.retain(|(_, (endpoint, _), _), _| is_left(&endpoint.interface));
        self.gone = gone;
        Ok(())
    }

    fn name(&mut self, running: &Running, key: &VerdictKey) -> Result<Option<(Key, u64)>, MapError> {
        let ip_version = match key.ip_version {
            4 => IpVersion::V4,
            6 => IpVersion::V6,
            _ => return Ok(None),
        };
        let Some(known) = self.known.get(&key.interface) else { return Ok(None) };
        let Some(outcome) = Outcome::ALL.get(usize::from(key.outcome)) else { return Ok(None) };
        let (way, header) = (way(&known.endpoint, key.hook), known.header);
        let path = match self.paths.get(&key.path) {
            Some(path) => path.clone(),
            None => {
                let path = running.programs.path(&key.path)?;
                self.paths.insert(key.path, path.clone());
                path
            }
        };
        Ok(Some(((ip_version, way, Verdict { outcome: *outcome, path }), header)))
    }
}

/// The endpoint that an interface is of.
pub(super) fn endpoint(maps: &OwnMaps, index: u32, name: &str) -> Endpoint {
    let workload = workload(maps, index).unwrap_or_else(|| name.starts_with("cali"));
    let kind = if workload { EndpointKind::Workload } else { EndpointKind::Host };
    Endpoint { kind, interface: name.into() }
}

/// What the host sends out of a workload's interface goes to the workload; what it sends out of its own interface comes from
/// the host.
pub(super) fn way(endpoint: &Endpoint, hook: u8) -> Way {
    let outwards = hook == EGRESS;
    let to_endpoint = outwards == (endpoint.kind == EndpointKind::Workload);
    let direction = if to_endpoint { Direction::Ingress } else { Direction::Egress };
    (endpoint.clone(), direction)
}

/// What Calico says of an interface. None if it does not say.
fn workload(maps: &OwnMaps, index: u32) -> Option<bool> {
    let pinned = maps.interfaces.as_ref()?;
    let flags = match pinned.value_size {
        20 => flags::<20>(&pinned.map, index),
        52 => flags::<52>(&pinned.map, index),
        _ => None,
    }?;
    Some(is_workload(flags))
}

fn flags<const N: usize>(map: &aya::maps::Map, index: u32) -> Option<u32> {
    let map: aya::maps::HashMap<_, u32, [u8; N]> = map.try_into().ok()?;
    let value = map.get(&index, 0).ok()?;
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// The interfaces whose frames have an Ethernet header.
fn ethernet() -> HashSet<String> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let is_ethernet = |one: &nix::ifaddrs::InterfaceAddress| {
        let link = one.address.as_ref().and_then(|address| address.as_link_addr().copied());
        link.is_some_and(|link| link.hatype() == ARPHRD_ETHER)
    };
    all.filter(is_ethernet).map(|one| one.interface_name).collect()
}
