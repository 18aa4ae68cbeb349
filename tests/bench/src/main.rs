//! Measures what the agent costs, beside the least that it could cost and beside the tools that others use.
//!
//! Rule sets of three sizes are loaded for each backend into network namespaces of their own, which are removed at the
//! end, after an error too. What is compared is measured in turns within one run, because machines are noisy; what is
//! told is the median, with the quartiles beside it. There are no assertions on time: a wish that is not fulfilled is
//! said to be missed, and the run goes on.
//!
//! * [`bare`]: the system calls that a reading needs at least, and nothing else;
//! * [`polls`]: the sources of `accountant-dataplane` beside those and beside the tools;
//! * [`in_place`]: polls that read counters in place, and what watching rewrites costs others;
//! * [`beside`]: programs beside Calico's eBPF dataplane, the same way;
//! * [`programs`]: programs in the packets' path, beside one that does nothing;
//! * [`flood`]: what a flood of small packets loses by them;
//! * [`stand_in`]: what plays Calico's eBPF dataplane;
//! * [`scrapes`]: rendering and compressing what is exported;
//! * [`agent`]: memory and processor time of the real binary.

#![forbid(unsafe_code)]

mod agent;
mod bare;
mod beside;
mod cost;
mod flood;
mod in_place;
mod machine;
mod markdown;
mod polls;
mod programs;
mod report;
mod rules;
mod samples;
mod scrapes;
#[path = "../../kernel/calico_bpf/stand_in.rs"]
mod stand_in;

use accountant_lab::netns;
use anyhow::{Context, Result};
use clap::Parser;
use report::Report;
use rules::{BACKENDS, LoadedRules, SIZES, Size};
use std::path::PathBuf;

/// Measure the packet accountant.
#[derive(Debug, Parser)]
#[command(name = "accountant-bench")]
struct Args {
    /// Write the measurements to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write machine and measurements into this Markdown file, where it has a place for them: docs/performance.md.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// A short run: the smallest set of rules, few repetitions.
    #[arg(long)]
    quick: bool,
    /// Only measurements whose name contains this, like `iptables-legacy/23500`, `poll`, `programs`, `scrape` or `agent`; can be
    /// given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// The agent's binary. Default: the one beside this program.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Repetitions of what takes milliseconds.
    often: usize,
    /// Repetitions of what takes up to seconds.
    seldom: usize,
    /// Poll intervals over which the agent is watched.
    intervals: usize,
}

const FULL: Effort = Effort { often: 61, seldom: 5, intervals: 3 };
const QUICK: Effort = Effort { often: 21, seldom: 3, intervals: 1 };

fn main() -> Result<()> {
    let args = Args::parse();
    // What a run that was killed left behind; namespaces of runs that are alive stay.
    netns::remove_abandoned()?;
    let mut report = Report::default();
    println!("{}\n", machine::describe());
    measure(&args, &mut report)?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report.to_json())?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &args.markdown {
        let old = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let new = markdown::insert(&old, &report)
            .with_context(|| format!("{} has no place for measurements", path.display()))?;
        std::fs::write(path, new).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let (effort, sizes, series) = if args.quick {
        (QUICK, &SIZES[..1], &scrapes::SERIES[..2])
    } else {
        (FULL, &SIZES[..], &scrapes::SERIES[..])
    };
    for series in series.iter().filter(|series| args.wants(&format!("scrape/{series}"))) {
        scrapes::measure(*series, effort, report)?;
    }
    for backend in [BACKENDS[0], BACKENDS[2]] {
        let name = format!("{backend}/programs");
        if args.wants(&name) {
            report.section(
                &name,
                &format!("{backend}: programs in the packets' path, over one that does nothing"),
            );
            for watched in programs::WATCHED {
                programs::measure(backend, watched, effort, report)?;
            }
        }
    }
    if args.wants("iptables-legacy/flood") {
        let title = "iptables-legacy: a flood of 64-byte packets with programs in its path";
        report.section("iptables-legacy/flood", title);
        flood::measure(effort, report)?;
    }
    if args.wants("calico-bpf/programs") {
        let title = "calico-bpf: programs beside Calico's, over one of the same type that does nothing";
        report.section("calico-bpf/programs", title);
        beside::measure(effort, report)?;
    }
    for size in sizes {
        measure_size(args, *size, effort, report)?;
    }
    Ok(())
}

fn measure_size(args: &Args, size: Size, effort: Effort, report: &mut Report) -> Result<()> {
    for backend in BACKENDS {
        let name = format!("{backend}/{}", size.rules);
        let (polls, agent) = (args.wants(&format!("{name}/poll")), args.wants(&format!("{name}/agent")));
        let in_place = args.wants(&format!("{name}/in-place"));
        if !polls && !in_place && !agent {
            continue;
        }
        eprintln!("loading {} rules with {backend}", size.rules);
        let loaded = LoadedRules::load(size, backend)?;
        report.section(&name, &loaded.to_string());
        if polls {
            polls::measure(&loaded, effort, report)?;
        }
        if in_place {
            in_place::measure(&loaded, effort, report)?;
        }
        if agent {
            agent::measure(&loaded, &args.agent()?, effort, report)?;
        }
    }
    Ok(())
}

impl Args {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    fn agent(&self) -> Result<PathBuf> {
        let beside = || Ok(std::env::current_exe()?.with_file_name("accountant"));
        let path = self.agent.clone().map_or_else(beside, anyhow::Ok)?;
        path.canonicalize()
            .with_context(|| format!("there is no {}: `cargo xtask build` makes it", path.display()))
    }
}
