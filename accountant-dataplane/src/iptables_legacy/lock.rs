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

/// The lock file, watched.
#[derive(Debug)]
pub(crate) struct XtablesLock {
    path: PathBuf,
    file: Option<File>,
    inotify: Option<Inotify>,
    watch: Option<WatchDescriptor>,
    /// How many have the file open, as far as the news tell: several of one kind in a row can be told as one.
    writers: i32,
    was_replaced: bool,
}

/// What became of the file since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Somebody opened it.
    pub(crate) opened: bool,
    /// Somebody closed it.
    pub(crate) closed: bool,
    /// Somebody closed it after somebody opened it: all that a writer did can be over.
    pub(crate) over: bool,
    /// Somebody opened it, and nobody closed it since: a writer is about to begin.
    pub(crate) begun: bool,
    /// News were lost, or of another file of this name.
    pub(crate) lost: bool,
}

impl News {
    /// Adds later news.
    pub(crate) fn add(&mut self, later: Self) {
        self.over |= later.over || self.opened && later.closed;
        self.begun = later.begun || self.begun && !later.closed;
        self.opened |= later.opened;
        self.closed |= later.closed;
        self.lost |= later.lost;
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
        let mut lock = Self {
            path: path.into(),
            file: None,
            inotify: inotify.ok(),
            watch: None,
            writers: 0,
            was_replaced: false,
        };
        if let Err(error) = lock.reopen() {
            tracing::warn!(path = %path.display(), %error, "cannot open the xtables lock: reading without it");
        }
        lock
    }

    /// Takes the lock shared if nobody has it: none if somebody has.
    pub(crate) fn try_shared(&mut self) -> io::Result<Option<Shared>> {
        self.reopen_if_replaced()?;
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        match Flock::lock(file.try_clone()?, FlockArg::LockSharedNonblock) {
            Ok(lock) => Ok(Some(Shared(lock))),
            Err((_, Errno::EAGAIN | Errno::EINTR)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// Becomes readable when somebody opens the lock file.
    pub(crate) fn events(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(|inotify| inotify.as_fd())
    }

    /// Drains the news.
    pub(crate) fn news(&mut self) -> News {
        // A file that is gone brings no more news.
        if let Err(error) = self.reopen_if_replaced() {
            tracing::debug!(%error, "cannot open the xtables lock");
        }
        let mut news = News { lost: std::mem::take(&mut self.was_replaced), ..News::default() };
        let Some(inotify) = &self.inotify else { return news };
        while let Ok(events) = inotify.read_events() {
            if events.is_empty() {
                break;
            }
            for event in events {
                if event.mask.intersects(AddWatchFlags::IN_Q_OVERFLOW) {
                    news.lost = true;
                } else if event.mask.intersects(AddWatchFlags::IN_OPEN) {
                    news.add(News { opened: true, begun: true, ..News::default() });
                    self.writers += 1;
                } else if event.mask.intersects(AddWatchFlags::IN_CLOSE) {
                    news.add(News { closed: true, ..News::default() });
                    self.writers -= 1;
                }
            }
        }
        self.writers = self.writers.max(0);
        news
    }

    /// Whether somebody has the file open, as far as is known.
    pub(crate) fn is_open(&self) -> bool {
        self.writers > 0
    }

    /// Nobody holds the lock: whoever was counted and not seen to close the file is gone.
    pub(crate) fn nobody_has_it(&mut self) {
        self.writers = 0;
    }

    /// Whether there is news of the file at all.
    pub(crate) fn is_watched(&self) -> bool {
        self.watch.is_some()
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
            self.writers = 0;
            self.was_replaced = true;
            let mask = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_CLOSE;
            self.watch = Some(inotify.add_watch(&self.path, mask)?);
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

    const NOTHING: News = News { opened: false, closed: false, over: false, begun: false, lost: false };

    #[test]
    fn our_own_locking_is_no_news_and_that_of_others_is() {
        let path = path("news");
        let mut lock = XtablesLock::open(&path);
        assert!(lock.news().lost, "what was before is not known");
        drop(lock.try_shared().unwrap().unwrap());
        assert_eq!(lock.news(), NOTHING);
        let other = File::open(&path).unwrap();
        let opened = News { opened: true, begun: true, ..NOTHING };
        assert_eq!((lock.news(), lock.is_open()), (opened, true));
        drop(other);
        assert_eq!((lock.news(), lock.is_open()), (News { closed: true, ..NOTHING }, false));
        assert_eq!(lock.news(), NOTHING);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn one_who_is_done_is_told_from_the_next_who_begins() {
        let path = path("order");
        let mut lock = XtablesLock::open(&path);
        lock.news();
        let first = File::open(&path).unwrap();
        lock.news();
        drop(first);
        let second = File::open(&path).unwrap();
        let next_begins = News { opened: true, closed: true, begun: true, ..NOTHING };
        assert_eq!((lock.news(), lock.is_open()), (next_begins, true));
        drop(second);
        drop(File::open(&path).unwrap());
        let done = News { opened: true, closed: true, over: true, ..NOTHING };
        assert_eq!((lock.news(), lock.is_open()), (done, false));
        let mut heard_late = next_begins;
        heard_late.add(News { closed: true, ..NOTHING });
        assert_eq!(heard_late, done);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_exclusive_lock_of_another_is_not_broken() {
        let path = path("wait");
        let mut lock = XtablesLock::open(&path);
        let other = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusive).unwrap();
        assert!(lock.try_shared().unwrap().is_none());
        drop(other);
        assert!(lock.try_shared().unwrap().is_some());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_was_deleted_and_made_anew_is_found_again() {
        let path = path("anew");
        let mut lock = XtablesLock::open(&path);
        lock.news();
        std::fs::remove_file(&path).unwrap();
        let other = Flock::lock(File::create(&path).unwrap(), FlockArg::LockExclusive).unwrap();
        assert!(lock.try_shared().unwrap().is_none(), "the new file is the one to lock");
        assert!(lock.news().lost, "and what was done to it is not known");
        drop(other);
        drop(lock.try_shared().unwrap().unwrap());
        lock.news();
        drop(File::open(&path).unwrap());
        assert!(lock.news().opened, "and the one to watch");
        std::fs::remove_file(path).unwrap();
    }
}
