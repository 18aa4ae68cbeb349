//! One session with etcd: everything read at one revision, then followed from it, until something breaks.
//!
//! Invariant: what the cache has after reading is what etcd had at that revision, and each change after it is applied once:
//! watches begin at the next revision, whichever range they watch.

use super::Etcd;
use super::client::connect;
use super::decode::came;
use super::error::EtcdError;
use super::keys::{self, CLUSTER_INFORMATION, ENDPOINTS, EVERYWHERE, Range};
use super::ready::is_ready;
use crate::cache::{Cache, Came};
use crate::explain;
use crate::health::Health;
use crate::{Disconnected, Outlet};
use accountant_core::index::ObjectKey;
use etcd_client::{Client, EventType, GetOptions, KeyValue, KvClient, WatchOptions, WatchStream};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::time::Duration;
use tokio::time::timeout;

/// Keys that are listed at once: their values are to fit into the 4 MiB that a message may have.
const PAGE: i64 = 500;
/// How long a page may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Lists under way at the same time.
const CONCURRENT: usize = 8;
/// Largest message of a watch.
const LARGEST: usize = 64 << 20;
/// Most ranges of endpoints that are watched. Where there are more namespaces, all endpoints are watched, and those of other
/// nodes left out here: etcd keeps each watch in memory.
const MAX_WATCHED: usize = 400;
/// Most events of other nodes' endpoints, in namespaces that were not known, before ranges are chosen anew.
const MAX_FOREIGN: u32 = 10_000;
/// How soon it is seen whether what was forbidden is allowed now.
const FORBIDDEN_AGAIN: Duration = Duration::from_secs(300);

/// Why a session ended without an error.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Everything is to be read again, at once.
    Again,
    /// Nobody listens any more.
    Disconnected,
}

impl From<Disconnected> for Ended {
    fn from(_: Disconnected) -> Self {
        Self::Disconnected
    }
}

/// One session.
pub(super) struct Session<'a> {
    pub(super) etcd: &'a Etcd,
    pub(super) cache: &'a mut Cache,
    pub(super) health: &'a mut Health,
    pub(super) outlet: &'a Outlet,
}

/// The part of [`Health`] that the connection is.
pub(super) const CONNECTION: &str = "etcd";
const READY: &str = "clusterinformation";

/// What was read.
struct Listed {
    revision: i64,
    objects: Vec<(ObjectKey, Came)>,
    /// What is to be watched.
    ranges: Vec<Range>,
    ready: bool,
    denied: bool,
}

impl Session<'_> {
    /// Reads and follows.
    pub(super) async fn run(&mut self) -> Result<Ended, EtcdError> {
        let mut client = connect(&self.etcd.connection).await?;
        let listed = self.list(&mut client).await?;
        if listed.ready || self.cache.is_new() {
            self.cache.replace(listed.objects, |_| true);
        }
        let ranges = if listed.ready { listed.ranges } else { Vec::new() };
        let (mut watch, mut wanted) = watch(&client, ranges, listed.revision + 1).await?;
        self.health.works(CONNECTION);
        if listed.ready {
            self.health.works(READY);
        } else {
            self.health.fail(READY, "not_ready", NOT_READY.into());
        }
        self.health.in_sync = wanted == 0 && listed.ready;
        if let Err(gone) = self.health.hand_over(self.cache, self.outlet).await {
            return Ok(gone.into());
        }
        let denied_until = tokio::time::Instant::now() + FORBIDDEN_AGAIN;
        let mut foreign = 0;
        loop {
            let response = tokio::select! {
                response = watch.message() => response.map_err(|source| EtcdError::Watch { source })?,
                () = tokio::time::sleep_until(denied_until), if listed.denied => return Ok(Ended::Again),
            };
            let Some(response) = response else { return Err(EtcdError::Ended) };
            if response.canceled() {
                return Err(match response.compact_revision() {
                    0 => EtcdError::Cancelled { why: response.cancel_reason().into() },
                    up_to => EtcdError::Compacted { up_to },
                });
            }
            wanted -= usize::from(response.created() && wanted > 0);
            for event in response.events() {
                let Some(entry) = event.kv() else { continue };
                if entry.key() == CLUSTER_INFORMATION.as_bytes() {
                    let ready = event.event_type() == EventType::Delete || is_ready(entry.value());
                    if ready != listed.ready {
                        return Ok(Ended::Again);
                    }
                    continue;
                }
                foreign += u32::from(!self.take(event.event_type(), entry));
            }
            if foreign > MAX_FOREIGN {
                return Ok(Ended::Again);
            }
            self.health.in_sync = wanted == 0 && listed.ready;
            if let Err(gone) = self.health.hand_over(self.cache, self.outlet).await {
                return Ok(gone.into());
            }
        }
    }

    /// Takes a change. Returns whether it concerns this node.
    fn take(&mut self, event: EventType, entry: &KeyValue) -> bool {
        let Some((key, came)) = self.came(entry) else { return false };
        match event {
            EventType::Delete => self.cache.remove(&key),
            EventType::Put => self.cache.put(key, came),
        }
        true
    }

    /// What an entry tells.
    fn came(&self, entry: &KeyValue) -> Option<(ObjectKey, Came)> {
        came(entry.key(), entry.value(), &self.etcd.settings)
    }

    /// Reads everything at one revision.
    async fn list(&mut self, client: &mut Client) -> Result<Listed, EtcdError> {
        let what = "clusterinformations";
        let mut kv = client.kv_client();
        let first = timeout(PATIENCE, kv.get(CLUSTER_INFORMATION, None)).await;
        let first = first.map_err(|_| EtcdError::Silent { what, patience: PATIENCE })?;
        let first = first.map_err(|source| EtcdError::List { what, source })?;
        let revision = first.header().map_or(0, |header| header.revision());
        let ready = first.kvs().first().is_none_or(|entry| is_ready(entry.value()));

        let mut listed = Listed { revision, objects: Vec::new(), ranges: Vec::new(), ready, denied: false };
        for kind in &EVERYWHERE {
            self.list_part(kind.plural, vec![kind.range()], &kv, &mut listed).await?;
        }
        let mut namespaces = Vec::new();
        let profiles = pages(kv.clone(), "profiles", keys::namespace_profiles(), revision, true);
        match profiles.try_collect::<Vec<_>>().await {
            Ok(entries) => {
                let keys = entries.iter().flatten().map(|entry| String::from_utf8_lossy(entry.key()));
                namespaces
                    .extend(keys.filter_map(|key| keys::namespace_of_profile(&key).map(str::to_string)));
            }
            Err(error) if error.is_denied() => self.deny("profiles", &error, &mut listed),
            Err(error) => return Err(error),
        }
        namespaces.sort();
        namespaces.dedup();
        let ranges = keys::endpoint_ranges(&namespaces, &keys::endpoint_prefix(&self.etcd.settings.node));
        self.list_part(ENDPOINTS.plural, ranges, &kv, &mut listed).await?;
        Ok(listed)
    }

    /// Reads one kind. If it may not be read, the others go on without it.
    async fn list_part(
        &mut self,
        what: &'static str,
        ranges: Vec<Range>,
        kv: &KvClient,
        listed: &mut Listed,
    ) -> Result<(), EtcdError> {
        let revision = listed.revision;
        let lists: Vec<_> = ranges
            .iter()
            .map(|range| pages(kv.clone(), what, range.clone(), revision, false).boxed())
            .collect();
        let mut lists = stream::iter(lists).flatten_unordered(CONCURRENT);
        let mut objects = Vec::new();
        loop {
            match lists.try_next().await {
                Ok(Some(page)) => objects.extend(page.iter().filter_map(|entry| self.came(entry))),
                Ok(None) => break,
                Err(error) if error.is_denied() => {
                    self.deny(what, &error, listed);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.health.works(what);
        listed.objects.append(&mut objects);
        if ranges.len() > MAX_WATCHED {
            listed.ranges.push(ENDPOINTS.range());
        } else {
            listed.ranges.extend(ranges);
        }
        Ok(())
    }

    fn deny(&mut self, what: &'static str, error: &EtcdError, listed: &mut Listed) {
        self.health.fail(what, "forbidden", explain(error, "allow its user to read it"));
        listed.denied = true;
    }
}

const NOT_READY: &str = "the datastore is not ready: ClusterInformation says datastoreReady: false, as while it is being \
                         migrated; the names of before are kept";

/// The pages of a range.
fn pages(
    kv: KvClient,
    what: &'static str,
    range: Range,
    revision: i64,
    keys_only: bool,
) -> impl stream::Stream<Item = Result<Vec<KeyValue>, EtcdError>> {
    stream::try_unfold((kv, Some(range.from)), move |(mut kv, from)| {
        let to = range.to.clone();
        async move {
            let Some(from) = from else { return Ok(None) };
            let mut options = GetOptions::new().with_range(to).with_revision(revision).with_limit(PAGE);
            if keys_only {
                options = options.with_keys_only();
            }
            let page = timeout(PATIENCE, kv.get(from, Some(options))).await;
            let page = page.map_err(|_| EtcdError::Silent { what, patience: PATIENCE })?;
            let mut page = page.map_err(|source| EtcdError::List { what, source })?;
            let more = page.more();
            let entries = page.take_kvs();
            let next = entries.last().filter(|_| more).map(|last| [last.key(), &[0]].concat());
            Ok(Some((entries, (kv, next))))
        }
    })
}

/// Watches the cluster's information and these ranges from a revision on, on one stream. Beside it: how many watches etcd
/// has yet to confirm.
async fn watch(client: &Client, ranges: Vec<Range>, from: i64) -> Result<(WatchStream, usize), EtcdError> {
    let wrong = |source| EtcdError::Watch { source };
    let options = || WatchOptions::new().with_start_revision(from).with_fragment();
    let mut watches = client.watch_client().max_decoding_message_size(LARGEST);
    let first = timeout(PATIENCE, watches.watch(CLUSTER_INFORMATION, Some(options()))).await;
    let mut stream =
        first.map_err(|_| EtcdError::Silent { what: "watches", patience: PATIENCE })?.map_err(wrong)?;
    let wanted = ranges.len() + 1;
    for range in ranges {
        stream.watch(range.from, Some(options().with_range(range.to))).await.map_err(wrong)?;
    }
    Ok((stream, wanted))
}
