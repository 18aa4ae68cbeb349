//! What work costs: time on the wall, and processor time of whoever does it.
//!
//! Processor time comes from the kernel's clocks, in nanoseconds, so that a single poll can be measured.

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// What some work cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Time on the wall.
    pub(crate) wall: Duration,
    /// Processor time, of the kernel and of the program.
    pub(crate) cpu: Duration,
}

/// Work that the calling thread does itself.
pub(crate) fn of_this_thread<T>(work: impl FnOnce() -> Result<T>) -> Result<Cost> {
    measure(|| Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into()), work)
}

/// Work of programs that are started and waited for meanwhile, all by the same thread.
pub(crate) fn of_children<T>(work: impl FnOnce() -> Result<T>) -> Result<Cost> {
    measure(children, work)
}

/// What a process does while it is asked for something.
pub(crate) fn of_process<T>(pid: u32, work: impl FnOnce() -> Result<T>) -> Result<Cost> {
    measure(|| process(pid), work)
}

/// Processor time that a process has had so far.
pub(crate) fn process(pid: u32) -> Result<Duration> {
    let pid = Pid::from_raw(i32::try_from(pid)?);
    let clock = clock_getcpuclockid(pid).with_context(|| format!("finding the clock of process {pid}"))?;
    Ok(clock_gettime(clock)?.into())
}

fn children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let microseconds = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs())
            + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    Ok(microseconds(usage.user_time()) + microseconds(usage.system_time()))
}

fn measure<T>(clock: impl Fn() -> Result<Duration>, work: impl FnOnce() -> Result<T>) -> Result<Cost> {
    let (cpu, wall) = (clock()?, Instant::now());
    let result = work()?;
    let cost = Cost { wall: wall.elapsed(), cpu: clock()?.saturating_sub(cpu) };
    // Whatever was made is taken away outside of what is measured.
    drop(result);
    Ok(cost)
}
