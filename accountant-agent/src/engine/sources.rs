//! A thread for each source of rule counters.
//!
//! Reading blocks (a lock, a big table), so it is kept away from the event loop. The thread waits for two things: to be
//! told to read, and for news of its source, which it looks at at once.

use accountant_core::snapshot::Source;
use accountant_dataplane::kernel::Programs;
use accountant_dataplane::{Poll, RuleSource, SourceError, Wanted};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc as channel;

/// Makes a source, on the thread that will read it.
pub type Make = Box<dyn FnMut() -> Result<Box<dyn RuleSource>, SourceError> + Send>;

/// All sources, and the programs in the kernel that they share.
pub struct Sources {
    /// How to make each.
    pub makes: Vec<(Source, Make)>,
    /// The programs.
    pub programs: Arc<Programs>,
    /// Whether the agent is ready only with them.
    pub needs_programs: bool,
}

/// What a source's thread reports.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) source: Source,
    /// Whether it was told to read, or looked by itself.
    pub(super) asked: bool,
    pub(super) poll: Result<Poll, SourceError>,
    /// When it began to look, and when it had.
    pub(super) began: Instant,
    pub(super) ended: Instant,
    /// Processor time that it cost, the kernel's included.
    pub(super) cpu: Duration,
}

/// The thread of a source, as the event loop holds it. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct SourceThread {
    commands: Option<mpsc::Sender<Wanted>>,
    bell: Arc<EventFd>,
}

impl SourceThread {
    /// Starts the thread.
    pub(super) fn start(
        source: Source,
        make: Make,
        reports: channel::Sender<Report>,
    ) -> std::io::Result<Self> {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (commands, told) = mpsc::channel();
        let thread = Loop { source, make, reader: None, told, bell: bell.clone(), reports };
        std::thread::Builder::new().name(source.as_str().into()).spawn(move || thread.run())?;
        Ok(Self { commands: Some(commands), bell })
    }

    /// Tells the thread to read. It answers with a report.
    pub(super) fn read(&self, wanted: Wanted) {
        if let Some(commands) = &self.commands {
            // A thread that is gone has panicked; its source then stays silent, which is noticed.
            let _ = commands.send(wanted);
            let _ = self.bell.write(1);
        }
    }
}

impl Drop for SourceThread {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.bell.write(1);
    }
}

struct Loop {
    source: Source,
    make: Make,
    reader: Option<Box<dyn RuleSource>>,
    told: mpsc::Receiver<Wanted>,
    bell: Arc<EventFd>,
    reports: channel::Sender<Report>,
}

impl Loop {
    fn run(mut self) {
        loop {
            let (told, news) = self.wait();
            let begun = (Instant::now(), cpu());
            if news
                && let Some(reader) = &mut self.reader
                && let Some(poll) = reader.on_events().transpose()
                && !self.report(false, poll, begun)
            {
                return;
            }
            if told {
                let _ = self.bell.read();
                loop {
                    match self.told.try_recv() {
                        Ok(wanted) => {
                            let begun = (Instant::now(), cpu());
                            let poll = self.read(&wanted);
                            if !self.report(true, poll, begun) {
                                return;
                            }
                        }
                        Err(mpsc::TryRecvError::Empty) => break,
                        Err(mpsc::TryRecvError::Disconnected) => return,
                    }
                }
            }
        }
    }

    /// Waits until told to read or until there is news.
    fn wait(&self) -> (bool, bool) {
        let news = self.reader.as_ref().and_then(|reader| reader.events());
        let mut fds = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        fds.extend(news.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // Interrupted by a signal: look, and wait again.
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            return (false, false);
        }
        let ready = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| fd.any().unwrap_or(true));
        (ready(fds.first()), ready(fds.get(1)))
    }

    fn read(&mut self, wanted: &Wanted) -> Result<Poll, SourceError> {
        if self.reader.is_none() {
            self.reader = Some((self.make)()?);
        }
        match &mut self.reader {
            Some(reader) => reader.read(wanted),
            None => Ok(Poll::default()),
        }
    }

    fn report(&self, asked: bool, poll: Result<Poll, SourceError>, begun: (Instant, Duration)) -> bool {
        let (began, cpu_before) = begun;
        let (source, ended, cpu) = (self.source, Instant::now(), cpu().saturating_sub(cpu_before));
        self.reports.blocking_send(Report { source, asked, poll, began, ended, cpu }).is_ok()
    }
}

/// Processor time that this thread has had; a kernel that does not tell costs nothing.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}
