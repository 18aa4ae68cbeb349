//! Follows the folder: reads it, hands over what changed, waits for the next change; for as long as anybody listens.
//!
//! Reading is on a blocking thread. Whatever changed, all is read again; what is the same is not decoded again.

use super::Manifests;
use super::folder::{Outcome, read};
use super::memory::Memory;
use crate::bell::Bell;
use crate::convert::Settings;
use crate::{Datastore, Outlet, Status, Update};
use std::future::pending;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// Runs until nobody listens.
pub(super) async fn follow(manifests: Manifests, outlet: Outlet) {
    let Manifests { folder, settings, read_again_after, retry_after } = manifests;
    let source: Source = Arc::new((folder.into(), settings));
    let bell = Bell::new();
    let mut memory = Memory::default();
    let mut status = Status::default();
    let mut handed_over = false;
    loop {
        let outcome;
        (memory, outcome) = read_once(&source, &bell, memory).await;
        if outcome.changed || (outcome.listed && !handed_over) {
            let objects = memory.objects();
            tracing::info!(datastore = Manifests::NAME, objects = objects.len(), "names changed");
            status.last_change = Some(SystemTime::now());
            if outlet.hand_over(Update::Reset(objects)).await.is_err() {
                return;
            }
            handed_over = true;
        }
        let errors = memory.errors();
        warn_of_news(&status.errors, &errors);
        status = Status { in_sync: handed_over && memory.is_complete(), errors, ..status };
        outlet.report(status.clone());
        let wait = if outcome.try_again { retry_after.min(read_again_after) } else { read_again_after };
        tokio::select! {
            () = outlet.disconnected() => return,
            () = rung(&bell) => {}
            () = sleep(wait) => {}
        }
    }
}

/// Without a bell, only time brings news.
async fn rung(bell: &io::Result<Bell>) {
    match bell {
        Ok(bell) => bell.rung().await,
        Err(_) => pending().await,
    }
}

fn warn_of_news(old: &[String], new: &[String]) {
    for error in new.iter().filter(|error| !old.contains(error)) {
        tracing::warn!(datastore = Manifests::NAME, error, "a part of the datastore cannot be used");
    }
}

type Source = Arc<(Box<Path>, Settings)>;

/// Reads the folder on a blocking thread. Should that ever panic, what was remembered is lost and all is read anew.
async fn read_once(source: &Source, bell: &io::Result<Bell>, mut memory: Memory) -> (Memory, Outcome) {
    let source = Arc::clone(source);
    let watch = bell.as_ref().map(Bell::inotify).map_err(|error| match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.kind().into(),
    });
    let reading = spawn_blocking(move || {
        let (folder, settings) = &*source;
        let outcome = read(folder, settings, watch, &mut memory);
        (memory, outcome)
    });
    reading.await.unwrap_or_else(|panic| {
        let mut memory = Memory::default();
        let error =
            format!("cannot read the folder of manifests: {panic}; report this as a bug, it is tried again");
        memory.reading().trouble(error);
        (memory, Outcome { listed: false, changed: false, try_again: true })
    })
}
