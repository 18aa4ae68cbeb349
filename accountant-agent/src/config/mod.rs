//! Configuration: arguments as typed ([`Cli`]), and as checked ([`Config`]).
//!
//! Every flag has an environment variable as its twin; the flag wins. Names of Calico's own variables are kept.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The Calico packet accountant: which policy accepted or denied how many packets of which workload.
#[derive(Debug, Parser)]
#[command(name = "accountant", version, about, long_about = None)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Count, and serve the counts to Prometheus, until told to stop.
    Run(RunArgs),
    /// Print the accounts: from the running agent, or read directly where none runs.
    Show(ShowArgs),
    /// Say whether the agent would work here, and what is in its way.
    Check(CheckArgs),
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where names come from.
    #[command(flatten)]
    pub names: NameArgs,
    /// What is counted.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// How it runs.
    #[command(flatten)]
    pub serving: ServingArgs,
    /// What it says meanwhile.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Where names come from.
#[derive(Clone, Debug, Default, Args)]
pub struct NameArgs {
    /// Datastore to take names from. Default: manifests if --manifests is given, else none.
    #[arg(long, env = "DATASTORE_TYPE", value_enum)]
    pub datastore_type: Option<DatastoreType>,
    /// Folder of YAML or JSON files with Kubernetes and Calico objects, watched for changes.
    #[arg(long, env = "ACCOUNTANT_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Name of this node. Default: the nodename file of calico-node, then $HOSTNAME, then the kernel's host name.
    #[arg(long, env = "NODENAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Prefix of workload interfaces; the first of a comma-separated list names pods.
    #[arg(long, env = "FELIX_INTERFACEPREFIX", value_name = "PREFIX", default_value = "cali")]
    pub interface_prefix: String,
}

/// Datastores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatastoreType {
    /// The Kubernetes API.
    Kubernetes,
    /// etcd.
    Etcdv3,
    /// A folder of YAML.
    Manifests,
    /// None: rules name policies, interfaces stand in for pods.
    None,
}

/// What is counted.
#[derive(Clone, Debug, Args)]
pub struct SourceArgs {
    /// Lock file of the iptables-legacy tools.
    #[arg(long, env = "XTABLES_LOCKFILE", value_name = "FILE", default_value = "/run/xtables.lock")]
    pub xtables_lock_file: PathBuf,
    /// How long to wait for that lock before reading without it.
    #[arg(long, env = "ACCOUNTANT_XTABLES_LOCK_WAIT", value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub xtables_lock_wait: Duration,
}

/// How the agent runs.
#[derive(Clone, Debug, Args)]
pub struct ServingArgs {
    /// Address and port to serve on; can be given several times. Default: port 9009, or $METRICS_SERVER_PORT, on all
    /// addresses.
    #[arg(long, env = "ACCOUNTANT_LISTEN_ADDRESS", value_name = "ADDR:PORT", value_delimiter = ',')]
    pub listen_address: Vec<SocketAddr>,
    /// Port of the default listen address, as calico-accountant has it.
    #[arg(long, env = "METRICS_SERVER_PORT", hide = true, default_value_t = 9009)]
    pub metrics_server_port: u16,
    /// How often to read the counters.
    #[arg(long, env = "ACCOUNTANT_POLL_INTERVAL", value_name = "TIME", default_value = "10s", value_parser = interval)]
    pub poll_interval: Duration,
    /// A scrape reads the counters again if they are older than this.
    #[arg(long, env = "ACCOUNTANT_MAX_AGE", value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub max_age: Duration,
    /// How long accounts of pods and policies that are gone are still shown.
    #[arg(long, env = "ACCOUNTANT_GRACE_PERIOD", value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub grace_period: Duration,
    /// Serve the metrics of calico-accountant too.
    #[arg(long, env = "ACCOUNTANT_COMPAT_METRICS", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub compat_metrics: bool,
    /// Leave the metrics of calico-accountant out of a scrape if all of them are below this. No longer needed: counts
    /// do not fall any more.
    #[arg(long, env = "MINIMUM_COUNTER", value_name = "N", hide = true, default_value_t = 0)]
    pub minimum_counter: u64,
}

/// What is logged, and how.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// Which messages to log: a level, or targets with levels.
    #[arg(long, env = "ACCOUNTANT_LOG", value_name = "FILTER", default_value = "info")]
    pub log_filter: String,
    /// Form of the log.
    #[arg(long, env = "ACCOUNTANT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Forms of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Print again and again.
    #[arg(long)]
    pub watch: bool,
    /// Also print accounts in which nothing was counted.
    #[arg(long)]
    pub all: bool,
    /// The agent to ask.
    #[arg(long, env = "ACCOUNTANT_AGENT", value_name = "ADDR:PORT", default_value = "127.0.0.1:9009")]
    pub agent: SocketAddr,
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

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
    /// Where names come from.
    #[command(flatten)]
    pub names: NameArgs,
    /// What is counted.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// How it would run.
    #[command(flatten)]
    pub serving: ServingArgs,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and a unit, like 500ms or 10s"))
}

/// Shorter intervals would read more often than the kernel can be asked.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < SHORTEST_INTERVAL {
        return Err(format!("it is shorter than {}", humantime::format_duration(SHORTEST_INTERVAL)));
    }
    Ok(interval)
}

/// The datastore that the agent takes names from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datastore {
    /// None.
    None,
    /// A folder of YAML.
    Manifests(PathBuf),
    /// One that this build cannot read; the agent counts without names.
    Unavailable(&'static str),
}

/// A configuration that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// `manifests` without a folder.
    #[error("datastore type manifests needs a folder: give --manifests DIR or ACCOUNTANT_MANIFESTS")]
    NoFolder,
    /// A folder with another datastore.
    #[error("--manifests is given together with datastore type {0}: give one of the two")]
    TwoDatastores(&'static str),
}

impl NameArgs {
    /// The datastore that these arguments mean.
    pub fn datastore(&self) -> Result<Datastore, ConfigError> {
        use DatastoreType::{Etcdv3, Kubernetes, Manifests};
        match (self.datastore_type, &self.manifests) {
            (None | Some(Manifests), Some(folder)) => Ok(Datastore::Manifests(folder.clone())),
            (Some(Manifests), None) => Err(ConfigError::NoFolder),
            (Some(Kubernetes), Some(_)) => Err(ConfigError::TwoDatastores("kubernetes")),
            (Some(Etcdv3), Some(_)) => Err(ConfigError::TwoDatastores("etcdv3")),
            (Some(DatastoreType::None), Some(_)) => Err(ConfigError::TwoDatastores("none")),
            (Some(Kubernetes), None) => Ok(Datastore::Unavailable("kubernetes")),
            (Some(Etcdv3), None) => Ok(Datastore::Unavailable("etcdv3")),
            (None | Some(DatastoreType::None), None) => Ok(Datastore::None),
        }
    }

    /// The name of this node, in calico-node's order.
    pub fn node(&self) -> String {
        let given =
            self.node_name.as_deref().map(str::trim).filter(|name| !name.is_empty()).map(str::to_string);
        let file = std::env::var("CALICO_NODENAME_FILE").unwrap_or("/var/lib/calico/nodename".into());
        given
            .or_else(|| std::fs::read_to_string(file).ok().filter(|name| !name.is_empty()))
            .or_else(|| {
                std::env::var("HOSTNAME")
                    .ok()
                    .map(|name| name.trim().to_lowercase())
                    .filter(|n| !n.is_empty())
            })
            .or_else(|| {
                nix::unistd::gethostname().ok()?.into_string().ok().map(|name| name.trim().to_lowercase())
            })
            .unwrap_or_default()
    }

    /// The prefix that names pods' interfaces.
    pub fn pod_prefix(&self) -> &str {
        self.interface_prefix.split(',').next().unwrap_or("cali")
    }
}

impl ServingArgs {
    /// The addresses to serve on. With none given, both IP versions' wildcard of the port.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        if self.listen_address.is_empty() {
            vec![SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, self.metrics_server_port))]
        } else {
            self.listen_address.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(kind: Option<DatastoreType>, folder: Option<&str>) -> NameArgs {
        NameArgs { datastore_type: kind, manifests: folder.map(Into::into), ..NameArgs::default() }
    }

    #[test]
    fn the_datastore_follows_from_what_is_given() {
        let folder = Datastore::Manifests("m".into());
        for (args, want) in [
            (names(None, None), Ok(Datastore::None)),
            (names(None, Some("m")), Ok(folder.clone())),
            (names(Some(DatastoreType::Manifests), Some("m")), Ok(folder)),
            (names(Some(DatastoreType::Manifests), None), Err(ConfigError::NoFolder)),
            (names(Some(DatastoreType::None), Some("m")), Err(ConfigError::TwoDatastores("none"))),
        ] {
            assert_eq!(args.datastore(), want, "{args:?}");
        }
    }

    #[test]
    fn wrong_values_are_said_to_be_wrong() {
        let error = |args: &[&str]| Cli::try_parse_from(args).unwrap_err().to_string();
        assert!(error(&["accountant", "run", "--poll-interval", "10"]).contains("a number and a unit"));
        assert!(error(&["accountant", "run", "--poll-interval", "1ms"]).contains("shorter than 100ms"));
        assert!(error(&["accountant", "run", "--listen-address", "9009"]).contains("--listen-address"));
        assert!(error(&["accountant", "run", "--datastore-type", "consul"]).contains("etcdv3"));
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
