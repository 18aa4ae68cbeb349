//! How a datastore on a server does: what is wrong with which part of it, and how often anything was.

use crate::cache::Cache;
use crate::{Disconnected, Outlet, Status};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// How it does.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// What was listed and is followed now.
    pub(crate) in_sync: bool,
    /// Something was never answered nor refused.
    pub(crate) pending: bool,
    /// What does not work, by part: the connection, a kind.
    problems: BTreeMap<String, String>,
    counts: BTreeMap<&'static str, u64>,
    last_change: Option<SystemTime>,
}

impl Health {
    /// A part does not work. It is logged when that is news, and counted each time.
    pub(crate) fn fail(&mut self, part: &str, reason: &'static str, error: String) {
        *self.counts.entry(reason).or_default() += 1;
        if self.problems.get(part) != Some(&error) {
            tracing::warn!(part, error, "a part of the datastore cannot be used");
            self.problems.insert(part.into(), error);
        }
    }

    /// Whether a part does not work.
    pub(crate) fn fails(&self, part: &str) -> bool {
        self.problems.contains_key(part)
    }

    /// Something happened that only is to be counted.
    pub(crate) fn count(&mut self, reason: &'static str) {
        *self.counts.entry(reason).or_default() += 1;
    }

    /// A part works.
    pub(crate) fn works(&mut self, part: &str) {
        if self.problems.remove(part).is_some() {
            tracing::info!(part, "this part of the datastore works again");
        }
    }

    /// Hands over what changed, and tells how things are.
    pub(crate) async fn hand_over(&mut self, cache: &mut Cache, outlet: &Outlet) -> Result<(), Disconnected> {
        for update in cache.take_updates() {
            self.last_change = Some(SystemTime::now());
            outlet.hand_over(update).await?;
        }
        self.report(cache, outlet);
        Ok(())
    }

    /// Tells how things are.
    pub(crate) fn report(&self, cache: &Cache, outlet: &Outlet) {
        let mut counts = self.counts.clone();
        if cache.wrong_count > 0 {
            counts.insert("object", cache.wrong_count);
        }
        let problems = self.problems.values().cloned();
        outlet.report(Status {
            in_sync: self.in_sync && self.problems.is_empty(),
            pending: self.pending,
            errors: problems.chain(cache.errors()).collect(),
            counts,
            last_change: self.last_change,
        });
    }
}
