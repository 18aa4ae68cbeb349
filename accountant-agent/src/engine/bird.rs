//! BIRD's daemons, looked at by a thread of their own: whatever is at the other end of a socket, nobody waits for it.

use accountant_dataplane::bird::{Daemon, Follower, Socket, State};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the last look gave.
#[derive(Clone, Debug, Default)]
pub struct Looks(Arc<Mutex<Arc<Vec<Daemon>>>>);

impl Looks {
    /// Looks at these daemons from now on.
    pub fn start(sockets: Vec<Socket>, interval: Duration) -> io::Result<Self> {
        let looks = Self::default();
        if !sockets.is_empty() {
            let published = looks.clone();
            let look_on = move || follow(&published, Follower::new(sockets), interval);
            std::thread::Builder::new().name("bird".into()).spawn(look_on)?;
        }
        Ok(looks)
    }

    /// The daemons as they were at the last look.
    pub fn latest(&self) -> Arc<Vec<Daemon>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn follow(published: &Looks, mut follower: Follower, interval: Duration) {
    loop {
        let daemons = Arc::new(follower.look());
        say_changes(&published.latest(), &daemons);
        *published.0.lock().unwrap_or_else(PoisonError::into_inner) = daemons;
        std::thread::sleep(interval);
    }
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
