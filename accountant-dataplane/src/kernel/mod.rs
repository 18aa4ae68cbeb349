//! Source `kernel`: our own programs in the packet's path.
//!
//! [`Programs`] is the witness that sees of each packet which rules of an endpoint's chain it hit: sources hand it the lists
//! of rules to watch ([`list`]) and read what it saw around each reading of theirs. [`load`] brings the programs of
//! `accountant-ebpf/src/verdict` into the kernel, [`witness`] keeps their maps. [`endpoint`] has the traffic of single
//! interfaces, by classifiers. All objects are embedded; nothing is read from disk.

mod endpoint;
mod flows;
mod interfaces;
mod links;
pub(crate) mod list;
mod load;
mod only;
mod places;
mod witness;

pub use endpoint::{EndpointCounts, EndpointTraffic};
pub use flows::DeniedFlow;
pub use witness::Verdicts;

use crate::TablePoll;
use crate::in_place::{CannotHere, reason};
use accountant_core::snapshot::{Around, TableId};
use accountant_core::watch::ChainVerdicts;
use links::LinkNews;
use list::Watched;
use load::{Loaded, Sizes};
use nix::time::{ClockId, clock_gettime};
use only::Only;
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
}

/// Flows that endpoints' chains dropped.
#[derive(Debug, Default)]
pub struct Denied {
    /// Since the last time.
    pub flows: Vec<DeniedFlow>,
    /// Dropped packets, since the programs were attached, of flows that there was no room for.
    pub lost: u64,
}

#[derive(Debug)]
enum State {
    Off(CannotHere),
    On {
        witness: Box<Witness>,
        /// For as long as the programs are there.
        _news: Option<LinkNews>,
        _only: Only,
    },
}

impl Programs {
    /// Programs that are loaded when there is something to watch, or never.
    pub fn new(wanted: bool) -> Arc<Self> {
        let reason = if wanted { CannotHere::NotYet } else { CannotHere::TurnedOff };
        Arc::new(Self { state: Arc::new(Mutex::new(State::Off(reason))) })
    }

    /// Why there are none; none if there are.
    pub fn reason(&self) -> Option<CannotHere> {
        match &*self.lock() {
            State::Off(reason) => Some(reason.clone()),
            State::On { .. } => None,
        }
    }

    /// Whether handing over chains is of any use.
    pub(crate) fn wants(&self) -> bool {
        matches!(&*self.lock(), State::On { .. } | State::Off(CannotHere::NotYet))
    }

    /// Watches these chains of a table of the calling thread's network namespace, and no others of it.
    pub(crate) fn watch(&self, table: TableId, chains: Vec<Watched>) {
        let mut state = self.lock();
        if matches!(&*state, State::Off(CannotHere::NotYet)) && !chains.is_empty() {
            *state = self.start(chains.len());
        }
        let State::On { witness, .. } = &mut *state else { return };
        if let Err(reason) = witness.watch(table, chains) {
            *state = lost(reason);
        }
    }

    /// What was seen of each table so far.
    pub(crate) fn read(&self) -> Verdicts {
        let mut state = self.lock();
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
    /// dropped since the last time.
    pub(crate) fn complete(&self, tables: &mut [TablePoll], mut before: Verdicts) -> Denied {
        let mut after = self.read();
        // Before their lists are forgotten.
        let denied = self.take_flows();
        for table in tables {
            let Ok(snapshot) = &mut table.snapshot else { continue };
            let Some(after) = after.remove(&table.id) else { continue };
            self.release(&after);
            snapshot.verdicts = Some(Around { before: before.remove(&table.id).unwrap_or_default(), after });
        }
        denied
    }

    fn take_flows(&self) -> Denied {
        let mut state = self.lock();
        let State::On { witness, .. } = &mut *state else { return Denied::default() };
        match witness.take_flows() {
            Ok((flows, lost)) => Denied { flows, lost },
            Err(reason) => {
                *state = lost(reason);
                Denied::default()
            }
        }
    }

    /// Says that this was handed over: what is closed in it need not be told again.
    fn release(&self, told: &[ChainVerdicts]) {
        let mut state = self.lock();
        let State::On { witness, .. } = &mut *state else { return };
        if let Err(reason) = witness.release(told) {
            *state = lost(reason);
        }
    }

    fn start(&self, chains: usize) -> State {
        // For IPv4 and IPv6, of which the first table has just come.
        let start = || Ok((Only::claim()?, Witness::start(2 * chains, cpus()?)?));
        match start() {
            Ok((only, witness)) => {
                tracing::info!("programs in the kernel see which policy decides on each packet");
                State::On { witness: Box::new(witness), _news: self.hear_of_links(), _only: only }
            }
            Err(reason) => {
                tracing::info!(%reason, "no programs in the kernel: the rules' counters have to do");
                State::Off(reason)
            }
        }
    }

    fn hear_of_links(&self) -> Option<LinkNews> {
        let state = Arc::downgrade(&self.state);
        let news = LinkNews::start(move || {
            let Some(state) = state.upgrade() else { return };
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if let State::On { witness, .. } = &mut *state {
                witness.look_for_interfaces();
            }
        });
        news.inspect_err(|error| tracing::warn!(%error, "news of interfaces cannot be heard")).ok()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Attaches the programs to each place for a moment, and says what came of it.
pub fn probe() -> Vec<(String, Result<(), CannotHere>)> {
    let sizes = |cpus| Sizes { slots: 2, lists: 2, paths: 2, flows: 2, cpus };
    match cpus().and_then(|cpus| Loaded::new(sizes(cpus))) {
        Ok(mut loaded) => loaded.attach_each(),
        Err(reason) => vec![("all".into(), Err(reason))],
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
