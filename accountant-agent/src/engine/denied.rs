//! Flows that were dropped lately: who wanted to talk to whom, and which policy did not let them. Flows that were accepted
//! are kept in the same way, where they are wanted.
//!
//! Invariant: bounded. The flows that were dropped last are kept; what had to go is counted.

use accountant_core::Counter;
use accountant_core::index::Index;
use accountant_core::ledger::AccountKey;
use accountant_core::view::{Label, labels};
use accountant_dataplane::kernel::{SeenFlow, clock};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

/// How many flows are kept.
const MOST: usize = 1024;

/// A flow and what did not let it pass, or did.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Whose chain dropped it, in which direction, and what in it did.
    pub account: AccountKey,
    /// Who sent it.
    pub source: IpAddr,
    /// Whom to.
    pub destination: IpAddr,
    /// Number of the protocol.
    pub protocol: u8,
    /// Source and destination port, of protocols that have any.
    pub ports: Option<(u16, u16)>,
}

/// How much of a flow was dropped (or accepted), and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// How much.
    pub counter: Counter,
    /// When the first packet was.
    pub first: SystemTime,
    /// When the last was.
    pub last: SystemTime,
}

/// A flow with the labels of the account that it was charged to.
pub type Entry = (Vec<Label>, Flow, Dropped);

/// The flows as they are published: the last one first.
#[derive(Clone, Debug, Default)]
pub struct FlowsView {
    /// The flows.
    pub flows: Arc<Vec<Entry>>,
    /// Packets that are in none.
    pub lost: u64,
}

/// The flows that were dropped last.
#[derive(Debug, Default)]
pub(super) struct LastFlows {
    flows: HashMap<Flow, Dropped>,
    /// Packets of flows that there was no room for in the kernel, or of which it is not known what dropped them.
    lost: u64,
    /// What the kernel has lost.
    packets: Lost,
    /// The view, while nothing changed since it was made.
    view: Option<FlowsView>,
}

impl LastFlows {
    /// Takes what was dropped since, with what did it where that is known, and what the kernel has lost so far.
    pub(super) fn take(&mut self, dropped: Vec<(Option<AccountKey>, SeenFlow)>, lost: u64) {
        self.lost = self.lost.saturating_add(self.packets.note(lost));
        let begun = begun();
        for (account, flow) in dropped {
            let Some(account) = account else {
                self.lost = self.lost.saturating_add(flow.counter.packets);
                continue;
            };
            let (flow, dropped) = charged(account, flow, begun);
            self.view = None;
            let known = self.flows.entry(flow).or_insert(Dropped { counter: Counter::ZERO, ..dropped });
            known.counter += dropped.counter;
            known.last = known.last.max(dropped.last);
        }
        self.forget_the_oldest();
    }

    /// Packets of flows that there was no room for in the kernel.
    pub(super) fn lost_in_the_kernel(&self) -> u64 {
        self.packets.all
    }

    fn forget_the_oldest(&mut self) {
        if self.flows.len() <= MOST {
            return;
        }
        let mut times: Vec<SystemTime> = self.flows.values().map(|dropped| dropped.last).collect();
        let (_, oldest, _) = times.select_nth_unstable_by(MOST / 2, |a, b| b.cmp(a));
        let oldest = *oldest;
        self.flows.retain(|_, dropped| dropped.last > oldest);
    }

    /// The flows, the last one first.
    pub(super) fn view(&mut self, index: &Index) -> FlowsView {
        let flows = match self.view.take() {
            Some(view) => view.flows,
            None => {
                let labelled = |(flow, dropped): (&Flow, &Dropped)| {
                    (labels(&flow.account, index).1, flow.clone(), *dropped)
                };
                let mut flows: Vec<_> = self.flows.iter().map(labelled).collect();
                flows.sort_by_key(|(_, _, dropped)| std::cmp::Reverse(dropped.last));
                Arc::new(flows)
            }
        };
        self.view.insert(FlowsView { flows, lost: self.lost }).clone()
    }
}

/// What was lost, over all programs there were.
#[derive(Debug, Default)]
pub(super) struct Lost {
    pub(super) all: u64,
    /// What it was when it was last asked for.
    before: u64,
}

impl Lost {
    /// Returns what is new.
    pub(super) fn note(&mut self, now: u64) -> u64 {
        // Less than before are those of other programs.
        let more = now.checked_sub(self.before).unwrap_or(now);
        self.before = now;
        self.all = self.all.saturating_add(more);
        more
    }
}

/// When the monotonic clock began, for a clock that nobody sets.
pub(super) fn begun() -> SystemTime {
    SystemTime::now().checked_sub(clock()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A flow and what was dropped of it, in the time of people.
pub(super) fn charged(account: AccountKey, flow: SeenFlow, begun: SystemTime) -> (Flow, Dropped) {
    let SeenFlow { source, destination, protocol, ports, counter, .. } = flow;
    let dropped = Dropped { counter, first: begun + flow.first, last: begun + flow.last };
    (Flow { account, source, destination, protocol, ports }, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use accountant_core::IpVersion;
    use accountant_core::id::{Endpoint, EndpointKind};
    use accountant_core::ledger::What;
    use accountant_core::snapshot::{Source, TableId};
    use accountant_core::{Direction, Table};
    use std::time::Duration;

    fn account() -> AccountKey {
        AccountKey {
            endpoint: Endpoint { kind: EndpointKind::Workload, interface: "cali1".into() },
            direction: Direction::Ingress,
            ip_version: IpVersion::V4,
            what: What::NoProfile,
        }
    }

    fn flow(port: u16, packets: u64, last: u64) -> SeenFlow {
        SeenFlow {
            table: TableId {
                source: Source::Nftables,
                native: true,
                ip_version: IpVersion::V4,
                table: Table::Filter,
            },
            chain: "cali-tw-cali1".into(),
            elsewhere: false,
            path: None,
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            protocol: 17,
            ports: Some((port, 53)),
            counter: Counter::new(packets, 100 * packets),
            first: Duration::from_secs(1),
            last: Duration::from_secs(last),
        }
    }

    #[test]
    fn flows_add_up_and_what_is_lost_is_counted_once() {
        let mut denied = LastFlows::default();
        denied.take(vec![(Some(account()), flow(1, 2, 5)), (None, flow(2, 1, 5))], 4);
        denied.take(vec![(Some(account()), flow(1, 3, 9))], 4);
        assert_eq!((denied.flows.len(), denied.lost), (1, 5));
        assert_eq!(denied.lost_in_the_kernel(), 4);
        let mut lost = Lost::default();
        assert_eq!([7, 7, 9, 2].map(|now| lost.note(now)), [7, 0, 2, 2]);
        assert_eq!(lost.all, 11);
        let dropped = denied.flows.values().next().unwrap();
        assert_eq!(dropped.counter, Counter::new(5, 500));
        let seconds = dropped.last.duration_since(dropped.first).unwrap().as_secs_f64();
        assert!((seconds - 8.0).abs() < 1.0, "{seconds}");
    }

    #[test]
    fn the_last_ones_are_kept() {
        let mut denied = LastFlows::default();
        let many = (0..MOST as u16 + 1).map(|n| (Some(account()), flow(n + 1, 1, u64::from(n) + 1)));
        denied.take(many.collect(), 0);
        assert!(denied.flows.len() <= MOST && denied.flows.len() >= MOST / 2 - 1);
        assert!(denied.flows.keys().any(|flow| flow.ports == Some((MOST as u16 + 1, 53))));
        assert!(!denied.flows.keys().any(|flow| flow.ports == Some((1, 53))));
    }
}
