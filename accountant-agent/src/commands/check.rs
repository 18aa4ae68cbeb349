//! `accountant check`: whether the agent would work here, and what is in its way.

use super::{datastore, first_look, sources};
use crate::config::{CheckArgs, ConfigError, KernelPrograms, Names, Process, ServingArgs};
use crate::engine::kept::Keeper;
use crate::engine::status::{State, Status};
use crate::engine::{Engine, Settings};
use crate::export::http::web_config::Web;
use accountant_dataplane::bird::{Follower, State as BirdState};
use accountant_dataplane::in_place::CannotHere;
use serde_json::{Value, json};
use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// The capabilities that sources need: name, number (`include/uapi/linux/capability.h`), what for.
const CAPABILITIES: [(&str, u8, &str); 3] = [
    ("CAP_NET_ADMIN", 12, "to read rule counters"),
    ("CAP_PERFMON", 38, "to read them in place; without, as the tools read them"),
    ("CAP_BPF", 39, "the same; Calico's eBPF dataplane needs both"),
];

/// Prints the findings; the exit status says whether the agent would count.
pub fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let names = args.agent.names.resolve(&Process);
    let status = runtime.block_on(look(args, names.as_ref().ok()))?;
    runtime.shutdown_background();
    let findings = findings(args, names, &status);
    if args.json {
        println!("{findings:#}");
    } else {
        print!("{}", describe(&findings));
    }
    let works = findings["works"].as_bool().unwrap_or(false);
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn look(args: &CheckArgs, names: Option<&Names>) -> anyhow::Result<Status> {
    let settings = Settings { poll_interval: Duration::from_secs(3600), grace: Duration::ZERO };
    let (engine, handle) =
        Engine::new(settings, sources(&args.agent.sources), names.map(datastore), Keeper::none())?;
    tokio::spawn(engine.run());
    Ok(first_look(&handle).await.status.clone())
}

fn findings(args: &CheckArgs, names: Result<Names, ConfigError>, status: &Status) -> Value {
    let sources: Vec<_> = status
        .sources
        .iter()
        .map(|s| {
            let reading = Some(s.how.describe(s.source)).filter(|_| s.state == State::Counting);
            json!({
                "name": s.source.as_str(), "state": s.state.as_str(), "reason": s.reason, "reading": reading,
                "in_place": s.how.is_in_place(), "rewrites_watched": s.how.keeps_counts_over_rewrites(),
            })
        })
        .collect();
    let counting = status.sources.iter().any(|s| s.state == State::Counting);
    let failing = status.sources.iter().any(|s| s.state == State::Failing);
    let datastore = &status.datastore;
    let (configured, node, settings, wrong) = match names {
        Ok(names) => (names.datastore.value.name(), names.node.value.clone(), names.shown(), None),
        Err(error) => ("none", String::new(), Vec::new(), Some(error.to_string())),
    };
    let hooks = match args.agent.sources.programs.mode {
        KernelPrograms::Off | KernelPrograms::Interfaces => Vec::new(),
        KernelPrograms::Auto | KernelPrograms::On => accountant_dataplane::kernel::probe(),
    };
    let interfaces = interfaces(args.agent.sources.programs.mode, &hooks);
    let taken = hooks.iter().any(|(_, result)| *result == Err(CannotHere::AnotherAgent));
    let hooks: Vec<_> = hooks
        .into_iter()
        .map(|(hook, result)| match result.err() {
            // Where an agent runs while it is checked.
            Some(CannotHere::AnotherAgent) => json!({"hook": hook, "reason": null, "taken": true}),
            reason => {
                json!({"hook": hook, "reason": reason.map(|reason| reason.to_string()), "taken": false})
            }
        })
        .collect();
    let capabilities: Vec<_> = CAPABILITIES
        .iter()
        .map(|(name, number, purpose)| json!({"name": name, "held": holds(*number), "purpose": purpose}))
        .collect();
    let (web, web_wrong) = match args.agent.serving.web_config_file.as_deref().map(Web::load) {
        None => (None, None),
        Some(Ok(web)) => (Some(web.describe()), None),
        Some(Err(error)) => (None, Some(error.to_string())),
    };
    json!({
        "works": counting && !failing && wrong.is_none() && web_wrong.is_none(),
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": kernel(),
        "node": node,
        "configuration": {"settings": settings, "wrong": wrong},
        "listen": args.agent.serving.listening.addresses().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "bird": bird(args),
        "web": {"serving": web, "wrong": web_wrong},
        "capabilities": capabilities,
        "sources": sources,
        "kernel_programs": {
            "attached": status.kernel.is_attached(),
            "reason": if taken { "a running agent has attached them".into() } else { status.kernel.describe() },
            "taken": taken,
            "hooks": hooks,
            "interfaces": interfaces,
            "kept": kept(args),
        },
        "state": state(&args.agent.serving),
        "datastore": {
            "configured": configured,
            "in_sync": datastore.in_sync,
            "reason": datastore.reason,
            "objects": datastore.objects,
        },
    })
}

/// Whether traffic can be counted at interfaces, where that is what remains, or what is wanted.
fn interfaces(mode: KernelPrograms, hooks: &[(String, Result<(), CannotHere>)]) -> Value {
    let cannot = |reason: &CannotHere| *reason != CannotHere::AnotherAgent;
    let remains = hooks.iter().any(|(_, result)| result.as_ref().is_err_and(cannot));
    if mode == KernelPrograms::Off || !remains && mode != KernelPrograms::Interfaces {
        return Value::Null;
    }
    let reason = accountant_dataplane::kernel::probe_interfaces().err().map(|reason| reason.to_string());
    json!({"reason": reason})
}

/// Whether what programs count outlives the agent.
fn kept(args: &CheckArgs) -> Value {
    let programs = &args.agent.sources.programs;
    if programs.mode == KernelPrograms::Off {
        return Value::Null;
    }
    outlives(programs.pins.folder(), "it is turned off", accountant_dataplane::kernel::can_stay)
}

/// Whether what policies decided outlives the agent.
fn state(serving: &ServingArgs) -> Value {
    outlives(serving.state_folder(), "it is turned off (--state-dir)", Keeper::new)
}

/// A folder for what outlives the agent, and why it cannot be used.
fn outlives<T, E: Display>(folder: Option<&Path>, off: &str, use_it: fn(&Path) -> Result<T, E>) -> Value {
    let reason = match folder {
        None => Some(off.to_string()),
        Some(folder) => use_it(folder).err().map(|reason| reason.to_string()),
    };
    json!({"folder": folder.map(|folder| folder.display().to_string()), "reason": reason})
}

/// The daemons of BIRD that there are. Without any the agent works as well.
fn bird(args: &CheckArgs) -> Vec<Value> {
    let sockets = match args.agent.sources.bird_sockets() {
        Ok(sockets) => sockets,
        Err(error) => return vec![json!({"name": "", "state": "failing", "reason": error.to_string()})],
    };
    let finding = |daemon: accountant_dataplane::bird::Daemon| {
        let (state, reason) = match daemon.state {
            BirdState::Absent => return None,
            BirdState::Answering(socket) => ("answering", socket.display().to_string()),
            BirdState::Failing(reason) => ("failing", reason),
        };
        Some(json!({"name": daemon.name, "state": state, "reason": reason}))
    };
    Follower::new(sockets).look().into_iter().filter_map(finding).collect()
}

/// Whether the process has a capability, by the bits of `CapEff` in its status.
fn holds(capability: u8) -> Option<bool> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let bits = u64::from_str_radix(line.trim(), 16).ok()?;
    Some(bits >> capability & 1 == 1)
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_string()
}

fn describe(findings: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let mut lines = vec![
        format!("accountant {} on Linux {}", text(&findings["version"]), text(&findings["kernel"])),
        format!("node: {}", text(&findings["node"])),
    ];
    for setting in findings["configuration"]["settings"].as_array().into_iter().flatten() {
        let (name, value, origin) = (&setting["name"], &setting["value"], &setting["origin"]);
        lines.push(format!("  {}: {} ({})", text(name), text(value), text(origin)));
    }
    let wrong = text(&findings["configuration"]["wrong"]);
    if !wrong.is_empty() {
        lines.push(format!("configuration: WRONG: {wrong}"));
    }
    let web = &findings["web"];
    lines.extend(web["serving"].as_str().map(|serving| format!("web configuration: {serving}")));
    lines.extend(web["wrong"].as_str().map(|wrong| format!("web configuration: WRONG: {wrong}")));
    for capability in findings["capabilities"].as_array().into_iter().flatten() {
        let held = if capability["held"] == true { "held" } else { "MISSING" };
        lines.push(format!("{}: {held} ({})", text(&capability["name"]), text(&capability["purpose"])));
    }
    for source in findings["sources"].as_array().into_iter().flatten() {
        let reason = Some(text(&source["reason"])).filter(|r| !r.is_empty());
        let reason = reason.map(|r| format!(" ({r})")).unwrap_or_default();
        lines.push(format!("source {}: {}{reason}", text(&source["name"]), text(&source["state"])));
        lines.extend(source["reading"].as_str().map(|reading| format!("  {reading}")));
    }
    lines.push(format!("programs in the kernel: {}", text(&findings["kernel_programs"]["reason"])));
    for hook in findings["kernel_programs"]["hooks"].as_array().into_iter().flatten() {
        let can = match hook["reason"].as_str() {
            Some(reason) => format!("CANNOT attach: {reason}"),
            None if hook["taken"] == true => "attached, by a running agent".into(),
            None => "can attach".into(),
        };
        lines.push(format!("  {}: {can}", text(&hook["hook"])));
    }
    let interfaces = &findings["kernel_programs"]["interfaces"];
    if interfaces.is_object() {
        lines.push(match interfaces["reason"].as_str() {
            None => "  instead, traffic is counted at endpoints' interfaces".into(),
            Some(reason) => format!("  traffic CANNOT be counted at endpoints' interfaces: {reason}"),
        });
    }
    let kept = &findings["kernel_programs"]["kept"];
    if kept.is_object() {
        lines.push(match kept["reason"].as_str() {
            None => format!("  they outlive the agent, with what they count: {}", text(&kept["folder"])),
            Some(reason) => format!("  they go with the agent, and so does what they count: {reason}"),
        });
    }
    let state = &findings["state"];
    lines.push(match state["reason"].as_str() {
        None => format!("counts of policies outlive the agent: {}", text(&state["folder"])),
        Some(reason) => format!("counts of policies begin anew with each agent: {reason}"),
    });
    for daemon in findings["bird"].as_array().into_iter().flatten() {
        let name = Some(text(&daemon["name"])).filter(|name| !name.is_empty()).unwrap_or("bird".into());
        lines.push(format!("{name}: {} ({})", text(&daemon["state"]), text(&daemon["reason"])));
    }
    let datastore = &findings["datastore"];
    let sync = match (datastore["in_sync"] == true, text(&datastore["configured"]).as_str()) {
        (_, "none") => "",
        (true, _) => ", in sync",
        (false, _) => ", NOT in sync",
    };
    lines.push(format!("datastore: {}{sync}", text(&datastore["configured"])));
    let reason = text(&datastore["reason"]);
    lines.extend(reason.split("; ").filter(|r| !r.is_empty()).map(|r| format!("  {r}")));
    let verdict = if findings["works"] == true {
        "the agent would count here"
    } else if !wrong.is_empty() {
        "the agent would NOT start: its configuration is wrong"
    } else if web["wrong"].is_string() {
        "the agent would count and NOT serve: its web configuration is wrong"
    } else {
        "the agent would NOT count here: no source has chains of Calico's, or one cannot be read"
    };
    lines.push(verdict.into());
    lines.join("\n") + "\n"
}
