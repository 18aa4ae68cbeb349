//! The subcommands.

pub mod check;
pub mod run;
pub mod show;

use crate::config::{ConfigError, Datastore, NameArgs, SourceArgs};
use crate::engine::sources::Make;
use accountant_core::snapshot::Source;
use accountant_dataplane::RuleSource;
use accountant_dataplane::iptables_legacy::{self, IptablesLegacy};
use accountant_dataplane::nftables::Nftables;
use accountant_datastore::Subscription;
use accountant_datastore::convert::Settings;
use accountant_datastore::manifests::Manifests;

/// The registry of sources.
pub fn sources(args: &SourceArgs) -> Vec<(Source, Make)> {
    let legacy = iptables_legacy::Settings {
        lock_file: args.xtables_lock_file.clone(),
        lock_patience: args.xtables_lock_wait,
    };
    let iptables: Make =
        Box::new(move || Ok(Box::new(IptablesLegacy::new(legacy.clone())) as Box<dyn RuleSource>));
    let nftables: Make = Box::new(|| Ok(Box::new(Nftables::new()?) as Box<dyn RuleSource>));
    vec![(Source::IptablesLegacy, iptables), (Source::Nftables, nftables)]
}

/// Starts the datastore that is configured, in the current tokio runtime.
pub fn datastore(args: &NameArgs) -> Result<Option<(&'static str, Subscription)>, ConfigError> {
    Ok(match args.datastore()? {
        Datastore::None => None,
        Datastore::Unavailable(name) => {
            tracing::warn!(
                datastore = name,
                "this version takes names from manifests only: counting without names of pods"
            );
            None
        }
        Datastore::Manifests(folder) => {
            let settings = Settings::new(&args.node(), &args.interface_prefix);
            Some(("manifests", accountant_datastore::start(Manifests::new(folder, settings))))
        }
    })
}
