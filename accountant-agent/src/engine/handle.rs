//! How others talk to the engine, and what it publishes.

use super::denied::FlowsView;
use super::follow::Follower;
use super::status::Status;
use accountant_core::view::View;
use accountant_dataplane::in_place::CannotHere;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// What the engine publishes.
#[derive(Clone, Debug)]
pub struct Published {
    /// The accounts.
    pub view: View,
    /// How sources and datastore are doing.
    pub status: Status,
    /// Flows that were dropped lately, with labels of who dropped them.
    pub denied: FlowsView,
    /// Flows that were accepted lately; nothing unless they are noted.
    pub accepted: Option<FlowsView>,
    /// When the counters were read, on the monotonic clock. Nothing before the first tick has ended.
    pub at: Option<Instant>,
}

/// What the engine is asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// To publish something fresh.
    Tick(oneshot::Sender<()>),
    /// To tell of denied flows as they happen.
    Follow(oneshot::Sender<Result<Follower, CannotHere>>),
}

/// How others talk to the engine.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) published: watch::Receiver<Arc<Published>>,
}

impl Handle {
    /// A handle on something that is published once and for all, without an engine.
    pub fn fixed(published: Published) -> Self {
        let (requests, _) = mpsc::channel(1);
        let (_, published) = watch::channel(Arc::new(published));
        Self { requests, published }
    }

    /// What is published now.
    pub fn latest(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    /// What is published, after a tick if it is older than `max_age`.
    pub async fn fresh(&self, max_age: Duration) -> Arc<Published> {
        if self.latest().at.is_none_or(|at| at.elapsed() > max_age) {
            let (answer, answered) = oneshot::channel();
            if self.requests.send(Request::Tick(answer)).await.is_ok() {
                let _ = answered.await;
            }
        }
        self.latest()
    }

    /// Denied flows as they happen from now on, or why nobody sees them.
    pub async fn follow(&self) -> Result<Follower, CannotHere> {
        let (answer, answered) = oneshot::channel();
        // An engine that is gone had its programs.
        let _ = self.requests.send(Request::Follow(answer)).await;
        answered.await.unwrap_or(Err(CannotHere::NotYet))
    }
}
