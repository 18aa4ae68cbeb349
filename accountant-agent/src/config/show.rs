//! What `accountant show` is asked to print, and where from.

use super::{ListenArgs, NameArgs, SourceArgs};
use clap::Args;
use std::net::SocketAddr;

/// Arguments of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Print again and again.
    #[arg(long)]
    pub watch: bool,
    /// Also show accounts in which nothing was counted; JSON has them anyway.
    #[arg(long)]
    pub all: bool,
    /// Print the flows that were denied lately, with the policies that denied them, as the running agent saw them.
    #[arg(long, conflicts_with_all = ["all", "direct"])]
    pub denied: bool,
    /// With --denied: print each flow as it is denied, a line each, until stopped.
    #[arg(long, requires = "denied", conflicts_with = "watch")]
    pub follow: bool,
    /// Print the flows that were accepted lately, with the policies that accepted them, as the running agent saw them: for each
    /// endpoint, packets that policy decided on (the first ones of connections) and no other endpoint's denied. It notes them with --accepted-flows.
    #[arg(long, conflicts_with_all = ["all", "direct", "denied"])]
    pub flows: bool,
    /// The agent to ask. Default: where one of the same environment listens on this host.
    #[arg(long, env = "ACCOUNTANT_AGENT", value_name = "ADDR:PORT")]
    pub agent: Option<SocketAddr>,
    /// Where it listens.
    #[command(flatten)]
    pub listening: ListenArgs,
    /// Read the counters directly even if an agent runs.
    #[arg(long)]
    pub direct: bool,
    /// Where names come from, when read directly.
    #[command(flatten)]
    pub names: NameArgs,
    /// What is counted, when read directly.
    #[command(flatten)]
    pub sources: SourceArgs,
}
