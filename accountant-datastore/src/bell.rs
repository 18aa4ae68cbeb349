//! Rings when something changes in a watched folder: inotify, made awaitable.
//!
//! A thread sleeps in poll(2) until inotify has events, reads them and rings; what they say does not matter. It ends
//! when the bell is dropped, which closes the pipe that it polls as well.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{InitFlags, Inotify};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Changes come in bursts: one is over when it was quiet for this long,
const QUIET: Duration = Duration::from_millis(50);
/// or this long after the first change.
const PATIENCE: Duration = Duration::from_millis(500);

/// A bell.
pub(crate) struct Bell {
    inotify: Arc<Inotify>,
    changed: Arc<Notify>,
    _open_while_in_use: PipeWriter,
}

impl Bell {
    /// A bell that watches nothing yet.
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?);
        let changed = Arc::new(Notify::new());
        let (end, open_while_in_use) = io::pipe()?;
        let (events, ring) = (Arc::clone(&inotify), Arc::clone(&changed));
        thread::Builder::new().name("bell".into()).spawn(move || wait_for_events(&events, &end, &ring))?;
        Ok(Self { inotify, changed, _open_while_in_use: open_while_in_use })
    }

    /// What folders to watch are told to.
    pub(crate) fn inotify(&self) -> Arc<Inotify> {
        Arc::clone(&self.inotify)
    }

    /// Comes back after a burst of changes, also after one that was before the call.
    pub(crate) async fn rung(&self) {
        self.changed.notified().await;
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            let quiet = Instant::now() + QUIET;
            if timeout_at(quiet.min(patience), self.changed.notified()).await.is_err() {
                break;
            }
        }
    }
}

/// The thread: until the other end of the pipe is closed.
fn wait_for_events(inotify: &Inotify, end: &PipeReader, ring: &Notify) {
    loop {
        let mut both = [inotify.as_fd(), end.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let polled = poll(&mut both, PollTimeout::NONE);
        let [events, end] = both.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        match polled {
            Err(Errno::EINTR) => continue,
            Err(errno) => {
                tracing::warn!(error = %errno, "waiting for changes of files failed, they will be seen late");
                return;
            }
            Ok(_) if end => return,
            Ok(_) if events => {
                // Events that cannot be read are a change as well.
                let _ = inotify.read_events();
                ring.notify_one();
            }
            Ok(_) => {}
        }
    }
}
