//! Source `kernel`: our own programs in the packet's path.
//!
//! [`Programs`] is the witness that sees of each packet which rules of an endpoint's chain it hit: sources hand it the lists
//! of rules to watch ([`list`]) and read what it saw around each reading of theirs. [`load`] brings the programs of
//! `accountant-ebpf/src/verdict` into the kernel, [`witness`] keeps their maps. Where they cannot be, [`at_interfaces`] counts
//! the traffic of endpoints at their interfaces. All objects are embedded; nothing is read from disk.

mod at_interfaces;
mod flows;
mod hooks;
mod interfaces;
mod links;
pub(crate) mod list;
mod listening;
mod load;
mod memory;
mod only;
mod owners;
mod paths;
mod pins;
mod places;
mod sites;
mod start;
mod witness;

pub use at_interfaces::{AtInterface, InterfaceCounts};
pub use flows::SeenFlow;
pub use listening::{Listening, News};
pub use witness::Verdicts;

use crate::TablePoll;
use crate::in_place::{CannotHere, reason};
use accountant_core::snapshot::{Around, TableId};
use accountant_core::watch::ChainVerdicts;
use accountant_sys::bpf::Runs;
use at_interfaces::AtInterfaces;
use links::LinkNews;
use list::Watched;
use load::{Loaded, Sizes};
use nix::time::{ClockId, clock_gettime};
use only::Only;
use pins::Pins;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use witness::Witness;

/// The clock that programs in the kernel read (`CLOCK_MONOTONIC`).
pub fn clock() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// The programs of one network namespace, shared by the sources that read its rules. Nothing is loaded before there is a
/// chain to watch.
#[derive(Debug)]
pub struct Programs {
    state: Arc<Mutex<State>>,
    settings: Settings,
}

/// Flows that programs in the kernel saw.
#[derive(Debug, Default)]
pub struct Flows {
    /// Those that were dropped since the last time.
    pub denied: Vec<SeenFlow>,
    /// Dropped packets, since the programs were attached, of flows that there was no room for.
    pub denied_lost: u64,
    /// Those that endpoints' chains accepted since the last time, each for each chain; of packets that policy saw. None unless
    /// they are wanted ([`Settings::accepted_flows`]).
    pub accepted: Vec<SeenFlow>,
    /// The same as for dropped ones.
    pub accepted_lost: u64,
    /// Flows, since then, that could not be told as they were dropped.
    pub events_lost: u64,
}

/// What programs there are to be.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Folder of a BPF file system in which they stay attached and count on, with all that they counted, when the agent is
    /// gone; where that cannot be they go with it.
    pub pins: Option<PathBuf>,
    /// Whether flows that are accepted are noted too.
    pub accepted_flows: bool,
    /// Whether traffic is counted at endpoints' interfaces.
    pub interfaces: Interfaces,
}

/// When traffic is counted at endpoints' interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interfaces {
    /// Never.
    #[default]
    Never,
    /// Where programs around rules cannot be.
    Instead,
    /// Always, and there are no programs around rules.
    Only,
}

#[derive(Debug)]
enum State {
    Off(CannotHere),
    /// Another agent has its programs here: what to watch once it has ended.
    Waiting(BTreeMap<TableId, Vec<Watched>>),
    /// Traffic is counted at interfaces, and here is why not around rules.
    AtInterfaces {
        why: CannotHere,
        counted: Box<AtInterfaces>,
        _news: Option<LinkNews>,
        _only: Only,
    },
    On {
        witness: Box<Witness>,
        /// For as long as the programs are there.
        _news: Option<LinkNews>,
        _only: Only,
    },
}

impl State {
    /// Hands these chains of a table to whoever is there to watch them.
    fn watch(&mut self, table: TableId, chains: Vec<Watched>) {
        match self {
            Self::Off(_) => {}
            Self::Waiting(tables) => _ = tables.insert(table, chains),
            Self::AtInterfaces { counted, .. } => {
                counted.watch(table, chains.iter().map(|watched| &watched.chain));
            }
            Self::On { witness, .. } => {
                if let Err(reason) = witness.watch(table, chains) {
                    *self = lost(reason);
                }
            }
        }
    }
}

impl Programs {
    /// Programs that are loaded when there is something to watch, or never, and go when this value does.
    pub fn new(wanted: bool) -> Arc<Self> {
        let reason = if wanted { CannotHere::NotYet } else { CannotHere::TurnedOff };
        Arc::new(Self { state: Arc::new(Mutex::new(State::Off(reason))), settings: Settings::default() })
    }

    /// Programs as they are wanted, loaded when there is something to watch.
    pub fn with(settings: Settings) -> Arc<Self> {
        Arc::new(Self { state: Arc::new(Mutex::new(State::Off(CannotHere::NotYet))), settings })
    }

    /// Whether they note flows that are accepted, too.
    pub fn note_accepted_flows(&self) -> bool {
        self.settings.accepted_flows
    }

    /// Why there are none; none if there are.
    pub fn reason(&self) -> Option<CannotHere> {
        match &*self.lock() {
            State::Off(reason) | State::AtInterfaces { why: reason, .. } => Some(reason.clone()),
            State::Waiting(_) => Some(CannotHere::AnotherAgent),
            State::On { .. } => None,
        }
    }

    /// What was counted at interfaces so far, where that is done.
    pub fn at_interfaces(&self) -> Option<InterfaceCounts> {
        let mut state = self.lock();
        let State::AtInterfaces { counted, .. } = &mut *state else { return None };
        match counted.read() {
            Ok(counts) => Some(counts),
            Err(reason) => {
                *state = lost(reason);
                None
            }
        }
    }

    /// How often each program ran and how long that took, as far as the kernel keeps statistics.
    pub fn runs(&self) -> Vec<(&'static str, Runs)> {
        match &*self.lock() {
            State::On { witness, .. } => witness.runs(),
            State::AtInterfaces { counted, .. } => counted.runs(),
            _ => Vec::new(),
        }
    }

    /// How many programs somebody had detached and were attached again; nothing where there are none.
    pub fn attached_again(&self) -> Option<u64> {
        match &*self.lock() {
            State::On { witness, .. } => Some(witness.attached_again()),
            _ => None,
        }
    }

    /// Whether handing over chains is of any use.
    pub(crate) fn wants(&self) -> bool {
        !matches!(&*self.lock(), State::Off(reason) if *reason != CannotHere::NotYet)
    }

    /// Watches these chains of a table of the calling thread's network namespace, and no others of it.
    pub(crate) fn watch(&self, table: TableId, chains: Vec<Watched>) {
        let mut state = self.lock();
        if matches!(&*state, State::Off(CannotHere::NotYet)) && !chains.is_empty() {
            *state = self.start(chains.len());
            if let State::Waiting(_) = &*state {
                tracing::info!("another agent has its programs in the kernel: these wait for its end");
            }
        }
        state.watch(table, chains);
    }

    /// Takes the place of another agent that has ended.
    fn take_over(&self, state: &mut State) {
        let State::Waiting(tables) = state else { return };
        let tables = std::mem::take(tables);
        *state = self.start(tables.values().map(Vec::len).max().unwrap_or(0));
        for (table, chains) in tables {
            state.watch(table, chains);
        }
    }

    /// What was seen of each table so far.
    pub(crate) fn read(&self) -> Verdicts {
        let mut state = self.lock();
        self.take_over(&mut state);
        let State::On { witness, .. } = &mut *state else { return Verdicts::new() };
        match witness.read() {
            Ok(verdicts) => verdicts,
            Err(reason) => {
                *state = lost(reason);
                Verdicts::new()
            }
        }
    }

    /// Adds to each table that was read what was seen of it: before the reading, and up to now. Returns the flows that were
    /// seen since the last time.
    pub(crate) fn complete(&self, tables: &mut [TablePoll], mut before: Verdicts) -> Flows {
        let mut after = self.read();
        // Before their lists are forgotten.
        let flows = self.take_flows();
        for table in tables {
            let Ok(snapshot) = &mut table.snapshot else { continue };
            let Some(after) = after.remove(&table.id) else { continue };
            self.release(&after);
            snapshot.verdicts = Some(Around { before: before.remove(&table.id).unwrap_or_default(), after });
        }
        flows
    }

    fn take_flows(&self) -> Flows {
        let mut state = self.lock();
        let State::On { witness, .. } = &mut *state else { return Flows::default() };
        let flows = witness.care().and_then(|()| witness.take_flows());
        flows.unwrap_or_else(|reason| {
            *state = lost(reason);
            Flows::default()
        })
    }

    /// Says that this was handed over: what is closed in it need not be told again.
    fn release(&self, told: &[ChainVerdicts]) {
        let mut state = self.lock();
        let State::On { witness, .. } = &mut *state else { return };
        if let Err(reason) = witness.release(told) {
            *state = lost(reason);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Attaches the programs to each place for a moment, and says what came of it.
pub fn probe() -> Vec<(String, Result<(), CannotHere>)> {
    let sizes =
        |cpus| Sizes { slots: 2, lists: 2, paths: 2, flows: 2, events: 1 << 16, cpus, accepted_flows: true };
    match cpus().and_then(|cpus| Loaded::new(sizes(cpus), None)) {
        Ok(mut loaded) => loaded.attach_each(),
        Err(reason) => vec![("all".into(), Err(reason))],
    }
}

/// Whether traffic can be counted at interfaces.
pub fn probe_interfaces() -> Result<(), CannotHere> {
    at_interfaces::probe()
}

/// Has the kernel keep statistics of programs, all of them, for as long as the descriptor is open. Each run of a program then
/// costs two looks at the clock more.
pub fn keep_statistics() -> Result<OwnedFd, CannotHere> {
    accountant_sys::bpf::keep_statistics().map_err(|error| CannotHere::Refused {
        operation:
            "asking the kernel for statistics of programs (CAP_SYS_ADMIN; or set kernel.bpf_stats_enabled)"
                .into(),
        error: error.to_string(),
    })
}

/// Whether programs and counts can outlive an agent in this folder.
pub fn can_stay(folder: &Path) -> Result<(), CannotHere> {
    Pins::open(folder).map(|pins| pins.tidy())
}

/// Detaches the programs that an agent left in the calling thread's network namespace and forgets what they counted. Says
/// whether there was anything; an agent that runs keeps its own.
pub fn detach(folder: &Path) -> Result<bool, CannotHere> {
    let _only = Only::claim()?;
    // Those stay without a folder, too, if the agent was killed.
    let at_interfaces = at_interfaces::detach();
    match Pins::open(folder) {
        Ok(pins) => Ok(pins.clear() | at_interfaces),
        Err(_) if at_interfaces => Ok(true),
        Err(reason) => Err(reason),
    }
}

fn lost(reason: CannotHere) -> State {
    tracing::warn!(%reason, "the programs in the kernel are of no use any more");
    State::Off(reason)
}

fn cpus() -> Result<u32, CannotHere> {
    let possible = reason::possible_cpus().map_err(|error| CannotHere::Refused {
        operation: "asking for the number of processors".into(),
        error: error.to_string(),
    })?;
    Ok(possible.last().map_or(1, |last| last + 1))
}
