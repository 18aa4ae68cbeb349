//! The real agent on a node: what it takes to start, its memory, its processor time between and under scrapes.

use crate::cost::{self, Cost};
use crate::report::{Measured, Report, Row, Wish};
use crate::rules::{LoadedRules, Size};
use crate::samples::{Contender, Summary, take_turns};
use crate::{Effort, machine};
use accountant_lab::agent::ADDRESS;
use accountant_lab::traffic::{Flood, Until};
use accountant_lab::{Agent, Namespace};
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// The default of `--poll-interval`.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Wanted of a node of usual size.
const MEGABYTES: f64 = 25.0;
/// Wanted of any node, of one processor.
const IDLE_PERCENT: f64 = 0.5;
/// Nodes for which the wish about memory holds.
const USUAL: Size = Size { rules: 23_500, pods: 110 };
/// Packets a second of the traffic under which it is watched.
const TRAFFIC: u32 = 2_000;
/// The port that the last policy of `scale` allows.
const ALLOWED_PORT: u16 = 7;

/// Measures the agent on this node.
pub(crate) fn measure(
    rules: &LoadedRules,
    program: &Path,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    rules.scenario.write_manifests(folder.path())?;
    let manifests = folder.path().to_str().context("the folder of temporary files has a strange name")?;
    // No reading under scrapes: what a reading costs is seen between them.
    let kept = tempfile::tempdir()?;
    let state = format!("--state-dir={}", kept.path().display());
    let arguments = ["--manifests", manifests, "--node-name", "lab-node", "--max-age", "1h", &state];
    let node = rules.node.host();
    let started = Instant::now();
    let agent = Agent::start(node, program, &arguments)?;
    report.add(Row::new("start until ready, wall", Summary::exact(seconds(started.elapsed())), "s"));
    report.add(Row::new("start until ready, CPU", Summary::exact(seconds(cost::process(agent.pid())?)), "s"));

    let idle = percent_of_a_core(&agent, effort)?;
    report.add(
        Measured { what: "idle, CPU", values: idle, unit: "% of a core" }
            .row()
            .wanted(Wish::Value(IDLE_PERCENT)),
    );
    busy(rules, &agent, effort, report)?;
    memory(rules, &agent, "", report)?;
    scrape(node, &agent, effort, report)?;
    memory(rules, &agent, " after scrapes", report)
}

/// Processor time of each poll interval.
fn percent_of_a_core(agent: &Agent, effort: Effort) -> Result<Vec<f64>> {
    let interval = || {
        let cost = cost::of_process(agent.pid(), || {
            thread::sleep(POLL_INTERVAL);
            Ok(())
        })?;
        Ok(100.0 * seconds(cost.cpu) / seconds(cost.wall))
    };
    (0..effort.intervals).map(|_| interval()).collect()
}

/// While counters move the agent reads more than once a poll, to tell what is in flight from what is lost.
fn busy(rules: &LoadedRules, agent: &Agent, effort: Effort, report: &mut Report) -> Result<()> {
    let [from, to, ..] = rules.node.pods() else { return Ok(()) };
    let flood = Flood { rate: Some(TRAFFIC), until: Until::Stopped, ..Flood::new(to.v4()?, ALLOWED_PORT) };
    let flooding = flood.start(&from.netns);
    let percent = percent_of_a_core(agent, effort)?;
    flooding.stop()?;
    report.add(Measured { what: "under traffic, CPU", values: percent, unit: "% of a core" }.row());
    Ok(())
}

fn memory(rules: &LoadedRules, agent: &Agent, when: &str, report: &mut Report) -> Result<()> {
    let status = format!("/proc/{}/status", agent.pid());
    let row = |what: &str, name: &str| -> Result<Row> {
        let kilobytes: f64 = machine::field(&status, name).trim_end_matches(" kB").parse()?;
        Ok(Row::new(format!("{what}{when}"), Summary::exact(kilobytes / 1024.0), "MB"))
    };
    let (now, most) = (row("memory (VmRSS)", "VmRSS")?, row("most memory (VmHWM)", "VmHWM")?);
    report.add(if rules.size.rules <= USUAL.rules { now.wanted(Wish::Value(MEGABYTES)) } else { now });
    report.add(most);
    Ok(())
}

fn scrape(node: &Namespace, agent: &Agent, effort: Effort, report: &mut Report) -> Result<()> {
    let series = node.enter(|| {
        let text = get("identity")?;
        Ok::<_, anyhow::Error>(text.split(|byte| *byte == b'\n').filter(|line| is_sample(line)).count())
    })??;
    report.add(Row::new("series", Summary::exact(series as f64), ""));
    let ask = |encoding: &'static str| -> Contender<'_> { Box::new(move || answered(agent.pid(), encoding)) };
    let [plain, gzip] = node.enter(|| take_turns([ask("identity"), ask("gzip")], effort.often))??;
    let plain = Measured::milliseconds("scrape as text, CPU", plain.cpu());
    report.add(plain.row());
    report.add(Measured::milliseconds("scrape with gzip, CPU", gzip.cpu()).beside(&plain));
    Ok(())
}

fn answered(pid: u32, encoding: &str) -> Result<Cost> {
    cost::of_process(pid, || {
        let answer = get(encoding)?;
        // The connection's end takes the agent a moment longer.
        thread::sleep(Duration::from_millis(1));
        Ok(answer)
    })
}

/// Asks for the metrics in the calling thread's network namespace; head and body as they came.
fn get(encoding: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(ADDRESS)?;
    // HTTP 1.0: the body ends with the connection, and comes in one piece.
    write!(stream, "GET /metrics HTTP/1.0\r\nAccept: text/plain\r\nAccept-Encoding: {encoding}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.0 200"), "the agent does not answer with 200");
    Ok(answer)
}

fn is_sample(line: &[u8]) -> bool {
    line.starts_with(b"calico_accountant_") || line.windows(8).any(|part| part == b"_counter")
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
