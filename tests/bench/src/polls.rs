//! One poll of a source, beside the bare system calls and beside the tools that print the same counters.
//!
//! The rules do not change meanwhile: this is what the agent does day and night.

use crate::Effort;
use crate::bare::{self, BareReader};
use crate::cost::{self, Cost};
use crate::report::{Measured, Report, Row, Wish};
use crate::rules::LoadedRules;
use crate::samples::{Costs, Summary, take_turns};
use accountant_dataplane::iptables_legacy::{IptablesLegacy, Settings};
use accountant_dataplane::nftables::Nftables;
use accountant_dataplane::{RuleSource, Wanted};
use accountant_lab::felix::Backend;
use anyhow::{Context, Result, bail, ensure};
use std::process::{Command, Stdio};

/// At most so many times what the bare system calls cost.
const OVER_BARE: f64 = 1.3;

/// Where Debian keeps the tools; not everybody's `PATH` has it.
const TOOL_FOLDERS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// The commands that print all counters, of IPv4 and IPv6.
fn tools(backend: Backend) -> (&'static str, &'static [&'static [&'static str]]) {
    match backend {
        Backend::Legacy => (
            "ip(6)tables-legacy-save -c",
            &[&["iptables-legacy-save", "-c"], &["ip6tables-legacy-save", "-c"]],
        ),
        Backend::IptablesNft => {
            ("ip(6)tables-nft-save -c", &[&["iptables-nft-save", "-c"], &["ip6tables-nft-save", "-c"]])
        }
        Backend::Nft => ("nft list ruleset", &[&["nft", "list", "ruleset"]]),
    }
}

/// Measures polls of these rules.
pub(crate) fn measure(rules: &LoadedRules, effort: Effort, report: &mut Report) -> Result<()> {
    rules.node.host().enter(|| {
        first_reading(rules, effort, report)?;
        beside_bare(rules, effort, report)?;
        beside_tools(rules, effort, report)
    })?
}

/// The reading that the agent begins with, and begins anew with when it lost track: everything is decoded.
fn first_reading(rules: &LoadedRules, effort: Effort, report: &mut Report) -> Result<()> {
    let first = || {
        let mut source = source(rules)?;
        cost::of_this_thread(|| poll(&mut *source))
    };
    let costs = Costs((0..effort.seldom).map(|_| first()).collect::<Result<_>>()?);
    report.add(Measured::milliseconds("first poll, CPU", costs.cpu()).row());
    Ok(())
}

fn beside_bare(rules: &LoadedRules, effort: Effort, report: &mut Report) -> Result<()> {
    let mut bare = bare::reader(rules)?;
    let mut source = source(rules)?;
    poll(&mut *source)?;
    report.add(Row::new("bytes that the kernel hands out", Summary::exact(bare.read()? as f64 / 1e6), "MB"));
    let [bare, ours] = take_turns([reading(&mut *bare), polling(&mut *source)], effort.often)?;
    let wall = Measured::milliseconds("bare system calls, wall", bare.wall());
    let cpu = Measured::milliseconds("bare system calls, CPU", bare.cpu());
    report.add(wall.row());
    report.add(cpu.row());
    report
        .add(Measured::milliseconds("poll, wall", ours.wall()).beside(&wall).wanted(Wish::Ratio(OVER_BARE)));
    report.add(Measured::milliseconds("poll, CPU", ours.cpu()).beside(&cpu).wanted(Wish::Ratio(OVER_BARE)));
    Ok(())
}

/// Polls are slower here than beside the bare system calls: they find the caches as other programs left them.
fn beside_tools(rules: &LoadedRules, effort: Effort, report: &mut Report) -> Result<()> {
    let (name, commands) = tools(rules.backend());
    let mut source = source(rules)?;
    poll(&mut *source)?;
    let tool = Box::new(|| cost::of_children(|| commands.iter().try_for_each(|command| run(command))));
    let [ours, tool] = take_turns([polling(&mut *source), tool], effort.seldom)?;
    let wall = Measured::milliseconds("poll after a tool, wall", ours.wall());
    let cpu = Measured::milliseconds("poll after a tool, CPU", ours.cpu());
    report.add(wall.row());
    report.add(cpu.row());
    let against = |part: &str, values: Vec<f64>, ours: &Measured| {
        let row = Measured::milliseconds("", values).beside(ours);
        Row { what: format!("{name}, {part}"), ..row }
    };
    report.add(against("wall", tool.wall(), &wall));
    report.add(against("CPU", tool.cpu(), &cpu));
    Ok(())
}

/// The source as the agent makes it, in the calling thread's network namespace.
fn source(rules: &LoadedRules) -> Result<Box<dyn RuleSource>> {
    let lock_file = rules.node.host().lock_file();
    Ok(match rules.backend() {
        Backend::Legacy => Box::new(IptablesLegacy::new(Settings { lock_file, ..Settings::default() })),
        _ => Box::new(Nftables::new()?),
    })
}

/// Reads once, and drops what was read.
fn poll(source: &mut dyn RuleSource) -> Result<()> {
    let poll = source.read(&Wanted::default())?;
    ensure!(!poll.tables.is_empty(), "the source reads nothing");
    if let Some(error) = poll.tables.iter().find_map(|table| table.snapshot.as_ref().err()) {
        bail!("the source cannot read a table: {error}");
    }
    Ok(())
}

fn polling<'a>(source: &'a mut dyn RuleSource) -> Box<dyn FnMut() -> Result<Cost> + 'a> {
    Box::new(|| cost::of_this_thread(|| poll(source)))
}

fn reading<'a>(bare: &'a mut dyn BareReader) -> Box<dyn FnMut() -> Result<Cost> + 'a> {
    Box::new(|| cost::of_this_thread(|| bare.read()))
}

/// Runs a tool in the calling thread's network namespace; nobody reads what it prints.
fn run(command: &[&str]) -> Result<()> {
    let [tool, arguments @ ..] = command else { return Ok(()) };
    let mut command = Command::new(tool);
    command.args(arguments).env("PATH", TOOL_FOLDERS).stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().with_context(|| format!("starting {tool}"))?;
    ensure!(status.success(), "{tool} failed: {status}");
    Ok(())
}
