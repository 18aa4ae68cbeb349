//! A limit to the rate of requests: a bucket that holds `burst` requests and gets one back each `interval`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The bucket. It is full at the beginning.
pub(super) struct Bucket {
    interval: Duration,
    burst: u32,
    /// When it would be full again if nobody asked any more.
    full_at: Mutex<Option<Instant>>,
}

impl Bucket {
    pub(super) fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst, full_at: Mutex::default() }
    }

    /// Takes a request out; false if there is none.
    pub(super) fn take(&self, now: Instant) -> bool {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let after = full_at.map_or(now, |full| full.max(now)) + self.interval;
        let fits = after.saturating_duration_since(now) <= self.interval.saturating_mul(self.burst);
        if fits {
            *full_at = Some(after);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_each_interval() {
        let second = Duration::from_secs(1);
        let (bucket, begin) = (Bucket::new(second, 3), Instant::now());
        assert_eq!([0; 4].map(|_| bucket.take(begin)), [true, true, true, false]);
        assert!(!bucket.take(begin + second / 2));
        assert!(bucket.take(begin + second));
        assert!(!bucket.take(begin + second));
        let later = begin + 100 * second;
        assert_eq!([0; 4].map(|_| bucket.take(later)), [true, true, true, false]);
        assert!(!Bucket::new(second, 0).take(begin));
    }
}
