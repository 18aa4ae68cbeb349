//! The pods of this node, and what else tells their interfaces: Felix's own files where it writes them, else a name computed
//! of a prefix that FelixConfiguration may tell.
//!
//! Invariant: what the cache has of a pod follows from the pod, the files and the prefix as they are now, whichever came last.

use super::item::told;
use super::prefixes::{Labels, Prefixes};
use crate::cache::{Cache, Told, refused};
use crate::convert::resource::cut;
use crate::convert::{Resource, Settings};
use crate::local::Reports;
use crate::reported;
use accountant_core::index::ObjectKey;
use std::collections::{BTreeMap, BTreeSet};

/// The pods.
#[derive(Debug)]
pub(super) struct Pods {
    settings: Settings,
    /// The prefix was told by the person who runs us, and nothing else counts.
    told_prefix: bool,
    pods: BTreeMap<ObjectKey, Resource>,
    local: Reports,
    prefixes: Prefixes,
    /// The FelixConfigurations that there are.
    configured: BTreeSet<ObjectKey>,
}

impl Pods {
    pub(super) fn new(settings: Settings, told_prefix: bool) -> Self {
        let (pods, local, prefixes, configured) = Default::default();
        Self { settings, told_prefix, pods, local, prefixes, configured }
    }

    /// A pod as it is now.
    pub(super) fn put(&mut self, key: ObjectKey, pod: Resource, cache: &mut Cache) {
        self.pods.insert(key.clone(), pod);
        self.tell(&key, cache);
    }

    /// A pod that is gone.
    pub(super) fn remove(&mut self, key: &ObjectKey, cache: &mut Cache) {
        self.pods.remove(key);
        cache.remove(key);
        self.tell_reported(&(key.1.clone(), key.2.clone()), cache);
    }

    /// These are all.
    pub(super) fn replace(&mut self, pods: Vec<(ObjectKey, Resource)>, cache: &mut Cache) {
        let listed: BTreeSet<_> = pods.iter().map(|(key, _)| key.clone()).collect();
        let gone: Vec<_> = self.pods.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in gone {
            self.remove(&key, cache);
        }
        for (key, pod) in pods {
            self.put(key, pod, cache);
        }
    }

    /// What Felix reports.
    pub(super) fn reported(&mut self, local: Reports, cache: &mut Cache) {
        let before = std::mem::replace(&mut self.local, local);
        let all = |reports: &Reports| -> BTreeSet<_> {
            reports.endpoints.keys().chain(reports.wrong.keys()).cloned().collect()
        };
        for pod in &all(&before) | &all(&self.local) {
            let says =
                |reports: &Reports| (reports.endpoints.get(&pod).cloned(), reports.wrong.get(&pod).cloned());
            if says(&before) != says(&self.local) {
                self.tell(&("Pod".into(), pod.0.clone(), pod.1.clone()), cache);
            }
        }
    }

    /// What a FelixConfiguration says; nothing when it is gone.
    pub(super) fn configured(&mut self, key: &ObjectKey, now: Option<&Resource>, cache: &mut Cache) {
        match now {
            Some(_) => self.configured.insert(key.clone()),
            None => self.configured.remove(key),
        };
        match self.prefixes.take(&self.settings.node, &key.2, now) {
            Ok(()) => cache.remove(key),
            Err(error) => {
                let object = format!("FelixConfiguration {} in Kubernetes", cut(&key.2));
                cache.put(key.clone(), Err(refused(&object, &error)));
            }
        }
        self.use_prefix(cache);
    }

    /// These FelixConfigurations are all.
    pub(super) fn configurations(&mut self, all: &[(ObjectKey, Resource)], cache: &mut Cache) {
        let listed: BTreeSet<_> = all.iter().map(|(key, _)| key).collect();
        let gone: Vec<_> = self.configured.iter().filter(|key| !listed.contains(key)).cloned().collect();
        for key in gone {
            self.configured(&key, None, cache);
        }
        for (key, configuration) in all {
            self.configured(key, Some(configuration), cache);
        }
    }

    /// This node has these labels.
    pub(super) fn labelled(&mut self, labels: Labels, cache: &mut Cache) {
        self.prefixes.labelled(labels);
        self.use_prefix(cache);
    }

    /// What is known of interfaces' names.
    pub(super) fn prefixes(&self) -> &Prefixes {
        &self.prefixes
    }

    fn use_prefix(&mut self, cache: &mut Cache) {
        if self.told_prefix {
            return;
        }
        let settings = Settings::new(&self.settings.node, self.prefixes.prefix());
        if settings != self.settings {
            tracing::info!(prefix = %settings.interface_prefix, "FelixConfiguration tells the interface prefix");
            self.settings = settings;
            for key in self.pods.keys().cloned().collect::<Vec<_>>() {
                self.tell(&key, cache);
            }
        }
    }

    fn tell(&self, key: &ObjectKey, cache: &mut Cache) {
        let name = (key.1.clone(), key.2.clone());
        if let Some(pod) = self.pods.get(key) {
            let came = told(pod, &self.settings);
            let at = self.local.endpoints.get(&name);
            let place = |told: Told| match at {
                Some(endpoint) => told.at(&endpoint.interface),
                None => told,
            };
            cache.put(key.clone(), came.map(|told| told.map(place)));
        }
        self.tell_reported(&name, cache);
    }

    /// An endpoint of which there is a file and no pod, or a file that cannot be used.
    fn tell_reported(&self, name: &(Box<str>, Box<str>), cache: &mut Cache) {
        let (namespace, pod) = name;
        let key = reported::key(namespace, pod);
        let known = self.pods.contains_key(&("Pod".into(), namespace.clone(), pod.clone()));
        match (self.local.endpoints.get(name), self.local.wrong.get(name)) {
            (Some(endpoint), _) if !known => {
                let (_, object) = reported::reported(namespace, pod, endpoint);
                cache.put(key, Ok(Some(Told::workload(object))));
            }
            (None, Some(error)) => cache.put(key, Err(error.clone())),
            _ => cache.remove(&key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::object_key;
    use crate::local::LocalEndpoint;
    use accountant_core::index::Index;

    struct Check {
        pods: Pods,
        cache: Cache,
        index: Index,
    }

    impl Check {
        fn new(prefix: &str) -> Self {
            let pods = Pods::new(Settings::new("w", prefix), !prefix.is_empty());
            Self { pods, cache: Cache::default(), index: Index::default() }
        }

        fn pod() -> (ObjectKey, Resource) {
            let json = r#"{"kind": "Pod", "apiVersion": "v1", "metadata": {"namespace": "default", "name": "podA",
                           "labels": {"app": "a"}}, "spec": {"nodeName": "w"}}"#;
            (("Pod".into(), "default".into(), "podA".into()), serde_json::from_str(json).unwrap())
        }

        fn report(&mut self, interface: Option<&str>) {
            let endpoint = |interface: &str| LocalEndpoint {
                interface: interface.into(),
                networks: vec!["10.0.0.1/32".into()],
            };
            let local = interface.map(|interface| (("default".into(), "podA".into()), endpoint(interface)));
            let reports = Reports { endpoints: local.into_iter().collect(), ..Reports::default() };
            self.pods.reported(reports, &mut self.cache);
        }

        fn configure(&mut self, name: &str, prefix: &str) {
            let json = format!(r#"{{"spec": {{"interfacePrefix": "{prefix}"}}}}"#);
            let configuration = serde_json::from_str(&json).unwrap();
            let key = object_key("FelixConfiguration", "projectcalico.org", "", name);
            self.pods.configured(&key, Some(&configuration), &mut self.cache);
        }

        /// The label `app` of the workload at an interface; nothing if there is none.
        fn app(&mut self, interface: &str) -> Option<String> {
            for update in self.cache.take_updates() {
                update.apply_to(&mut self.index);
            }
            self.index.workload(&interface.into()).map(|workload| workload.app.to_string())
        }
    }

    #[test]
    fn a_file_tells_the_interface_before_the_prefix_does() {
        let mut check = Check::new("");
        let (key, pod) = Check::pod();
        check.report(Some("eni1"));
        assert_eq!(check.app("eni1").as_deref(), Some(""));
        check.pods.put(key.clone(), pod.clone(), &mut check.cache);
        assert_eq!(check.app("eni1").as_deref(), Some("a"));
        assert_eq!(check.app("cali7f94ce7c295"), None);
        check.report(None);
        assert_eq!(check.app("cali7f94ce7c295").as_deref(), Some("a"));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_told_and_takes_no_name() {
        let mut check = Check::new("");
        let (key, pod) = Check::pod();
        let wrong = [(("default".into(), "podA".into()), "cannot use it".to_string())].into();
        check.pods.reported(Reports { wrong, ..Reports::default() }, &mut check.cache);
        check.pods.put(key, pod, &mut check.cache);
        assert_eq!(check.cache.errors().collect::<Vec<_>>(), ["cannot use it"]);
        assert_eq!(check.app("cali7f94ce7c295").as_deref(), Some("a"));
        check.report(Some("eni1"));
        assert_eq!((check.cache.errors().count(), check.app("eni1").as_deref()), (0, Some("a")));
    }

    #[test]
    fn a_configuration_tells_the_prefix_unless_it_was_told() {
        let (key, pod) = Check::pod();
        let mut check = Check::new("");
        check.pods.put(key.clone(), pod.clone(), &mut check.cache);
        check.configure("default", "eni,azv");
        assert_eq!(check.app("eni7f94ce7c295").as_deref(), Some("a"));
        check.configure("node.w", "azv");
        assert_eq!(check.app("azv7f94ce7c295").as_deref(), Some("a"));
        check.configure("node.other", "gke");
        assert_eq!(check.app("gke7f94ce7c295"), None);
        let mut check = Check::new("cali");
        check.pods.put(key, pod, &mut check.cache);
        check.configure("default", "eni");
        assert_eq!(check.app("eni7f94ce7c295"), None);
    }
}
