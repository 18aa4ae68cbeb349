//! Our programs beside Calico's (`accountant-ebpf/src/calico`), loaded, and what they have counted.

use super::kernel;
use super::pins::{Pinned, Pins};
use crate::in_place::reason::{Host, NEEDED};
use crate::in_place::{CannotHere, chain};
use accountant_abi::Traffic;
use accountant_abi::calico::{Hook, HookKey, Last, MAX_HITS, PathKey, VerdictKey, notes};
use accountant_core::Counter;
use accountant_core::calico::bpf::layout::padded_name;
use accountant_core::calico::bpf::{CounterLayout, Path, RuleId};
use aya::maps::{ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::programs::{ProgramError, RawTracePoint, SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The object of the programs.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/calico"));
const CLASSIFIERS: [&str; 5] =
    ["before_ingress", "before_egress", "after_ingress", "after_egress", "settle_now"];
const TRACEPOINTS: [&str; 2] = ["kfree_skb", "napi_poll"];
/// Where a packet of a test run has room for the headers that the kernel wants to see.
const EMPTY_PACKET: [u8; 64] = [0; 64];

/// The programs, and their maps.
pub(super) struct Programs {
    ebpf: Ebpf,
    state_size: usize,
    counter_size: Option<usize>,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").field("state_size", &self.state_size).finish_non_exhaustive()
    }
}

impl Programs {
    /// Loads them for maps of these layouts, and attaches those that are attached once and for all.
    pub(super) fn load(pins: &Pins) -> Result<Self, CannotHere> {
        let host = Host::look(NEEDED);
        let counters = pins.own.counters.as_ref().map(|(_, layout)| *layout);
        let layout =
            kernel::layout(pins.state_layout, counters).map_err(|reason| reason.explained_by(&host))?;
        let refused = |operation: &str, error: &dyn std::error::Error| {
            CannotHere::refused(operation, chain(error), &host)
        };
        let mut loader = EbpfLoader::new();
        // Nothing in the programs is relocated by types.
        loader.btf(None);
        loader.override_global("LAYOUT", &layout, true);
        let ebpf = loader.load(OBJECT).map_err(|error| refused("making the maps", &error))?;
        let counter_size = counters.map(|layout| layout.size);
        let mut programs = Self { ebpf, state_size: pins.state_layout.size, counter_size };
        programs.open_doors(pins).map_err(|error| refused("putting Calico's maps into ours", &error))?;
        for name in CLASSIFIERS {
            let loaded = programs.classifier(name).and_then(SchedClassifier::load);
            loaded.map_err(|error| refused(&format!("loading the program {name}"), &error))?;
        }
        for name in TRACEPOINTS {
            let attached = programs.tracepoint(name).and_then(|program| {
                program.load()?;
                program.attach(name).map(drop)
            });
            attached.map_err(|error| refused(&format!("attaching the program {name}"), &error))?;
        }
        Ok(programs)
    }

    /// Whether they are for maps of these layouts.
    pub(super) fn fit(&self, pins: &Pins) -> bool {
        let counter_size = pins.own.counters.as_ref().map(|(_, layout)| layout.size);
        (self.state_size, self.counter_size) == (pins.state_layout.size, counter_size)
    }

    /// Gives them Calico's maps, which must be of the layouts that they were loaded for.
    pub(super) fn open_doors(&mut self, pins: &Pins) -> Result<(), MapError> {
        self.open_door(&format!("STATE_{}", self.state_size), &pins.state)?;
        if let Some((pinned, layout)) = &pins.own.counters {
            self.open_door(&format!("COUNTERS_{}", layout.size), pinned)?;
        }
        Ok(())
    }

    fn open_door(&mut self, name: &str, pinned: &Pinned) -> Result<(), MapError> {
        let missing = || MapError::InvalidName { name: name.into() };
        let map = self.ebpf.map_mut(name).ok_or_else(missing)?;
        let mut door: ArrayOfMaps<_, MapData> = map.try_into()?;
        door.set(0, pinned.data().ok_or_else(missing)?, 0)
    }

    /// One of the classifiers.
    pub(super) fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, ProgramError> {
        self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
    }

    fn tracepoint(&mut self, name: &str) -> Result<&mut RawTracePoint, ProgramError> {
        self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
    }

    /// Tells them a hook before they are attached to it: its interface's name, and what Calico's counters are on each
    /// processor.
    pub(super) fn meet(&mut self, key: HookKey, name: &str, last: &[Last]) -> Result<(), MapError> {
        let padded = padded_name(name);
        let words: Vec<_> =
            padded.chunks_exact(4).map(|w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]])).collect();
        let name = <[u32; 4]>::try_from(words).unwrap_or_default();
        let values: Vec<_> = last.iter().map(|&last| Hook { name, last }).collect();
        let mut hooks: PerCpuHashMap<_, HookKey, Hook> = self.map_mut("HOOKS")?.try_into()?;
        hooks.insert(key, PerCpuValues::try_from(values)?, 0)
    }

    /// Forgets an interface that is gone, and what was counted there.
    pub(super) fn forget(&mut self, interface: u32) -> Result<(), MapError> {
        let mut hooks: PerCpuHashMap<_, HookKey, Hook> = self.map_mut("HOOKS")?.try_into()?;
        for hook in [0, 1] {
            absent_is_fine(hooks.remove(&HookKey { interface, hook }))?;
        }
        let mut verdicts: PerCpuHashMap<_, VerdictKey, Traffic> = self.map_mut("VERDICTS")?.try_into()?;
        let keys: Vec<_> = verdicts.keys().flatten().filter(|key| key.interface == interface).collect();
        keys.iter().try_for_each(|key| absent_is_fine(verdicts.remove(key)))
    }

    /// Settles what is pending on each processor that we may run on.
    pub(super) fn settle(&mut self) -> Result<(), ProgramError> {
        let program = self.classifier("settle_now")?;
        let myself = Pid::from_raw(0);
        let allowed = sched_getaffinity(myself).map_err(std::io::Error::from)?;
        let run = |cpu| -> Result<(), ProgramError> {
            let mut only = CpuSet::new();
            only.set(cpu).and_then(|()| sched_setaffinity(myself, &only)).map_err(std::io::Error::from)?;
            program.test_run(TestRunOptions { data_in: Some(&EMPTY_PACKET), ..TestRunOptions::default() })?;
            Ok(())
        };
        let mut cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
        let settled = cpus.try_for_each(run);
        sched_setaffinity(myself, &allowed).map_err(std::io::Error::from)?;
        settled
    }

    /// All verdicts that were counted, over all processors.
    pub(super) fn verdicts(&self) -> Result<Vec<(VerdictKey, Counter)>, MapError> {
        let map: PerCpuHashMap<_, VerdictKey, Traffic> = self.map("VERDICTS")?.try_into()?;
        let sum =
            |values: PerCpuValues<Traffic>| values.iter().map(|t| Counter::new(t.packets, t.bytes)).sum();
        map.iter().map(|entry| entry.map(|(key, values)| (key, sum(values)))).collect()
    }

    /// The rules of a path.
    pub(super) fn path(&self, key: &PathKey) -> Result<Path, MapError> {
        let hits = key.hits().min(MAX_HITS);
        if hits == 0 {
            return Ok(Path::default());
        }
        let map: HashMap<_, PathKey, [u64; MAX_HITS]> = self.map("PATHS")?.try_into()?;
        match map.get(key, 0) {
            Ok(rules) => Ok(rules.into_iter().take(hits).map(RuleId).collect()),
            // It found no room: the last rule is known.
            Err(MapError::KeyNotFound) => Ok([RuleId(key.last)].into()),
            Err(error) => Err(error),
        }
    }

    /// The programs' own counters.
    pub(super) fn notes(&self) -> Result<[u64; notes::COUNT as usize], MapError> {
        let map: PerCpuArray<_, u64> = self.map("NOTES")?.try_into()?;
        let mut sums = [0; notes::COUNT as usize];
        for (index, sum) in (0..).zip(&mut sums) {
            *sum = map.get(&index, 0)?.iter().sum();
        }
        Ok(sums)
    }

    fn map(&self, name: &str) -> Result<&Map, MapError> {
        self.ebpf.map(name).ok_or_else(|| MapError::InvalidName { name: name.into() })
    }

    fn map_mut(&mut self, name: &str) -> Result<&mut Map, MapError> {
        self.ebpf.map_mut(name).ok_or_else(|| MapError::InvalidName { name: name.into() })
    }
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Calico's counters of an interface and hook, one row a processor. None if it has none (yet).
pub(super) fn counters_of(
    pinned: &Pinned,
    layout: CounterLayout,
    key: HookKey,
) -> Result<Option<Vec<Vec<u64>>>, MapError> {
    fn read<const N: usize>(map: &Map, key: HookKey) -> Result<Option<Vec<Vec<u64>>>, MapError> {
        let map: PerCpuHashMap<_, HookKey, [u64; N]> = map.try_into()?;
        match map.get(&key, 0) {
            Ok(values) => Ok(Some(values.iter().map(|value| value.to_vec()).collect())),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
    match layout.size / 8 {
        14 => read::<14>(&pinned.map, key),
        17 => read::<17>(&pinned.map, key),
        25 => read::<25>(&pinned.map, key),
        26 => read::<26>(&pinned.map, key),
        _ => read::<27>(&pinned.map, key),
    }
}
