//! Which kinds are followed: those that the server has, as far as it tells, and not those that are held.

use super::{CONNECTION, Followed, Follower, NODE, id};
use crate::kubernetes::connection::ApiGroup;
use crate::kubernetes::discover::{Found, find};
use crate::kubernetes::failure;
use crate::kubernetes::kinds::{KINDS, Kind, Role, wanted};
use crate::kubernetes::prefixes::Labels;
use crate::patience::{spread, within};
use std::time::Duration;

impl Follower<'_> {
    /// Plans to find out which kinds there are.
    pub(super) fn discover_in(&mut self, wait: Duration) {
        let labels_matter = self.pods.prefixes().want_labels();
        let node = labels_matter.then(|| self.kubernetes.settings.node.to_string());
        self.discovery = find(self.client.clone(), self.kubernetes.connection.api_group, node, wait);
    }

    /// The same where all agents see at the same moment that they must.
    pub(super) fn discover_soon(&mut self) {
        self.discover_after = self.kubernetes.discover_after.0;
        self.discover_in(within(self.discover_after));
    }

    /// Takes what was found.
    pub(super) fn discovered(&mut self, found: Result<Found, kube::Error>) {
        let (first, longest) = self.kubernetes.discover_after;
        match found {
            Ok(found) => {
                self.discover_waits.start_over();
                self.health.works(CONNECTION);
                self.guessed = found.kinds.is_none();
                match found.kinds {
                    Some(kinds) => {
                        self.forget_all_but(&kinds);
                        self.follow_these(&kinds);
                    }
                    None => self.follow_these(&self.guess()),
                }
                self.discovered = true;
                self.labelled(found.labels);
                self.discover_in(spread(self.discover_after));
                self.discover_after = (self.discover_after * 2).min(longest);
            }
            Err(error) => {
                let failure = failure::of("find out what the API server serves", &error, "discover");
                self.health.fail(CONNECTION, failure.reason, failure.text);
                self.renew_soon();
                self.discover_after = first;
                let wait = self.discover_waits.next();
                self.discover_in(wait.unwrap_or(longest));
            }
        }
    }

    /// What to look for where the server does not tell what there is: Calico's group is the one that was told or followed
    /// before, else v1, as Calico has it. Nothing is forgotten for a guess; a watch tells what is not there.
    fn guess(&self) -> Vec<&'static Kind> {
        let group = |group: ApiGroup| {
            let mut followed = self.followed.values();
            followed.any(|followed| followed.kind.group_version() == group.as_str()).then_some(group)
        };
        let followed = group(ApiGroup::CrdV1).or_else(|| group(ApiGroup::V3));
        wanted(self.kubernetes.connection.api_group.or(followed).unwrap_or(ApiGroup::CrdV1)).collect()
    }

    /// Takes what came of asking for this node's labels; nothing if they do not matter.
    fn labelled(&mut self, labels: Option<Result<Labels, kube::Error>>) {
        match labels.transpose() {
            Ok(labels) => {
                self.health.works(NODE);
                if let Some(labels) = labels {
                    self.pods.labelled(labels, &mut self.cache);
                }
            }
            Err(error) => {
                let doing = format!("get the labels of node {}", self.kubernetes.settings.node);
                let failure = failure::of(&doing, &error, "list");
                self.health.fail(NODE, failure.reason, failure.text);
            }
        }
    }

    /// Other kinds than these have no objects. What is not followed may have left names, from before it was held.
    fn forget_all_but(&mut self, kinds: &[&'static Kind]) {
        for kind in KINDS.iter().filter(|kind| !kinds.contains(kind)) {
            if self.followed.contains_key(&id(kind)) {
                self.forget(kind);
            }
        }
        for kind in KINDS.iter().filter(|kind| kind.role == Role::Names && !kinds.contains(kind)) {
            if !(self.frozen && kind.is_calicos()) {
                self.replace(kind, Vec::new());
            }
        }
    }

    fn follow_these(&mut self, kinds: &[&'static Kind]) {
        for kind in kinds {
            let held = self.frozen && kind.is_calicos() && kind.role != Role::Ready;
            if !held && !self.followed.contains_key(&id(kind)) && self.is_wanted(kind) {
                tracing::debug!(kind = kind.full_name(), "following");
                self.start(kind);
            }
        }
    }

    /// Without need of what FelixConfiguration says, nobody need be allowed to read it.
    fn is_wanted(&self, kind: &Kind) -> bool {
        kind.role != Role::Prefix || !self.kubernetes.prefix_is_told
    }

    /// As soon as something depends on this node's labels, they are asked for; later, whenever kinds are looked for.
    pub(super) fn ask_for_labels(&mut self) {
        if self.pods.prefixes().miss_labels() {
            self.discover_soon();
        }
    }

    /// Ends the watches of Calico's kinds that were listed; those that were not are listed once.
    pub(super) fn hold(&mut self) {
        let held = |followed: &Followed| {
            followed.listed && followed.kind.is_calicos() && followed.kind.role != Role::Ready
        };
        let held: Vec<_> = self.followed.values().filter(|f| held(f)).map(|f| id(f.kind)).collect();
        for name in held {
            self.watches.remove(&name);
            self.followed.remove(&name);
        }
    }
}
