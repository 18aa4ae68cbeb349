//! The datastore `etcdv3`: Calico's objects in etcd, read at one revision and followed from there.
//!
//! `connection` says where it is; `keys` and `decode` say what a key and a value tell: all pure. `client` connects,
//! `session` reads and follows until something breaks, and then, here, all is read again: what was told before stays
//! until then.

mod client;
mod connection;
pub(crate) mod decode;
mod error;
mod keys;
pub(crate) mod ready;
mod session;

pub use connection::{Connection, Servers};

use crate::cache::Cache;
use crate::convert::Settings;
use crate::health::Health;
use crate::patience::Waits;
use crate::{Datastore, Outlet, explain};
use session::{CONNECTION, Ended, Session};
use std::time::Duration;

/// etcd, to be started with [`crate::start`].
#[derive(Clone, Debug)]
pub struct Etcd {
    /// Where it is.
    pub connection: Connection,
    /// What conversion must know of this node.
    pub settings: Settings,
    /// Where all agents see at the same moment that they must read everything again: within which time they do.
    pub again_within: Duration,
}

impl Etcd {
    /// With the usual time.
    pub fn new(connection: Connection, settings: Settings) -> Self {
        Self { connection, settings, again_within: Duration::from_secs(30) }
    }

    async fn follow(self, outlet: &Outlet) {
        let mut waits = Waits::default();
        let (mut cache, mut health) = (Cache::default(), Health::default());
        loop {
            health.in_sync = false;
            let mut session = Session { etcd: &self, cache: &mut cache, health: &mut health, outlet };
            let ended = session.run().await;
            let was_in_sync = std::mem::take(&mut health.in_sync);
            if was_in_sync {
                waits.start_over();
            }
            match ended {
                Ok(Ended::Disconnected) => return,
                Ok(Ended::Again) => {}
                Err(error) => {
                    health.fail(CONNECTION, error.reason(), explain(&error, error.advice()));
                    health.report(&cache, outlet);
                    if !(error.is_compaction() && was_in_sync) {
                        tokio::time::sleep(waits.next().unwrap_or_default()).await;
                    }
                }
            }
        }
    }
}

impl Datastore for Etcd {
    const NAME: &'static str = "etcdv3";

    async fn run(self, outlet: Outlet) {
        tokio::select! {
            () = self.follow(&outlet) => {}
            () = outlet.disconnected() => {}
        }
    }
}
