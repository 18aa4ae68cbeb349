//! What a source makes of the kernel: snapshots that take time to read, while packets go on passing.
//!
//! * iptables-legacy: all rules CPU by CPU, chains by name. The kernel lets a reader see a CPU only between packets, so
//!   a packet is seen whole or not at all in what is read of its CPU after it.
//! * nftables: endpoint chains first, then the shared chains that changed or are wanted, counter by counter. A packet
//!   can be anywhere, one on each CPU; rules that go hand over their last values.

use crate::kernel::{CPUS, Commit, Kernel, Packet};
use accountant_core::calico::chain::ChainKind;
use accountant_core::rule::{Chain, RuleId};
use accountant_core::snapshot::{Reading, Retired, Snapshot};
use accountant_core::{ChainName, Counter};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A packet on its way while counters are read.
#[derive(Clone, Debug)]
pub(crate) struct Late {
    pub(crate) packet: Packet,
    pub(crate) cpu: usize,
    /// When it comes, in counters read by then; before zero it is under way already.
    pub(crate) at: i64,
    /// How many counters are read from one of its rules to the next.
    pub(crate) stride: i64,
}

/// How a table is polled.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Chains as of the last snapshot.
    known: BTreeMap<ChainName, Arc<Chain>>,
    retired: Vec<Retired>,
    deleted: BTreeSet<ChainName>,
    pub(crate) wanted: Vec<ChainName>,
    gap: bool,
    /// How often the lock file was opened since the last reading, in iptables-legacy.
    rewrites: u32,
    /// The kernel's version at the last reading.
    version: u32,
    /// How many readings will find all counters at zero.
    pub(crate) dip: u32,
    may_dip: bool,
    pub(crate) now: Duration,
    /// Whether nobody listens until the next reading.
    away: bool,
}

impl Source {
    pub(crate) fn new(may_dip: bool) -> Self {
        Self { may_dip, ..Self::default() }
    }

    /// Hears of a commit.
    pub(crate) fn notify(&mut self, commit: Commit) {
        if self.away {
            return;
        }
        self.retired.extend(commit.retired);
        self.deleted.extend(commit.deleted);
    }

    /// The table was rewritten, in iptables-legacy: of several times in a row nobody knows what was between them.
    pub(crate) fn rewritten(&mut self) {
        self.rewrites += 1;
        self.gap |= self.rewrites > 1 && !self.away;
    }

    /// Notifications are lost, and the source notices or does not.
    pub(crate) fn lose(&mut self, noticed: bool) {
        self.gap |= noticed;
        self.retired.clear();
    }

    /// The agent starts anew: it has heard of nothing.
    pub(crate) fn forget(&mut self) {
        *self = Self { now: self.now, may_dip: self.may_dip, dip: self.dip, ..Self::default() };
    }

    /// The agent has gone, and comes back for the next reading. Returns whether rules changed since the last one.
    pub(crate) fn leave(&mut self, kernel: &Kernel) -> bool {
        let changed = kernel.version != self.version;
        self.retired.clear();
        self.deleted.clear();
        self.wanted.clear();
        (self.gap, self.away) = (false, true);
        changed
    }

    pub(crate) fn is_away(&self) -> bool {
        self.away
    }

    pub(crate) fn has_read(&self) -> bool {
        !self.known.is_empty()
    }

    /// The rules of a chain as of the last snapshot.
    pub(crate) fn seen(&self, chain: &ChainName) -> &[RuleId] {
        self.known.get(chain).map_or(&[], |chain| chain.ids())
    }

    pub(crate) fn read(&mut self, kernel: &mut Kernel, late: &[Late]) -> Snapshot {
        let chains = self.chains_to_read(kernel);
        let values = read_while(kernel, &chains, late);
        let legacy = kernel.backend.is_legacy();
        let dips = self.dip > 0;
        self.dip = self.dip.saturating_sub(1);
        let reading = |name: &ChainName| Reading {
            chain: kernel.chains[name].chain.clone(),
            counters: values[name].iter().map(|&v| if dips { Counter::ZERO } else { v }).collect(),
        };
        let snapshot = Snapshot {
            retired: if legacy { vec![] } else { std::mem::take(&mut self.retired) },
            chains: chains.iter().map(reading).collect(),
            gone: if self.away { vec![] } else { self.gone(kernel) },
            version: (!legacy).then_some(kernel.version.into()),
            gap: std::mem::take(&mut self.gap),
            may_dip: self.may_dip,
            in_flight: if legacy { 0 } else { CPUS as u32 },
            at: self.now,
            verdicts: None,
        };
        self.retired.clear();
        self.rewrites = 0;
        (self.away, self.version) = (false, kernel.version);
        self.known = kernel.chains.iter().map(|(name, live)| (name.clone(), live.chain.clone())).collect();
        snapshot
    }

    /// How many counters the next reading will have read before that of this rule.
    pub(crate) fn position(&self, kernel: &Kernel, chain: &ChainName, rule: usize) -> i64 {
        let chains = self.chains_to_read(kernel);
        let before = chains.iter().take_while(|&name| name != chain);
        assert!(chains.contains(chain), "{chain} is not read");
        (before.map(|name| kernel.chains[name].counters.len()).sum::<usize>() + rule) as i64
    }

    fn chains_to_read(&self, kernel: &Kernel) -> Vec<ChainName> {
        let all = kernel.chains.keys().cloned();
        if kernel.backend.is_legacy() || self.away {
            return all.collect();
        }
        let is_shared = |name: &ChainName| ChainKind::of(name).is_shared();
        let changed = |name: &ChainName| {
            self.gap || self.known.get(name).is_none_or(|old| !Arc::ptr_eq(old, &kernel.chains[name].chain))
        };
        let (shared, mut chains): (Vec<_>, Vec<_>) = all.partition(is_shared);
        chains.extend(shared.into_iter().filter(|name| changed(name) || self.wanted.contains(name)));
        chains
    }

    /// Chains that were seen or heard of since the last snapshot and are not there now.
    fn gone(&mut self, kernel: &Kernel) -> Vec<ChainName> {
        let mut gone = std::mem::take(&mut self.deleted);
        gone.extend(self.known.keys().cloned());
        gone.retain(|name| !kernel.chains.contains_key(name));
        gone.into_iter().collect()
    }
}

/// Reads the counters of chains while packets pass. All packets have passed when it returns.
fn read_while(kernel: &mut Kernel, chains: &[ChainName], late: &[Late]) -> BTreeMap<ChainName, Vec<Counter>> {
    let mut packets = schedule(kernel, late).into_iter().peekable();
    let mut values: BTreeMap<ChainName, Vec<Counter>> = BTreeMap::new();
    let legacy = kernel.backend.is_legacy();
    let at_once = if legacy { 1 } else { CPUS };
    let cpus: Vec<_> = (0..CPUS).step_by(at_once).map(|cpu| cpu..cpu + at_once).collect();
    let mut now = 0;
    for cpus in cpus {
        for name in chains {
            let rules = kernel.chains[name].counters.len();
            let values = values.entry(name.clone()).or_insert_with(|| vec![Counter::ZERO; rules]);
            for (rule, value) in values.iter_mut().enumerate() {
                while let Some(event) = packets.next_if(|event| event.at <= now) {
                    kernel.count(&event.step, event.cpu, event.size);
                }
                *value = kernel.chains[name].counters[rule][cpus.clone()].iter().fold(*value, add);
                now += 1;
            }
        }
    }
    packets.for_each(|event| kernel.count(&event.step, event.cpu, event.size));
    values
}

/// As the kernel adds up the counters of its CPUs.
fn add(sum: Counter, part: &Counter) -> Counter {
    Counter { packets: sum.packets.wrapping_add(part.packets), bytes: sum.bytes.wrapping_add(part.bytes) }
}

/// One rule counts one packet.
struct Event {
    at: i64,
    step: crate::kernel::Step,
    cpu: usize,
    size: u64,
}

/// When which rule counts which packet; a CPU has one packet at a time.
fn schedule(kernel: &Kernel, late: &[Late]) -> Vec<Event> {
    let mut events = Vec::new();
    let mut free_at = [i64::MIN; CPUS];
    for Late { packet, cpu, at, stride } in late {
        let stride = if kernel.backend.is_legacy() { 0 } else { *stride };
        let mut at = *at.max(&free_at[*cpu]);
        for step in kernel.walk(packet).0 {
            events.push(Event { at, step, cpu: *cpu, size: packet.size });
            at += stride;
        }
        free_at[*cpu] = at;
    }
    events.sort_by_key(|event| event.at);
    events
}
