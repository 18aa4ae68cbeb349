//! Loads the programs of `accountant-ebpf/src/verdict` and attaches them.
//!
//! aya makes the maps. It does not know programs of the packet filter, so the object is parsed once more and its references to
//! maps are resolved.

use super::flows::Events;
use super::hooks::{OTHERS, PROGRAMS, Place, Site, all_places, places};
use super::pins::{self, Links, Shape};
use super::places::Kernel;
use crate::in_place::reason::Host;
use crate::in_place::{CannotHere, cast, chain, mapping};
use accountant_sys::bpf::{self, Kind, Runs};
use accountant_sys::mapping::Mapping;
use aya::maps::{Map, MapData, RingBuf};
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use aya_obj::Object;
use aya_obj::generated::bpf_insn;
use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The object of the programs.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/verdict"));

/// The first Linux with programs of the packet filter.
const NEEDED: (u32, u32) = (6, 4);

/// Maps that an agent leaves to the next one.
const KEPT: [&str; 12] = [
    "ACCEPTED",
    "EVENTS",
    "FLOWS",
    "INTERFACES",
    "LISTENING",
    "LISTS",
    "LOST",
    "OWNERS",
    "PATHS",
    "PROCESSORS",
    "TOTALS",
    "WATCH",
];

/// How much of what the verifier says is kept.
const LOG: usize = 1 << 20;

/// How big the maps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Chains of endpoints; a power of two.
    pub(super) slots: u32,
    /// Lists at a time.
    pub(super) lists: u32,
    /// Paths that can be told apart.
    pub(super) paths: u32,
    /// Flows that were dropped since they were last looked at.
    pub(super) flows: u32,
    /// Bytes of the ring buffer that tells of each at once: a power of two.
    pub(super) events: u32,
    /// Processors.
    pub(super) cpus: u32,
    /// Whether accepted flows are noted.
    pub(super) accepted_flows: bool,
}

impl Sizes {
    /// How many interfaces there is room for.
    pub(super) fn interfaces(self) -> u32 {
        self.slots
    }

    /// How many values maps have that are as big as they have to be here.
    fn entries(self) -> [(&'static str, u32); 9] {
        [
            ("INTERFACES", self.interfaces()),
            ("LISTS", self.slots),
            ("WATCH", self.lists),
            ("TOTALS", self.slots * self.cpus),
            ("PATHS", self.paths),
            ("FLOWS", self.flows),
            ("ACCEPTED", self.flows),
            ("EVENTS", self.events),
            ("OWNERS", self.slots),
        ]
    }
}

/// The programs and their maps. What is attached stays so for as long as this lives.
#[derive(Debug)]
pub(super) struct Loaded {
    ebpf: Ebpf,
    object: Object,
    kernel: Kernel,
    host: Host,
    /// Links, and the programs themselves, by name.
    held: Vec<(String, OwnedFd)>,
    /// Those that outlive the agent.
    kept: Option<Links>,
}

impl Loaded {
    /// Makes the maps, or takes those that are in a folder, and programs that are attached with them.
    pub(super) fn new(sizes: Sizes, folder: Option<&Path>) -> Result<Self, CannotHere> {
        let host = Host::look(NEEDED);
        let mut kernel = Kernel::look().map_err(|reason| reason.explained_by(&host))?;
        kernel.places.interface_mask = sizes.interfaces() - 1;
        kernel.places.slots = sizes.slots;
        kernel.places.accepted_flows = sizes.accepted_flows.into();
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader.override_global("PLACES", &kernel.places, true);
        let entries = sizes.entries();
        for (name, entries) in entries {
            loader.map_max_entries(name, entries);
        }
        let refused = |operation: &str, error: &dyn std::error::Error| {
            CannotHere::refused(operation, chain(error), &host)
        };
        let bytes = cast::put_into(OBJECT, Some(kernel.cast));
        let object = Object::parse(&bytes).map_err(|error| refused("reading the object", &error))?;
        if let Some(folder) = folder {
            let shape = |name: &'static str| {
                let map = object.maps.get(name)?;
                let entries = entries.iter().find(|(known, _)| *known == name).map(|(_, entries)| *entries);
                let entries = entries.unwrap_or_else(|| map.max_entries());
                Some((name, Shape { key: map.key_size(), value: map.value_size(), entries }))
            };
            pins::keep_what_fits(folder, &KEPT.into_iter().filter_map(shape).collect::<Vec<_>>());
            for name in KEPT {
                loader.map_pin_path(name, folder.join(name));
            }
        }
        let ebpf = loader.load(&bytes).map_err(|error| refused("making the maps", &error))?;
        let wanted: Vec<_> = places().map(Place::file).chain(PROGRAMS.map(program_file)).collect();
        let kept = folder.map(|folder| Links::find(folder, hash(&kernel), &wanted));
        let mut loaded = Self { ebpf, object, kernel, host, held: Vec::new(), kept };
        loaded.resolve()?;
        // Whoever counts already has learnt, and does not look away.
        if !loaded.goes_on() {
            for cpu in 0..sizes.cpus {
                loaded.learn(cpu)?;
            }
        }
        Ok(loaded)
    }

    /// Whether the programs are attached since an earlier agent.
    pub(super) fn goes_on(&self) -> bool {
        self.kept.as_ref().is_some_and(Links::are_there)
    }

    /// Attaches the programs that every node has: to the packet filter of the calling thread's network namespace, and to drops.
    pub(super) fn attach(&mut self) -> Result<(), CannotHere> {
        if self.goes_on() {
            return Ok(());
        }
        places().try_for_each(|place| self.attach_to(place))
    }

    /// Attaches all that there are, and says what came of it for each place.
    pub(super) fn attach_each(&mut self) -> Vec<(String, Result<(), CannotHere>)> {
        let mut results: Vec<(String, Result<(), CannotHere>)> = Vec::new();
        for place in all_places() {
            let result = self.attach_to(place);
            match results.iter_mut().find(|(name, _)| *name == place.name()) {
                Some((_, both)) => *both = std::mem::replace(both, Ok(())).and(result),
                None => results.push((place.name(), result)),
            }
        }
        results
    }

    /// Where programs are attached around rules that not every node has.
    pub(super) fn sites(&self) -> BTreeSet<Site> {
        Site::of_hosts().filter(|site| site.places().iter().any(|place| self.is_attached(*place))).collect()
    }

    /// Attaches programs around rules that this node has.
    pub(super) fn attach_at(&mut self, site: Site) -> Result<(), CannotHere> {
        let missing = site.places().into_iter().filter(|place| !self.is_attached(*place));
        missing.collect::<Vec<_>>().into_iter().try_for_each(|place| self.attach_to(place))
    }

    /// Detaches them, the earlier one first: what it noted the later one still sees.
    pub(super) fn detach_from(&mut self, site: Site) {
        for place in site.places().into_iter().rev() {
            self.held.retain(|(name, _)| *name != place.file());
            if let Some(kept) = &mut self.kept {
                kept.forget(&place.file());
            }
        }
    }

    fn is_attached(&self, place: Place) -> bool {
        self.get(&place.file()).is_some()
    }

    fn attach_to(&mut self, place: Place) -> Result<(), CannotHere> {
        let (name, file) = (place.program(), program_file(place.program()));
        if self.get(&file).is_none() {
            let kind = match place {
                Place::Drops => Kind::Tracepoint(self.kernel.dropped),
                Place::Before(_) | Place::After(_) => Kind::Netfilter,
            };
            let program = self.program(name, kind)?;
            self.keep(file.clone(), program)?;
        }
        let Some(program) = self.get(&file) else { return Ok(()) };
        let link = link(program, place);
        let link = link.map_err(|error| match error.kind() {
            // The kernel takes one program of a priority in a hook.
            io::ErrorKind::ResourceBusy => CannotHere::AnotherAgent,
            _ => self.refused(&format!("attaching to {}", place.name()), error),
        })?;
        self.keep(place.file(), link)
    }

    /// Attaches programs again that somebody detached (`bpftool link detach`), and says how many. What the kernel tells of a link
    /// is the same before and after, but it takes no second program of one priority in a hook (`EBUSY`): where it does, the
    /// first one is gone.
    pub(super) fn attach_again(&mut self) -> Result<u64, CannotHere> {
        let mut attached = 0;
        for place in all_places() {
            // Nobody can detach from the tracepoint.
            if place == Place::Drops || !self.is_attached(place) {
                continue;
            }
            let Some(program) = self.get(&program_file(place.program())) else { continue };
            if let Ok(link) = link(program, place) {
                tracing::warn!(
                    place = place.file(),
                    "somebody detached a program from the packet filter: it is attached again, and packets that it did not \
                     see are counted by the rules alone"
                );
                match &mut self.kept {
                    Some(kept) => kept.replace(&place.file(), link)?,
                    None => {
                        self.held.retain(|(name, _)| *name != place.file());
                        self.held.push((place.file(), link));
                    }
                }
                attached += 1;
            }
        }
        Ok(attached)
    }

    /// A link or program that is held.
    fn get(&self, file: &str) -> Option<BorrowedFd<'_>> {
        let held = self.held.iter().find(|(known, _)| known == file).map(|(_, object)| object.as_fd());
        held.or_else(|| self.kept.as_ref()?.get(file))
    }

    fn keep(&mut self, name: String, object: OwnedFd) -> Result<(), CannotHere> {
        match &mut self.kept {
            Some(kept) => kept.keep(&name, object),
            None => {
                self.held.push((name, object));
                Ok(())
            }
        }
    }

    /// How often each program ran, as far as the kernel keeps statistics.
    pub(super) fn runs(&self) -> Vec<(&'static str, Runs)> {
        let runs = |name: &'static str| {
            let program = self.get(&program_file(name))?;
            Some((name, bpf::runs(program).ok()?)).filter(|(_, runs)| runs.count > 0)
        };
        PROGRAMS.into_iter().chain(OTHERS).filter_map(runs).collect()
    }

    fn refused(&self, operation: &str, error: io::Error) -> CannotHere {
        CannotHere::refused(operation, error, &self.host)
    }

    /// A map as memory.
    pub(super) fn memory(&self, name: &str, words: usize) -> Result<Mapping, CannotHere> {
        let refused = |error| CannotHere::refused(format!("mapping {name}"), error, &self.host);
        mapping(&self.ebpf, name, words).map_err(refused)
    }

    /// The kernel's number of the map that has the totals; 0 where it does not tell.
    pub(super) fn counted_by(&self) -> u32 {
        number(&self.ebpf, "TOTALS")
    }

    /// A map.
    pub(super) fn map(&mut self, name: &str) -> Result<&mut Map, CannotHere> {
        self.ebpf.map_mut(name).ok_or_else(|| CannotHere::NoField(format!("map {name}")))
    }

    /// The ring buffer of flows as they are dropped; once.
    pub(super) fn take_events(&mut self) -> Result<Events, CannotHere> {
        let map = self.ebpf.take_map("EVENTS");
        let map = map.ok_or_else(|| CannotHere::NoField("map EVENTS".into()))?;
        let ring = RingBuf::try_from(map);
        let refused = |error| CannotHere::refused("opening the ring buffer", chain(&error), &self.host);
        ring.map(Events::new).map_err(refused)
    }

    /// A map's descriptor.
    pub(super) fn map_fd(&self, name: &str) -> Result<BorrowedFd<'_>, CannotHere> {
        let map = self.ebpf.map(name).and_then(data);
        map.map(|map| map.fd().as_fd()).ok_or_else(|| CannotHere::NoField(format!("map {name}")))
    }

    /// Puts descriptors of maps into the instructions.
    fn resolve(&mut self) -> Result<(), CannotHere> {
        let maps: Vec<_> = self.object.maps.iter().map(|(name, map)| (name.clone(), map.clone())).collect();
        let maps = maps.iter().map(|(name, map)| Ok((name.as_str(), self.map_fd(name)?.as_raw_fd(), map)));
        let maps = maps.collect::<Result<Vec<_>, CannotHere>>()?;
        let text: HashSet<usize> = self.object.functions.keys().map(|(section, _)| *section).collect();
        let resolved = self.object.relocate_maps(maps.into_iter(), &text);
        resolved.map_err(|error| CannotHere::refused("resolving maps", chain(&error), &self.host))?;
        // Functions that the compiler calls by itself.
        let linked = self.object.relocate_calls(&text);
        linked.map_err(|error| CannotHere::refused("linking functions", chain(&error), &self.host))?;
        Ok(())
    }

    fn program(&self, name: &str, kind: Kind) -> Result<OwnedFd, CannotHere> {
        let missing = || CannotHere::NoField(format!("program {name}"));
        let program = self.object.programs.get(name).ok_or_else(missing)?;
        let function = self.object.functions.get(&program.function_key()).ok_or_else(missing)?;
        let bytes: Vec<u8> = function.instructions.iter().flat_map(bytes).collect();
        match bpf::load_program(kind, name, &bytes, &mut []) {
            Ok(program) => Ok(program),
            Err(error) => {
                let mut log = vec![0; LOG];
                let again = bpf::load_program(kind, name, &bytes, &mut log);
                if let Ok(program) = again {
                    return Ok(program);
                }
                let log = log.split(|&byte| byte == 0).next().unwrap_or_default();
                let log = String::from_utf8_lossy(log);
                tracing::debug!(program = name, %log, "the verifier refused a program");
                let why = log.trim_end().lines().rev().take(4).collect::<Vec<_>>();
                let why = why.into_iter().rev().collect::<Vec<_>>().join("; ");
                Err(CannotHere::refused(
                    format!("loading the program {name}"),
                    format!("{error}: {why}"),
                    &self.host,
                ))
            }
        }
    }

    /// Lets the programs know of a processor.
    fn learn(&mut self, cpu: u32) -> Result<(), CannotHere> {
        let run = |ebpf: &mut Ebpf| -> Result<u32, aya::programs::ProgramError> {
            let program = ebpf.program_mut("learn").ok_or(aya::programs::ProgramError::NotLoaded)?;
            let program: &mut RawTracePoint = program.try_into()?;
            if cpu == 0 {
                program.load()?;
            }
            let mut args = [0; 12];
            args[0] = u64::from(cpu);
            Ok(program.test_run(RawTracePointRunOptions { args, cpu: None })?.return_value)
        };
        match run(&mut self.ebpf) {
            Ok(0) => Ok(()),
            Ok(_) => Err(CannotHere::NoField(format!("per-CPU memory of processor {cpu}"))),
            Err(error) => Err(CannotHere::refused("looking for per-CPU memory", chain(&error), &self.host)),
        }
    }
}

fn program_file(name: &str) -> String {
    format!("program-{name}")
}

fn link(program: BorrowedFd<'_>, place: Place) -> io::Result<OwnedFd> {
    match place.in_filter() {
        None => bpf::link_tracepoint(program),
        Some((family, hook, priority)) => bpf::link_netfilter(program, family, hook, priority),
    }
}

/// What tells these programs from others, on this kernel.
fn hash(kernel: &Kernel) -> u64 {
    let mut hasher = DefaultHasher::new();
    OBJECT.hash(&mut hasher);
    format!("{kernel:?}").hash(&mut hasher);
    hasher.finish()
}

/// An instruction as the kernel takes it.
fn bytes(instruction: &bpf_insn) -> [u8; 8] {
    let registers = instruction.dst_reg() | instruction.src_reg() << 4;
    let [o0, o1] = instruction.off.to_ne_bytes();
    let [i0, i1, i2, i3] = instruction.imm.to_ne_bytes();
    [instruction.code, registers, o0, o1, i0, i1, i2, i3]
}

/// The kernel's number of a map; 0 where it does not tell.
pub(super) fn number(ebpf: &Ebpf, map: &str) -> u32 {
    let info = ebpf.map(map).and_then(data).and_then(|map| map.info().ok());
    info.map_or(0, |info| info.id())
}

fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data) => Some(data),
        Map::PerCpuHashMap(data) | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}
