//! Configuration: arguments as typed ([`Cli`]), and as checked ([`Config`]).
//!
//! Every flag has an environment variable as its twin; the flag wins. Names of Calico's own variables are kept: what Calico
//! reads itself is found in its own way ([`calico`]), and what it comes to, and why, is in [`Names`].

mod calico;
mod datastore;
#[cfg(test)]
mod docs;
mod error;
mod felix;
mod listen;
mod node;
mod programs;
mod proxy;
pub mod setting;
mod show;
mod surroundings;

pub use datastore::Datastore;
pub use error::ConfigError;
pub use listen::ListenArgs;
pub use programs::{DetachArgs, KernelPrograms, PinArgs, ProgramArgs};
pub use show::ShowArgs;
pub use surroundings::{Process, Surroundings};

use accountant_dataplane::bird::Socket;
use clap::{Args, Parser, Subcommand, ValueEnum};
use felix::Felix;
use setting::{Given, Origin, Setting};
use std::path::{Path, PathBuf};
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
    /// Detach the programs that an agent left in the kernel of this node, with what they count.
    Detach(DetachArgs),
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What the agent does.
    #[command(flatten)]
    pub agent: AgentArgs,
    /// What it says meanwhile.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What the agent does, be it running or to be checked.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Where names come from.
    #[command(flatten)]
    pub names: NameArgs,
    /// What is counted.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// How it runs.
    #[command(flatten)]
    pub serving: ServingArgs,
}

/// Where names come from.
#[derive(Clone, Debug, Default, Args)]
pub struct NameArgs {
    /// Datastore to take names from [env: CALICO_DATASTORE_TYPE, DATASTORE_TYPE]. Default: etcdv3 if there are
    /// ETCD_ENDPOINTS, kubernetes if there is a kubeconfig or a service account, else none.
    #[arg(long, value_enum)]
    pub datastore_type: Option<DatastoreType>,
    /// Folder of YAML or JSON files with Kubernetes and Calico objects, watched for changes.
    #[arg(long, env = "ACCOUNTANT_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Calico's client configuration, a file of kind CalicoAPIConfig; Calico's variables are not looked at then.
    #[arg(long, env = "ACCOUNTANT_CALICO_CONFIG", value_name = "FILE")]
    pub calico_config: Option<PathBuf>,
    /// Name of this node [env: NODENAME]. Default: the nodename file of calico-node, then $HOSTNAME, then the kernel's
    /// host name.
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Prefix of workload interfaces [env: FELIX_INTERFACEPREFIX]; the first of a comma-separated list names pods.
    /// Default: what the FelixConfiguration says, then cali.
    #[arg(long, value_name = "PREFIX", value_parser = prefixes)]
    pub interface_prefix: Option<String>,
    /// Folder in which Felix reports its endpoints, from Calico 3.30 on; it tells interfaces that have other names.
    #[arg(long, env = "ACCOUNTANT_ENDPOINT_STATUS", value_name = "DIR", default_value = accountant_datastore::ENDPOINT_STATUS)]
    pub endpoint_status: PathBuf,
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
    /// Read counters where the kernel keeps them, if that is possible here; else they are read as the tools read them.
    #[arg(long, env = "ACCOUNTANT_READ_IN_PLACE", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub read_in_place: bool,
    /// Watch rewrites of iptables-legacy rules, if that is possible here, so that they lose no counts.
    #[arg(long, env = "ACCOUNTANT_WATCH_REWRITES", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub watch_rewrites: bool,
    /// Programs in the kernel.
    #[command(flatten)]
    pub programs: ProgramArgs,
    /// Where Calico's eBPF dataplane pins its maps.
    #[arg(
        long,
        env = "ACCOUNTANT_CALICO_BPF_PINS",
        value_name = "FOLDER",
        default_value = "/sys/fs/bpf/tc/globals"
    )]
    pub calico_bpf_pins: PathBuf,
    /// Where Calico's eBPF dataplane lists its policy programs.
    #[arg(
        long,
        env = "ACCOUNTANT_CALICO_BPF_POLICIES",
        value_name = "FOLDER",
        default_value = "/var/run/calico/bpf/policy"
    )]
    pub calico_bpf_policies: PathBuf,
    /// Control socket of BIRD, [NAME=]PATH; can be given several times, and empty for none. NAME tells its series from
    /// those of others. Default: those of Calico, else of the distribution, where there are any.
    #[arg(long, env = "ACCOUNTANT_BIRD_SOCKET", value_name = "PATH", value_delimiter = ',')]
    pub bird_socket: Vec<String>,
}

/// How the agent runs.
#[derive(Clone, Debug, Args)]
pub struct ServingArgs {
    /// Where it listens.
    #[command(flatten)]
    pub listening: ListenArgs,
    /// Serve on the sockets that systemd hands over, instead of on addresses.
    #[arg(long = "web.systemd-socket", env = "ACCOUNTANT_WEB_SYSTEMD_SOCKET", value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pub web_systemd_socket: bool,
    /// TLS, client certificates, passwords, headers and a rate limit: a file as Prometheus' exporters take it. It is read
    /// again when it, or a certificate, changes.
    #[arg(long = "web.config.file", env = "ACCOUNTANT_WEB_CONFIG_FILE", value_name = "FILE")]
    pub web_config_file: Option<PathBuf>,
    /// How often to read the counters.
    #[arg(long, env = "ACCOUNTANT_POLL_INTERVAL", value_name = "TIME", default_value = "10s", value_parser = interval)]
    pub poll_interval: Duration,
    /// A scrape reads the counters again if they are older than this.
    #[arg(long, env = "ACCOUNTANT_MAX_AGE", value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub max_age: Duration,
    /// How long accounts of pods and policies that are gone are still shown.
    #[arg(long, env = "ACCOUNTANT_GRACE_PERIOD", value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub grace_period: Duration,
    /// Folder in which what was counted is kept for the next agent of this boot, best on a tmpfs; empty to have each agent begin
    /// anew.
    #[arg(
        long,
        env = "ACCOUNTANT_STATE_DIR",
        value_name = "FOLDER",
        default_value = "/run/packet-accountant",
        value_parser = any
    )]
    pub state_dir: PathBuf,
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

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
    /// What the agent would do.
    #[command(flatten)]
    pub agent: AgentArgs,
}

impl ServingArgs {
    /// Where what was counted is kept, if it is to be.
    pub fn state_folder(&self) -> Option<&Path> {
        folder(&self.state_dir)
    }
}

/// Any path, also the empty one, which is for none.
fn any(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(text.into())
}

fn folder(path: &Path) -> Option<&Path> {
    Some(path).filter(|path| !path.as_os_str().is_empty())
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and a unit, like 500ms or 10s"))
}

/// Felix takes the same: names of interfaces, separated by commas.
fn prefixes(text: &str) -> Result<String, String> {
    if are_prefixes(text) { Ok(text.to_string()) } else { Err(format!("write {PREFIXES}")) }
}

const PREFIXES: &str = "prefixes of 1 to 15 letters, digits, _ or -, separated by commas";

fn are_prefixes(text: &str) -> bool {
    let is_prefix = |prefix: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        (1..=15).contains(&prefix.len()) && prefix.chars().all(fits)
    };
    text.split(',').all(is_prefix)
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

impl DatastoreType {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Etcdv3 => "etcdv3",
            Self::Manifests => "manifests",
            Self::None => "none",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Kubernetes, Self::Etcdv3, Self::Manifests, Self::None]
            .into_iter()
            .find(|datastore| datastore.as_str() == text)
    }
}

/// Where names come from, after all that was given was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The datastore.
    pub datastore: Given<Datastore>,
    /// The name of this node.
    pub node: Given<String>,
    /// What the names of workload interfaces begin with, where that is told.
    pub interface_prefix: Option<Given<String>>,
    /// Where Felix reports its endpoints.
    pub endpoint_status: PathBuf,
    /// Calico's settings that are set.
    settings: Vec<Setting>,
}

impl NameArgs {
    /// What the arguments, and what is found around, come to.
    pub fn resolve(&self, around: &dyn Surroundings) -> Result<Names, ConfigError> {
        let felix = Felix::find(around)?;
        let (datastore, settings) = datastore::choose(self, &felix, around)?;
        let flag = self.interface_prefix.clone();
        let flag = flag.map(|prefix| Given::new(prefix, Origin::Flag("--interface-prefix")));
        let prefix = flag.or_else(|| felix.get("InterfacePrefix").cloned());
        if let Some(Given { value, origin }) = prefix.clone().filter(|prefix| !are_prefixes(&prefix.value)) {
            return Err(ConfigError::Value { value, origin, wanted: PREFIXES });
        }
        Ok(Names {
            datastore,
            node: node::name(self.node_name.as_deref(), around),
            interface_prefix: prefix,
            endpoint_status: self.endpoint_status.clone(),
            settings,
        })
    }
}

impl Names {
    /// Everything as it is shown: our own settings first, then those of Calico's that are set.
    pub fn shown(&self) -> Vec<Setting> {
        let datastore = Given::new(self.datastore.value.name().to_string(), self.datastore.origin.clone());
        let unset = Given::new("cali, or as FelixConfiguration says".into(), Origin::Default);
        let prefix = self.interface_prefix.as_ref().unwrap_or(&unset);
        let own = [
            Setting::shown("datastore", &datastore),
            Setting::shown("node name", &self.node),
            Setting::shown("interface prefix", prefix),
        ];
        let chosen = self.datastore.value.shown(&self.settings);
        let reads_reports = !matches!(self.datastore.value, Datastore::Manifests(_));
        let reports = reads_reports.then(|| Setting::shown("endpoint status", &self.reports()));
        own.into_iter().chain(chosen).chain(reports).chain(self.settings.iter().cloned()).collect()
    }

    /// Where Felix reports its endpoints, and why there.
    fn reports(&self) -> Given<String> {
        let usual = self.endpoint_status.as_os_str() == accountant_datastore::ENDPOINT_STATUS;
        let origin = if usual { Origin::Default } else { Origin::Flag("--endpoint-status") };
        Given::new(self.endpoint_status.display().to_string(), origin)
    }
}

impl SourceArgs {
    /// The sockets of BIRD to ask.
    pub fn bird_sockets(&self) -> Result<Vec<Socket>, ConfigError> {
        if self.bird_socket.is_empty() {
            return Ok(Socket::usual());
        }
        let given = self.bird_socket.iter().filter(|text| !text.is_empty());
        let sockets: Vec<_> = given.map(|text| Socket::parse(text)).collect();
        let mut names = std::collections::HashSet::new();
        match sockets.iter().find(|socket| !names.insert(&socket.daemon)) {
            Some(twice) => Err(ConfigError::SameDaemon(twice.daemon.clone())),
            None => Ok(sockets),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_said_to_be_wrong() {
        let error = |args: &[&str]| Cli::try_parse_from(args).unwrap_err().to_string();
        assert!(error(&["accountant", "run", "--poll-interval", "10"]).contains("a number and a unit"));
        assert!(error(&["accountant", "run", "--poll-interval", "1ms"]).contains("shorter than 100ms"));
        assert!(error(&["accountant", "run", "--listen-address", "9009"]).contains("[::1]:9009 or :9009"));
        assert!(error(&["accountant", "run", "--datastore-type", "consul"]).contains("etcdv3"));
        for prefix in ["", "cali,", "cali/", "caliwithmorethan15"] {
            assert!(
                error(&["accountant", "run", "--interface-prefix", prefix]).contains("by commas"),
                "{prefix}"
            );
        }
        assert!(Cli::try_parse_from(["accountant", "run", "--interface-prefix", "tap,cali"]).is_ok());
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
