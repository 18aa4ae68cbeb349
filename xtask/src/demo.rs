//! The main job, to be seen: a small node, known traffic, and the accounts beside what was sent.

use crate::command::{root, say};
use crate::datastore::{Datastore, Names};
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
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

/// Arguments of `demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Who writes the rules into the kernel.
    #[arg(long, value_enum, default_value_t = Dataplane::IptablesNft)]
    dataplane: Dataplane,
    /// Where names come from.
    #[arg(long, value_enum, default_value_t = Datastore::Manifests)]
    datastore: Datastore,
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
    let interrupted = Interrupts::new()?;
    // Before anything is made: whoever cannot be served should not have to wait for it.
    let listener = if args.once { None } else { Some(listen()?) };
    for left_behind in netns::remove_abandoned()? {
        say(&format!("removed {left_behind}, which a process that was killed left behind"));
    }
    let scenario = demo();
    let node = make_node(&scenario, args.dataplane)?;
    interrupted.check()?;
    let names = args.datastore.start(&scenario, node.host())?;
    interrupted.check()?;
    let agent = start_agent(node.host(), &names)?;
    let truth = send(&scenario, &node, &agent, args.rounds, &interrupted)?;
    let (sent, counted) = (expected(&truth), counted(&agent.accounts()?));
    let exact = print(&sent, &counted);
    if let Some(listener) = listener {
        let door = Door::open(listener, node.host().clone());
        say(&format!("serving http://{ADDRESS}/metrics until Ctrl-C; in another terminal, look with"));
        println!("    curl -s {ADDRESS}/metrics | grep policy_packets\n    target/release/accountant show");
        interrupted.wait()?;
        door.close();
        println!();
    }
    say("removing the node and its pods");
    if !exact {
        bail!("not every number is exact");
    }
    Ok(())
}

/// Ctrl-C, and being told to end: a word to the main thread, so that everything made is dropped, and so removed, in order.
struct Interrupts(mpsc::Receiver<()>);

impl Interrupts {
    fn new() -> Result<Self> {
        let (sender, receiver) = mpsc::channel();
        ctrlc::set_handler(move || {
            // Nobody listens any more when the demo already ends.
            let _ = sender.send(());
        })?;
        Ok(Self(receiver))
    }

    /// Fails if there was one.
    fn check(&self) -> Result<()> {
        match self.0.try_recv() {
            Ok(()) => bail!("interrupted; what was made is removed"),
            Err(_) => Ok(()),
        }
    }

    fn wait(&self) -> Result<()> {
        Ok(self.0.recv()?)
    }
}

fn make_node(scenario: &Scenario, dataplane: Dataplane) -> Result<Node> {
    say(
        "making a node with the pods shop/web, shop/db and default/client, each in a network namespace of its own",
    );
    let node = scenario.node()?;
    let dialect = Dialect::new(Version::V3_31, dataplane.backend())?;
    let written = node.felix(dialect).apply(&scenario.model)?;
    say(&format!("wrote {} rules as Calico 3.31 writes them", written.written_rules));
    Ok(node)
}

fn start_agent(namespace: &Namespace, names: &Names) -> Result<Agent> {
    let [flag, value] = &names.arguments;
    let arguments = [flag, value, "--node-name", NODE_NAME, "--max-age", "0s"];
    say(&format!("starting accountant run {}", arguments.join(" ")));
    Ok(Agent::start(namespace, &root().join("target/release/accountant"), &arguments)?)
}

fn send(
    scenario: &Scenario,
    node: &Node,
    agent: &Agent,
    rounds: u32,
    interrupted: &Interrupts,
) -> Result<Truth> {
    let visit = Visit::new(node)?;
    let mut truth = Truth::default();
    let mut failed = None;
    for round in 1..=rounds {
        say(&format!("sending known traffic, TCP, UDP and ICMP, IPv4 and IPv6: round {round} of {rounds}"));
        visit.round(&scenario.model, &mut truth, || {
            if let Err(error) = agent.accounts() {
                failed.get_or_insert(error);
            }
        })?;
        // Ctrl-C reaches the agent, too: why it does not answer is then no riddle.
        interrupted.check()?;
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
        let [sent, counted] = [sent, counted].map(|number| number.to_string());
        let (version, by) = (format!("v{ip_version}"), in_words(&by));
        table.add_row([workload, direction, version, tier, by, verdict, sent, counted, remark.into()]);
    }
    for numbers in [6, 7] {
        if let Some(column) = table.column_mut(numbers) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("\n{}\n", table.trim_fmt());
    println!(
        "SENT is what the policies must have decided about what was sent; COUNTED is what the agent read"
    );
    println!(
        "from the rules. deny counts packets; allow and pass count the first packet of each connection.\n"
    );
    match wrong {
        0 => println!("Every number is exact: {} accounts.", lines.len()),
        _ => println!("{wrong} of {} accounts differ.", lines.len()),
    }
    wrong == 0
}

/// Who decided, as people say it: a cluster-wide policy has no namespace.
fn in_words(by: &str) -> String {
    match by {
        "no_policy" => "no policy matched".into(),
        "no_profile" => "no profile matched".into(),
        _ => by.replace(" /", " "),
    }
}

fn listen() -> Result<TcpListener> {
    TcpListener::bind(ADDRESS).with_context(|| {
        format!("listening on {ADDRESS}: does another program? `--once` needs no port of the machine")
    })
}

/// Lets the machine's own port reach the agent's, which is in the node's namespace.
///
/// Threads outlive the demo's main one, and a namespace lives as long as anybody has it: they borrow it from here.
struct Door(Arc<Mutex<Option<Namespace>>>);

impl Door {
    fn open(listener: TcpListener, node: Namespace) -> Self {
        let door = Self(Arc::new(Mutex::new(Some(node))));
        let node = door.0.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Some(agent) = connect(&node) {
                    // A client that hangs up early is its own concern.
                    thread::spawn(move || drop(forward(agent, client)));
                }
            }
        });
        door
    }

    fn close(self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A connection to the agent, while there is a node and an agent on it.
fn connect(node: &Mutex<Option<Namespace>>) -> Option<TcpStream> {
    let node = node.lock().unwrap_or_else(PoisonError::into_inner);
    node.as_ref()?.enter(|| TcpStream::connect(ADDRESS)).ok()?.ok()
}

fn forward(agent: TcpStream, client: TcpStream) -> io::Result<()> {
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
