//! A poll that reads counters in place, beside the bare system calls of a whole reading and beside the source that reads as
//! everybody does; and what the program that watches rewrites costs the system calls of everybody while it is attached.

use crate::Effort;
use crate::bare;
use crate::cost;
use crate::report::{Measured, Report, Row, Wish};
use crate::rules::LoadedRules;
use crate::samples::{Contender, Summary, take_turns};
use accountant_dataplane::iptables_legacy::{IptablesLegacy, Settings};
use accountant_dataplane::kernel::Programs;
use accountant_dataplane::nftables::Nftables;
use accountant_dataplane::source::How;
use accountant_dataplane::{RuleSource, Wanted};
use accountant_lab::felix::Backend;
use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::time::{Duration, Instant};

/// Wanted at the biggest size: at most so much of the bare system calls.
const OF_GETSOCKOPT: f64 = 1.0 / 50.0;
const OF_NETLINK: f64 = 1.0 / 30.0;
/// Wanted at the usual size: ten polls a second for at most one percent of a core.
const TEN_POLLS: f64 = 1.0;
const USUAL: usize = 23_500;
const BIGGEST: usize = 107_000;
/// System calls of a round.
const CALLS: u32 = 200_000;

/// Measures readings in place of these rules.
pub(crate) fn measure(rules: &LoadedRules, effort: Effort, report: &mut Report) -> Result<()> {
    rules.node.host().enter(|| {
        polls(rules, effort, report)?;
        if rules.backend() == Backend::Legacy { watch(rules, effort, report) } else { Ok(()) }
    })?
}

fn polls(rules: &LoadedRules, effort: Effort, report: &mut Report) -> Result<()> {
    let mut bare = bare::reader(rules)?;
    let (mut ours, mut theirs) = (source(rules, true)?, source(rules, false)?);
    let how = read(&mut *ours)?;
    ensure!(how.is_in_place(), "{}", how.describe(ours.source()));
    read(&mut *theirs)?;
    let contenders: [Contender<'_>; 3] = [
        Box::new(|| cost::of_this_thread(|| bare.read())),
        Box::new(|| cost::of_this_thread(|| read(&mut *ours))),
        Box::new(|| cost::of_this_thread(|| read(&mut *theirs))),
    ];
    let [bare, ours, theirs] = take_turns(contenders, effort.often)?;
    let bare = Measured::milliseconds("bare system calls of a whole reading, CPU", bare.cpu());
    let ours = Measured::milliseconds("poll in place, CPU", ours.cpu());
    let theirs = Measured::milliseconds("poll not in place, CPU", theirs.cpu());
    let most = if rules.backend() == Backend::Legacy { OF_GETSOCKOPT } else { OF_NETLINK };
    let wish = (rules.size.rules == BIGGEST).then_some(Wish::Ratio(most));
    report.add(bare.row());
    report.add(Row { wish, ..ours.beside(&bare) });
    report.add(theirs.beside(&bare));
    // A poll's milliseconds ten times a second, in percent of a core.
    let share = ours.values.iter().map(|milliseconds| milliseconds * 10.0 / 1000.0 * 100.0);
    let share = Row::new("ten polls a second", Summary::of(share), "% of a core");
    report.add(Row { wish: (rules.size.rules == USUAL).then_some(Wish::Value(TEN_POLLS)), ..share });
    Ok(())
}

/// System calls of this thread while the watch is attached, and while it is not.
fn watch(rules: &LoadedRules, effort: Effort, report: &mut Report) -> Result<()> {
    let mut source = source(rules, true)?;
    read(&mut *source)?;
    settle(&mut *source, Duration::ZERO)?;
    let lock_file = rules.node.host().lock_file();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..effort.seldom {
        without.push(nanoseconds_a_call());
        let opened = File::open(&lock_file).context("opening the lock file")?;
        settle(&mut *source, Duration::ZERO)?;
        with.push(nanoseconds_a_call());
        drop(opened);
        // It lingers for two seconds.
        settle(&mut *source, Duration::from_millis(2_500))?;
    }
    let without = Measured { what: "a system call, watch detached", values: without, unit: "ns" };
    let with = Measured { what: "a system call, watch attached", values: with, unit: "ns" };
    report.add(without.row());
    report.add(with.beside(&without));
    Ok(())
}

/// Lets the source do what its news ask for, until there is none for so long.
fn settle(source: &mut dyn RuleSource, until_silent: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let fd = source.events().context("the source has no news")?;
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        let left = until_silent.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
        poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO))?;
        let news = fds[0].any().unwrap_or(true);
        if news {
            source.on_events()?;
        } else if start.elapsed() >= until_silent {
            return Ok(());
        }
    }
}

/// What the cheapest system call costs that the C library does not answer itself.
fn nanoseconds_a_call() -> f64 {
    let start = Instant::now();
    for _ in 0..CALLS {
        std::hint::black_box(nix::unistd::getppid());
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

fn source(rules: &LoadedRules, in_place: bool) -> Result<Box<dyn RuleSource>> {
    let lock_file = rules.node.host().lock_file();
    Ok(match rules.backend() {
        Backend::Legacy => {
            Box::new(IptablesLegacy::new(Settings { lock_file, in_place, ..Settings::default() }))
        }
        _ => Box::new(Nftables::with(in_place, Programs::new(false))?),
    })
}

fn read(source: &mut dyn RuleSource) -> Result<How> {
    let poll = source.read(&Wanted::default())?;
    ensure!(!poll.tables.is_empty(), "the source reads nothing");
    Ok(poll.how)
}
