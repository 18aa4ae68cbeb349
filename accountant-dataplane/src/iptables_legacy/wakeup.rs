//! All that wakes the source, behind one descriptor: the lock file's news, the watch's news, and a clock that runs while
//! the watch is attached.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// What wakes.
#[derive(Debug)]
pub(super) struct Wakeup {
    epoll: Epoll,
    clock: TimerFd,
}

impl Wakeup {
    pub(super) fn new() -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let clock =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let wakeup = Self { epoll, clock };
        wakeup.add(wakeup.clock.as_fd())?;
        Ok(wakeup)
    }

    /// Wakes when this becomes readable. What is closed is forgotten by itself.
    pub(super) fn add(&self, fd: BorrowedFd<'_>) -> nix::Result<()> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))
    }

    /// Starts or stops the clock.
    pub(super) fn tick(&self, every: Option<Duration>) -> nix::Result<()> {
        match every {
            Some(every) => {
                let every = Expiration::Interval(TimeSpec::from_duration(every));
                self.clock.set(every, TimerSetTimeFlags::empty())
            }
            None => self.clock.unset(),
        }
    }

    /// Takes note of the clock.
    pub(super) fn heard(&self) {
        let mut ticks = [0; 8];
        // There is nothing to read if it was not the clock that woke us.
        let _ = nix::unistd::read(&self.clock, &mut ticks);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
