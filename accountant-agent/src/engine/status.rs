//! How sources and datastore are doing: what `check`, `/readyz` and the agent's own metrics say.

use accountant_core::snapshot::Source;
use accountant_dataplane::in_place::CannotHere;
use accountant_dataplane::source::{How, Note};
use accountant_dataplane::{Poll, SourceError};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// The state of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not yet asked.
    #[default]
    Starting,
    /// It has chains of Calico's, and they are read.
    Counting,
    /// There is nothing of Calico's in it.
    Absent,
    /// It could not be read.
    Failing,
}

impl State {
    /// As JSON and tables print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Counting => "counting",
            Self::Absent => "absent",
            Self::Failing => "failing",
        }
    }
}

/// How a source is doing.
#[derive(Clone, Debug)]
pub struct SourceStatus {
    /// Which.
    pub source: Source,
    /// Its state.
    pub state: State,
    /// Why it is in this state, and what to do.
    pub reason: String,
    /// When it was last read.
    pub last_success: Option<SystemTime>,
    /// How long that took.
    pub took: Duration,
    /// Processor time that reading has cost so far, the kernel's included.
    pub cpu: Duration,
    /// How its counters are read.
    pub how: How,
    /// How often it was read.
    pub reads: u64,
    /// Counters that were reset.
    pub resets: u64,
    /// Packets by how exactly they were charged.
    pub attribution: BTreeMap<&'static str, u64>,
    /// Packets that rules and programs in the kernel both should have charged, by which did.
    pub compared: BTreeMap<&'static str, u64>,
    /// Packets that the rules' counters have lost, and that were charged by what the programs told; where they could be.
    pub repaired: Option<u64>,
    /// Failures by kind.
    pub errors: BTreeMap<&'static str, u64>,
    /// Things that happened, by kind.
    pub notes: BTreeMap<&'static str, u64>,
    /// How many packets the dataplane's own counters have more (or less) than were read, where there are such counters.
    pub difference: Option<i64>,
    /// By how many hits of rules they differ, summed over the rules.
    pub rule_difference: Option<u64>,
    /// Of how many rules the dataplane counts hits, where it can only of so many.
    pub rules: Option<usize>,
    /// Changes of Calico's chains by the program that made them.
    pub writers: BTreeMap<String, u64>,
}

/// How many programs are told apart.
const WRITERS: usize = 16;

impl SourceStatus {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            state: State::Starting,
            reason: "not yet read".into(),
            last_success: None,
            took: Duration::ZERO,
            cpu: Duration::ZERO,
            how: How::default(),
            reads: 0,
            resets: 0,
            attribution: BTreeMap::new(),
            compared: BTreeMap::new(),
            repaired: None,
            errors: BTreeMap::new(),
            notes: BTreeMap::new(),
            difference: None,
            rule_difference: None,
            rules: None,
            writers: BTreeMap::new(),
        }
    }

    fn count_writers(&mut self, writers: &[(String, u64)]) {
        for (name, commits) in writers {
            let known = self.writers.len() < WRITERS || self.writers.contains_key(name);
            let name = if known { name.as_str() } else { "others" };
            *self.writers.entry(name.into()).or_default() += commits;
        }
    }

    /// Notes the outcome of a reading; counts failures, also of single tables.
    pub(super) fn note(&mut self, poll: &Result<Poll, SourceError>, time: SystemTime) {
        let mut failures: Vec<&SourceError> = Vec::new();
        match poll {
            Err(error) => failures.push(error),
            Ok(poll) => {
                failures.extend(poll.tables.iter().filter_map(|table| table.snapshot.as_ref().err()));
                for note in &poll.notes {
                    self.count_note(*note, 1);
                }
                for (note, times) in &poll.happened {
                    self.count_note(*note, *times);
                }
                self.difference = poll.difference;
                self.rules = poll.rules;
                self.count_writers(&poll.writers);
                self.took = poll.took;
                self.how = poll.how.clone();
                self.reads += 1;
            }
        }
        for error in &failures {
            *self.errors.entry(error.reason()).or_default() += 1;
        }
        match failures.first() {
            None => self.last_success = Some(time),
            Some(error) => {
                let reason = error.to_string();
                if self.state != State::Failing || self.reason != reason {
                    tracing::warn!(source = self.source.as_str(), %reason, "source cannot be read");
                }
                (self.state, self.reason) = (State::Failing, reason);
            }
        }
        if failures.is_empty() && self.state == State::Failing {
            tracing::info!(source = self.source.as_str(), "source can be read again");
            self.state = State::Starting;
        }
    }

    fn count_note(&mut self, note: Note, times: u64) {
        *self.notes.entry(note.as_str()).or_default() += times;
    }

    /// Notes what was found in it, unless it fails.
    pub(super) fn found(&mut self, endpoints: usize, second: bool) {
        if self.state == State::Failing || self.last_success.is_none() {
            return;
        }
        (self.state, self.reason) = match (endpoints, second) {
            (0, _) if !self.how.is_totals_only() => (
                State::Absent,
                self.how.why_absent().unwrap_or("no chains of Calico's endpoints in it").into(),
            ),
            (_, true) => {
                let reason = "another backend has Calico's chains too, and is the one that is counted";
                (State::Counting, reason.into())
            }
            (_, false) if self.how.is_totals_only() => (State::Counting, "totals only".into()),
            (_, false) => (State::Counting, String::new()),
        };
    }
}

/// How the datastore is doing.
#[derive(Clone, Debug, Default)]
pub struct DatastoreStatus {
    /// Its type; `none` if there is none.
    pub name: &'static str,
    /// Whether all names were looked up.
    pub in_sync: bool,
    /// Whether it was tried at all, with whatever result; nobody waits for none.
    pub tried: bool,
    /// Whether something was not answered nor refused yet: not all that is wrong is known.
    pub pending: bool,
    /// What is wrong, and what to do.
    pub reason: String,
    /// When it last told something.
    pub last_event: Option<SystemTime>,
    /// Errors by reason.
    pub errors: BTreeMap<&'static str, u64>,
    /// Objects by kind.
    pub objects: BTreeMap<String, usize>,
}

impl DatastoreStatus {
    /// Takes what the datastore reports.
    pub(super) fn take(&mut self, status: accountant_datastore::Status) {
        self.in_sync = status.in_sync;
        self.tried |= status.in_sync || !status.errors.is_empty();
        self.pending = status.pending;
        self.reason = status.errors.join("; ");
        self.errors = status.counts;
    }
}

/// How the programs in the kernel are doing.
#[derive(Clone, Debug, Default)]
pub struct KernelStatus {
    /// Why there are none; none if there are.
    pub reason: Option<CannotHere>,
    /// Whether the agent is ready only with them.
    pub needed: bool,
    /// Packets that they saw, by how well.
    pub packets: BTreeMap<&'static str, u64>,
    /// How many of them somebody had detached, so that they were attached again. Nothing where there are none.
    pub attached_again: Option<u64>,
    /// How often each ran, and how long that took, as far as the kernel keeps statistics.
    pub runs: Vec<(&'static str, u64, Duration)>,
    /// At how many interfaces programs count instead, both what comes in and what is sent.
    pub interfaces: Option<usize>,
    /// What they had to tell and found no room for, by kind. Nothing where there are none.
    pub lost: BTreeMap<&'static str, u64>,
}

impl KernelStatus {
    /// Whether they are attached.
    pub fn is_attached(&self) -> bool {
        self.reason.is_none()
    }

    /// In words, with the reason for what cannot be.
    pub fn describe(&self) -> String {
        match &self.reason {
            None => "attached: they see which policy decides on each packet".into(),
            Some(CannotHere::NotYet) => {
                "not attached: there is no chain of an endpoint whose counters are read in place".into()
            }
            Some(reason) => format!("not attached: {reason}"),
        }
    }
}

/// How everything is doing.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The sources.
    pub sources: Vec<SourceStatus>,
    /// The programs in the kernel.
    pub kernel: KernelStatus,
    /// The datastore.
    pub datastore: DatastoreStatus,
}

impl Status {
    /// What the agent still waits for before it can be relied on.
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        for source in &self.sources {
            if matches!(source.state, State::Starting | State::Failing) {
                reasons.push(format!("source {}: {}", source.source.as_str(), source.reason));
            }
        }
        let is_off = |reason: &CannotHere| *reason != CannotHere::NotYet;
        if self.kernel.needed && self.kernel.reason.as_ref().is_some_and(is_off) {
            reasons.push(format!("programs in the kernel: {}", self.kernel.describe()));
        }
        if !self.datastore.tried {
            reasons.push(format!("datastore {}: names were not yet looked up", self.datastore.name));
        }
        reasons
    }
}
