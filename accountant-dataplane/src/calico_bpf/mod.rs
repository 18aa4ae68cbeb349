//! Source `calico-bpf`: verdicts of Calico's eBPF dataplane, read by programs of ours beside Calico's.
//!
//! [`pins`] finds Calico's maps and knows whether we understand them, [`links`] where its programs are attached; [`programs`]
//! loads ours and reads what they counted; [`listing`] tells what the numbers of rules mean. The dataplane is known by pins
//! and attached programs, never by configuration, and looked for again every second: Felix restarts, upgrades, and changes to
//! another dataplane at any time.
//!
//! Invariants: nothing of Calico's is written, created, pinned or removed; nothing of ours is pinned, and our names never begin
//! with Calico's; what was counted outlives our programs being loaded anew.

mod clsact;
pub mod kernel;
mod links;
pub mod listing;
pub mod pins;
mod programs;
mod reading;

use crate::in_place::CannotHere;
use crate::in_place::reason::{Host, NEEDED};
use crate::source::{How, Note, now};
use crate::{Poll, RuleSource, SourceError, Wanted};
use accountant_abi::calico::notes;
use accountant_core::snapshot::Source;
use aya::include_bytes_aligned;
use links::Links;
use listing::Listings;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use pins::{Absent, Pins};
use programs::Programs;
use reading::Counts;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

/// How often it is looked whether everything is still in place.
const LOOK: Duration = Duration::from_secs(1);
/// Of how many rules at most Calico counts hits, and from how many on that is worth a word.
const MOST_RULES: usize = 10_000;
const MANY_RULES: usize = MOST_RULES * 8 / 10;

/// The object of a stand-in for Calico's dataplane (`accountant-ebpf/src/stand_in`), for tests.
pub static STAND_IN: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/stand_in"));

/// Where Calico has its things.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its pinned maps.
    pub pins: PathBuf,
    /// Its listings of policy programs.
    pub listings: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self { pins: "/sys/fs/bpf/tc/globals".into(), listings: "/var/run/calico/bpf/policy".into() }
    }
}

/// The source.
#[derive(Debug)]
pub struct CalicoBpf {
    settings: Settings,
    listings: Listings,
    running: Option<Running>,
    counts: Counts,
    /// Why it does not run.
    absent: Option<Reason>,
    /// Whether it was read while it ran.
    told: bool,
    timer: TimerFd,
    notes: Vec<(Note, u64)>,
}

/// Our programs beside Calico's.
#[derive(Debug)]
struct Running {
    pins: Pins,
    programs: Programs,
    links: Links,
    noted: [u64; notes::COUNT as usize],
}

/// Why nothing is read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    /// There is nothing to read.
    Absent(Absent),
    /// We cannot.
    Cannot(CannotHere),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent(absent) => absent.fmt(f),
            Self::Cannot(cannot) => write!(f, "our programs cannot run beside Calico's: {cannot}"),
        }
    }
}

impl CalicoBpf {
    /// Prepares the source; looks at nothing yet.
    pub fn new(settings: Settings) -> Result<Self, SourceError> {
        let timer = timer().map_err(|error| SourceError::io("making", "a timer", error))?;
        let listings = Listings::new(&settings.listings);
        Ok(Self {
            settings,
            listings,
            running: None,
            counts: Counts::default(),
            absent: None,
            told: false,
            timer,
            notes: Vec::new(),
        })
    }

    /// Looks whether everything is in place, and puts it there.
    fn refresh(&mut self) {
        match self.place() {
            Ok(()) => self.absent = None,
            Err(reason) => {
                self.stop();
                if self.absent.as_ref() != Some(&reason) {
                    tracing::info!(source = Source::CalicoBpf.as_str(), %reason, "not counting verdicts");
                }
                self.absent = Some(reason);
            }
        }
    }

    fn place(&mut self) -> Result<(), Reason> {
        let pins = Pins::find(&self.settings.pins).map_err(Reason::Absent)?;
        if self.running.as_ref().is_some_and(|running| !running.programs.fit(&pins)) {
            self.stop();
        }
        match &mut self.running {
            Some(running) => {
                if running.pins.ids() != pins.ids() {
                    // What the old counters say last; ours of that time are in a map of our own.
                    let followed = running.links.decided(&running.pins).map(drop);
                    let opened = followed.and_then(|()| running.programs.open_doors(&pins));
                    let compared =
                        opened.and_then(|()| running.links.compare_with(&mut running.programs, &pins));
                    compared.map_err(|error| refused("putting Calico's new maps into ours", &error))?;
                    tracing::info!(source = Source::CalicoBpf.as_str(), "Calico has new maps");
                }
                running.pins = pins;
                running.links.refresh(&mut running.programs, &running.pins);
            }
            None => {
                if !links::is_calico_attached() {
                    let may_look = Host::look(NEEDED).may_look_up_programs();
                    return Err(Reason::Absent(if may_look { Absent::NotAttached } else { Absent::Unseen }));
                }
                let mut programs = Programs::load(&pins).map_err(Reason::Cannot)?;
                let mut links = Links::default();
                links.refresh(&mut programs, &pins);
                tracing::info!(
                    source = Source::CalicoBpf.as_str(),
                    calico = pins.state_layout.versions,
                    hooks = links.hooks().count(),
                    "reading verdicts beside Calico's programs"
                );
                self.running = Some(Running { pins, programs, links, noted: Default::default() });
            }
        }
        self.listings.refresh();
        Ok(())
    }

    /// Takes what was counted, and our programs away.
    fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            if let Err(error) = self.counts.take(&mut running) {
                tracing::warn!(error = %crate::in_place::chain(&error), "the last verdicts cannot be read");
            }
            self.counts.keep_all();
            self.note(&running);
        }
    }

    /// Notes what our programs noted since the last time.
    fn note(&mut self, running: &Running) -> [u64; notes::COUNT as usize] {
        let Ok(noted) = running.programs.notes() else { return running.noted };
        let kinds = [
            (notes::FULL, Note::NoRoom),
            (notes::OVERWRITTEN, Note::Overwritten),
            (notes::MISPLACED, Note::Misplaced),
            (notes::STALE, Note::Stale),
            (notes::FOREIGN, Note::ForeignDrop),
        ];
        for (index, note) in kinds {
            let index = index as usize;
            let more = noted[index].saturating_sub(running.noted[index]);
            if more > 0 {
                self.notes.push((note, more));
            }
        }
        noted
    }

    /// How it is read, for people.
    fn how(&self) -> How {
        let Some(running) = &self.running else {
            let reason = self.absent.as_ref().map_or("not yet looked".into(), ToString::to_string);
            return How::Beside(Err(reason.into()));
        };
        let layout = running.pins.state_layout;
        let mut text = format!(
            "verdicts are read by programs beside Calico's ({}) at {} hooks",
            layout.versions,
            running.links.hooks().count()
        );
        let known = running.pins.counters.is_some();
        let unchecked = (!known)
            .then(|| "Calico's counters are not of a known layout, so nothing checks them".to_string());
        let wrong = running.pins.wrong.iter().map(ToString::to_string);
        let rules = running.rules().filter(|rules| *rules >= MANY_RULES);
        let many = rules
            .map(|rules| format!("Calico counts hits of {rules} rules and cannot of more than {MOST_RULES}"));
        let others = [unchecked, running.links.wrong.clone(), self.listings.wrong.clone(), many];
        for reason in wrong.chain(others.into_iter().flatten()) {
            text = format!("{text}; {reason}");
        }
        How::Beside(Ok(text.into()))
    }
}

impl Running {
    /// Of how many rules Calico counts hits.
    fn rules(&self) -> Option<usize> {
        let map: aya::maps::PerCpuHashMap<_, u64, u64> = (&self.pins.rules.as_ref()?.map).try_into().ok()?;
        Some(map.keys().flatten().count())
    }
}

fn refused(operation: &str, error: &dyn std::error::Error) -> Reason {
    Reason::Cannot(CannotHere::Refused { operation: operation.into(), error: crate::in_place::chain(error) })
}

fn timer() -> nix::Result<TimerFd> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
    let every = Expiration::Interval(TimeSpec::from_duration(LOOK));
    timer.set(every, TimerSetTimeFlags::empty())?;
    Ok(timer)
}

impl RuleSource for CalicoBpf {
    fn source(&self) -> Source {
        Source::CalicoBpf
    }

    fn read(&mut self, _: &Wanted) -> Result<Poll, SourceError> {
        let begun = now();
        self.refresh();
        let mut poll = Poll::default();
        if let Some(mut running) = self.running.take() {
            let taken = self.counts.take(&mut running);
            running.noted = self.note(&running);
            let error = |error| {
                SourceError::decode("the verdicts that our programs counted", crate::in_place::chain(&error))
            };
            poll.difference = match taken
                .and_then(|ours| Ok(running.links.decided(&running.pins)?.map(|all| (all, ours))))
            {
                Ok(both) => both.map(|(all, ours)| all.wrapping_sub(ours) as i64),
                Err(failed) => {
                    self.running = Some(running);
                    return Err(error(failed));
                }
            };
            poll.verdicts = self.counts.readings(Some(&running.links), &self.listings);
            self.told = true;
            self.running = Some(running);
        } else if std::mem::take(&mut self.told) {
            poll.verdicts = self.counts.readings(None, &self.listings);
            poll.gone = poll.verdicts.iter().map(|(id, _)| *id).collect();
            self.counts = Counts::default();
        }
        if let (Some(reason @ Reason::Cannot(_)), true) = (&self.absent, poll.verdicts.is_empty()) {
            return Err(SourceError::Refused(reason.to_string()));
        }
        poll.happened = std::mem::take(&mut self.notes);
        poll.how = self.how();
        poll.took = now().saturating_sub(begun);
        Ok(poll)
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.timer.as_fd())
    }

    fn on_events(&mut self) -> Result<Option<Poll>, SourceError> {
        // It does not block; if somebody else has read it, there is as much reason to look.
        let _ = self.timer.wait();
        let before = self.running.is_some();
        self.refresh();
        let moved = before != self.running.is_some();
        Ok(moved.then(|| Poll { moved, how: self.how(), ..Poll::default() }))
    }
}
