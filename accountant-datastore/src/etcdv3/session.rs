//! One session with etcd: everything read at one revision, then followed from it, until something breaks.
//!
//! Invariant: what the cache has after reading is what etcd had at that revision, and each change after it is applied once:
//! watches begin at the next revision, whichever range they watch.

use super::Etcd;
use super::client::connect;
use super::decode::came;
use super::error::EtcdError;
use super::keys::{self, CLUSTER_INFORMATION, ENDPOINTS, EVERYWHERE, GROUP, Kind, Range};
use super::ready::is_ready;
use crate::cache::{Cache, Came};
use crate::convert::object_key;
use crate::explain;
use crate::health::Health;
use crate::patience::{spread, within};
use crate::{Disconnected, Outlet};
use accountant_core::index::ObjectKey;
use etcd_client::{
    Client, EventType, GetOptions, GetResponse, KeyValue, KvClient, WatchOptions, WatchStream,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// Keys that are listed at once, fewer where their values do not fit into a message.
const PAGE: i64 = 500;
/// Largest message of a list. A value alone may have 1.5 MiB, unless etcd is told otherwise.
const LARGEST_PAGE: usize = 16 << 20;
/// How long a page may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Lists under way at the same time.
const CONCURRENT: usize = 8;
/// Largest message of a watch.
const LARGEST: usize = 64 << 20;
/// Most ranges of endpoints that are watched. Where there are more namespaces, all endpoints are watched, and those of other
/// nodes left out here: etcd keeps each watch in memory.
const MAX_WATCHED: usize = 400;
/// Most events of other nodes' endpoints, in namespaces that were not known, before it is seen whether ranges would be others.
const MAX_FOREIGN: u32 = 10_000;
/// How soon it is seen whether what was forbidden is allowed now.
const FORBIDDEN_AGAIN: Duration = Duration::from_secs(300);

/// Why a session ended without an error.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Everything is to be read again.
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
const INFORMATION: &str = "clusterinformations";

/// What was read.
struct Listed {
    revision: i64,
    objects: Vec<(ObjectKey, Came)>,
    /// What is to be watched.
    ranges: Vec<Range>,
    ready: bool,
    /// The kinds that may not be read, as keys of objects have them.
    denied: BTreeSet<Box<str>>,
    /// The namespaces that ranges of endpoints were chosen for; nothing where they cannot be chosen better.
    narrow: Option<Vec<String>>,
}

impl Session<'_> {
    /// Reads and follows.
    pub(super) async fn run(&mut self) -> Result<Ended, EtcdError> {
        let client = connect(&self.etcd.connection).await?;
        let kv = client.kv_client().max_decoding_message_size(LARGEST_PAGE);
        let mut listed = self.list(&kv).await?;
        let (mut watch, mut wanted) = watch(&client, listed.ranges, listed.revision + 1).await?;
        self.health.works(CONNECTION);
        let mut ready = listed.ready;
        self.tell_ready(ready);
        let mut again = (!listed.denied.is_empty()).then(|| Instant::now() + spread(FORBIDDEN_AGAIN));
        let mut foreign = 0;
        loop {
            self.health.in_sync = wanted == 0 && ready && listed.ready;
            if let Err(gone) = self.health.hand_over(self.cache, self.outlet).await {
                return Ok(gone.into());
            }
            let response = tokio::select! {
                response = watch.message() => response.map_err(|source| EtcdError::Watch { source })?,
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => return Ok(Ended::Again),
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
                    let now = event.event_type() == EventType::Delete || is_ready(entry.value());
                    if now != ready {
                        (ready, listed.ready) = (now, false);
                        self.tell_ready(now);
                        again = now.then(|| self.soon());
                    }
                } else if ready && listed.ready {
                    foreign += u32::from(!self.take(event.event_type(), entry));
                }
            }
            if foreign > MAX_FOREIGN
                && let Some(known) = &listed.narrow
            {
                foreign = 0;
                if again.is_none() && self.namespaces(&kv, 0).await? != *known {
                    again = Some(self.soon());
                }
            }
        }
    }

    /// When to read everything again, where all agents see at the same moment that they must.
    fn soon(&self) -> Instant {
        Instant::now() + within(self.etcd.again_within)
    }

    fn tell_ready(&mut self, ready: bool) {
        match ready {
            true => self.health.works(READY),
            false => self.health.fail(READY, "not_ready", NOT_READY.into()),
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

    /// Reads everything at one revision. While the datastore is not ready, only if nothing was told yet.
    async fn list(&mut self, kv: &KvClient) -> Result<Listed, EtcdError> {
        let mut listed = self.information(kv).await?;
        if !listed.ready && !self.cache.is_new() {
            return Ok(listed);
        }
        let watched = listed.ranges.len();
        for kind in &EVERYWHERE {
            self.list_part(kind, vec![kind.range()], kv, &mut listed).await?;
        }
        let namespaces = match self.namespaces(kv, listed.revision).await {
            Ok(namespaces) => {
                self.health.works("profiles");
                Some(namespaces)
            }
            Err(error) if error.is_denied() => {
                self.deny("profiles", "Profile", &error, &mut listed);
                None
            }
            Err(error) => return Err(error),
        };
        let own = keys::endpoint_prefix(&self.etcd.settings.node);
        let ranges = keys::endpoint_ranges(namespaces.as_deref().unwrap_or_default(), &own);
        listed.narrow = namespaces.filter(|_| ranges.len() <= MAX_WATCHED);
        self.list_part(&ENDPOINTS, ranges, kv, &mut listed).await?;
        // What may not be read is not gone.
        let objects = std::mem::take(&mut listed.objects);
        self.cache.replace(objects, |key| !listed.denied.contains(&key.0));
        if !listed.ready {
            listed.ranges.truncate(watched);
        }
        Ok(listed)
    }

    /// Whether the datastore is in use, and at which revision to read. Who may not know takes it to be in use.
    async fn information(&mut self, kv: &KvClient) -> Result<Listed, EtcdError> {
        let mut listed = Listed {
            revision: 0,
            objects: Vec::new(),
            ranges: vec![Range::key(CLUSTER_INFORMATION)],
            ready: true,
            denied: BTreeSet::new(),
            narrow: None,
        };
        let mut answer = get(kv, INFORMATION, CLUSTER_INFORMATION, GetOptions::new()).await;
        match &answer {
            Ok(information) => {
                self.health.works(INFORMATION);
                listed.ready = information.kvs().first().is_none_or(|entry| is_ready(entry.value()));
            }
            Err(error) if error.is_denied() => {
                self.deny(INFORMATION, "ClusterInformation", error, &mut listed);
                listed.ranges.clear();
            }
            Err(_) => {}
        }
        // Any other answer tells the revision as well.
        for kind in EVERYWHERE.iter().chain([&ENDPOINTS]) {
            if answer.as_ref().is_err_and(EtcdError::is_denied) {
                let Range { from, to } = kind.range();
                let options = GetOptions::new().with_range(to).with_count_only();
                answer = get(kv, kind.plural, from, options).await;
            }
        }
        listed.revision = answer?.header().map_or(0, |header| header.revision());
        Ok(listed)
    }

    /// The namespaces that have a profile, in order. At revision 0: now.
    async fn namespaces(&self, kv: &KvClient, revision: i64) -> Result<Vec<String>, EtcdError> {
        let pages = pages(kv.clone(), "profiles", keys::namespace_profiles(), revision, true);
        let entries: Vec<_> = pages.try_collect().await?;
        let keys = entries.iter().flatten().map(|entry| String::from_utf8_lossy(entry.key()));
        let namespaces = keys.filter_map(|key| keys::namespace_of_profile(&key).map(str::to_string));
        let namespaces: BTreeSet<_> = namespaces.collect();
        Ok(namespaces.into_iter().collect())
    }

    /// Reads one kind. If it may not be read, the others go on without it.
    async fn list_part(
        &mut self,
        kind: &Kind,
        ranges: Vec<Range>,
        kv: &KvClient,
        listed: &mut Listed,
    ) -> Result<(), EtcdError> {
        let revision = listed.revision;
        let lists: Vec<_> = ranges
            .iter()
            .map(|range| pages(kv.clone(), kind.plural, range.clone(), revision, false).boxed())
            .collect();
        let mut lists = stream::iter(lists).flatten_unordered(CONCURRENT);
        let mut objects = Vec::new();
        loop {
            match lists.try_next().await {
                Ok(Some(page)) => objects.extend(page.iter().filter_map(|entry| self.came(entry))),
                Ok(None) => break,
                Err(error) if error.is_denied() => {
                    self.deny(kind.plural, kind.name, &error, listed);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.health.works(kind.plural);
        listed.objects.append(&mut objects);
        if ranges.len() > MAX_WATCHED {
            listed.ranges.push(kind.range());
        } else {
            listed.ranges.extend(ranges);
        }
        Ok(())
    }

    fn deny(&mut self, part: &str, kind: &str, error: &EtcdError, listed: &mut Listed) {
        self.health.fail(part, "forbidden", explain(error, "allow its user to read it"));
        listed.denied.insert(object_key(kind, GROUP, "", "").0);
    }
}

const NOT_READY: &str = "the datastore is not ready: ClusterInformation says datastoreReady: false, as while it is being \
                         migrated; the names of before are kept";

/// Asks once.
async fn get(
    kv: &KvClient,
    what: &'static str,
    key: impl Into<Vec<u8>>,
    options: GetOptions,
) -> Result<GetResponse, EtcdError> {
    let answer = timeout(PATIENCE, kv.clone().get(key, Some(options))).await;
    let answer = answer.map_err(|_| EtcdError::Silent { what, patience: PATIENCE })?;
    answer.map_err(|source| EtcdError::List { what, source })
}

/// The pages of a range.
fn pages(
    kv: KvClient,
    what: &'static str,
    range: Range,
    revision: i64,
    keys_only: bool,
) -> impl stream::Stream<Item = Result<Vec<KeyValue>, EtcdError>> {
    stream::try_unfold((Some(range.from), PAGE), move |(from, limit)| {
        let (kv, to) = (kv.clone(), range.to.clone());
        async move {
            let Some(from) = from else { return Ok(None) };
            let mut options = GetOptions::new().with_range(to).with_revision(revision).with_limit(limit);
            if keys_only {
                options = options.with_keys_only();
            }
            let mut page = match get(&kv, what, from.clone(), options).await {
                Err(error) if error.is_too_large() && limit > 1 => {
                    return Ok(Some((Vec::new(), (Some(from), limit / 2))));
                }
                page => page?,
            };
            let more = page.more();
            let entries = page.take_kvs();
            let next = entries.last().filter(|_| more).map(|last| [last.key(), &[0]].concat());
            Ok(Some((entries, (next, limit))))
        }
    })
}

/// Watches these ranges from a revision on, on one stream. Beside it: how many watches etcd has yet to confirm.
async fn watch(client: &Client, ranges: Vec<Range>, from: i64) -> Result<(WatchStream, usize), EtcdError> {
    let wrong = |source| EtcdError::Watch { source };
    let options = WatchOptions::new().with_start_revision(from).with_fragment();
    let mut watches = client.watch_client().max_decoding_message_size(LARGEST);
    let (mut stream, wanted) = (None::<WatchStream>, ranges.len());
    for Range { from, to } in ranges {
        let options = Some(options.clone().with_range(to));
        match &mut stream {
            Some(stream) => stream.watch(from, options).await.map_err(wrong)?,
            None => {
                let first = timeout(PATIENCE, watches.watch(from, options)).await;
                let first = first.map_err(|_| EtcdError::Silent { what: "watches", patience: PATIENCE })?;
                stream = Some(first.map_err(wrong)?);
            }
        }
    }
    // There is no session without anything to read.
    Ok((stream.ok_or(EtcdError::Ended)?, wanted))
}
