//! The one event loop: it owns the books, asks the sources, follows the datastore, and publishes what it knows.
//!
//! A *tick* asks every source once, and again while another reading tells more; then the books are posted and published.
//! Ticks come with the poll interval, and when a reader wants something fresher than what is published; readers that
//! come during a tick share it. A source that hangs delays a tick only for a while.

mod addresses;
pub mod aside;
mod at_interfaces;
mod book;
mod books;
pub mod denied;
mod flows;
pub mod follow;
mod handle;
pub mod kept;
mod overlap;
mod seen;
pub mod sources;
pub mod status;
#[cfg(test)]
mod tests;
mod tick;

pub use handle::{Handle, Published};

use accountant_core::snapshot::Source;
use accountant_core::view::View;
use accountant_dataplane::kernel::Programs;
use accountant_dataplane::source::Note;
use accountant_datastore::Subscription;
use books::Books;
use denied::FlowsView;
use follow::Following;
use handle::Request;
use kept::Keeper;
use sources::{Report, SourceThread, Sources};
use status::{DatastoreStatus, KernelStatus, SourceStatus, Status};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tick::Tick;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

/// How long a tick waits for a source.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(10) };
/// Interval from which on a tick does not read twice: the next one comes soon enough.
const SOON_ENOUGH: Duration = Duration::from_secs(1);
/// How many changes of names are taken before other things get their turn.
const NAMES_AT_ONCE: usize = 1000;
/// How often memory that is free is given back.
const GIVE_BACK: Duration = Duration::from_secs(3600);

/// How the engine runs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How often to read.
    pub poll_interval: Duration,
    /// How long accounts that nothing posts to are shown.
    pub grace: Duration,
}

/// The engine.
pub struct Engine {
    settings: Settings,
    threads: BTreeMap<Source, SourceThread>,
    reports: mpsc::Receiver<Report>,
    requests: mpsc::Receiver<Request>,
    publish: watch::Sender<Arc<Published>>,
    datastore: Option<Subscription>,
    books: Books,
    sources: BTreeMap<Source, SourceStatus>,
    programs: Arc<Programs>,
    kernel: KernelStatus,
    names: DatastoreStatus,
    /// Sources whose thread is at work.
    busy: HashSet<Source>,
    tick: Option<Tick>,
    following: Following,
    waiting: Vec<oneshot::Sender<()>>,
    keeper: Keeper,
    /// Whether the books have changed since they were kept.
    changed: bool,
    started: Instant,
    /// How long agents before this one have run whose books it goes on with.
    age_before: Duration,
    /// How many ticks have ended, and when memory was last given back.
    ticks: u64,
    gave_back: Instant,
}

impl Engine {
    /// Prepares an engine with these sources.
    pub fn new(
        settings: Settings,
        sources: Sources,
        datastore: Option<(&'static str, Subscription)>,
        keeper: Keeper,
    ) -> std::io::Result<(Self, Handle)> {
        let (reporter, reports) = mpsc::channel(16);
        let (requests_in, requests) = mpsc::channel(64);
        let mut threads = BTreeMap::new();
        let mut statuses = BTreeMap::new();
        for (source, make) in sources.makes {
            threads.insert(source, SourceThread::start(source, make, reporter.clone())?);
            statuses.insert(source, SourceStatus::new(source));
        }
        let name = datastore.as_ref().map_or("none", |(name, _)| name);
        let names = DatastoreStatus { name, tried: datastore.is_none(), ..DatastoreStatus::default() };
        let kernel = KernelStatus {
            needed: sources.needs_programs,
            reason: sources.programs.reason(),
            ..KernelStatus::default()
        };
        let status = Status {
            sources: statuses.values().cloned().collect(),
            kernel: kernel.clone(),
            datastore: names.clone(),
        };
        let mut books = Books::new(settings.grace);
        let age_before = keeper.restore(&mut books).unwrap_or_default();
        let first = Published {
            view: View::default(),
            status,
            denied: FlowsView::default(),
            accepted: None,
            at: None,
        };
        let (publish, published) = watch::channel(Arc::new(first));
        let engine = Self {
            settings,
            threads,
            reports,
            requests,
            publish,
            datastore: datastore.map(|(_, subscription)| subscription),
            books,
            sources: statuses,
            programs: sources.programs,
            kernel,
            names,
            busy: HashSet::new(),
            tick: None,
            following: Following::default(),
            waiting: Vec::new(),
            keeper,
            changed: false,
            started: Instant::now(),
            age_before,
            ticks: 0,
            gave_back: Instant::now(),
        };
        Ok((engine, Handle { requests: requests_in, published }))
    }

    /// Runs until every handle is dropped.
    pub async fn run(mut self) {
        let mut interval = tokio::time::interval(self.settings.poll_interval);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.tick.as_ref().map(|tick| tick.asked + PATIENCE);
            tokio::select! {
                Some(report) = self.reports.recv() => self.take(report),
                request = self.requests.recv() => match request {
                    Some(Request::Tick(answer)) => {
                        self.waiting.push(answer);
                        self.begin_tick();
                    }
                    // Whoever gave up waiting does not follow.
                    Some(Request::Follow(answer)) => _ = answer.send(self.following.add(&self.programs)),
                    None => return,
                },
                _ = interval.tick() => self.begin_tick(),
                () = sleep_until(deadline) => self.give_up_waiting(),
                news = self.following.next() => self.following.tell(news, &self.books),
                news = next_name(&mut self.datastore) => self.take_names(news),
            }
        }
    }

    fn begin_tick(&mut self) {
        let thorough = !self.waiting.is_empty() || self.settings.poll_interval > SOON_ENOUGH;
        if let Some(tick) = &mut self.tick {
            tick.thorough |= thorough;
            return;
        }
        let mut tick = Tick::new(self.books.followers(), thorough);
        let first = tick.ask(self.threads.keys().copied());
        self.tick = Some(tick);
        self.ask(&first);
        self.go_on();
    }

    fn ask(&mut self, sources: &[Source]) {
        for &source in sources {
            // A thread that is still at work answers for this tick, too.
            if let Some(thread) = self.threads.get(&source)
                && self.busy.insert(source)
            {
                thread.read(self.books.take_wanted(source));
            }
        }
    }

    fn take(&mut self, report: Report) {
        let source = report.source;
        if report.asked {
            self.busy.remove(&source);
        } else if report.poll.as_ref().is_ok_and(|poll| poll.moved) {
            // Calico's chains come or go: the other sources may have what this one has no longer, or not yet.
            self.begin_tick();
        }
        let is_reading = report.asked || report.poll.as_ref().is_ok_and(|poll| !poll.tables.is_empty());
        if let Some(status) = self.sources.get_mut(&source).filter(|_| is_reading || report.poll.is_err()) {
            status.note(&report.poll, SystemTime::now());
            status.cpu += report.cpu;
        }
        let missed = report.poll.as_ref().is_ok_and(|poll| poll.notes.contains(&Note::MissedRewrite));
        self.changed = true;
        let mut take = |mut poll| {
            if report.asked {
                self.books.note_absent(source, &mut poll);
            }
            let told = self.books.take(&mut poll);
            self.books.note_read(&poll, &(report.began..report.ended));
            self.books.take_flows(&mut poll);
            self.books.take_interfaces(&mut poll);
            told
        };
        let told = report.poll.map(&mut take).unwrap_or_default();
        if let Some(status) = self.sources.get_mut(&source) {
            status.resets += told.resets;
        }
        if !report.asked {
            if missed {
                // What was missed puts all in doubt up to the next reading: the sooner, the less.
                self.begin_tick();
            }
            return;
        }
        let Some(tick) = &mut self.tick else {
            // Its tick went on without it. The next one can be far, and what is ready depends on this.
            self.end_tick(true);
            return;
        };
        if told.unsettled && tick.asks_again(source) {
            self.ask(&[source]);
            return;
        }
        tick.end(source);
        self.go_on();
    }

    fn give_up_waiting(&mut self) {
        for source in self.tick.as_mut().map(Tick::give_up).unwrap_or_default() {
            tracing::warn!(source = source.as_str(), "source does not answer: going on without it");
        }
        self.go_on();
    }

    /// Asks those that had to wait if it is their turn, and ends the tick if all have answered.
    fn go_on(&mut self) {
        let later = self.tick.as_mut().map(Tick::ask_later).unwrap_or_default();
        self.ask(&later);
        if self.tick.as_ref().is_some_and(Tick::is_done) {
            self.tick = None;
            self.end_tick(false);
        }
    }

    /// All that was read is in the books. `wanted` says whether it is to be published although nobody asked.
    fn end_tick(&mut self, wanted: bool) {
        self.look_up_addresses();
        self.books.end_tick(self.age());
        self.tell_sources();
        self.following.end_if_alone();
        if wanted || !self.waiting.is_empty() || self.keeper.is_due() || self.has_news_of_sources() {
            self.publish_now(Some(Instant::now()));
        }
        for waiter in self.waiting.drain(..) {
            // Whoever gave up waiting needs no answer.
            let _ = waiter.send(());
        }
        self.give_back_memory();
    }

    /// Gives back what reading the kernel's types and all rules for the first time has left, and again what has gathered.
    fn give_back_memory(&mut self) {
        self.ticks += 1;
        if self.ticks == 2 || self.gave_back.elapsed() > GIVE_BACK {
            accountant_dataplane::give_back_memory();
            self.gave_back = Instant::now();
        }
    }

    /// Whether a source is in another state than is published: nobody asks the agent to become ready.
    fn has_news_of_sources(&self) -> bool {
        let published = self.publish.borrow();
        let state = |published: &SourceStatus| self.sources.get(&published.source).map(|now| now.state);
        published.status.sources.iter().any(|was| state(was) != Some(was.state))
    }

    /// Notes what was found in each source.
    fn tell_sources(&mut self) {
        for (&source, status) in &mut self.sources {
            let tables = self.books.tables(source);
            let endpoints = tables.iter().map(|(_, endpoints, _)| endpoints).sum();
            let second = !tables.is_empty() && tables.iter().all(|(_, _, posts)| !posts);
            let second = second || status.how.is_totals_only() && self.books.rules_count();
            status.found(endpoints, second);
            status.rule_difference = self.books.rule_difference(source);
            status.attribution = self.books.exactness(source);
            status.compared = self.books.compared(source);
            status.repaired = self.books.repaired(source);
        }
        self.kernel.reason = self.programs.reason();
        self.kernel.attached_again = self.programs.attached_again();
        self.kernel.packets = self.books.seen.packets();
        self.kernel.interfaces = self.books.seen.at_interfaces.counted();
        let runs = self.programs.runs().into_iter();
        self.kernel.runs = runs.map(|(program, runs)| (program, runs.count, runs.time)).collect();
        self.kernel.lost = self.books.lost_events();
    }

    /// How long the agents whose books these are have run.
    fn age(&self) -> Duration {
        self.age_before + self.started.elapsed()
    }

    /// What is published was kept before, so that the next agent never tells less.
    fn publish_now(&mut self, at: Option<Instant>) {
        if std::mem::take(&mut self.changed) {
            self.keeper.keep(&self.books, self.age());
        }
        self.names.objects =
            self.books.index.objects_by_kind().into_iter().map(|(k, n)| (k.to_string(), n)).collect();
        let status = Status {
            sources: self.sources.values().cloned().collect(),
            kernel: self.kernel.clone(),
            datastore: self.names.clone(),
        };
        let view = self.books.view();
        let denied = self.books.denied_view();
        let accepted = self.programs.note_accepted_flows().then(|| self.books.accepted_view());
        self.publish.send_replace(Arc::new(Published { view, status, denied, accepted, at }));
    }

    /// Takes a change of names, and all that wait behind it: they are published together.
    fn take_names(&mut self, news: Option<accountant_datastore::Update>) {
        let Some(subscription) = &mut self.datastore else { return };
        // What is said of the names is true of those that were handed over before, all of which are taken now.
        let status = subscription.status.borrow_and_update().clone();
        let mut changed = false;
        let mut next = news.or_else(|| subscription.updates.try_recv().ok());
        for _ in 0..NAMES_AT_ONCE {
            let Some(update) = next else { break };
            changed |= update.apply_to(&mut self.books.index);
            next = subscription.updates.try_recv().ok();
        }
        if let Some(update) = next {
            changed |= update.apply_to(&mut self.books.index);
        }
        self.names.take(status);
        if changed {
            self.names.last_event = Some(SystemTime::now());
            self.books.rename();
        }
        let at = self.publish.borrow().at;
        self.publish_now(at);
    }

    /// Host endpoints can be known by their addresses.
    fn look_up_addresses(&mut self) {
        if !self.books.index.wants_addresses() {
            return;
        }
        self.books.index.set_addresses(addresses::of_interfaces());
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// The next change of names, or nothing when it is the datastore's status that changed.
async fn next_name(datastore: &mut Option<Subscription>) -> Option<accountant_datastore::Update> {
    let Some(subscription) = datastore else { return std::future::pending().await };
    tokio::select! {
        update = subscription.updates.recv() => match update {
            Some(update) => Some(update),
            None => std::future::pending().await,
        },
        changed = subscription.status.changed() => match changed {
            Ok(()) => None,
            Err(_) => std::future::pending().await,
        },
    }
}
