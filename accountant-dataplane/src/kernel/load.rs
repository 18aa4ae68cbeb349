//! Loads the programs of `accountant-ebpf/src/verdict` and attaches them.
//!
//! aya makes the maps. It does not know programs of the packet filter, so the object is parsed once more, its references to
//! maps are resolved, and each call of the kernel's function that reads memory safely gets that function's number.

use super::places::Kernel;
use crate::in_place::reason::Host;
use crate::in_place::{CannotHere, chain, mapping};
use accountant_sys::bpf::{self, Kind};
use accountant_sys::mapping::Mapping;
use aya::maps::{Map, MapData};
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use aya_obj::Object;
use aya_obj::generated::bpf_insn;
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The object of the programs.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/verdict"));

/// The first Linux with programs of the packet filter.
const NEEDED: (u32, u32) = (6, 4);

/// What stands for the kernel's function in the programs (`accountant-ebpf/src/verdict/kernel.rs`).
const CAST: i32 = 0x0acc_0001;
/// `BPF_JMP | BPF_CALL`, and what in its source register makes it a call of a kernel function.
const CALL: u8 = 0x85;
const KERNEL_FUNCTION: u8 = 2;

/// Just before and just after the filter rules, whose priority is 0.
const BEFORE: i32 = -1;
const AFTER: i32 = 1;
/// `NF_INET_LOCAL_IN`, `NF_INET_FORWARD`, `NF_INET_LOCAL_OUT`
const HOOKS: [(u32, &str); 3] = [(1, "local in"), (2, "forward"), (3, "local out")];
/// `NFPROTO_IPV4`, `NFPROTO_IPV6`
const FAMILIES: [(u32, &str); 2] = [(2, "IPv4"), (10, "IPv6")];

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
    /// Processors.
    pub(super) cpus: u32,
}

impl Sizes {
    /// How many interfaces there is room for.
    pub(super) fn interfaces(self) -> u32 {
        self.slots
    }
}

/// The programs and their maps. What is attached stays so for as long as this lives.
#[derive(Debug)]
pub(super) struct Loaded {
    ebpf: Ebpf,
    object: Object,
    kernel: Kernel,
    host: Host,
    links: Vec<OwnedFd>,
}

impl Loaded {
    /// Makes the maps.
    pub(super) fn new(sizes: Sizes) -> Result<Self, CannotHere> {
        let host = Host::look(NEEDED);
        let mut kernel = Kernel::look().map_err(|reason| reason.explained_by(&host))?;
        kernel.places.interface_mask = sizes.interfaces() - 1;
        kernel.places.slots = sizes.slots;
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader.override_global("PLACES", &kernel.places, true);
        for (name, entries) in [
            ("INTERFACES", sizes.interfaces()),
            ("LISTS", sizes.slots),
            ("WATCH", sizes.lists),
            ("TOTALS", sizes.slots * sizes.cpus),
            ("PATHS", sizes.paths),
            ("FLOWS", sizes.flows),
        ] {
            loader.map_max_entries(name, entries);
        }
        let refused = |operation: &str, error: &dyn std::error::Error| {
            CannotHere::refused(operation, chain(error), &host)
        };
        let ebpf = loader.load(OBJECT).map_err(|error| refused("making the maps", &error))?;
        let object = Object::parse(OBJECT).map_err(|error| refused("reading the object", &error))?;
        let mut loaded = Self { ebpf, object, kernel, host, links: Vec::new() };
        loaded.resolve()?;
        for cpu in 0..sizes.cpus {
            loaded.learn(cpu)?;
        }
        Ok(loaded)
    }

    /// Attaches all programs: to the packet filter of the calling thread's network namespace, and to drops.
    pub(super) fn attach(&mut self) -> Result<(), CannotHere> {
        self.attach_each().into_iter().try_for_each(|(_, result)| result)
    }

    /// The same, and says what came of it for each place.
    pub(super) fn attach_each(&mut self) -> Vec<(String, Result<(), CannotHere>)> {
        let mut results = Vec::new();
        let dropped = self.program("dropped", Kind::Tracepoint(self.kernel.dropped));
        let dropped = dropped.and_then(|program| {
            let link = bpf::link_tracepoint(program.as_fd());
            link.map_err(|error| self.refused("attaching to dropped packets", error))
        });
        results.push(("dropped packets (kfree_skb)".to_string(), self.keep(dropped)));
        // The later one first: a packet that only it sees is counted by verdict.
        let programs = ["after", "before"].map(|name| self.program(name, Kind::Netfilter));
        for ((family, version), (hook, name)) in
            FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook)))
        {
            let place = format!("packet filter, {version} {name}");
            let mut result = Ok(());
            for (program, priority) in programs.iter().zip([AFTER, BEFORE]) {
                let link = program.as_ref().map_err(Clone::clone).and_then(|program| {
                    let link = bpf::link_netfilter(program.as_fd(), family, hook, priority);
                    link.map_err(|error| self.refused(&format!("attaching to {place}"), error))
                });
                result = result.and(self.keep(link));
            }
            results.push((place, result));
        }
        results
    }

    fn keep(&mut self, link: Result<OwnedFd, CannotHere>) -> Result<(), CannotHere> {
        self.links.push(link?);
        Ok(())
    }

    fn refused(&self, operation: &str, error: std::io::Error) -> CannotHere {
        CannotHere::refused(operation, error, &self.host)
    }

    /// A map as memory.
    pub(super) fn memory(&self, name: &str, words: usize) -> Result<Mapping, CannotHere> {
        let refused = |error| CannotHere::refused(format!("mapping {name}"), error, &self.host);
        mapping(&self.ebpf, name, words).map_err(refused)
    }

    /// A map.
    pub(super) fn map(&mut self, name: &str) -> Result<&mut Map, CannotHere> {
        self.ebpf.map_mut(name).ok_or_else(|| CannotHere::NoField(format!("map {name}")))
    }

    /// A map's descriptor.
    pub(super) fn map_fd(&self, name: &str) -> Result<BorrowedFd<'_>, CannotHere> {
        let map = self.ebpf.map(name).and_then(data);
        map.map(|map| map.fd().as_fd()).ok_or_else(|| CannotHere::NoField(format!("map {name}")))
    }

    /// Puts descriptors of maps and the numbers of kernel functions into the instructions.
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
        let cast = self.kernel.cast;
        for instruction in self.object.functions.values_mut().flat_map(|function| &mut function.instructions)
        {
            if instruction.code == CALL && instruction.imm == CAST {
                instruction.set_src_reg(KERNEL_FUNCTION);
                instruction.imm = i32::try_from(cast).unwrap_or(0);
            }
        }
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

/// An instruction as the kernel takes it.
fn bytes(instruction: &bpf_insn) -> [u8; 8] {
    let registers = instruction.dst_reg() | instruction.src_reg() << 4;
    let [o0, o1] = instruction.off.to_ne_bytes();
    let [i0, i1, i2, i3] = instruction.imm.to_ne_bytes();
    [instruction.code, registers, o0, o1, i0, i1, i2, i3]
}

fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data) | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}
