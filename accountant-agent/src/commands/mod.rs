//! The subcommands.

pub mod check;
pub mod detach;
mod follow;
pub mod run;
pub mod show;

use crate::config::{Datastore, KernelPrograms, Names, SourceArgs};
use crate::engine::sources::{Make, Sources};
use crate::engine::status::{DatastoreStatus, State};
use crate::engine::{Handle, Published};
use accountant_core::snapshot::Source;
use accountant_dataplane::RuleSource;
use accountant_dataplane::calico_bpf::{self, CalicoBpf};
use accountant_dataplane::iptables_legacy::{self, IptablesLegacy};
use accountant_dataplane::kernel::{self, Programs};
use accountant_dataplane::nftables::Nftables;
use accountant_datastore::convert::Settings;
use accountant_datastore::etcdv3::Etcd;
use accountant_datastore::kubernetes::Kubernetes;
use accountant_datastore::manifests::Manifests;
use accountant_datastore::{Nothing, Subscription, WithReports};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long to wait for the datastore's first names.
const NAMES: Duration = Duration::from_secs(10);
/// How long to wait for each source's first reading. On a busy node it takes longer than the engine waits for a source.
const READINGS: Duration = Duration::from_secs(60);

/// A first view, for whoever looks once: with names if there is a datastore that answers, and with every source.
async fn first_look(handle: &Handle) -> Arc<Published> {
    let names = async {
        let looks = |names: &DatastoreStatus| names.name != "none" && (!names.tried || names.pending);
        while looks(&handle.latest().status.datastore) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = timeout(NAMES, names).await;
    let deadline = Instant::now() + READINGS;
    loop {
        let published = handle.fresh(Duration::ZERO).await;
        let all_read = published.status.sources.iter().all(|source| source.state != State::Starting);
        if all_read || Instant::now() > deadline {
            return published;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// The registry of sources, for whoever looks once: what it brings into the kernel goes when it does.
pub fn sources(args: &SourceArgs) -> Sources {
    let is_wanted = matches!(args.programs.mode, KernelPrograms::Auto | KernelPrograms::On);
    sources_with(args, Programs::new(is_wanted))
}

/// The same, for an agent: programs in the kernel outlive it.
fn sources_that_stay(args: &SourceArgs) -> Sources {
    if args.programs.mode == KernelPrograms::Off {
        return sources(args);
    }
    let pins = args.programs.pins.folder().map(Into::into);
    let accepted_flows = args.programs.accepted_flows;
    let interfaces = match args.programs.mode {
        KernelPrograms::Interfaces => kernel::Interfaces::Only,
        _ => kernel::Interfaces::Instead,
    };
    sources_with(args, Programs::with(kernel::Settings { pins, accepted_flows, interfaces }))
}

fn sources_with(args: &SourceArgs, programs: Arc<Programs>) -> Sources {
    let legacy = iptables_legacy::Settings {
        lock_file: args.xtables_lock_file.clone(),
        lock_patience: args.xtables_lock_wait,
        in_place: args.read_in_place,
        watch_rewrites: args.watch_rewrites,
        programs: programs.clone(),
    };
    let iptables: Make =
        Box::new(move || Ok(Box::new(IptablesLegacy::new(legacy.clone())) as Box<dyn RuleSource>));
    let (in_place, shared) = (args.read_in_place, programs.clone());
    let nftables: Make =
        Box::new(move || Ok(Box::new(Nftables::with(in_place, shared.clone())?) as Box<dyn RuleSource>));
    let beside = calico_bpf::Settings {
        pins: args.calico_bpf_pins.clone(),
        listings: args.calico_bpf_policies.clone(),
    };
    let verdicts: Make =
        Box::new(move || Ok(Box::new(CalicoBpf::new(beside.clone())?) as Box<dyn RuleSource>));
    let makes =
        vec![(Source::IptablesLegacy, iptables), (Source::Nftables, nftables), (Source::CalicoBpf, verdicts)];
    Sources { makes, programs, needs_programs: args.programs.mode == KernelPrograms::On }
}

/// Starts the datastore that is configured, in the current tokio runtime.
pub fn datastore(names: &Names) -> (&'static str, Subscription) {
    let prefix = names.interface_prefix.as_ref().map(|prefix| prefix.value.as_str());
    let node = &names.node.value;
    let settings = Settings::new(node, prefix.unwrap_or_default());
    let subscription = match names.datastore.value.clone() {
        Datastore::None => accountant_datastore::start(with_reports(Nothing, names)),
        Datastore::Kubernetes(connection) => {
            let mut kubernetes = Kubernetes::new(connection, node, prefix);
            kubernetes.endpoint_status = Some(names.endpoint_status.clone());
            accountant_datastore::start(kubernetes)
        }
        Datastore::Etcdv3(connection) => {
            accountant_datastore::start(with_reports(Etcd::new(connection, settings), names))
        }
        Datastore::Manifests(folder) => accountant_datastore::start(Manifests::new(folder, settings)),
    };
    (names.datastore.value.name(), subscription)
}

/// A datastore with what Felix itself reports on this node.
fn with_reports<D>(datastore: D, names: &Names) -> WithReports<D> {
    WithReports { datastore, folder: names.endpoint_status.clone() }
}
