//! The watch of one kind: a list from the API server's cache, and then what changes, for ever.
//!
//! The library's watcher does the work: bookmarks, going on after a cut, listing anew after 410. Here is what is asked for.

use super::item::Item;
use super::kinds::{Kind, Part, Role};
use crate::convert::Resource;
use crate::patience::{Waits, spread};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use std::time::Duration;

/// How long a watch lasts: less than five minutes, and not the same for all.
const WATCH_FOR: Duration = Duration::from_secs(190);

/// What a watch tells.
pub(super) type Change = Result<Event<Resource>, watcher::Error>;

/// Watches a kind after some time; of pods, those of this node.
pub(super) fn watch_kind(
    client: Client,
    kind: &'static Kind,
    node: &str,
    wait: Duration,
) -> BoxStream<'static, Change> {
    let seconds = u32::try_from(spread(WATCH_FOR).as_secs()).unwrap_or(u32::MAX);
    // Only a list that is not in pages comes from the server's cache.
    let config = watcher::Config { page_size: None, ..watcher::Config::default() };
    let config = config.any_semantic().timeout(seconds);
    let config = match kind.role {
        Role::Pods => config.fields(&format!("spec.nodeName={node}")),
        Role::Names | Role::Ready | Role::Prefix => config,
    };
    match kind.part {
        Part::Whole => watch_items::<false>(client, kind, config, wait),
        Part::Metadata => watch_items::<true>(client, kind, config, wait),
    }
}

fn watch_items<const META: bool>(
    client: Client,
    kind: &'static Kind,
    config: watcher::Config,
    wait: Duration,
) -> BoxStream<'static, Change> {
    let api = Api::<Item<META>>::all_with(client, &kind.resource());
    let changes = watcher(api, config).backoff(Waits::default()).map(|change| change.map(resource));
    stream::once(tokio::time::sleep(wait)).flat_map(move |()| stream::empty()).chain(changes).boxed()
}

fn resource<const META: bool>(event: Event<Item<META>>) -> Event<Resource> {
    match event {
        Event::Apply(item) => Event::Apply(item.into_resource()),
        Event::Delete(item) => Event::Delete(item.into_resource()),
        Event::Init => Event::Init,
        Event::InitApply(item) => Event::InitApply(item.into_resource()),
        Event::InitDone => Event::InitDone,
    }
}
