//! How long to wait before another try: longer after each failure, and never the same for all nodes, so that thousands of
//! agents do not come back at once.

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use std::time::{Duration, Instant};

const SHORTEST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(30);
/// Without a failure for this long, what failed before is forgotten.
const FORGET: Duration = Duration::from_secs(120);

/// Waiting times, one after each failure.
#[derive(Debug)]
pub(crate) struct Waits {
    waits: ExponentialBackoff,
    last: Option<Instant>,
}

impl Default for Waits {
    fn default() -> Self {
        Self { waits: waits(), last: None }
    }
}

fn waits() -> ExponentialBackoff {
    let builder = ExponentialBuilder::default().with_min_delay(SHORTEST).with_max_delay(LONGEST);
    builder.with_jitter().without_max_times().build()
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) > FORGET) {
            self.waits = waits();
        }
        self.last = Some(now);
        Some(self.waits.next().unwrap_or(LONGEST))
    }
}

impl kube::runtime::utils::Backoff for Waits {
    /// The watcher says that it begins before it knows whether it can, so that is no success.
    fn reset(&mut self) {}
}

impl Waits {
    /// After something worked.
    pub(crate) fn start_over(&mut self) {
        *self = Self::default();
    }
}

/// A time between this and one and a half times this.
pub(crate) fn spread(time: Duration) -> Duration {
    time + within(time / 2)
}

/// A time up to this, so that all agents that see something at the same moment do not act at the same moment.
pub(crate) fn within(time: Duration) -> Duration {
    let jitter = ExponentialBuilder::default().with_min_delay(time).with_jitter().build().next();
    jitter.unwrap_or(time).saturating_sub(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_differ() {
        let mut waits = Waits::default();
        let first = waits.next().unwrap();
        assert!(first >= SHORTEST && first <= 2 * SHORTEST, "{first:?}");
        let later = waits.nth(10).unwrap();
        assert!(later >= LONGEST && later <= 2 * LONGEST, "{later:?}");
        let times: std::collections::BTreeSet<_> = (0..20).map(|_| spread(LONGEST)).collect();
        assert!(times.len() > 10);
        assert!(times.iter().all(|time| *time >= LONGEST && *time <= LONGEST * 3 / 2));
        assert!((0..20).all(|_| within(LONGEST) <= LONGEST));
        assert_eq!(within(Duration::ZERO), Duration::ZERO);
    }
}
