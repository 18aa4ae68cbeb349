//! The datastore `kubernetes`: pods of this node, and policies and host endpoints, from the Kubernetes API.
//!
//! `connection` says where it is (`kubeconfigs` whether they lead there), `kinds` what is read, `item` and `failure` what came and what went wrong, `pods` and
//! `prefixes` what becomes of this node's pods: all pure. `door` connects (through a `proxy` where there is one), `discover` asks what there is, `watch` watches a kind,
//! `follow` all of them.
//!
//! Invariant: what an API server sends because of us grows with this node's pods and the policies, not with the cluster:
//! pods are asked for by node, lists come from its cache, and all waiting is jittered.

mod connection;
mod discover;
mod door;
mod failure;
mod follow;
mod item;
mod kinds;
mod kubeconfigs;
mod pods;
mod prefixes;
mod proxy;
mod watch;

pub use connection::{ApiGroup, Connection, Overrides, Proxies, Source};
pub use kubeconfigs::{Kubeconfigs, WrongKubeconfig};
pub use proxy::is_proxy;

use crate::cache::{Cache, Came};
use crate::convert::Settings;
use crate::{Datastore, Outlet};
use accountant_core::index::ObjectKey;
use item::Item;
use kinds::{KINDS, Part, Role};
use pods::Pods;
use std::path::PathBuf;
use std::time::Duration;

/// The Kubernetes API, to be started with [`crate::start`].
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// Where it is.
    pub connection: Connection,
    /// What conversion must know of this node.
    pub settings: Settings,
    /// The interface prefix of `settings` was told, and FelixConfiguration is not asked.
    pub prefix_is_told: bool,
    /// Where Felix reports its endpoints.
    pub endpoint_status: Option<PathBuf>,
    /// How soon, and at last how often, it is looked for kinds that were installed later.
    pub discover_after: (Duration, Duration),
    /// How soon a connection that is dead is given up.
    pub keep_alive: KeepAlive,
}

/// When a silent connection is asked whether it is alive.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    /// How long it may be silent.
    pub after: Duration,
    /// How long the answer may take.
    pub patience: Duration,
}

impl Kubernetes {
    /// With the usual times and places. Without a prefix that is told, FelixConfiguration's counts.
    pub fn new(connection: Connection, node: &str, interface_prefix: Option<&str>) -> Self {
        Self {
            connection,
            settings: Settings::new(node, interface_prefix.unwrap_or_default()),
            prefix_is_told: interface_prefix.is_some(),
            endpoint_status: Some(crate::local::FOLDER.into()),
            discover_after: (Duration::from_secs(5), Duration::from_secs(300)),
            keep_alive: KeepAlive { after: Duration::from_secs(30), patience: Duration::from_secs(15) },
        }
    }
}

/// An object of the kind with this number, as a watch takes it; nothing if it is no JSON.
pub(crate) fn any_object(kind: usize, json: &[u8], settings: &Settings) -> Option<(ObjectKey, Came)> {
    let kind = &KINDS[kind % KINDS.len()];
    let mut resource = match kind.part {
        Part::Whole => serde_json::from_slice::<Item<false>>(json).ok()?.into_resource(),
        Part::Metadata => serde_json::from_slice::<Item<true>>(json).ok()?.into_resource(),
    };
    let key = item::identify(kind, &mut resource);
    let came = match kind.role {
        Role::Pods | Role::Names => item::told(&resource, settings),
        Role::Ready => {
            crate::etcdv3::ready::is_ready_now(&resource);
            Ok(None)
        }
        Role::Prefix => {
            let mut pods = Pods::new(settings.clone(), false);
            pods.configured(&key, Some(&resource), &mut Cache::default());
            Ok(None)
        }
    };
    Some((key, came))
}

impl Datastore for Kubernetes {
    const NAME: &'static str = "kubernetes";

    async fn run(self, outlet: Outlet) {
        tokio::select! {
            // It ends only when nobody listens.
            _ = follow::follow(self, &outlet) => {}
            () = outlet.disconnected() => {}
        }
    }
}
