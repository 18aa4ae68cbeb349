//! Which programs there are: those around rules, or at interfaces instead, or none; kept for the next agent, or not.

use super::at_interfaces::{self, AtInterfaces};
use super::links::LinkNews;
use super::only::Only;
use super::pins::Pins;
use super::witness::Witness;
use super::{Interfaces, Programs, State, cpus, lost};
use crate::in_place::CannotHere;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

impl Programs {
    pub(super) fn start(&self, chains: usize) -> State {
        let only = match Only::claim() {
            Ok(only) => only,
            Err(CannotHere::AnotherAgent) => return State::Waiting(BTreeMap::new()),
            Err(reason) => return lost(reason),
        };
        let started = match self.settings.interfaces {
            Interfaces::Only => Err(CannotHere::NotWanted),
            _ => self.start_witness(chains),
        };
        match started {
            Ok(witness) => {
                tracing::info!("programs in the kernel see which policy decides on each packet");
                self.forget_interfaces();
                State::On { witness: Box::new(witness), _news: self.hear_of_links(), _only: only }
            }
            // It has its programs here in a way that its name does not show.
            Err(CannotHere::AnotherAgent) => State::Waiting(BTreeMap::new()),
            Err(why) if self.settings.interfaces == Interfaces::Never => {
                tracing::info!(reason = %why, "no programs in the kernel: the rules' counters have to do");
                State::Off(why)
            }
            Err(why) => self.start_at_interfaces(why, only),
        }
    }

    /// Takes away what an earlier agent had instead.
    fn forget_interfaces(&self) {
        at_interfaces::detach();
        if let Some(Ok(pins)) = self.settings.pins.as_deref().map(Pins::open) {
            pins.forget_interfaces();
        }
    }

    fn start_at_interfaces(&self, why: CannotHere, only: Only) -> State {
        match self.start_with_pins(AtInterfaces::start) {
            Ok(counted) => {
                tracing::info!(reason = %why, "no programs around rules: the traffic of endpoints is counted at their interfaces");
                State::AtInterfaces {
                    why,
                    counted: Box::new(counted),
                    _news: self.hear_of_links(),
                    _only: only,
                }
            }
            Err(reason) => {
                tracing::info!(reason = %why, interfaces = %reason, "no programs in the kernel: the rules' counters have to do");
                State::Off(why)
            }
        }
    }

    fn start_witness(&self, chains: usize) -> Result<Witness, CannotHere> {
        // For IPv4 and IPv6, of which the first table has just come.
        let (chains, cpus) = (2 * chains, cpus()?);
        let accepted_flows = self.settings.accepted_flows;
        self.start_with_pins(|pins| Witness::start(chains, cpus, accepted_flows, pins))
    }

    /// Starts something that outlives the agent, or else goes with it.
    fn start_with_pins<T>(
        &self,
        start: impl Fn(Option<&Pins>) -> Result<T, CannotHere>,
    ) -> Result<T, CannotHere> {
        if let Some(folder) = &self.settings.pins {
            let started =
                Pins::open(folder).and_then(|pins| start(Some(&pins)).inspect_err(|_| pins.give_up()));
            match started {
                Ok(started) => return Ok(started),
                Err(reason) => {
                    tracing::info!(%reason, "what programs in the kernel count ends with the agent")
                }
            }
        }
        start(None)
    }

    fn hear_of_links(&self) -> Option<LinkNews> {
        let state = Arc::downgrade(&self.state);
        let news = LinkNews::start(move || {
            let Some(state) = state.upgrade() else { return };
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *state {
                State::On { witness, .. } => witness.look_for_interfaces(),
                State::AtInterfaces { counted, .. } => counted.look_for_interfaces(),
                State::Off(_) | State::Waiting(_) => {}
            }
        });
        news.inspect_err(|error| tracing::warn!(%error, "news of interfaces cannot be heard")).ok()
    }
}
