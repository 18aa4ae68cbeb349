//! What is looked at aside: by a thread of its own, at its own pace, so that nobody waits for it.

use accountant_dataplane::bird::{Daemon, Follower, Socket, State};
use accountant_dataplane::census::{self, Census};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often a census is taken: it costs as much as listing all rules.
const CENSUS: Duration = Duration::from_secs(60);

/// What the last look gave.
#[derive(Debug, Default)]
pub struct Latest<T>(Arc<Mutex<Arc<T>>>);

impl<T> Clone for Latest<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Default + Send + Sync + 'static> Latest<T> {
    /// Looks from now on. `look` is given what the look before gave.
    fn start(
        name: &str,
        interval: Duration,
        mut look: impl FnMut(&T) -> T + Send + 'static,
    ) -> io::Result<Self> {
        let latest = Self::default();
        let published = latest.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || {
            loop {
                let seen = Arc::new(look(&published.get()));
                *published.0.lock().unwrap_or_else(PoisonError::into_inner) = seen;
                std::thread::sleep(interval);
            }
        })?;
        Ok(latest)
    }

    /// What the last look gave; before the first, nothing.
    pub fn get(&self) -> Arc<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// BIRD's daemons.
pub type Bird = Latest<Vec<Daemon>>;

/// Looks at BIRD's daemons from now on.
pub fn bird(sockets: Vec<Socket>, interval: Duration) -> io::Result<Bird> {
    if sockets.is_empty() {
        return Ok(Bird::default());
    }
    let mut follower = Follower::new(sockets);
    Latest::start("bird", interval, move |before: &Vec<Daemon>| {
        let daemons = follower.look();
        say_changes(before, &daemons);
        daemons
    })
}

/// Says what changed with daemons, not with their sessions: those are BIRD's own to log.
fn say_changes(before: &[Daemon], now: &[Daemon]) {
    for daemon in now {
        let old = before.iter().find(|old| old.name == daemon.name).map(|old| &old.state);
        match &daemon.state {
            state if old == Some(state) => {}
            State::Answering(socket) => tracing::info!(?socket, "BIRD answers"),
            State::Failing(reason) => tracing::warn!(daemon = daemon.name, reason, "BIRD cannot be asked"),
            State::Absent if old.is_some() => tracing::info!(daemon = daemon.name, "BIRD's socket is gone"),
            State::Absent => {}
        }
    }
}

/// Takes a census of the packet filter from now on.
pub fn census() -> io::Result<Latest<Census>> {
    Latest::start("census", CENSUS, |before: &Census| {
        let census = census::take();
        for (what, error) in &census.errors {
            let reason = error.to_string();
            let known = before.errors.iter().any(|(old, error)| old == what && error.to_string() == reason);
            if !known {
                tracing::warn!(what, %reason, "cannot be counted: its chains, rules or sets are not told");
            }
        }
        census
    })
}
