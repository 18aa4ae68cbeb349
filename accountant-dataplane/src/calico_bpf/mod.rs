//! Source `calico-bpf`: verdicts of Calico's eBPF dataplane, read by programs of ours beside Calico's.
//!
//! [`pins`] finds Calico's maps and knows whether we understand them, [`links`] where its programs are attached; [`programs`]
//! loads ours and reads what they counted; [`own`] reads what Calico counts itself, as a check, and alone where ours cannot be;
//! [`listing`] tells what the numbers of rules mean. The dataplane is known by pins
//! and attached programs, never by configuration, and looked for again every second: Felix restarts, upgrades, and changes to
//! another dataplane at any time.
//!
//! Invariants: nothing of Calico's is written, created, pinned or removed; nothing of ours is pinned, and our names never begin
//! with Calico's; what was counted outlives our programs being loaded anew.

pub mod kernel;
mod links;
pub mod listing;
mod own;
pub mod pins;
mod programs;
mod reading;

use crate::in_place::CannotHere;
use crate::in_place::reason::{Host, NEEDED};
use crate::source::{How, Note, now};
use crate::{Poll, RuleSource, SourceError, Wanted};
use accountant_abi::calico::notes;
use accountant_core::calico::bpf::Own;
use accountant_core::snapshot::Source;
use aya::include_bytes_aligned;
use links::Links;
use listing::Listings;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use own::Beside;
use pins::{Absent, OwnMaps, Pins};
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

/// What to say where policy decides and no rules are noted.
const NO_NUMBERS: &str =
    "Calico does not note which rules decide: set bpfPolicyDebugEnabled to true in FelixConfiguration";

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
    /// Calico's counters, read alone while it does not run.
    alone: Option<OwnMaps>,
    /// What they said at moments after which others may be there.
    earlier: Vec<Own>,
    /// Of how many rules Calico counts hits.
    rules: Option<usize>,
    /// Whether there was nothing of Calico's when it was first looked.
    begins: Option<bool>,
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

impl Reason {
    /// Whether Calico's programs may be at work all the same.
    fn leaves_totals(&self) -> bool {
        !matches!(self, Self::Absent(Absent::NoState(_) | Absent::NotAttached))
    }
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
            alone: None,
            earlier: Vec::new(),
            rules: None,
            begins: None,
            told: false,
            timer,
            notes: Vec::new(),
        })
    }

    /// Looks whether everything is in place, and puts it there.
    fn refresh(&mut self) {
        self.listings.refresh();
        match self.place() {
            Ok(()) => (self.absent, self.alone) = (None, None),
            Err(reason) => {
                self.stop();
                self.look_alone(&reason);
                if self.absent.as_ref() != Some(&reason) {
                    let totals = self.alone.is_some();
                    tracing::info!(
                        source = Source::CalicoBpf.as_str(),
                        %reason,
                        totals,
                        "not reading verdicts"
                    );
                }
                self.absent = Some(reason);
            }
        }
        let nothing = matches!(self.absent, Some(Reason::Absent(Absent::NoState(_))));
        self.begins.get_or_insert(nothing);
    }

    fn place(&mut self) -> Result<(), Reason> {
        let pins = Pins::find(&self.settings.pins).map_err(Reason::Absent)?;
        if self.running.as_ref().is_some_and(|running| !running.programs.fit(&pins)) {
            self.stop();
        }
        match self.running.take() {
            Some(mut running) => {
                let followed = self.follow(&mut running, pins);
                self.running = Some(running);
                followed
            }
            None => self.start(pins),
        }
    }

    /// Stays beside Calico's programs and maps as they are now.
    fn follow(&mut self, running: &mut Running, pins: Pins) -> Result<(), Reason> {
        if running.pins.ids() != pins.ids() {
            // What the old counters say last; ours of that time are in a map of our own.
            self.read_earlier(&running.pins.own, Some(&running.links));
            let followed = running.links.decided(&running.pins).map(drop);
            let opened = followed.and_then(|()| running.programs.open_doors(&pins));
            let compared = opened.and_then(|()| running.links.compare_with(&mut running.programs, &pins));
            compared.map_err(|error| refused("putting Calico's new maps into ours", &error))?;
            tracing::info!(source = Source::CalicoBpf.as_str(), "Calico has new maps");
        }
        running.pins = pins;
        running.links.refresh(&mut running.programs, &running.pins);
        Ok(())
    }

    fn start(&mut self, pins: Pins) -> Result<(), Reason> {
        if !links::is_calico_attached() {
            let may_look = Host::look(NEEDED).may_look_up_programs();
            return Err(Reason::Absent(if may_look { Absent::NotAttached } else { Absent::Unseen }));
        }
        let mut programs = Programs::load(&pins).map_err(Reason::Cannot)?;
        // From here on ours count as well.
        self.read_earlier(&pins.own, None);
        let mut links = Links::default();
        links.refresh(&mut programs, &pins);
        tracing::info!(
            source = Source::CalicoBpf.as_str(),
            calico = pins.state_layout.versions,
            hooks = links.hooks().count(),
            "reading verdicts beside Calico's programs"
        );
        self.running = Some(Running { pins, programs, links, noted: Default::default() });
        Ok(())
    }

    /// Calico's counters are there though we cannot read verdicts.
    fn look_alone(&mut self, reason: &Reason) {
        let maps = reason.leaves_totals().then(|| OwnMaps::find(&self.settings.pins).ok()).flatten();
        let maps = maps.filter(OwnMaps::is_known);
        let ids = |maps: &Option<OwnMaps>| maps.as_ref().map(OwnMaps::ids);
        if let Some(before) = self.alone.take()
            && ids(&maps) != Some(before.ids())
        {
            self.read_earlier(&before, None);
        }
        self.alone = maps;
    }

    fn read_own(&mut self, maps: &OwnMaps, links: Option<&Links>) -> Result<Own, aya::maps::MapError> {
        let is_at = links.map(|links| |hook| links.is_at(hook));
        let hooks = is_at.as_ref().map(|is_at| is_at as &dyn Fn(links::HookId) -> bool);
        let fresh = self.begins == Some(true);
        let own = own::read(maps, &Beside { hooks, listings: &self.listings, fresh })?;
        self.count_rules(own.rules.as_ref().map(|rules| rules.hits.len()));
        Ok(own)
    }

    /// Reads Calico's counters before something changes.
    fn read_earlier(&mut self, maps: &OwnMaps, links: Option<&Links>) {
        match self.read_own(maps, links) {
            Ok(own) => self.earlier.push(own),
            Err(error) => {
                tracing::warn!(error = %crate::in_place::chain(&error), "Calico's last counters cannot be read")
            }
        }
    }

    fn count_rules(&mut self, rules: Option<usize>) {
        let many = |rules: Option<usize>| rules.is_some_and(|rules| rules >= MANY_RULES);
        if many(rules) && !many(self.rules) {
            tracing::warn!(rules, most = MOST_RULES, "Calico counts hits of almost as many rules as it can");
        }
        self.rules = rules;
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

    /// Reads Calico's counters, and then what our programs counted: so what Calico has more was missed.
    fn read_beside(&mut self, running: &mut Running, poll: &mut Poll) -> Result<(), aya::maps::MapError> {
        let own = self.read_own(&running.pins.own, Some(&running.links))?;
        self.earlier.push(own);
        let ours = self.counts.take(running)?;
        running.noted = self.note(running);
        poll.difference = running.links.decided(&running.pins)?.map(|all| all.wrapping_sub(ours) as i64);
        poll.verdicts = self.counts.readings(Some(&running.links), &self.listings);
        Ok(())
    }

    /// Reads Calico's counters where we cannot read verdicts.
    fn read_alone(&mut self) {
        if let Some(maps) = self.alone.take() {
            self.read_earlier(&maps, None);
            self.alone = Some(maps);
        }
    }

    /// How it is read, for people.
    fn how(&self) -> How {
        let Some(running) = &self.running else {
            let reason = self.absent.as_ref().map_or("not yet looked".into(), ToString::to_string);
            return match &self.alone {
                None => How::Beside(Err(reason.into())),
                Some(maps) => How::Totals(self.with_reasons(reason, &maps.wrong).into()),
            };
        };
        let layout = running.pins.state_layout;
        let mut text = format!(
            "verdicts are read by programs beside Calico's ({}) at {} hooks",
            layout.versions,
            running.links.hooks().count()
        );
        let known = running.pins.own.counters.is_some();
        let unchecked =
            (!known).then_some("Calico's counters are not of a known layout, so nothing checks them");
        let unnoted = self.counts.notes_no_rules().then_some(NO_NUMBERS);
        for reason in [unchecked, unnoted, running.links.wrong.as_deref()].into_iter().flatten() {
            text = format!("{text}; {reason}");
        }
        How::Beside(Ok(self.with_reasons(text, &running.pins.own.wrong).into()))
    }

    fn with_reasons(&self, mut text: String, wrong: &[Absent]) -> String {
        let many = self.rules.filter(|rules| *rules >= MANY_RULES);
        let many = many
            .map(|rules| format!("Calico counts hits of {rules} rules and cannot of more than {MOST_RULES}"));
        let reasons = wrong.iter().map(ToString::to_string).chain(self.listings.wrong.clone()).chain(many);
        for reason in reasons {
            text = format!("{text}; {reason}");
        }
        text
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
            let read = self.read_beside(&mut running, &mut poll);
            self.told = true;
            self.running = Some(running);
            read.map_err(|error| {
                let error = crate::in_place::chain(&error);
                SourceError::decode("the verdicts that our programs counted", error)
            })?;
        } else if std::mem::take(&mut self.told) {
            poll.verdicts = self.counts.readings(None, &self.listings);
            poll.gone = poll.verdicts.iter().map(|(id, _)| *id).collect();
            self.counts = Counts::default();
        }
        self.read_alone();
        poll.totals = std::mem::take(&mut self.earlier);
        if let (Some(reason @ Reason::Cannot(_)), None, true) =
            (&self.absent, &self.alone, poll.verdicts.is_empty())
        {
            return Err(SourceError::Refused(reason.to_string()));
        }
        poll.happened = std::mem::take(&mut self.notes);
        poll.rules = self.rules;
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
        // Felix deletes counters when it starts: what they had up to then is from the last look.
        self.read_alone();
        let totals = if self.alone.is_some() { std::mem::take(&mut self.earlier) } else { Vec::new() };
        Ok((moved || !totals.is_empty()).then(|| Poll { moved, totals, how: self.how(), ..Poll::default() }))
    }
}
