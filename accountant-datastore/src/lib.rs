//! Where names come from: one folder for each datastore.
//!
//! In goes a datastore's configuration; out come updates of [`accountant_core::index::Index`] over a bounded queue,
//! and a status beside it. A datastore only reads, and it never touches the index itself: one task owns that.
//!
//! ```text
//! manifests  ─┐
//! kubernetes ─┼─ Resource ── convert ── Update ──> Subscription ──> Index
//! etcdv3     ─┘             (pure)
//! ```
//!
//! Invariants:
//! * the first update is a [`Update::Reset`], and applying all updates in their order gives what the datastore says;
//! * one bad object, file or connection takes no other name away, and is reported with what to do about it;
//! * a datastore ends when its [`Subscription`] is dropped.

#![forbid(unsafe_code)]

mod bell;
mod cache;
pub mod convert;
pub mod decoders;
pub mod etcdv3;
mod health;
pub mod kubernetes;
mod local;
pub mod manifests;
mod patience;
mod reported;
pub mod secret;
mod subscription;

/// Where Felix reports its endpoints, from 3.30 on.
pub const ENDPOINT_STATUS: &str = local::FOLDER;

pub use reported::{Nothing, WithReports};
pub use subscription::{Datastore, Disconnected, Outlet, Status, Subscription, Update, explain, start};

/// The registry: every datastore, by the name that `--datastore-type` takes.
pub const NAMES: [&str; 3] =
    [kubernetes::Kubernetes::NAME, etcdv3::Etcd::NAME, <manifests::Manifests as Datastore>::NAME];
