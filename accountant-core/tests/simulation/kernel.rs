//! A packet filter: chains with counters by CPU, packets that walk through them, and commits that rewrite them.
//!
//! Rules are evaluated, not believed: what a packet meets follows from matches, marks and targets. What becomes of it
//! is compared with what the world meant, so that the simulation checks itself.

use crate::felix::{ACCEPT, DROP, PASS};
use accountant_core::calico::shared::PolicyAction;
use accountant_core::rule::{Action, Chain, Rule};
use accountant_core::snapshot::Retired;
use accountant_core::{ChainName, Counter};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub(crate) const CPUS: usize = 2;

/// How a change gets into the kernel, and what of the counters stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// iptables-legacy: rules before the first changed one keep their counters; nobody is told of the others' last.
    Legacy,
    /// iptables-nft: a changed chain is written anew.
    NftWhole,
    /// Calico's own nftables table up to 3.32: rules are replaced from the first changed one on.
    Native,
}

impl Backend {
    pub(crate) fn is_legacy(self) -> bool {
        self == Self::Legacy
    }
}

/// A packet and what each policy or profile that matches it does with it.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) entry: ChainName,
    pub(crate) verdicts: HashMap<ChainName, PolicyAction>,
    pub(crate) established: bool,
    pub(crate) size: u64,
}

/// A rule that counts a packet.
pub(crate) type Step = (ChainName, usize);

#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) chain: Arc<Chain>,
    pub(crate) counters: Vec<[Counter; CPUS]>,
}

#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) backend: Backend,
    pub(crate) chains: BTreeMap<ChainName, Live>,
    /// How many commits changed anything.
    pub(crate) version: u32,
}

/// What a commit did to chains that were there.
#[derive(Debug, Default)]
pub(crate) struct Commit {
    pub(crate) retired: Vec<Retired>,
    pub(crate) deleted: Vec<ChainName>,
    /// Chains that changed, and how many of their first rules stayed.
    pub(crate) kept: Vec<(ChainName, usize)>,
    pub(crate) added: bool,
}

impl Live {
    fn new(chain: Chain) -> Self {
        let rules = chain.rules().len();
        Self { chain: Arc::new(chain), counters: vec![[Counter::ZERO; CPUS]; rules] }
    }

    pub(crate) fn value(&self, rule: usize) -> Counter {
        self.counters[rule].iter().copied().sum()
    }

    fn retire_from(&self, first: usize) -> Retired {
        let finals = (first..self.counters.len())
            .filter(|&rule| self.chain.rules()[rule].counted)
            .map(|rule| (rule, self.value(rule)))
            .collect();
        Retired { chain: self.chain.clone(), finals, lost: vec![] }
    }
}

impl Kernel {
    pub(crate) fn new(backend: Backend) -> Self {
        Self { backend, chains: BTreeMap::new(), version: 0 }
    }

    /// Makes the chains those that Felix wants, by as few changes as the backend makes.
    pub(crate) fn commit(&mut self, mut wanted: BTreeMap<ChainName, Chain>) -> Commit {
        let mut commit = Commit::default();
        let names: Vec<_> = self.chains.keys().cloned().collect();
        for name in names {
            match wanted.remove(&name) {
                Some(chain) => self.rewrite(&name, chain, &mut commit),
                None => {
                    let gone = self.chains.remove(&name).expect("listed");
                    commit.retired.push(gone.retire_from(0));
                    commit.kept.push((name.clone(), 0));
                    commit.deleted.push(name);
                }
            }
        }
        commit.added = !wanted.is_empty();
        self.version += u32::from(commit.added || !commit.retired.is_empty());
        self.chains.extend(wanted.into_iter().map(|(name, chain)| (name, Live::new(chain))));
        commit
    }

    fn rewrite(&mut self, name: &ChainName, chain: Chain, commit: &mut Commit) {
        let live = self.chains.get_mut(name).expect("listed");
        if live.chain.same_rules(&chain) {
            return;
        }
        let kept = match self.backend {
            Backend::NftWhole => 0,
            _ => live.chain.ids().iter().zip(chain.ids()).take_while(|(old, new)| old == new).count(),
        };
        commit.retired.push(live.retire_from(kept));
        commit.kept.push((name.clone(), kept));
        let mut new = Live::new(chain);
        new.counters[..kept].copy_from_slice(&live.counters[..kept]);
        *live = new;
    }

    /// The rules that count a packet, in order, and whether it is accepted.
    pub(crate) fn walk(&self, packet: &Packet) -> (Vec<Step>, bool) {
        let mut walk = Walk { kernel: self, packet, mark: 0, steps: Vec::new() };
        let verdict = walk.through(&packet.entry);
        let accepted = verdict.unwrap_or(walk.mark & ACCEPT != 0);
        (walk.steps, accepted)
    }

    pub(crate) fn count(&mut self, (chain, rule): &Step, cpu: usize, size: u64) {
        let counter = &mut self.chains.get_mut(chain).expect("walked").counters[*rule][cpu];
        *counter =
            Counter { packets: counter.packets.wrapping_add(1), bytes: counter.bytes.wrapping_add(size) };
    }

    /// Gives a counter a value.
    pub(crate) fn set(&mut self, chain: &ChainName, rule: usize, value: Counter) {
        let counters = &mut self.chains.get_mut(chain).expect("there").counters[rule];
        counters.fill(Counter::ZERO);
        counters[0] = value;
    }

    /// Somebody zeroes the counters of a chain, or of all.
    pub(crate) fn wipe(&mut self, nth: Option<usize>) {
        let chains = self.chains.len().max(1);
        for (k, live) in self.chains.values_mut().enumerate() {
            if nth.is_none_or(|nth| nth % chains == k) {
                live.counters.fill([Counter::ZERO; CPUS]);
            }
        }
    }
}

struct Walk<'a> {
    kernel: &'a Kernel,
    packet: &'a Packet,
    mark: u32,
    steps: Vec<Step>,
}

impl Walk<'_> {
    /// The verdict, or nothing if the packet comes back out of the chain.
    fn through(&mut self, name: &ChainName) -> Option<bool> {
        let chain = &self.kernel.chains.get(name).unwrap_or_else(|| panic!("{name} is called")).chain;
        for (index, rule) in chain.rules().iter().enumerate() {
            if !self.matches(name, rule) {
                continue;
            }
            if rule.counted {
                self.steps.push((name.clone(), index));
            }
            match &rule.action {
                Action::Accept => return Some(true),
                Action::Drop | Action::Reject => return Some(false),
                Action::Return => return None,
                Action::SetMark { value, mask } => self.mark = (self.mark & !mask) ^ value,
                Action::Jump(target) => {
                    if let Some(verdict) = self.through(target) {
                        return Some(verdict);
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn matches(&self, chain: &ChainName, rule: &Rule) -> bool {
        let matches = &rule.matches;
        let mark = matches.mark.is_none_or(|m| (self.mark & m.mask == m.value) != m.invert);
        let ct = matches.ct.is_none_or(|ct| ct.established && self.packet.established);
        mark && ct && (!matches.others || self.is_meant(chain, &rule.action))
    }

    /// Whether the user's rule behind this one is the one that the packet was made for.
    fn is_meant(&self, chain: &ChainName, action: &Action) -> bool {
        let meant = match action {
            Action::SetMark { value: ACCEPT, .. } => PolicyAction::Allow,
            Action::SetMark { value: DROP, .. } => PolicyAction::Deny,
            Action::SetMark { value: PASS, .. } => PolicyAction::Pass,
            _ => return false,
        };
        self.packet.verdicts.get(chain) == Some(&meant)
    }
}
