//! The lock of the xtables tools, and the news of who opens and closes it.
//!
//! `iptables`, `ip6tables` and `iptables-restore` of the legacy kind take an exclusive flock on this file before they
//! read, change and replace a table (iptables 1.8: `/run/xtables.lock`, or `XTABLES_LOCKFILE`). Replacing is two system
//! calls, and between them all counters are zero; whoever holds the lock shared never sees that.
//!
//! The file is opened once and stays open, so our own locking is no news to ourselves; it is opened again when somebody
//! deleted it.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to sleep between tries. The lock is mostly held for milliseconds.
const RETRY: Duration = Duration::from_micros(300);

/// The lock file, watched.
#[derive(Debug)]
pub(crate) struct XtablesLock {
    path: PathBuf,
    file: Option<File>,
    inotify: Option<Inotify>,
    watch: Option<WatchDescriptor>,
}

/// What others did with the lock file, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Somebody was done with it.
    pub(crate) closed: bool,
    /// Somebody opened it: a table is about to be replaced.
    pub(crate) opened: bool,
    /// Whoever opened it is done: the table was replaced already.
    pub(crate) closed_again: bool,
}

impl News {
    fn take(&mut self, mask: AddWatchFlags) {
        // An overflow of the queue is news too: somebody was very busy.
        if mask.intersects(AddWatchFlags::IN_Q_OVERFLOW) {
            *self = Self { closed: true, opened: true, closed_again: true };
        } else if mask.intersects(AddWatchFlags::IN_OPEN) {
            self.closed |= self.closed_again;
            (self.opened, self.closed_again) = (true, false);
        } else if mask.intersects(AddWatchFlags::IN_CLOSE) {
            let which = if self.opened { &mut self.closed_again } else { &mut self.closed };
            *which = true;
        }
    }
}

/// Proof that the lock is held shared; gives it back when dropped.
#[derive(Debug)]
pub(crate) struct Shared(#[allow(dead_code, reason = "held for its Drop")] Flock<File>);

impl XtablesLock {
    /// Opens the file, which is made as iptables itself makes it if it is not there.
    pub(crate) fn open(path: &Path) -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        if let Err(error) = &inotify {
            tracing::warn!(%error, "cannot watch the xtables lock: rewrites cost up to a poll interval of counts");
        }
        let mut lock = Self { path: path.into(), file: None, inotify: inotify.ok(), watch: None };
        if let Err(error) = lock.reopen() {
            tracing::warn!(path = %path.display(), %error, "cannot open the xtables lock: reading without it");
        }
        lock
    }

    /// Takes the lock shared, or gives up after a while.
    pub(crate) fn shared(&mut self, patience: Duration) -> io::Result<Shared> {
        self.reopen_if_replaced()?;
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut file = file.try_clone()?;
        let deadline = Instant::now() + patience;
        loop {
            match Flock::lock(file, FlockArg::LockSharedNonblock) {
                Ok(lock) => return Ok(Shared(lock)),
                Err((back, Errno::EAGAIN | Errno::EINTR)) if Instant::now() < deadline => file = back,
                Err((_, errno)) => return Err(errno.into()),
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Becomes readable when somebody opens or closes the lock file.
    pub(crate) fn events(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(|inotify| inotify.as_fd())
    }

    /// What happened to the file since the last call.
    pub(crate) fn news(&mut self) -> News {
        let mut news = News::default();
        let Some(inotify) = &self.inotify else { return news };
        while let Ok(events) = inotify.read_events() {
            if events.is_empty() {
                break;
            }
            for event in events {
                news.take(event.mask);
            }
        }
        news
    }

    fn reopen_if_replaced(&mut self) -> io::Result<()> {
        let there = std::fs::metadata(&self.path).map(|m| (m.dev(), m.ino())).ok();
        let ours = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|m| (m.dev(), m.ino()));
        if ours.is_some() && ours == there { Ok(()) } else { self.reopen() }
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path);
        // A lock file on a read-only mount can still be locked.
        self.file = Some(file.or_else(|_| File::open(&self.path))?);
        if let Some(inotify) = &self.inotify {
            if let Some(watch) = self.watch.take() {
                // The kernel dropped the watch with the old file, if it is gone.
                let _ = inotify.rm_watch(watch);
            }
            let watched = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_CLOSE;
            self.watch = Some(inotify.add_watch(&self.path, watched)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("accountant-lock-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn our_own_locking_is_no_news_and_that_of_others_is() {
        let path = path("news");
        let mut lock = XtablesLock::open(&path);
        drop(lock.shared(Duration::ZERO).unwrap());
        assert_eq!(lock.news(), News::default());
        let other = File::open(&path).unwrap();
        assert_eq!(lock.news(), News { opened: true, ..News::default() });
        drop(other);
        assert_eq!(lock.news(), News { closed: true, ..News::default() });
        drop(File::open(&path).unwrap());
        assert_eq!(lock.news(), News { opened: true, closed_again: true, ..News::default() });
        drop(File::open(&path).unwrap());
        let other = File::open(&path).unwrap();
        assert_eq!(lock.news(), News { closed: true, opened: true, closed_again: false });
        drop(other);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_exclusive_lock_of_another_is_waited_for_but_not_for_ever() {
        let path = path("wait");
        let mut lock = XtablesLock::open(&path);
        let other = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusive).unwrap();
        assert!(lock.shared(Duration::from_millis(5)).is_err());
        drop(other);
        assert!(lock.shared(Duration::ZERO).is_ok());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_was_deleted_and_made_anew_is_found_again() {
        let path = path("anew");
        let mut lock = XtablesLock::open(&path);
        std::fs::remove_file(&path).unwrap();
        let other = Flock::lock(File::create(&path).unwrap(), FlockArg::LockExclusive).unwrap();
        assert!(lock.shared(Duration::from_millis(5)).is_err(), "the new file is the one to lock");
        drop(other);
        drop(lock.shared(Duration::ZERO).unwrap());
        lock.news();
        drop(File::open(&path).unwrap());
        assert!(lock.news().opened, "and the one to watch");
        std::fs::remove_file(path).unwrap();
    }
}
