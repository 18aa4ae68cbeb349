//! What the programs in the packets' path cost a packet: each beside a program of the same type that does nothing, by the
//! kernel's statistics of programs, in real traffic through real rules.
//!
//! Packets come from outside to one pod, so that one list is looked at. Established packets are answered ones; new packets
//! are never answered. The kernel's own looks at the clock are in all figures, and cancel out in what is told.

use crate::Effort;
use crate::report::{Report, Row, Wish};
use crate::samples::Summary;
use accountant_core::calico::PolicyKind::NetworkPolicy;
use accountant_dataplane::iptables_legacy::{IptablesLegacy, Settings};
use accountant_dataplane::kernel::{Programs, keep_statistics};
use accountant_dataplane::nftables::Nftables;
use accountant_dataplane::{Poll, RuleSource, Wanted};
use accountant_lab::felix::{Backend, Dialect, Version};
use accountant_lab::policy::{Endpoint, Model, Policy, Profile, Rule, Selector, Tier, TierEnd};
use accountant_lab::traffic::{Flood, UdpEcho, Until};
use accountant_lab::{Node, Scenario};
use accountant_sys::bpf::{self, Kind, Runs};
use anyhow::{Context, Result, ensure};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// How many counters are to be watched, about.
pub(crate) const WATCHED: [usize; 3] = [4, 16, 64];
/// Wanted: a packet of an answered connection at most so many nanoseconds in both programs of a hook together.
const ESTABLISHED: f64 = 100.0;
/// Wanted: a new packet with 16 counters at most so many, in all.
const NEW: f64 = 600.0;
/// Packets of a round.
const PACKETS: u64 = 20_000;
/// What the last policy allows.
pub(crate) const PORT: u16 = 5000;
/// Counters that are watched beside those of policies, and for each policy.
const BESIDE: usize = 8;
const EACH: usize = 2;
/// `mov r0, 1; exit`: `NF_ACCEPT`.
const EMPTY: [u8; 16] = [0xb7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
/// `NFPROTO_IPV4`, `NF_INET_FORWARD`, and a priority in front of the agent's programs.
const IPV4: u32 = 2;
const FORWARD: u32 = 2;
const FIRST: i32 = -2;

/// Measures one backend with so many counters.
pub(crate) fn measure(backend: Backend, watched: usize, effort: Effort, report: &mut Report) -> Result<()> {
    let scenario = scenario(watched.saturating_sub(BESIDE) / EACH);
    let node = scenario.node()?;
    node.felix(Dialect::new(Version::V3_31, backend)?).apply(&scenario.model)?;
    node.host().enter(|| in_node(&node, backend, effort, report))?
}

fn in_node(node: &Node, backend: Backend, effort: Effort, report: &mut Report) -> Result<()> {
    let _statistics = keep_statistics().context("keeping statistics")?;
    let programs = Programs::new(true);
    let mut source = source(node, backend, programs.clone())?;
    source.read(&Wanted::default())?;
    if let Some(reason) = programs.reason() {
        anyhow::bail!("no programs: {reason}");
    }
    let empty = Empty::attach()?;
    let pod = node.pod("n", "pod")?;
    let flood = Flood { until: Until::Packets(PACKETS), ..Flood::new(pod.v4()?, PORT) };
    let round = || -> Result<[f64; 2]> {
        let before = (programs.runs(), empty.runs()?);
        flood.run(node.outside())?;
        let after = (programs.runs(), empty.runs()?);
        let nothing = each(before.1, after.1);
        let of = |name: &str| {
            let find = |all: &[(&str, Runs)]| all.iter().find(|(known, _)| *known == name).map(|(_, r)| *r);
            each(find(&before.0).unwrap_or_default(), find(&after.0).unwrap_or_default())
        };
        Ok(["before", "after"].map(|name| of(name) - nothing))
    };
    // New ones first: what was answered once stays established.
    let new = (0..effort.seldom).map(|_| round()).collect::<Result<Vec<_>>>()?;
    let watched = watched(&source.read(&Wanted::default())?)?;
    let _echo = UdpEcho::new(&pod.netns, pod.v4()?, PORT)?;
    let established = (0..effort.seldom).map(|_| round()).collect::<Result<Vec<_>>>()?;
    for (kind, rounds, wish) in [
        ("established", established, Some(ESTABLISHED)),
        ("new", new, Some(NEW).filter(|_| watched.abs_diff(16) <= EACH)),
    ] {
        for (index, program) in ["before", "after"].into_iter().enumerate() {
            let values = Summary::of(rounds.iter().map(|both| both[index]));
            report.add(Row::new(format!("{kind} packet, {watched} watched, `{program}`"), values, "ns"));
        }
        let both = Summary::of(rounds.iter().map(|both| both[0] + both[1]));
        let row = Row::new(format!("{kind} packet, {watched} watched, both"), both, "ns");
        report.add(Row { wish: wish.map(Wish::Value), ..row });
    }
    Ok(())
}

/// Nanoseconds of each run between two looks.
fn each(before: Runs, after: Runs) -> f64 {
    let runs = after.count.saturating_sub(before.count);
    after.time.saturating_sub(before.time).as_nanos() as f64 / runs as f64
}

/// How many counters of the pod's chain are watched. Each packet was seen with its path, or nothing was measured.
fn watched(poll: &Poll) -> Result<usize> {
    let snapshots = poll.tables.iter().filter_map(|table| table.snapshot.as_ref().ok());
    let chains: Vec<_> =
        snapshots.filter_map(|s| s.verdicts.as_ref()).flat_map(|around| &around.after).collect();
    let to_pod = chains.iter().find(|chain| chain.new[0].packets >= PACKETS).context("no packet was seen")?;
    ensure!(to_pod.unresolved == 0, "{} packets had no path", to_pod.unresolved);
    let list = to_pod.lists.last().context("no counters are watched")?;
    Ok(list.list.rules.len())
}

/// A program that does nothing, attached.
struct Empty {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    fn attach() -> Result<Self> {
        let program = bpf::load_program(Kind::Netfilter, "empty", &EMPTY, &mut [])?;
        let link = bpf::link_netfilter(program.as_fd(), IPV4, FORWARD, FIRST)?;
        Ok(Self { program, _link: link })
    }

    fn runs(&self) -> Result<Runs> {
        Ok(bpf::runs(self.program.as_fd())?)
    }
}

/// One pod with so many policies, of which the last one allows.
pub(crate) fn scenario(policies: usize) -> Scenario {
    let mut tier = Tier::new("default", TierEnd::Deny);
    for number in 0..policies.max(1) {
        // Neighbours that select in the same way would be a group.
        let selector = if number % 2 == 0 { Selector::All } else { Selector::is("app", "pod") };
        let port = if number + 1 == policies.max(1) { PORT } else { 1 };
        let policy = Policy::new(NetworkPolicy, "n", &format!("p{number:02}"), selector);
        tier = tier.with(policy.ingress([Rule::allow().udp(&[port])]));
    }
    let pod = Endpoint::new("n", "pod", &[std::net::Ipv4Addr::new(10, 65, 0, 2).into()]).label("app", "pod");
    let profiles = vec![Profile::namespace("n"), Profile::service_account("n", "default")];
    let model = Model { endpoints: vec![pod], tiers: vec![tier], profiles, ..Model::default() };
    Scenario { name: format!("{policies} policies"), model, real_pods: 1 }
}

fn source(node: &Node, backend: Backend, programs: Arc<Programs>) -> Result<Box<dyn RuleSource>> {
    let lock_file = node.host().lock_file();
    Ok(match backend {
        Backend::Legacy => {
            Box::new(IptablesLegacy::new(Settings { lock_file, programs, ..Settings::default() }))
        }
        _ => Box::new(Nftables::with(true, programs)?),
    })
}
