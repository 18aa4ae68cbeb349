//! What Felix reports on this node, beside any datastore: it names pods before the datastore answers, and without one.
//!
//! In go the updates of a datastore and what Felix' files say; out come both. Of an interface that the datastore tells of
//! itself, what it tells counts: it knows labels. (The Kubernetes datastore does this itself, because there the files also
//! tell interfaces that the API does not know.)

use crate::local::{self, LocalEndpoint, LocalEndpoints, Pod, Reports};
use crate::{Datastore, Disconnected, Outlet, Status, Subscription, Update, start};
use accountant_core::Interface;
use accountant_core::index::{Object, ObjectKey, Workload};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use tokio::sync::watch;

/// Most wrong files whose errors are told.
const MAX_ERRORS: usize = 100;

/// The kind of the keys of endpoints that only Felix tells of.
const KIND: &str = "EndpointStatus";

/// A datastore, and Felix' reports beside it.
#[derive(Clone, Debug)]
pub struct WithReports<D> {
    /// The datastore.
    pub datastore: D,
    /// Where Felix reports its endpoints.
    pub folder: PathBuf,
}

/// No datastore: there is nothing in it, and it is always in sync.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Datastore for Nothing {
    const NAME: &'static str = "none";

    async fn run(self, outlet: Outlet) {
        if outlet.hand_over(Update::Reset(BTreeMap::new())).await.is_ok() {
            outlet.report(Status { in_sync: true, ..Status::default() });
            outlet.disconnected().await;
        }
    }
}

impl<D: Datastore> Datastore for WithReports<D> {
    const NAME: &'static str = D::NAME;

    async fn run(self, outlet: Outlet) {
        let (datastore, reports) = (start(self.datastore), local::follow(self.folder));
        tokio::select! {
            // It ends only when nobody listens.
            _ = follow(datastore, reports, &outlet) => {}
            () = outlet.disconnected() => {}
        }
    }
}

async fn follow(
    mut datastore: Subscription,
    mut reports: watch::Receiver<Reports>,
    outlet: &Outlet,
) -> Result<(), Disconnected> {
    let mut merged = Merged::default();
    let first = reports.borrow_and_update().clone();
    merged.complain(&first.wrong);
    for update in merged.of_felix(&first.endpoints) {
        outlet.hand_over(update).await?;
    }
    loop {
        let mut told = tokio::select! {
            update = datastore.updates.recv() => merged.of_datastore(update.ok_or(Disconnected)?),
            changed = datastore.status.changed() => {
                changed.map_err(|_| Disconnected)?;
                Vec::new()
            }
            changed = reports.changed() => {
                changed.map_err(|_| Disconnected)?;
                let reports = reports.borrow_and_update().clone();
                merged.complain(&reports.wrong);
                merged.of_felix(&reports.endpoints)
            }
        };
        // What the status says is true of all that was told before it.
        let status = merged.status(datastore.status.borrow_and_update().clone());
        while let Ok(update) = datastore.updates.try_recv() {
            told.extend(merged.of_datastore(update));
        }
        for update in told {
            outlet.hand_over(update).await?;
        }
        outlet.report(status);
    }
}

/// What both tell.
#[derive(Debug, Default)]
struct Merged {
    /// Interfaces that the datastore tells of.
    known: BTreeMap<ObjectKey, Interface>,
    /// What Felix tells.
    reported: BTreeMap<ObjectKey, Object>,
    /// What was told of that.
    told: BTreeSet<ObjectKey>,
    begun: bool,
    /// What is wrong with Felix' files.
    wrong: BTreeMap<Pod, String>,
    /// How often something was.
    wrong_count: u64,
}

impl Merged {
    /// Takes what is wrong with Felix' files. It is logged and counted when that is news.
    fn complain(&mut self, wrong: &BTreeMap<Pod, String>) {
        for (pod, error) in wrong {
            if self.wrong.get(pod) != Some(error) {
                tracing::warn!(error, "a report of Felix' cannot be used");
                self.wrong_count += 1;
            }
        }
        self.wrong = wrong.clone();
    }

    /// How the datastore does, and what is wrong with Felix' files.
    fn status(&self, mut status: Status) -> Status {
        status.errors.extend(self.wrong.values().take(MAX_ERRORS).cloned());
        if self.wrong_count > 0 {
            *status.counts.entry("object").or_default() += self.wrong_count;
        }
        status
    }

    fn of_datastore(&mut self, update: Update) -> Vec<Update> {
        match update {
            Update::Reset(mut objects) => {
                self.known = objects.iter().filter_map(|(key, object)| interface(key, object)).collect();
                let reported = self.wanted();
                self.told = reported.keys().cloned().collect();
                self.begun = true;
                objects.extend(reported);
                vec![Update::Reset(objects)]
            }
            Update::Apply(key, object) => {
                self.known.remove(&key);
                self.known.extend(interface(&key, &object));
                self.settle(Some(Update::Apply(key, object)))
            }
            Update::Delete(key) => {
                self.known.remove(&key);
                self.settle(Some(Update::Delete(key)))
            }
        }
    }

    fn of_felix(&mut self, endpoints: &LocalEndpoints) -> Vec<Update> {
        self.reported = endpoints.iter().map(|((namespace, pod), at)| reported(namespace, pod, at)).collect();
        self.settle(None)
    }

    /// What Felix tells and the datastore does not.
    fn wanted(&self) -> BTreeMap<ObjectKey, Object> {
        let known: BTreeSet<&Interface> = self.known.values().collect();
        let is_new = |object: &Object| matches!(object, Object::Workload(at, _) if !known.contains(at));
        self.reported
            .iter()
            .filter(|(_, object)| is_new(object))
            .map(|(k, o)| (k.clone(), o.clone()))
            .collect()
    }

    /// An update, and what follows from it. Nothing of Felix' is told twice: a queue is bounded.
    fn settle(&mut self, update: Option<Update>) -> Vec<Update> {
        let wanted = self.wanted();
        if !self.begun {
            self.begun = true;
            self.told = wanted.keys().cloned().collect();
            return vec![Update::Reset(wanted)];
        }
        let gone: Vec<_> = self.told.iter().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        self.told = wanted.keys().cloned().collect();
        let applied = wanted.into_iter().map(|(key, object)| Update::Apply(key, object));
        // What takes the place of something comes before that goes, so that the name is there all the while.
        update.into_iter().chain(applied).chain(gone.into_iter().map(Update::Delete)).collect()
    }
}

fn interface(key: &ObjectKey, object: &Object) -> Option<(ObjectKey, Interface)> {
    match object {
        Object::Workload(interface, _) => Some((key.clone(), interface.clone())),
        _ => None,
    }
}

/// An endpoint as Felix reports it, under its key: all of its pod but the labels.
pub(crate) fn reported(namespace: &str, pod: &str, endpoint: &LocalEndpoint) -> (ObjectKey, Object) {
    let ips = endpoint.networks.iter().map(|network| {
        let suffix = if network.contains(':') { "/128" } else { "/32" };
        network.strip_suffix(suffix).unwrap_or(network).into()
    });
    let workload =
        Workload { namespace: namespace.into(), pod: pod.into(), app: "".into(), ips: ips.collect() };
    (key(namespace, pod), Object::Workload((&*endpoint.interface).into(), workload))
}

/// The key of an endpoint as Felix reports it.
pub(crate) fn key(namespace: &str, pod: &str) -> ObjectKey {
    (KIND.into(), namespace.into(), pod.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use accountant_core::index::Index;

    #[derive(Default)]
    struct Check {
        merged: Merged,
        index: Index,
        updates: usize,
    }

    impl Check {
        fn take(&mut self, updates: Vec<Update>) {
            self.updates += updates.len();
            for update in updates {
                update.apply_to(&mut self.index);
            }
        }

        fn report(&mut self, endpoints: &[(&str, &str)]) {
            let at = |interface: &str| LocalEndpoint { interface: interface.into(), networks: Vec::new() };
            let endpoints =
                endpoints.iter().map(|(pod, interface)| (("n".into(), (*pod).into()), at(interface)));
            let updates = self.merged.of_felix(&endpoints.collect());
            self.take(updates);
        }

        fn datastore(&mut self, update: Update) {
            let updates = self.merged.of_datastore(update);
            self.take(updates);
        }

        /// The pod at an interface, with its label.
        fn at(&self, interface: &str) -> Option<String> {
            let workload = self.index.workload(&interface.into())?;
            Some(format!("{} {}", workload.pod, workload.app))
        }
    }

    fn endpoint(pod: &str, interface: &str) -> (ObjectKey, Object) {
        let workload = Workload { pod: pod.into(), app: "a".into(), ..Workload::default() };
        (("WorkloadEndpoint".into(), "n".into(), pod.into()), Object::Workload(interface.into(), workload))
    }

    #[test]
    fn what_the_datastore_tells_counts_and_felix_fills_in() {
        let mut check = Check::default();
        check.report(&[("one", "cali1"), ("two", "cali2")]);
        assert_eq!(check.at("cali1").as_deref(), Some("one "));
        let (key, object) = endpoint("one", "cali1");
        check.datastore(Update::Reset([(key.clone(), object.clone())].into()));
        assert_eq!(
            (check.at("cali1").as_deref(), check.at("cali2").as_deref()),
            (Some("one a"), Some("two "))
        );
        assert_eq!(check.index.objects_by_kind()[KIND], 1);
        check.datastore(Update::Delete(key.clone()));
        assert_eq!(check.at("cali1").as_deref(), Some("one "));
        check.datastore(Update::Apply(key, object));
        assert_eq!(check.at("cali1").as_deref(), Some("one a"));
        check.report(&[("two", "cali3")]);
        assert_eq!(check.at("cali3").as_deref(), Some("two "));
        check.report(&[]);
        assert_eq!(check.index.objects_by_kind().get(KIND), None);
    }

    #[test]
    fn files_that_cannot_be_used_are_told_beside_the_rest() {
        let mut merged = Merged::default();
        let wrong = [(("n".into(), "p".into()), "cannot use it".to_string())].into();
        merged.complain(&wrong);
        merged.complain(&wrong);
        let status = Status { in_sync: true, errors: vec!["other".into()], ..Status::default() };
        let told = merged.status(status.clone());
        assert_eq!(
            (told.in_sync, told.errors, told.counts["object"]),
            (true, vec!["other".into(), "cannot use it".into()], 1)
        );
        merged.complain(&BTreeMap::new());
        assert_eq!(merged.status(status).errors, ["other"]);
    }

    #[test]
    fn the_first_update_is_all_there_is() {
        let mut merged = Merged::default();
        assert!(matches!(merged.of_felix(&LocalEndpoints::new())[..], [Update::Reset(_)]));
    }
}
