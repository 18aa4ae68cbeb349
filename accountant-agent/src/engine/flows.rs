//! The books' flows: what the programs in the kernel saw of each, and what in which endpoint's chain decided on it.
//!
//! Nothing that is counted depends on it. A flow whose deciding rules are not known is not charged to anybody.

use super::book::Charger;
use super::books::Books;
use super::denied::{self, Entry, FlowsView};
use super::seen;
use accountant_core::ledger::AccountKey;
use accountant_core::view::labels;
use accountant_core::watch::{Fate, Path, Went};
use accountant_dataplane::Poll;
use accountant_dataplane::kernel::{Flows, SeenFlow};
use std::collections::BTreeMap;

impl Books {
    /// Takes the flows that were seen since the last reading.
    pub(super) fn take_flows(&mut self, poll: &mut Poll) {
        let Flows { denied, denied_lost, accepted, accepted_lost, events_lost } =
            std::mem::take(&mut poll.flows);
        let denied = denied.into_iter().map(|flow| (self.denied_by(&flow), flow)).collect();
        let accepted = accepted.into_iter().map(|flow| (self.decided_by(&flow, Went::On), flow)).collect();
        self.denied.take(denied, denied_lost);
        self.accepted.take(accepted, accepted_lost);
        self.events_lost.note(events_lost);
    }

    /// Takes what was counted at interfaces up to this reading.
    pub(super) fn take_interfaces(&mut self, poll: &mut Poll) {
        if let Some(counts) = poll.interfaces.take() {
            self.seen.at_interfaces.take(counts, &mut self.ledger);
        }
    }

    /// Flows with the labels of what dropped them: of their endpoint alone where no policy is known to have.
    pub(super) fn name_all(&self, flows: Vec<SeenFlow>) -> Vec<Entry> {
        let begun = denied::begun();
        let name = |flow: SeenFlow| {
            let unknown = || seen::account(flow.table, &flow.chain, false, Fate::Dropped);
            let account = self.denied_by(&flow).or_else(unknown)?;
            let (flow, dropped) = denied::charged(account, flow, begun);
            Some((labels(&flow.account, &self.index).1, flow, dropped))
        };
        flows.into_iter().filter_map(name).collect()
    }

    /// What dropped a flow, as far as that is known.
    fn denied_by(&self, flow: &SeenFlow) -> Option<AccountKey> {
        if flow.elsewhere {
            return seen::account(flow.table, &flow.chain, false, Fate::Elsewhere);
        }
        self.decided_by(flow, Went::Nowhere)
    }

    /// What in an endpoint's chain decided on a flow.
    fn decided_by(&self, flow: &SeenFlow, went: Went) -> Option<AccountKey> {
        let (list, moved) = flow.path.as_ref()?;
        let Path::Decided(decisions) = list.decode(*moved, went) else { return None };
        let Charger::Rules(attributor) = &self.tables.get(&flow.table)?.by else { return None };
        attributor.account_of(&flow.chain, decisions.last()?, &self.index)
    }

    /// What the programs in the kernel found no room to tell, by kind; nothing until they saw anything.
    pub(super) fn lost_events(&self) -> BTreeMap<&'static str, u64> {
        let sees = !self.seen.packets().is_empty();
        let lost = [
            ("denied_flow", self.denied.lost_in_the_kernel()),
            ("denied_event", self.events_lost.all),
            ("accepted_flow", self.accepted.lost_in_the_kernel()),
        ];
        lost.into_iter().filter(|_| sees).collect()
    }

    /// Flows that were dropped lately.
    pub(super) fn denied_view(&mut self) -> FlowsView {
        self.denied.view(&self.index)
    }

    /// Flows that were accepted lately.
    pub(super) fn accepted_view(&mut self) -> FlowsView {
        self.accepted.view(&self.index)
    }
}
