//! `accountant run`: the agent.

use super::{datastore, sources_that_stay};
use crate::config::{
    AgentArgs, KernelPrograms, LogArgs, LogFormat, Process, ProgramArgs, RunArgs, ServingArgs,
};
use crate::engine::aside;
use crate::engine::kept::{CannotKeep, Keeper};
use crate::engine::{Engine, Settings};
use crate::export::http::web_config::Followed;
use crate::export::http::{self, Limits, Listen, Service};
use crate::export::prometheus::Exporter;
use anyhow::Context;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Runs until it is told to stop.
pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    start_log(&args.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")?;
    runtime.block_on(agent(args))?;
    // A source's thread may sit in a system call; nothing it does matters any more.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn agent(args: RunArgs) -> anyhow::Result<()> {
    let AgentArgs { names, sources: read, serving } = args.agent;
    let settings = Settings { poll_interval: serving.poll_interval, grace: serving.grace_period };
    let names = names.resolve(&Process).context("reading the configuration")?;
    let _statistics = statistics(&read.programs);
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let keeper = tokio::select! {
        keeper = keeper(&serving) => keeper,
        _ = tokio::signal::ctrl_c() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    detach_what_is_not_wanted(&read.programs);
    let engine = Engine::new(settings, sources_that_stay(&read), Some(datastore(&names)), keeper);
    let (engine, handle) = engine.context("starting the sources")?;
    let web = Arc::new(Followed::new(serving.web_config_file.clone()));
    let exporter = Exporter::new(serving.compat_metrics, serving.minimum_counter);
    let bird = aside::bird(read.bird_sockets()?, serving.poll_interval);
    let bird = bird.context("starting to look at BIRD")?;
    let census = aside::census().context("starting to take a census")?;
    let exporter = exporter.telling_of_web(web.clone()).telling_of_bird(bird).telling_of_census(census);
    let service = Service { engine: handle.clone(), exporter: Arc::new(exporter), max_age: serving.max_age };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = names.node.value, "counting");
    let listen = match serving.web_systemd_socket {
        true => Listen::from_systemd().context("taking the sockets of systemd (--web.systemd-socket)")?,
        false => serving.listening.addresses().into_iter().map(Listen::Address).collect(),
    };
    http::start(listen, service, web, Limits::default()).context("starting the HTTP server")?;
    let counting = tokio::spawn(engine.run());
    tokio::select! {
        result = counting => result.context("the event loop ended")?,
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    // What was counted last is read and kept for the next agent.
    handle.fresh(Duration::ZERO).await;
    Ok(())
}

/// Where the books are kept, once no other agent keeps them. Without a place for them the agent counts as well, and the next one
/// begins anew.
async fn keeper(serving: &ServingArgs) -> Keeper {
    let Some(folder) = serving.state_folder() else { return Keeper::none() };
    let keeper = async {
        let mut keeper = Keeper::new(folder)?;
        keeper.its_turn().await?;
        Ok(keeper)
    };
    keeper.await.unwrap_or_else(|reason: CannotKeep| {
        tracing::warn!(%reason, "counts begin anew with the next agent (--state-dir)");
        Keeper::none()
    })
}

/// Turned off, the programs of an earlier agent would count on for nobody.
fn detach_what_is_not_wanted(programs: &ProgramArgs) {
    let folder = programs.pins.folder().filter(|_| programs.mode == KernelPrograms::Off);
    // Where nothing can be left, nothing is.
    if let Some(Ok(true)) = folder.map(accountant_dataplane::kernel::detach) {
        tracing::info!("detached the programs that an earlier agent left in the kernel");
    }
}

/// Statistics of programs, if they are asked for, for as long as the descriptor lives. Without them the agent works as well.
fn statistics(programs: &ProgramArgs) -> Option<OwnedFd> {
    let kept = programs.kernel_program_statistics.then(accountant_dataplane::kernel::keep_statistics)?;
    kept.inspect_err(|reason| tracing::warn!(%reason, "there are no statistics of programs")).ok()
}

fn start_log(args: &LogArgs) -> anyhow::Result<()> {
    // What the library of the Kubernetes datastore says at each try, the datastore says once.
    let filter = EnvFilter::try_new(format!("kube_client=off,kube_runtime=off,{}", args.log_filter))
        .with_context(|| format!("log filter {:?} (--log-filter, ACCOUNTANT_LOG)", args.log_filter))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
