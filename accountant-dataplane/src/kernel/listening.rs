//! Flows as they are dropped: a thread hands them over while somebody listens, and none runs while nobody does.
//!
//! Invariant: bounded. Whoever takes what is handed over as slowly as it likes delays this thread alone; what the ring buffer
//! has no room for meanwhile is counted.

use super::flows::SeenFlow;
use super::witness::Witness;
use super::{Programs, State};
use crate::in_place::CannotHere;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

/// How long it rests after each hand-over, in milliseconds: a flood of flows costs so much and no more.
const REST: u8 = 20;

/// Flows that were dropped just now.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// Each with one packet: the first since flows were last read ([`super::Flows`]).
    pub flows: Vec<SeenFlow>,
    /// How many more there were that the ring buffer had no room for.
    pub lost: u64,
}

/// Flows are handed over until this is dropped.
#[derive(Debug)]
pub struct Listening {
    state: Arc<Mutex<State>>,
    /// Closed when this is dropped, which ends the thread.
    _end: OwnedFd,
}

impl Programs {
    /// Hands over flows as they are dropped, on a thread of its own, until what is returned is dropped or `told` says that it
    /// wants no more. One at a time.
    pub fn listen(&self, told: impl Fn(News) -> bool + Send + 'static) -> Result<Listening, CannotHere> {
        let refused = |error: io::Error| CannotHere::Refused {
            operation: "listening for dropped flows".into(),
            error: error.to_string(),
        };
        let (ends, end) = nix::unistd::pipe().map_err(|error| refused(error.into()))?;
        let mut state = self.lock();
        let State::On { witness, .. } = &mut *state else {
            drop(state);
            return Err(self.reason().unwrap_or(CannotHere::NotYet));
        };
        let ready = witness.listen().try_clone_to_owned().map_err(refused)?;
        let (_, lost) = witness.take_events();
        let listener = Listener { state: Arc::downgrade(&self.state), ready, ends, lost };
        let listening = Listening { state: self.state.clone(), _end: end };
        let thread = thread::Builder::new().name("denied".into()).spawn(move || listener.run(&told));
        drop(state);
        thread.map_err(refused).map(|_| listening)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let State::On { witness, .. } = &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            witness.listen_no_more();
        }
    }
}

struct Listener {
    state: Weak<Mutex<State>>,
    ready: OwnedFd,
    ends: OwnedFd,
    /// How much was lost when it was last looked.
    lost: u64,
}

impl Listener {
    fn run(mut self, told: &dyn Fn(News) -> bool) {
        while self.is_awaited(PollTimeout::NONE, true) {
            let Some(news) = self.with_programs(Witness::take_events) else { return };
            let (flows, lost) = news;
            let news = News { flows, lost: lost.saturating_sub(self.lost) };
            self.lost = lost;
            if !told(news) || !self.is_awaited(REST.into(), false) {
                return;
            }
        }
    }

    /// Waits for flows, or just waits; says whether anybody still listens.
    fn is_awaited(&self, time: PollTimeout, for_flows: bool) -> bool {
        let mut fds = vec![PollFd::new(self.ends.as_fd(), PollFlags::POLLIN)];
        fds.extend(for_flows.then(|| PollFd::new(self.ready.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, time) {
            // Interrupted by a signal: look, and wait again.
            Err(error) => error == nix::errno::Errno::EINTR,
            Ok(_) => !fds[0].any().unwrap_or(true),
        }
    }

    fn with_programs<T>(&self, ask: impl FnOnce(&mut Witness) -> T) -> Option<T> {
        let state = self.state.upgrade()?;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let State::On { witness, .. } = &mut *state else { return None };
        Some(ask(witness))
    }
}
