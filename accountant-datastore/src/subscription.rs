//! What a datastore is: something that runs, hands over updates and tells how it does.
//!
//! Both ways out are bounded: updates wait in a queue of [`QUEUE`] until they are taken (the datastore waits with
//! them), of the status only the last is kept.

use accountant_core::index::{Index, Object, ObjectKey};
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::time::SystemTime;
use tokio::sync::{mpsc, watch};

/// How many updates may wait.
const QUEUE: usize = 16;

/// A change of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// These objects are all there is.
    Reset(BTreeMap<ObjectKey, Object>),
    /// An object is new or has changed.
    Apply(ObjectKey, Object),
    /// An object is gone.
    Delete(ObjectKey),
}

impl Update {
    /// Makes the change. Returns whether the index is another than before.
    pub fn apply_to(self, index: &mut Index) -> bool {
        match self {
            Self::Reset(objects) => index.reset(objects),
            Self::Apply(key, object) => index.apply(key, object),
            Self::Delete(key) => index.delete(&key),
        }
    }
}

/// How a datastore does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// What was handed over is all that the datastore says now. False until it was read once, and while anything of
    /// it cannot be read or used.
    pub in_sync: bool,
    /// Something is asked for the first time, and neither answered nor refused yet.
    pub pending: bool,
    /// What does not work, each with what was tried, on what, and what to do.
    pub errors: Vec<String>,
    /// How many errors there were since the start, by reason.
    pub counts: BTreeMap<&'static str, u64>,
    /// When the names last changed.
    pub last_change: Option<SystemTime>,
}

/// The receiving end of a datastore; dropping it ends the datastore.
#[derive(Debug)]
pub struct Subscription {
    /// Changes of names, in order.
    pub updates: mpsc::Receiver<Update>,
    /// How the datastore does.
    pub status: watch::Receiver<Status>,
}

/// The giving end: what a datastore writes to.
#[derive(Debug)]
pub struct Outlet {
    updates: mpsc::Sender<Update>,
    status: watch::Sender<Status>,
}

/// Nobody listens any more, so there is nothing left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody listens to this datastore any more")]
pub struct Disconnected;

impl Outlet {
    /// Hands over a change, waiting while the queue is full.
    pub async fn hand_over(&self, update: Update) -> Result<(), Disconnected> {
        self.updates.send(update).await.map_err(|_| Disconnected)
    }

    /// Tells how things are. Readers are woken only when that is news.
    pub fn report(&self, status: Status) {
        self.status.send_if_modified(|last| {
            let news = *last != status;
            *last = status;
            news
        });
    }

    /// Comes back when nobody listens any more.
    pub async fn disconnected(&self) {
        self.updates.closed().await;
    }
}

/// A place that names come from.
pub trait Datastore: Send + 'static {
    /// Its name in configuration.
    const NAME: &'static str;

    /// Reads and follows it, until nobody listens any more.
    fn run(self, outlet: Outlet) -> impl Future<Output = ()> + Send;
}

/// Starts a datastore as a task of the current tokio runtime, which must have its time driver on.
pub fn start<D: Datastore>(datastore: D) -> Subscription {
    let (updates, receiver) = mpsc::channel(QUEUE);
    let (status, last_status) = watch::channel(Status::default());
    tokio::spawn(datastore.run(Outlet { updates, status }));
    Subscription { updates: receiver, status: last_status }
}

/// An error as one line for a person: what was tried on what, why that failed, what to do.
pub fn explain(error: &dyn Error, advice: &str) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(why) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {why}");
        cause = why.source();
    }
    let _ = write!(text, "; {advice}");
    text
}
