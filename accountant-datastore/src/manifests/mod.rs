//! The datastore `manifests`: a folder of YAML and JSON files, watched.
//!
//! In goes a folder; out comes [`crate::Update::Reset`] with all its objects whenever they change.
//! `facts` says which entries count and what is bounded; `split`, `document` and `decode` turn bytes into objects;
//! `memory` keeps what each file said last: all pure. `folder` reads, `bell` waits for changes, `follow` does both
//! in turn: all I/O.
//!
//! Invariant: what cannot be read or understood is reported, and takes away neither what is beside it nor what the
//! same file said when it was last good.

mod decode;
mod document;
mod facts;
mod folder;
mod follow;
mod memory;
mod split;

pub use decode::{DecodeError, Decoded, decode};
pub use document::SyntaxError;
pub use facts::MAX_FILE_BYTES;
pub use folder::FolderError;

use crate::convert::Settings;
use crate::{Datastore, Outlet};
use std::path::PathBuf;
use std::time::Duration;

/// A folder of manifests, to be started with [`crate::start`].
#[derive(Clone, Debug)]
pub struct Manifests {
    /// The folder. It need not exist yet.
    pub folder: PathBuf,
    /// What conversion must know of this node.
    pub settings: Settings,
    /// How often everything is read again although no change was seen: what is behind links that lead out of the
    /// folder, and file systems that do not tell of changes.
    pub read_again_after: Duration,
    /// How soon what could not be read is tried again.
    pub retry_after: Duration,
}

impl Manifests {
    /// With the usual times.
    pub fn new(folder: PathBuf, settings: Settings) -> Self {
        Self {
            folder,
            settings,
            read_again_after: Duration::from_secs(60),
            retry_after: Duration::from_secs(5),
        }
    }
}

impl Datastore for Manifests {
    const NAME: &'static str = "manifests";

    fn run(self, outlet: Outlet) -> impl Future<Output = ()> + Send {
        follow::follow(self, outlet)
    }
}
