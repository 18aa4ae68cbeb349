//! What the programs beside Calico's eBPF dataplane cost a packet, each over a program of the same type that does nothing, by
//! the kernel's statistics of programs. Calico's part is a stand-in's.
//!
//! Packets go from one pod to another, through both hooks at each. The kernel's own looks at the clock are in all figures, and
//! cancel out in what is told.

use crate::Effort;
use crate::report::{Report, Row, Wish};
use crate::samples::Summary;
use crate::stand_in::{NEWEST, Pins, StandIn, attach};
use accountant_abi::calico::{EGRESS, INGRESS};
use accountant_abi::stand_in::{Case, SKIP};
use accountant_dataplane::calico_bpf::{CalicoBpf, STAND_IN, Settings};
use accountant_dataplane::kernel::keep_statistics;
use accountant_dataplane::{RuleSource, Wanted};
use accountant_lab::Node;
use accountant_lab::policy::Endpoint;
use accountant_lab::traffic::{Flood, Until};
use anyhow::{Context, Result};
use aya::programs::links::FdLink;
use aya::programs::{LinkOrder, RawTracePoint, TcAttachType, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use std::collections::BTreeMap;
use std::time::Duration;

/// Packets of a round.
const PACKETS: u64 = 20_000;
const PORT: u16 = 7000;
/// Wanted: at most so many nanoseconds in front of Calico's program, behind it when policy was not asked, and when it was.
const BEFORE: f64 = 40.0;
const AFTER: f64 = 20.0;
const AFTER_POLICY: f64 = 100.0;
/// The programs by what they are beside; of each direction one.
const TC: [&str; 2] = ["before", "after"];
const NOTHING: [&str; 2] = ["empty_tc", "empty_raw"];

/// How often a program of a name ran, and for how long.
type Runs = BTreeMap<String, (u64, Duration)>;

pub(crate) fn measure(effort: Effort, report: &mut Report) -> Result<()> {
    let pod = |name, last| Endpoint::new("n", name, &[std::net::Ipv4Addr::new(10, 65, 0, last).into()]);
    let pods = [pod("a", 2), pod("b", 3)];
    let (node, pins) = (Node::new(&pods)?, Pins::new());
    node.host().enter(|| in_node(&node, &pins, &pods, effort, report))?
}

fn in_node(
    node: &Node,
    pins: &Pins,
    pods: &[Endpoint; 2],
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let mut stand_in = StandIn::new(pins, NEWEST);
    pods.iter().for_each(|pod| stand_in.attach_both(pod.interface.as_str()));
    let mut source = CalicoBpf::new(Settings { pins: pins.path(), listings: pins.listings() })?;
    let read = source.read(&Wanted::default())?;
    anyhow::ensure!(read.how.is_in_place(), "no programs: {:?}", read.how);
    let _nothing = nothing(pods)?;
    let _statistics = keep_statistics().context("keeping statistics")?;
    let [a, b] = ["a", "b"].map(|name| node.pod("n", name));
    let (a, to) = (a?, b?.v4()?);
    let allow = Case { said: 1, hits: 2, mark: 0x0100_0000, rules: case_rules(), ..Case::default() };
    let skip = Case { flags: SKIP, mark: 0x0100_0000, ..Case::default() };
    let deny = Case { said: 2, ..allow };
    for (kind, at_a, at_b, wishes) in [
        ("policy not asked", skip, skip, [Some(BEFORE), Some(AFTER), None]),
        ("policy asked, accepted", allow, allow, [None, Some(AFTER_POLICY), None]),
        ("policy asked, denied", allow, deny, [None, None, None]),
    ] {
        stand_in.decide(PORT, INGRESS, at_a);
        stand_in.decide(PORT, EGRESS, at_b);
        let round = || -> Result<[Option<f64>; 3]> {
            let before = runs()?;
            Flood { until: Until::Packets(PACKETS), ..Flood::new(to, PORT) }.run(&a.netns)?;
            let after = runs()?;
            let of = |names: &[String]| each(&before, &after, names);
            let both = |place: &str| of(&["ingress", "egress"].map(|way| format!("{place}_{way}")));
            let [empty_tc, empty_raw] = NOTHING.map(|name| of(&[name.to_string()]));
            let over = |one: Option<f64>, other: Option<f64>| Some(one? - other?);
            let [in_front, behind] = TC.map(|place| over(both(place), empty_tc));
            Ok([in_front, behind, over(of(&["kfree_skb".into()]), empty_raw)])
        };
        let rounds = (0..effort.seldom).map(|_| round()).collect::<Result<Vec<_>>>()?;
        for (index, program) in ["before", "after", "kfree_skb"].into_iter().enumerate() {
            let values: Option<Vec<f64>> = rounds.iter().map(|round| round[index]).collect();
            let Some(values) = values else { continue };
            let row = Row::new(format!("{kind}, `{program}`"), Summary::of(values), "ns");
            report.add(Row { wish: wishes[index].map(Wish::Value), ..row });
        }
    }
    drop(source);
    Ok(())
}

fn case_rules() -> [u64; 4] {
    [0x8b94_0d2c_2996_771a, 0x7b14_43b2_419f_c24f, 0, 0]
}

/// All programs of these names, whoever loaded them last.
fn runs() -> Result<Runs> {
    let mut runs = Runs::new();
    for program in loaded_programs() {
        // One that has just gone is not among those that are measured.
        let Ok(program) = program else { continue };
        let name = program.name_as_str().unwrap_or_default().to_string();
        runs.insert(name, (program.run_count(), program.run_time()));
    }
    Ok(runs)
}

/// Nanoseconds of each run between two looks; none where hardly any ran.
fn each(before: &Runs, after: &Runs, names: &[String]) -> Option<f64> {
    let sum = |runs: &Runs| {
        let found = names.iter().filter_map(|name| runs.get(name));
        found.fold((0, Duration::ZERO), |(count, time), (c, t)| (count + c, time + *t))
    };
    let (before, after) = (sum(before), sum(after));
    let count = after.0.saturating_sub(before.0);
    (count >= PACKETS / 2).then(|| after.1.saturating_sub(before.1).as_nanos() as f64 / count as f64)
}

/// Programs that do nothing: in front of all at one hook of the first pod, and at the tracepoint.
fn nothing(pods: &[Endpoint; 2]) -> Result<(Ebpf, FdLink)> {
    let mut ebpf = EbpfLoader::new().btf(None).load(STAND_IN)?;
    let interface = pods[0].interface.as_str();
    let link = attach(&mut ebpf, "empty_tc", interface, TcAttachType::Ingress, LinkOrder::first());
    let raw: &mut RawTracePoint = ebpf.program_mut("empty_raw").context("no empty program")?.try_into()?;
    raw.load()?;
    raw.attach("kfree_skb")?;
    Ok((ebpf, link))
}
