//! Traffic at endpoints' interfaces, for kernels whose packet filter takes no programs (before Linux 6.4), or where only this
//! is wanted: how much each endpoint sent and was sent, by IP version; not what became of it, nor by which policy.
//!
//! What each interface counted stands in one map by the interface's index, with its name beside, so that an agent that finds the
//! map of an earlier one knows what it is of. Indices are not given out twice (until 2³¹ interfaces have been there).
//!
//! Invariant: what is told of an interface never falls, and it is told for a while after the interface went, so that whoever posts
//! it has it whole.

mod filters;

use super::load::number;
use super::pins::{Pins, Shape, keep_what_fits};
use crate::clsact::{Clsact, interfaces};
use crate::in_place::reason::Host;
use crate::in_place::{CannotHere, chain};
use accountant_abi::interface::{ABI, AtInterface as Record, HOST, V4, V6, WORKLOAD};
use accountant_core::id::{Endpoint, EndpointKind, Interface};
use accountant_core::snapshot::TableId;
use accountant_core::{ChainName, Counter, calico::ChainKind};
use accountant_sys::bpf::{self, Runs};
use aya::maps::{MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use filters::{At, Side};
use nix::net::if_::if_nametoindex;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The object of the programs in `accountant-ebpf/src/interface.rs`.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/interface"));

const MAP: &str = "INTERFACES";
/// How many interfaces there is room for; memory is taken for those that are there.
const ROOM: u32 = 1 << 13;
/// The first Linux with what the programs use (`bpf_skb_load_bytes_relative`).
const NEEDED: (u32, u32) = (4, 18);
/// How long an interface that nobody wants any more is counted on, and is told of after that: rules are rewritten, tables of a new
/// agent are not all read at once, and what was told last has to be posted.
const LINGERS: Duration = Duration::from_secs(60);
/// How often it is looked whether the programs still are where they were put: others take clsact away.
const CARE: Duration = Duration::from_secs(10);

/// What was counted at interfaces.
#[derive(Clone, Debug, Default)]
pub struct InterfaceCounts {
    /// Who counts: programs that begin anew have another number, for as long as the kernel runs.
    pub counted_by: u32,
    /// Later readings have greater ones.
    pub turn: u64,
    /// Each interface that was there lately.
    pub all: Vec<AtInterface>,
}

/// What passed an endpoint's interface since programs came to it. Bytes are the packets' lengths by their IP headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtInterface {
    /// Whose.
    pub endpoint: Endpoint,
    /// The interface's index.
    pub index: u32,
    /// What came in by it, of IPv4 and IPv6. None if nobody counts that.
    pub received: Option<[Counter; 2]>,
    /// What the host sent out of it.
    pub sent: Option<[Counter; 2]>,
}

/// The programs, and the interfaces that they are at.
#[derive(Debug)]
pub(super) struct AtInterfaces {
    ebpf: Ebpf,
    counted_by: u32,
    clsact: Clsact,
    /// Whether they stay when the agent ends.
    stays: bool,
    turn: u64,
    chains: BTreeMap<TableId, BTreeSet<Endpoint>>,
    known: BTreeMap<u32, Known>,
    /// None before the first look: what an earlier agent left may be gone.
    cared: Option<Instant>,
    said: HashSet<String>,
}

#[derive(Debug)]
struct Known {
    endpoint: Endpoint,
    /// Whether what came in, and what was sent, was ever counted.
    counted: [bool; 2],
    /// Since when nobody wants it, or it is not there.
    unwanted: Option<Instant>,
    /// Since when nothing is counted any more.
    over: Option<Instant>,
}

impl Known {
    /// Whether all is counted, as far as nobody took it away.
    fn is_counted(&self) -> bool {
        self.counted == [true; 2] && self.over.is_none()
    }
}

impl AtInterfaces {
    /// Loads the programs, or goes on with what an earlier agent left.
    pub(super) fn start(pins: Option<&Pins>) -> Result<Self, CannotHere> {
        let host = Host::look(NEEDED);
        let refused = |operation: &str, error: String| CannotHere::refused(operation, error, &host);
        raise_the_limit();
        let folder = pins.map(|pins| pins.at_interfaces(ABI)).transpose()?;
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader.map_max_entries(MAP, ROOM);
        if let Some(folder) = &folder {
            let shape = Shape { key: 4, value: size_of::<Record>() as u32, entries: ROOM };
            keep_what_fits(folder, &[(MAP, shape)]);
            loader.map_pin_path(MAP, folder.join(MAP));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| refused("making the maps", chain(&error)))?;
        for side in Side::BOTH {
            filters::program(&mut ebpf, side)
                .and_then(SchedClassifier::load)
                .map_err(|error| refused(&format!("loading {}", side.program()), chain(&error)))?;
        }
        let clsact =
            Clsact::open().map_err(|error| refused("opening a netlink socket", error.to_string()))?;
        let mut at = Self {
            counted_by: number(&ebpf, MAP),
            ebpf,
            clsact,
            stays: folder.is_some(),
            turn: 0,
            chains: BTreeMap::new(),
            known: BTreeMap::new(),
            cared: None,
            said: HashSet::new(),
        };
        at.know_what_was_left().map_err(|error| refused("reading what was counted", chain(&error)))?;
        Ok(at)
    }

    fn know_what_was_left(&mut self) -> Result<(), MapError> {
        let now = Instant::now();
        let left: Vec<_> = map(&self.ebpf)?.iter().collect::<Result<_, _>>()?;
        for (index, values) in left {
            let Some(endpoint) = values.first().and_then(endpoint) else { continue };
            let counted = [|at: &Record| at.received, |at: &Record| at.sent]
                .map(|side| values.iter().flat_map(side).any(|traffic| traffic.packets > 0));
            self.known.insert(index, Known { endpoint, counted, unwanted: Some(now), over: None });
        }
        Ok(())
    }

    /// Counts at the interfaces of the endpoints that these chains are of, and at no others for this table.
    pub(super) fn watch<'a>(&mut self, table: TableId, chains: impl Iterator<Item = &'a ChainName>) {
        let endpoint = |chain| match ChainKind::of(chain) {
            ChainKind::Endpoint { endpoint, .. } => Some(endpoint),
            _ => None,
        };
        let endpoints: BTreeSet<Endpoint> = chains.filter_map(endpoint).collect();
        if self.chains.get(&table) != Some(&endpoints) {
            self.chains.insert(table, endpoints);
            self.look_for_interfaces();
        }
    }

    /// Takes what became of the interfaces since.
    pub(super) fn look_for_interfaces(&mut self) {
        self.look(false);
    }

    /// The same, and whether programs still are at those that are known.
    fn look(&mut self, care: bool) {
        let wanted: BTreeMap<u32, Endpoint> = self
            .chains
            .values()
            .flatten()
            .filter_map(|endpoint| {
                Some((if_nametoindex(endpoint.interface.as_str()).ok()?, endpoint.clone()))
            })
            .collect();
        for (index, known) in &mut self.known {
            match wanted.get(index) {
                Some(endpoint) if *endpoint == known.endpoint => known.unwanted = None,
                _ => _ = known.unwanted.get_or_insert_with(Instant::now),
            }
        }
        for (index, endpoint) in wanted {
            let needs_care = |known: &Known| known.endpoint == endpoint && (care || !known.is_counted());
            if !self.known.get(&index).is_none_or(needs_care) {
                continue;
            }
            if let Err(reason) = self.count_at(index, &endpoint)
                && self.said.insert(reason.to_string())
            {
                tracing::warn!(%reason, "traffic at this interface is not counted");
            }
        }
    }

    fn count_at(&mut self, index: u32, endpoint: &Endpoint) -> Result<(), CannotHere> {
        if !self.known.contains_key(&index) {
            self.put_in(index, endpoint).map_err(|error| CannotHere::Refused {
                operation: format!("making room for {}", endpoint.interface),
                error: chain(&error),
            })?;
            let known = Known { endpoint: endpoint.clone(), counted: [false; 2], unwanted: None, over: None };
            self.known.insert(index, known);
        }
        let at = At { index, name: endpoint.interface.as_str() };
        let attached = Side::BOTH.map(|side| filters::attach(&mut self.clsact, &mut self.ebpf, at, side));
        if let Some(known) = self.known.get_mut(&index) {
            known.over = None;
            for (counted, attached) in known.counted.iter_mut().zip(&attached) {
                *counted |= attached.is_ok();
            }
        }
        attached.into_iter().collect()
    }

    fn put_in(&mut self, index: u32, endpoint: &Endpoint) -> Result<(), MapError> {
        let mut record = Record {
            kind: if endpoint.kind == EndpointKind::Host { HOST } else { WORKLOAD },
            ..Record::default()
        };
        for (to, from) in record.name.iter_mut().zip(endpoint.interface.as_str().bytes()) {
            *to = from;
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
        let values = PerCpuValues::try_from(vec![record; cpus]).map_err(MapError::IoError)?;
        map_mut(&mut self.ebpf)?.insert(index, values, 0)
    }

    /// How often each program ran, as far as the kernel keeps statistics.
    pub(super) fn runs(&self) -> Vec<(&'static str, Runs)> {
        let runs = |side: Side| {
            let program: &SchedClassifier = self.ebpf.program(side.program())?.try_into().ok()?;
            let runs = bpf::runs(program.fd().ok()?.as_fd()).ok()?;
            Some((side.name(), runs)).filter(|(_, runs)| runs.count > 0)
        };
        Side::BOTH.into_iter().filter_map(runs).collect()
    }

    /// What was counted so far.
    pub(super) fn read(&mut self) -> Result<InterfaceCounts, CannotHere> {
        if self.cared.is_none_or(|cared| cared.elapsed() >= CARE) {
            self.cared = Some(Instant::now());
            self.look(true);
            self.leave_what_nobody_wants();
        }
        self.turn += 1;
        let all = self.known.iter().map(|(index, known)| self.read_one(*index, known));
        // Of what somebody took out of the map nothing is known.
        let all = all.filter(|read| !matches!(read, Err(MapError::KeyNotFound)));
        let all = all.collect::<Result<_, _>>().map_err(|error| CannotHere::Refused {
            operation: "reading what was counted at interfaces".into(),
            error: chain(&error),
        })?;
        Ok(InterfaceCounts { counted_by: self.counted_by, turn: self.turn, all })
    }

    fn read_one(&self, index: u32, known: &Known) -> Result<AtInterface, MapError> {
        let values = map(&self.ebpf)?.get(&index, 0)?;
        let sum = |side: fn(&Record) -> &[accountant_abi::Traffic; 2]| {
            [V4, V6].map(|version| {
                let all = values.iter().map(|at| side(at)[version]);
                all.map(|traffic| Counter::new(traffic.packets, traffic.bytes)).sum()
            })
        };
        let [received, sent] = known.counted;
        Ok(AtInterface {
            endpoint: known.endpoint.clone(),
            index,
            received: received.then(|| sum(|at| &at.received)),
            sent: sent.then(|| sum(|at| &at.sent)),
        })
    }

    fn leave_what_nobody_wants(&mut self) {
        let is_long_ago = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() > LINGERS);
        let mut forgotten = Vec::new();
        for (&index, known) in &mut self.known {
            if is_long_ago(known.over) {
                forgotten.push(index);
            } else if known.over.is_none() && is_long_ago(known.unwanted) {
                leave(&mut self.clsact, index, known.endpoint.interface.as_str());
                known.over = Some(Instant::now());
            }
        }
        for index in forgotten {
            self.known.remove(&index);
            if let Err(error) = map_mut(&mut self.ebpf).and_then(|mut map| map.remove(&index)) {
                tracing::debug!(index, %error, "an interface that went cannot be forgotten");
            }
        }
    }
}

impl Drop for AtInterfaces {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        for (index, known) in &self.known {
            leave(&mut self.clsact, *index, known.endpoint.interface.as_str());
        }
    }
}

/// Takes the programs away from an interface, if it is there.
fn leave(clsact: &mut Clsact, index: u32, name: &str) {
    if if_nametoindex(name) == Ok(index) {
        take_away(clsact, At { index, name });
    }
}

/// Says whether there were any.
fn take_away(clsact: &mut Clsact, at: At<'_>) -> bool {
    Side::BOTH.map(|side| filters::detach(clsact, at, side)).contains(&true)
}

/// Takes away what an earlier agent left at the interfaces of the calling thread's network namespace. Says whether there was
/// anything.
pub(super) fn detach() -> bool {
    let Ok(mut clsact) = Clsact::open() else { return false };
    // All of them, whatever was there.
    interfaces().iter().fold(false, |any, (&index, name)| take_away(&mut clsact, At { index, name }) | any)
}

/// Whether programs can be attached here: puts them nowhere.
pub(super) fn probe() -> Result<(), CannotHere> {
    AtInterfaces::start(None).map(drop)
}

/// Up to Linux 5.10 what maps take counts as locked memory. Where it may not be raised, the kernel says so when it is not enough.
fn raise_the_limit() {
    let raised = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    if raised.is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
    {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
}

fn map(ebpf: &Ebpf) -> Result<PerCpuHashMap<&MapData, u32, Record>, MapError> {
    PerCpuHashMap::try_from(ebpf.map(MAP).ok_or(MapError::KeyNotFound)?)
}

fn map_mut(ebpf: &mut Ebpf) -> Result<PerCpuHashMap<&mut MapData, u32, Record>, MapError> {
    PerCpuHashMap::try_from(ebpf.map_mut(MAP).ok_or(MapError::KeyNotFound)?)
}

/// Whose interface it is.
fn endpoint(record: &Record) -> Option<Endpoint> {
    let name = record.name.split(|&byte| byte == 0).next()?;
    let interface = Interface::from(std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?);
    let kind = if record.kind == HOST { EndpointKind::Host } else { EndpointKind::Workload };
    Some(Endpoint { kind, interface })
}
