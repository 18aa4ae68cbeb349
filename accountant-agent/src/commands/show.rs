//! `accountant show`: the accounts, from a running agent or read directly.

use super::{datastore, first_look, follow, sources};
use crate::config::{KernelPrograms, Process, ProgramArgs, ShowArgs, SourceArgs};
use crate::engine::kept::Keeper;
use crate::engine::{Engine, Settings};
use crate::export::{denied, json, table};
use anyhow::{Context, anyhow};
use axum::body::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;

/// How long to wait for the agent's answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often `--watch` prints.
const WATCH: Duration = Duration::from_secs(1);

/// Prints the accounts.
pub fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(print(args));
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

async fn print(args: &ShowArgs) -> anyhow::Result<()> {
    let mut direct = None;
    let agents = args.agent.map_or_else(|| args.listening.reached_at(), |agent| vec![agent]);
    if args.follow {
        return follow::follow(&agents, args.json).await;
    }
    let flows = match (args.denied, args.flows) {
        (true, _) => Some(("/denied", "denied")),
        (_, true) => Some(("/flows", "accepted")),
        _ => None,
    };
    loop {
        let object = match (&direct, args.direct) {
            _ if let Some((path, _)) = flows => {
                ask_any(&agents, path).await?.ok_or_else(|| nobody(&agents))?
            }
            (None, false) => match ask_any(&agents, "/accounts").await? {
                Some(object) => object,
                None => read(args, &mut direct).await?,
            },
            _ => read(args, &mut direct).await?,
        };
        let text = match (args.json, flows) {
            (true, _) => format!("{object:#}\n"),
            (false, Some((_, what))) => denied::render(&object, what, SystemTime::now()),
            (false, None) => table::render(&object, args.all),
        };
        let clear = if args.watch && !args.json { "\x1b[2J\x1b[H" } else { "" };
        match io::stdout().lock().write_all(format!("{clear}{text}").as_bytes()) {
            // Whoever reads, like `head`, has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result?,
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// Asks the running agent, wherever of these it is. Nothing if none runs.
async fn ask_any(agents: &[SocketAddr], path: &str) -> anyhow::Result<Option<Value>> {
    for agent in agents {
        if let Some(answer) = ask(*agent, path).await? {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

/// Where denied flows cannot be asked for.
pub(super) fn nobody(agents: &[SocketAddr]) -> anyhow::Error {
    let agents: Vec<_> = agents.iter().map(ToString::to_string).collect();
    let agents = agents.join(", ");
    anyhow!("no agent answers at {agents} (--agent): only a running one sees flows")
}

/// Connects to an agent. Nothing if none runs there.
pub(super) async fn connect(agent: SocketAddr) -> anyhow::Result<Option<SendRequest<Empty<Bytes>>>> {
    let connect = async {
        let stream = match TcpStream::connect(agent).await {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok::<_, anyhow::Error>(Some(sender))
    };
    connect.await.with_context(|| format!("asking the agent at {agent} (--agent)"))
}

/// Sends an agent a request.
pub(super) async fn get(
    sender: &mut SendRequest<Empty<Bytes>>,
    agent: SocketAddr,
    path: &str,
) -> anyhow::Result<Response<Incoming>> {
    let request = Request::get(path).header("host", agent.to_string());
    Ok(sender.send_request(request.body(Empty::<Bytes>::new())?).await?)
}

/// Asks an agent. Nothing if none runs there.
async fn ask(agent: SocketAddr, path: &str) -> anyhow::Result<Option<Value>> {
    let Some(mut sender) = connect(agent).await? else { return Ok(None) };
    let asking = async {
        let response = get(&mut sender, agent, path).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body);
            let why = text.lines().next().filter(|line| line.len() < 200 && !line.starts_with('<'));
            let why = why.unwrap_or("is it another program that listens there?");
            return Err(anyhow!("it answered {status}: {why}"));
        }
        serde_json::from_slice(&body)
            .context("its answer is no JSON: is it another program that listens there?")
    };
    let answer = tokio::time::timeout(PATIENCE, asking).await.map_err(|_| anyhow!("it does not answer"));
    answer
        .and_then(|answer| answer)
        .map(Some)
        .with_context(|| format!("asking the agent at {agent} (--agent)"))
}

/// Whether nobody listens there: also where the host has no such address, as without IPv6.
fn is_nobody(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, NetworkUnreachable};
    matches!(error.kind(), AddrNotAvailable | ConnectionRefused | NetworkUnreachable)
}

/// An engine of our own.
type Direct = Option<crate::engine::Handle>;

async fn read(args: &ShowArgs, direct: &mut Direct) -> anyhow::Result<Value> {
    if direct.is_none() {
        let settings = Settings { poll_interval: Duration::from_secs(3600), grace: Duration::ZERO };
        let names = args.names.resolve(&Process).context("reading the configuration")?;
        let read = sources(&without_programs(&args.sources));
        let (engine, handle) = Engine::new(settings, read, Some(datastore(&names)), Keeper::none())?;
        tokio::spawn(engine.run());
        *direct = Some(handle);
    }
    let Some(handle) = direct else { return Err(anyhow!("no engine")) };
    let published = first_look(handle).await;
    let failing: Vec<_> = published
        .status
        .sources
        .iter()
        .filter(|s| s.state == crate::engine::status::State::Failing)
        .collect();
    let counting = published.status.sources.iter().any(|s| s.state == crate::engine::status::State::Counting);
    if !failing.is_empty() && !counting {
        let reasons: Vec<_> =
            failing.iter().map(|s| format!("{}: {}", s.source.as_str(), s.reason)).collect();
        return Err(anyhow!("nothing is counted: {}", reasons.join("; ")));
    }
    Ok(json::render(&published))
}

/// Nothing that is attached for a moment sees enough to be worth it.
fn without_programs(args: &SourceArgs) -> SourceArgs {
    let programs = ProgramArgs { mode: KernelPrograms::Off, ..args.programs.clone() };
    SourceArgs { programs, ..args.clone() }
}
