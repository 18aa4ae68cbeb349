//! How iptables-legacy is read.

use crate::kernel::Programs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How to read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The lock file of the xtables tools.
    pub lock_file: PathBuf,
    /// How long to wait for the lock before reading without it.
    pub lock_patience: Duration,
    /// Whether to read counters in place where that is possible.
    pub in_place: bool,
    /// Whether to watch rewrites where that is possible. Only with `in_place`.
    pub watch_rewrites: bool,
    /// The programs that see of each packet which rules it hits.
    pub programs: Arc<Programs>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lock_file: "/run/xtables.lock".into(),
            lock_patience: Duration::from_secs(2),
            in_place: true,
            watch_rewrites: true,
            programs: Programs::new(false),
        }
    }
}
