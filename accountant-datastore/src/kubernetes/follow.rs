//! Follows the API server: one watch for each kind that it serves, for as long as anybody listens.
//!
//! Invariant: each kind is listed and followed by itself; what happens to one takes nothing from the others. What was told
//! stays until a complete list says otherwise.

mod found;

use super::Kubernetes;
use super::discover::Found;
use super::door::{Door, open};
use super::failure::{self, Remedy};
use super::item::{identify, told};
use super::kinds::{Kind, Role};
use super::pods::Pods;
use super::watch::{Change, watch_kind};
use crate::cache::{Cache, Came};
use crate::convert::Resource;
use crate::etcdv3::ready::is_ready_now;
use crate::health::Health;
use crate::local::{self, Reports};
use crate::patience::Waits;
use crate::{Disconnected, Outlet, explain};
use accountant_core::index::ObjectKey;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use kube::Client;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamMap;

/// A new client is made at most so often.
const RENEW_AFTER: Duration = Duration::from_secs(2);
/// Changes that are taken at once.
const AT_ONCE: usize = 1000;

type Watches = StreamMap<Id, BoxStream<'static, Change>>;

/// A kind that is followed.
struct Followed {
    kind: &'static Kind,
    /// What its list has come to so far.
    listing: Option<Vec<(ObjectKey, Resource)>>,
    /// Whether it was listed since it is followed.
    listed: bool,
    /// Whether a watch of it was ever opened.
    opened: bool,
    /// How long to wait before it is listed anew.
    waits: Waits,
}

/// What is followed.
struct Follower<'a> {
    kubernetes: &'a Kubernetes,
    client: Client,
    door: Door,
    renewed: Instant,
    renew_wanted: bool,
    cache: Cache,
    health: &'a mut Health,
    pods: Pods,
    followed: BTreeMap<Id, Followed>,
    watches: Watches,
    /// Which kinds there are was found out.
    discovered: bool,
    discovery: BoxFuture<'static, Result<Found, kube::Error>>,
    discover_after: Duration,
    discover_waits: Waits,
    /// The server did not tell which kinds there are.
    guessed: bool,
    /// The datastore is not in use: Calico's kinds stay as they are.
    frozen: bool,
}

/// The part of [`Health`] that the connection is.
pub(super) const CONNECTION: &str = "kubernetes";
const READY: &str = "clusterinformation";
const NODE: &str = "node";

/// Runs until nobody listens.
pub(super) async fn follow(kubernetes: Kubernetes, outlet: &Outlet) -> Result<(), Disconnected> {
    let (opened, mut opened_paths) = mpsc::unbounded_channel();
    let mut health = Health::default();
    let (door, client) = open(&kubernetes, &mut health, outlet, opened).await;
    let mut local = kubernetes.endpoint_status.clone().map(local::follow);
    let mut follower = Follower::new(&kubernetes, client, door, &mut health);
    loop {
        let mut quiet = false;
        tokio::select! {
            Some((name, change)) = follower.watches.next(), if !follower.watches.is_empty() => {
                quiet = follower.take(name, change);
                let mut more = 0;
                while more < AT_ONCE && let Some(Some((name, change))) = follower.watches.next().now_or_never() {
                    quiet &= follower.take(name, change);
                    more += 1;
                }
            }
            Some(path) = opened_paths.recv() => follower.opened(&path),
            found = &mut follower.discovery => follower.discovered(found),
            reports = changed(&mut local) => follower.pods.reported(reports, &mut follower.cache),
        }
        follower.remedy().await;
        if !quiet {
            follower.health.in_sync = follower.is_in_sync();
            follower.health.pending = follower.is_pending();
            follower.health.hand_over(&mut follower.cache, outlet).await?;
        }
    }
}

/// What Felix reports, when it is other than before.
async fn changed(local: &mut Option<watch::Receiver<Reports>>) -> Reports {
    if let Some(local) = local
        && local.changed().await.is_ok()
    {
        return local.borrow_and_update().clone();
    }
    std::future::pending().await
}

impl<'a> Follower<'a> {
    fn new(kubernetes: &'a Kubernetes, client: Client, door: Door, health: &'a mut Health) -> Self {
        let mut follower = Self {
            kubernetes,
            client,
            door,
            renewed: Instant::now(),
            renew_wanted: false,
            cache: Cache::default(),
            health,
            pods: Pods::new(kubernetes.settings.clone(), kubernetes.prefix_is_told),
            followed: BTreeMap::new(),
            watches: StreamMap::new(),
            discovered: false,
            discovery: std::future::pending().boxed(),
            discover_after: kubernetes.discover_after.0,
            discover_waits: Waits::default(),
            guessed: false,
            frozen: false,
        };
        follower.discover_in(Duration::ZERO);
        follower
    }

    fn is_in_sync(&self) -> bool {
        self.discovered && !self.frozen && self.followed.values().all(|followed| followed.listed)
    }

    /// Whether something was never answered nor refused. While the datastore is not ready, not all is asked for.
    fn is_pending(&self) -> bool {
        let answered = |followed: &Followed| {
            (followed.listed && followed.opened) || self.health.fails(&followed.kind.full_name())
        };
        let labels_are_missing = self.pods.prefixes().miss_labels() && !self.health.fails(NODE);
        let all = self.discovered && self.followed.values().all(answered) && !labels_are_missing;
        !(all || self.frozen || self.health.fails(CONNECTION))
    }

    fn start(&mut self, kind: &'static Kind) {
        let watch = self.watch(kind, Duration::ZERO);
        self.watches.insert(id(kind), watch);
        self.followed.insert(
            id(kind),
            Followed { kind, listing: None, listed: false, opened: false, waits: Waits::default() },
        );
    }

    fn watch(&self, kind: &'static Kind, wait: Duration) -> BoxStream<'static, Change> {
        watch_kind(self.client.clone(), kind, &self.kubernetes.settings.node, wait)
    }

    /// A kind that is not there any more has no objects.
    fn forget(&mut self, kind: &'static Kind) {
        self.watches.remove(&id(kind));
        self.followed.remove(&id(kind));
        self.health.works(&kind.full_name());
        self.replace(kind, Vec::new());
    }

    /// Takes a change. Returns whether it changes nothing yet.
    fn take(&mut self, id: Id, change: Change) -> bool {
        let Some(followed) = self.followed.get_mut(&id) else { return true };
        let kind = followed.kind;
        match change {
            Ok(Event::Init) => {
                followed.listing = Some(Vec::new());
                // What is listed anew is not followed until that is done.
                return !std::mem::take(&mut followed.listed);
            }
            Ok(Event::InitApply(mut object)) => {
                let key = identify(kind, &mut object);
                followed.listing.get_or_insert_default().push((key, object));
                return true;
            }
            Ok(Event::InitDone) => {
                let objects = followed.listing.take().unwrap_or_default();
                followed.listed = true;
                self.health.works(&kind.full_name());
                self.replace(kind, objects);
                if self.frozen {
                    self.hold();
                }
            }
            Ok(Event::Apply(mut object)) => {
                let key = identify(kind, &mut object);
                self.put(kind, key, object);
            }
            Ok(Event::Delete(mut object)) => {
                let key = identify(kind, &mut object);
                self.remove(kind, &key);
            }
            Err(error) => self.fail(kind, &error),
        }
        false
    }

    fn fail(&mut self, kind: &'static Kind, error: &watcher::Error) {
        let failure = failure::of_watch(&kind.full_name(), error);
        tracing::debug!(
            kind = kind.full_name(),
            reason = failure.reason,
            text = failure.text,
            "watch failed"
        );
        match failure.remedy {
            Remedy::Nothing => self.health.count(failure.reason),
            Remedy::List => {
                self.health.count(failure.reason);
                let followed = self.followed.get_mut(&id(kind));
                let wait = followed.and_then(|followed| {
                    followed.listed = false;
                    followed.waits.next()
                });
                let wait = wait.unwrap_or_default();
                let watch = self.watch(kind, wait);
                self.watches.insert(id(kind), watch);
            }
            Remedy::Wait => self.health.fail(&kind.full_name(), failure.reason, failure.text),
            Remedy::Renew => {
                self.health.fail(&kind.full_name(), failure.reason, failure.text);
                self.renew_soon();
            }
            Remedy::Discover => {
                self.health.count(failure.reason);
                self.forget(kind);
                if !self.guessed {
                    self.discover_soon();
                }
            }
        }
    }

    fn put(&mut self, kind: &'static Kind, key: ObjectKey, object: Resource) {
        match kind.role {
            Role::Pods => self.pods.put(key, object, &mut self.cache),
            Role::Names => {
                let came = told(&object, &self.kubernetes.settings);
                self.cache.put(key, came);
            }
            Role::Ready if &*key.2 == "default" => self.set_ready(is_ready_now(&object)),
            Role::Ready => {}
            Role::Prefix => {
                self.pods.configured(&key, Some(&object), &mut self.cache);
                self.ask_for_labels();
            }
        }
    }

    fn remove(&mut self, kind: &'static Kind, key: &ObjectKey) {
        match kind.role {
            Role::Pods => self.pods.remove(key, &mut self.cache),
            Role::Names => self.cache.remove(key),
            Role::Ready if &*key.2 == "default" => self.set_ready(true),
            Role::Ready => {}
            Role::Prefix => self.pods.configured(key, None, &mut self.cache),
        }
    }

    fn replace(&mut self, kind: &'static Kind, objects: Vec<(ObjectKey, Resource)>) {
        match kind.role {
            Role::Pods => self.pods.replace(objects, &mut self.cache),
            Role::Names => {
                let settings = &self.kubernetes.settings;
                let came: Vec<(ObjectKey, Came)> =
                    objects.into_iter().map(|(key, object)| (key, told(&object, settings))).collect();
                let covers = crate::convert::object_key(kind.name, kind.group, "", "").0;
                self.cache.replace(came, |key| key.0 == covers);
            }
            Role::Ready => {
                let default = objects.iter().find(|(key, _)| &*key.2 == "default");
                self.set_ready(default.is_none_or(|(_, information)| is_ready_now(information)));
            }
            Role::Prefix => {
                self.pods.configurations(&objects, &mut self.cache);
                self.ask_for_labels();
            }
        }
    }

    /// While the datastore is being migrated, what was told stays; then Calico's kinds are looked at anew.
    fn set_ready(&mut self, ready: bool) {
        if ready != self.frozen {
            return;
        }
        self.frozen = !ready;
        if ready {
            self.health.works(READY);
            // What was held is not followed before that.
            self.discovered = false;
            self.discover_soon();
        } else {
            let error = "the datastore is not ready: ClusterInformation says datastoreReady: false, as while it is \
                         being migrated; the names of before are kept";
            self.health.fail(READY, "not_ready", error.into());
            self.hold();
        }
    }

    /// The server opened a watch: a kind that was listed is followed again.
    fn opened(&mut self, path: &str) {
        let Some(followed) = self.followed.values_mut().find(|followed| followed.kind.path() == path) else {
            return;
        };
        followed.opened = true;
        if followed.listed {
            self.health.works(&followed.kind.full_name());
        }
    }

    fn renew_soon(&mut self) {
        self.renew_wanted = true;
    }

    /// Makes a new client when one is wanted.
    async fn remedy(&mut self) {
        if !self.renew_wanted || self.renewed.elapsed() < RENEW_AFTER {
            return;
        }
        self.renew_wanted = false;
        self.renewed = Instant::now();
        if let Err(error) = self.door.renew().await {
            let advice = "the one of before is kept, and it is tried again";
            self.health.fail(CONNECTION, "certificate", explain(&error, advice));
        }
    }
}

/// What tells kinds apart: group and plural.
type Id = (&'static str, &'static str);

fn id(kind: &'static Kind) -> Id {
    (kind.group, kind.plural)
}
