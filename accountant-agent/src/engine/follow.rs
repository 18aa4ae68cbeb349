//! Denied flows as they happen, on their way from the programs in the kernel to whoever follows.
//!
//! Nothing that is counted depends on it. While nobody follows, the programs tell nothing of the kind and no thread listens.
//!
//! Invariant: bounded. A follower that is slow misses flows, and is told how many; it delays nobody.

use super::books::Books;
use super::denied::Entry;
use accountant_dataplane::in_place::CannotHere;
use accountant_dataplane::kernel::{Listening, News, Programs};
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc};

/// How many flows a follower can be behind.
const BEHIND: usize = 4096;
/// How many hand-overs of the listening thread wait here: it has to wait with more.
const WAITING: usize = 2;

/// What followers are told.
#[derive(Clone, Debug)]
pub enum Told {
    /// A flow, of which one packet was dropped just now: the first since all flows were last read.
    Flow(Arc<Entry>),
    /// How many more there were that nobody had room for.
    Lost(u64),
}

/// Who follows.
pub type Follower = broadcast::Receiver<Told>;

/// All who follow.
pub(super) struct Following {
    followers: broadcast::Sender<Told>,
    heard: Option<(mpsc::Receiver<News>, Listening)>,
}

impl Default for Following {
    fn default() -> Self {
        Self { followers: broadcast::Sender::new(BEHIND), heard: None }
    }
}

impl Following {
    /// One more follows.
    pub(super) fn add(&mut self, programs: &Programs) -> Result<Follower, CannotHere> {
        if self.heard.is_none() {
            let (hears, heard) = mpsc::channel(WAITING);
            let listening = programs.listen(move |news| hears.blocking_send(news).is_ok())?;
            self.heard = Some((heard, listening));
        }
        Ok(self.followers.subscribe())
    }

    /// What was heard next; nothing when nothing will be heard any more. Waits for ever while nobody follows.
    pub(super) async fn next(&mut self) -> Option<News> {
        match &mut self.heard {
            Some((heard, _)) => heard.recv().await,
            None => std::future::pending().await,
        }
    }

    /// Tells those who follow, if there still are any.
    pub(super) fn tell(&mut self, news: Option<News>, books: &Books) {
        let Some(news) = news else {
            // The programs are gone. Followers see their end.
            *self = Self::default();
            return;
        };
        self.end_if_alone();
        if self.heard.is_none() {
            return;
        }
        for entry in books.name_all(news.flows) {
            // Nobody may follow any more.
            let _ = self.followers.send(Told::Flow(Arc::new(entry)));
        }
        if news.lost > 0 {
            let _ = self.followers.send(Told::Lost(news.lost));
        }
    }

    /// Listens no more if nobody follows.
    pub(super) fn end_if_alone(&mut self) {
        if self.followers.receiver_count() == 0 {
            self.heard = None;
        }
    }
}
