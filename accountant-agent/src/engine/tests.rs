//! The event loop with a source that takes its time.

use super::kept::Keeper;
use super::sources::{Make, Sources};
use super::{Engine, Settings};
use accountant_core::snapshot::Source;
use accountant_dataplane::kernel::Programs;
use accountant_dataplane::{Poll, RuleSource, SourceError, Wanted};
use std::os::fd::BorrowedFd;
use std::sync::mpsc;
use std::time::Duration;

/// Answers when it is let to.
struct Slow(mpsc::Receiver<()>);

impl RuleSource for Slow {
    fn source(&self) -> Source {
        Source::Nftables
    }

    fn read(&mut self, _: &Wanted) -> Result<Poll, SourceError> {
        let _ = self.0.recv();
        Ok(Poll::default())
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn on_events(&mut self) -> Result<Option<Poll>, SourceError> {
        Ok(None)
    }
}

/// Nobody asks, and the next tick is far: what a source answers late is published all the same.
#[tokio::test]
async fn a_late_answer_is_published() {
    let (let_go, held) = mpsc::channel();
    let mut held = Some(held);
    let make: Make = Box::new(move || Ok(Box::new(Slow(held.take().expect("made once")))));
    let sources = Sources {
        makes: vec![(Source::Nftables, make)],
        programs: Programs::new(false),
        needs_programs: false,
    };
    let hour = Duration::from_secs(3600);
    let settings = Settings { poll_interval: hour, grace: hour };
    let (engine, handle) = Engine::new(settings, sources, None, Keeper::none()).unwrap();
    let mut published = handle.published.clone();
    tokio::spawn(engine.run());
    // The tick goes on without it.
    published.changed().await.unwrap();
    assert_ne!(handle.latest().status.not_ready(), [""; 0]);
    let_go.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(60), published.changed()).await.unwrap().unwrap();
    assert_eq!(handle.latest().status.not_ready(), [""; 0]);
}
