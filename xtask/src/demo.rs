//! The main job, to be seen: a small node, known traffic, and the accounts beside what was sent.

use crate::command::{root, say};
use crate::{build, setup};
use accountant_lab::agent::{ADDRESS, Agent};
use accountant_lab::books::{Books, Line, counted, expected};
use accountant_lab::felix::{Backend, Dialect, Version};
use accountant_lab::policy::Truth;
use accountant_lab::scenario::{NODE_NAME, Scenario, Visit, demo};
use accountant_lab::{Namespace, Node, netns};
use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table};
use std::collections::BTreeSet;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

/// Arguments of `demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Who writes the rules into the kernel.
    #[arg(long, value_enum, default_value_t = Dataplane::IptablesNft)]
    dataplane: Dataplane,
    /// End after the table; the exit status says whether every number is exact.
    #[arg(long)]
    once: bool,
    /// How many rounds of traffic to send.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dataplane {
    /// iptables-legacy, as Calico 3.31 uses it.
    IptablesLegacy,
    /// iptables over nftables, as Calico 3.31 uses it.
    IptablesNft,
    /// Calico 3.31's own nftables tables.
    Nftables,
}

impl Dataplane {
    fn backend(self) -> Backend {
        match self {
            Self::IptablesLegacy => Backend::Legacy,
            Self::IptablesNft => Backend::IptablesNft,
            Self::Nftables => Backend::Nft,
        }
    }
}

/// Builds everything and shows it.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::everything()?;
    build()?;
    for left_behind in netns::remove_abandoned()? {
        say(&format!("removed {left_behind}, which a demo that was killed left behind"));
    }
    let interrupted = interrupts()?;
    let scenario = demo();
    let (node, manifests) = make_node(&scenario, args.dataplane)?;
    let agent = start_agent(node.host(), manifests.path())?;
    let truth = send(&scenario, &node, &agent, args.rounds)?;
    let (sent, counted) = (expected(&truth), counted(&agent.accounts()?));
    let exact = print(&sent, &counted);
    if args.once && !exact {
        bail!("not every number is exact");
    }
    if !args.once {
        serve(node.host().clone())?;
        say(&format!("serving http://{ADDRESS}/metrics until Ctrl-C"));
        interrupted.recv()?;
        println!();
    }
    say("removing the node and its pods");
    Ok(())
}

/// A channel that Ctrl-C speaks through, so that everything made is dropped, and so removed, in order.
fn interrupts() -> Result<std::sync::mpsc::Receiver<()>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    ctrlc::set_handler(move || {
        // Nobody listens any more when the demo already ends.
        let _ = sender.send(());
    })?;
    Ok(receiver)
}

fn make_node(scenario: &Scenario, dataplane: Dataplane) -> Result<(Node, tempfile::TempDir)> {
    say(
        "making a node with the pods shop/web, shop/db and default/client, each in a network namespace of its own",
    );
    let node = scenario.node()?;
    let dialect = Dialect::new(Version::V3_31, dataplane.backend())?;
    let written = node.felix(dialect).apply(&scenario.model)?;
    say(&format!("wrote {} rules as Calico 3.31 writes them", written.written_rules));
    let manifests = tempfile::tempdir()?;
    scenario.write_manifests(manifests.path())?;
    Ok((node, manifests))
}

fn start_agent(namespace: &Namespace, manifests: &Path) -> Result<Agent> {
    let manifests = manifests.to_str().context("the folder of temporary files has no readable name")?;
    let arguments = ["--manifests", manifests, "--node-name", NODE_NAME, "--max-age", "0s"];
    say(&format!("starting accountant run {}", arguments.join(" ")));
    Ok(Agent::start(namespace, &root().join("target/release/accountant"), &arguments)?)
}

fn send(scenario: &Scenario, node: &Node, agent: &Agent, rounds: u32) -> Result<Truth> {
    let visit = Visit::new(node)?;
    let mut truth = Truth::default();
    let mut failed = None;
    for round in 1..=rounds {
        say(&format!("sending known traffic, round {round} of {rounds}"));
        visit.round(&scenario.model, &mut truth, || {
            if let Err(error) = agent.accounts() {
                failed.get_or_insert(error);
            }
        })?;
    }
    failed.map_or(Ok(truth), |error| Err(error.into()))
}

const HEADINGS: [&str; 9] =
    ["WORKLOAD", "DIRECTION", "IP", "TIER", "DECIDED BY", "VERDICT", "SENT", "COUNTED", ""];

/// Prints what was sent and what was counted side by side; says whether they agree.
fn print(sent: &Books, counted: &Books) -> bool {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(HEADINGS);
    let lines: BTreeSet<&Line> = sent.keys().chain(counted.keys()).collect();
    let mut wrong = 0;
    for line in &lines {
        let held = |books: &Books| books.get(line).copied().unwrap_or(0);
        let (sent, counted) = (held(sent), held(counted));
        let remark = if sent == counted { "" } else { "<-- differs" };
        wrong += usize::from(sent != counted);
        let Line { workload, direction, ip_version, tier, by, verdict } = (*line).clone();
        let numbers = [ip_version, sent, counted].map(|number| number.to_string());
        let [version, sent, counted] = numbers;
        table.add_row([workload, direction, version, tier, by, verdict, sent, counted, remark.into()]);
    }
    for numbers in [6, 7] {
        if let Some(column) = table.column_mut(numbers) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("\n{}\n", table.trim_fmt());
    let packets: u64 = sent.values().sum();
    match wrong {
        0 => println!("every number is exact: {} accounts, {packets} packets", lines.len()),
        _ => println!("{wrong} of {} accounts differ", lines.len()),
    }
    wrong == 0
}

/// Lets the machine's own port reach the agent's, which is in the node's namespace.
fn serve(node: Namespace) -> Result<()> {
    let listener =
        TcpListener::bind(ADDRESS).with_context(|| format!("listening on {ADDRESS}: is the port taken?"))?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let node = node.clone();
            // A client that hangs up early is its own concern.
            thread::spawn(move || drop(forward(&node, client)));
        }
    });
    Ok(())
}

fn forward(node: &Namespace, client: TcpStream) -> Result<()> {
    let agent = node.enter(|| TcpStream::connect(ADDRESS))??;
    let (mut from_client, mut to_agent) = (client.try_clone()?, agent.try_clone()?);
    let (mut from_agent, mut to_client) = (agent, client);
    let asking = thread::spawn(move || {
        let copied = io::copy(&mut from_client, &mut to_agent);
        let _ = to_agent.shutdown(Shutdown::Write);
        copied
    });
    io::copy(&mut from_agent, &mut to_client)?;
    to_client.shutdown(Shutdown::Write)?;
    let _ = asking.join();
    Ok(())
}
