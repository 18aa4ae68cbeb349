//! How many connections there can be, who goes when there are too many, and how long each may take.
//!
//! A place is never refused to a newcomer while somebody only sits on one: whoever has waited longest without asking goes
//! first, then whoever has not taken anything of its answer for a while. So a client that asks at once is served however many
//! others hold connections open, and memory is bounded by the two numbers of [`Limits`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// What clients can have of us at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Requests that are answered at once.
    pub answers: usize,
    /// Time until the connection is made: TLS is spoken.
    pub handshake: Duration,
    /// Time from one answer's end to the next request's; longer than the interval of most scrapes.
    pub waiting: Duration,
    /// Time until an answer is taken whole.
    pub answering: Duration,
    /// Bytes of a request's head.
    pub head: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            answers: 32,
            handshake: Duration::from_secs(10),
            waiting: Duration::from_secs(75),
            answering: Duration::from_secs(60),
            head: 16 * 1024,
        }
    }
}

/// Whoever has not taken anything for this long can go in favour of others.
const STALLED: Duration = Duration::from_millis(250);
/// How long a request waits for others to be answered, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// All connections.
pub(super) struct Crowd {
    pub(super) limits: Limits,
    began: Instant,
    members: Mutex<BTreeMap<u64, Arc<Member>>>,
    next: AtomicU64,
}

/// A connection.
pub(super) struct Member {
    crowd: Arc<Crowd>,
    /// When bytes last went either way, in milliseconds since the crowd began.
    moved: AtomicU64,
    /// Requests that are not answered whole.
    asked: AtomicUsize,
    /// Those of them that are being answered, and do not wait for others.
    answered: AtomicUsize,
    leave: Notify,
    deadline: watch::Sender<Instant>,
}

/// A member's place, free again when dropped.
pub(super) struct Place {
    id: u64,
    pub(super) member: Arc<Member>,
}

/// A request that is being answered; it is over when this is dropped.
pub(super) struct Answering {
    member: Arc<Member>,
    /// Whether it is more than waited for.
    begun: bool,
}

impl Crowd {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let began = Instant::now();
        Arc::new(Self { limits, began, members: Mutex::default(), next: AtomicU64::new(0) })
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Member>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection, if there is one or one can be made.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut members = self.members();
        if members.len() >= self.limits.connections {
            let waiting = longest_still(&members, |member| !member.has_asked());
            let stalled = || longest_still(&members, |member| self.is_stalled(member));
            let goes = waiting.or_else(stalled)?;
            if let Some(member) = members.remove(&goes) {
                member.leave.notify_one();
            }
        }
        let member = Arc::new(Member {
            crowd: self.clone(),
            moved: AtomicU64::new(self.now()),
            asked: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            leave: Notify::new(),
            deadline: watch::Sender::new(Instant::now() + self.limits.handshake),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        members.insert(id, member.clone());
        Some(Place { id, member })
    }

    /// Whether one more request can be answered; if need be, in place of one whose client does not take its answer.
    fn has_room_for_answer(&self) -> bool {
        let mut members = self.members();
        let answered: usize = members.values().map(|member| member.answered.load(Ordering::Relaxed)).sum();
        if answered < self.limits.answers {
            return true;
        }
        let stalled = |member: &Member| member.is_answered() && self.is_stalled(member);
        let Some(goes) = longest_still(&members, stalled) else { return false };
        members.remove(&goes).inspect(|member| member.leave.notify_one()).is_some()
    }

    fn is_stalled(&self, member: &Member) -> bool {
        let still = self.now().saturating_sub(member.moved.load(Ordering::Relaxed));
        member.has_asked() && Duration::from_millis(still) > STALLED
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Who of some has been still for longest; of equals, who came first.
fn longest_still(members: &BTreeMap<u64, Arc<Member>>, of: impl Fn(&Member) -> bool) -> Option<u64> {
    let some = members.iter().filter(|(_, member)| of(member));
    some.min_by_key(|(_, member)| member.moved.load(Ordering::Relaxed)).map(|(id, _)| *id)
}

impl Member {
    /// Notes that bytes went.
    pub(super) fn moves(&self) {
        self.moved.store(self.crowd.now(), Ordering::Relaxed);
    }

    fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) > 0
    }

    fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed) > 0
    }

    /// The connection is made: requests can come.
    pub(super) fn waits(&self) {
        self.deadline.send_replace(Instant::now() + self.crowd.limits.waiting);
    }

    /// An answer without an end goes on: its client has taken what there was.
    pub(super) fn answers_on(&self) {
        self.deadline.send_replace(Instant::now() + self.crowd.limits.answering);
    }

    /// Notes a request. It is over when what is returned is dropped.
    fn asks(self: &Arc<Self>) -> Answering {
        if self.asked.fetch_add(1, Ordering::Relaxed) == 0 {
            self.deadline.send_replace(Instant::now() + self.crowd.limits.answering);
        }
        Answering { member: self.clone(), begun: false }
    }

    /// Begins an answer, when it is its turn. Nothing if it is not for a while: too many others are being answered.
    pub(super) async fn answer(self: &Arc<Self>) -> Option<Answering> {
        let mut answering = self.asks();
        let until = Instant::now() + PATIENCE;
        while !self.crowd.has_room_for_answer() {
            if Instant::now() > until {
                return None;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        answering.begin();
        Some(answering)
    }

    /// Waits until the connection has to go: its time is over, or its place is needed.
    pub(super) async fn has_to_go(&self) {
        let mut deadlines = self.deadline.subscribe();
        loop {
            let deadline = *deadlines.borrow_and_update();
            tokio::select! {
                () = self.leave.notified() => return,
                () = tokio::time::sleep_until(deadline.into()) => return,
                changed = deadlines.changed() => if changed.is_err() { return },
            }
        }
    }
}

impl Answering {
    fn begin(&mut self) {
        self.begun = true;
        self.member.answered.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if self.begun {
            self.member.answered.fetch_sub(1, Ordering::Relaxed);
        }
        if self.member.asked.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.member.waits();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.member.crowd.members().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crowd(connections: usize, answers: usize) -> Arc<Crowd> {
        // Older than the test, so that things can be long ago.
        let began = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        let limits = Limits { connections, answers, ..Limits::default() };
        Arc::new(Crowd { limits, began, members: Mutex::default(), next: AtomicU64::new(0) })
    }

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            tokio::select! { biased; done = future => Some(done), () = std::future::ready(()) => None }
        })
    }

    fn answer(place: &Place) -> Option<Answering> {
        now(place.member.answer()).flatten()
    }

    fn has_to_go(place: &Place) -> bool {
        now(place.member.has_to_go()).is_some()
    }

    #[test]
    fn who_waits_longest_makes_room() {
        let crowd = crowd(2, 2);
        let [first, second] = [0; 2].map(|_| crowd.enter().unwrap());
        let answered = answer(&first).unwrap();
        let third = crowd.enter().unwrap();
        assert_eq!([&first, &second, &third].map(has_to_go), [false, true, false]);
        drop(second);
        let answered_third = answer(&third).unwrap();
        assert!(crowd.enter().is_none(), "all are being answered");
        drop((answered, answered_third));
        assert!(crowd.enter().is_some());
    }

    #[test]
    fn an_answer_that_nobody_takes_makes_room() {
        let crowd = crowd(2, 1);
        let [slow, quick] = [0; 2].map(|_| crowd.enter().unwrap());
        let _answer = answer(&slow).unwrap();
        assert!(answer(&quick).is_none());
        slow.member.moved.fetch_sub(1000, Ordering::Relaxed);
        assert!(answer(&quick).is_some());
        assert!(has_to_go(&slow));
    }

    #[test]
    fn time_is_limited() {
        let limits = Limits { waiting: Duration::ZERO, ..Limits::default() };
        let place = Crowd::new(limits).enter().unwrap();
        assert!(!has_to_go(&place));
        place.member.waits();
        assert!(has_to_go(&place));
        let answered = answer(&place);
        assert!(!has_to_go(&place));
        drop(answered);
        assert!(has_to_go(&place));
    }

    #[test]
    fn an_answer_without_an_end_has_its_time_anew_whenever_it_is_taken() {
        let limits = Limits { handshake: Duration::ZERO, ..Limits::default() };
        let place = Crowd::new(limits).enter().unwrap();
        assert!(has_to_go(&place));
        place.member.answers_on();
        assert!(!has_to_go(&place));
    }
}
