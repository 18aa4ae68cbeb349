//! What the objects of a server come to, so that the index is told of changes only.
//!
//! In go objects as they come: single ones, or a whole kind anew; out come updates, a [`Update::Reset`] first. The profiles
//! of this node are those of its endpoints: nobody needs to read all namespaces for them.
//!
//! Invariants: after a list of a kind, what was not in it is gone (mark and sweep). An object that cannot be used is as one
//! that is not there, as Felix has it; it is told once for each way in which it is wrong. So is what is wrong with one that
//! gives a name all the same.

use crate::convert::profile::of_endpoint;
use crate::convert::{ConvertError, Resource, Settings, complaint, convert, object_key};
use crate::{Update, explain};
use accountant_core::id::ProfileName;
use accountant_core::index::{Object, ObjectKey};
use std::collections::{BTreeMap, BTreeSet};

/// More changes than this are told at once.
const MANY: usize = 100;
/// Most wrong objects whose errors are kept.
const MAX_ERRORS: usize = 100;

/// What an object tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    object: Object,
    /// The profiles of an endpoint.
    profiles: Vec<ProfileName>,
    /// What is wrong with it although it tells a name.
    wrong: Option<String>,
}

impl Told {
    /// What a resource tells, if it tells a name of this node. `name` is what it is called in errors.
    pub(crate) fn of(resource: &Resource, settings: &Settings, name: impl Fn() -> String) -> Came {
        let told = || {
            let Some((_, object)) = convert(resource, settings)? else { return Ok(None) };
            let profiles = match object {
                Object::Workload(..) | Object::HostEndpoint(_) => of_endpoint(resource)?,
                Object::Policy(..) | Object::Profile(_) => Vec::new(),
            };
            let wrong = complaint(resource).map(|error| refused(&name(), &error));
            Ok(Some(Self { object, profiles, wrong }))
        };
        told().map_err(|error| refused(&name(), &error))
    }

    /// The same with another interface, where it is known better than by convention.
    pub(crate) fn at(mut self, interface: &str) -> Self {
        if let Object::Workload(at, _) = &mut self.object {
            *at = interface.into();
        }
        self
    }

    /// The name.
    pub(crate) fn object(&self) -> &Object {
        &self.object
    }

    pub(crate) fn workload(object: Object) -> Self {
        Self { object, profiles: Vec::new(), wrong: None }
    }
}

/// An object as it came.
pub(crate) type Came = Result<Option<Told>, String>;

/// What all objects tell.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    told: BTreeMap<ObjectKey, Told>,
    profiles: BTreeMap<ProfileName, usize>,
    wrong: BTreeMap<ObjectKey, String>,
    /// How often an object was wrong.
    pub(crate) wrong_count: u64,
    updates: Vec<Update>,
    reset: Reset,
}

/// Whether the next update is all there is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Reset {
    /// Nothing was told yet.
    #[default]
    First,
    No,
    Yes,
}

impl Cache {
    /// An object as it is now.
    pub(crate) fn put(&mut self, key: ObjectKey, came: Came) {
        let (told, wrong) = match came {
            Ok(told) => {
                let wrong = told.as_ref().and_then(|told| told.wrong.clone());
                (told, wrong)
            }
            Err(error) => (None, Some(error)),
        };
        match wrong {
            Some(error) => self.note(&key, error),
            None => drop(self.wrong.remove(&key)),
        }
        match told {
            None => self.take_away(&key),
            Some(told) => {
                if self.told.get(&key) == Some(&told) {
                    return;
                }
                for profile in &told.profiles {
                    self.hold(profile);
                }
                self.updates.push(Update::Apply(key.clone(), told.object.clone()));
                if let Some(before) = self.told.insert(key, told) {
                    self.release(&before.profiles);
                }
                self.bound();
            }
        }
    }

    /// An object that is gone.
    pub(crate) fn remove(&mut self, key: &ObjectKey) {
        self.wrong.remove(key);
        self.take_away(key);
    }

    /// All objects of some kinds: what `covers` and is not among them is gone.
    pub(crate) fn replace(&mut self, objects: Vec<(ObjectKey, Came)>, covers: impl Fn(&ObjectKey) -> bool) {
        let listed: BTreeSet<_> = objects.iter().map(|(key, _)| key.clone()).collect();
        let known = self.told.keys().chain(self.wrong.keys());
        let gone: Vec<_> = known.filter(|key| covers(key) && !listed.contains(*key)).cloned().collect();
        for key in gone {
            self.remove(&key);
        }
        for (key, came) in objects {
            self.put(key, came);
        }
    }

    /// The changes since the last call.
    pub(crate) fn take_updates(&mut self) -> Vec<Update> {
        if std::mem::replace(&mut self.reset, Reset::No) == Reset::No {
            return std::mem::take(&mut self.updates);
        }
        self.updates.clear();
        let objects = self.told.iter().map(|(key, told)| (key.clone(), told.object.clone()));
        let profiles = self.profiles.keys().map(|name| (profile_key(name), Object::Profile(name.clone())));
        vec![Update::Reset(objects.chain(profiles).collect())]
    }

    /// Whether nothing was told yet.
    pub(crate) fn is_new(&self) -> bool {
        self.reset == Reset::First
    }

    /// The objects that cannot be used, each with what is wrong.
    pub(crate) fn errors(&self) -> impl Iterator<Item = String> {
        let more = self.wrong.len().saturating_sub(MAX_ERRORS);
        let more = (more > 0).then(|| format!("{more} more objects that cannot be used are not shown"));
        self.wrong.values().take(MAX_ERRORS).cloned().chain(more)
    }

    fn note(&mut self, key: &ObjectKey, error: String) {
        if self.wrong.get(key) != Some(&error) {
            tracing::warn!(error, "an object of the datastore cannot be used");
            self.wrong_count += 1;
            self.wrong.insert(key.clone(), error);
        }
    }

    fn take_away(&mut self, key: &ObjectKey) {
        if let Some(before) = self.told.remove(key) {
            self.updates.push(Update::Delete(key.clone()));
            self.release(&before.profiles);
            self.bound();
        }
    }

    fn hold(&mut self, profile: &ProfileName) {
        let holders = self.profiles.entry(profile.clone()).or_default();
        *holders += 1;
        if *holders == 1 {
            self.updates.push(Update::Apply(profile_key(profile), Object::Profile(profile.clone())));
        }
    }

    fn release(&mut self, profiles: &[ProfileName]) {
        for profile in profiles {
            let Some(holders) = self.profiles.get_mut(profile) else { continue };
            *holders -= 1;
            if *holders == 0 {
                self.profiles.remove(profile);
                self.updates.push(Update::Delete(profile_key(profile)));
            }
        }
    }

    /// Bounds the queue of changes: many of them are told as all there is.
    fn bound(&mut self) {
        if self.updates.len() > MANY {
            self.updates.clear();
            if self.reset == Reset::No {
                self.reset = Reset::Yes;
            }
        }
    }
}

fn profile_key(name: &ProfileName) -> ObjectKey {
    object_key("Profile", "projectcalico.org", "", name.as_str())
}

/// An object's error as one line.
pub(crate) fn refused(object: &str, error: &ConvertError) -> String {
    let advice = error.advice();
    format!("cannot use {object}: {}", explain(error, advice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use accountant_core::index::{Index, Workload};

    fn key(kind: &str, name: &str) -> ObjectKey {
        (kind.into(), "n".into(), name.into())
    }

    fn pod(name: &str, profiles: &[&str]) -> Told {
        let workload = Workload { pod: name.into(), ..Workload::default() };
        let profiles = profiles.iter().map(|name| ProfileName::from(*name)).collect();
        Told { object: Object::Workload(name.into(), workload), profiles, wrong: None }
    }

    fn put(cache: &mut Cache, name: &str, profiles: &[&str]) {
        cache.put(key("Pod", name), Ok(Some(pod(name, profiles))));
    }

    /// What an index has after all updates, against what the cache would tell a new one.
    #[track_caller]
    fn check(cache: &mut Cache, index: &mut Index) -> BTreeMap<String, usize> {
        for update in cache.take_updates() {
            update.apply_to(index);
        }
        let mut whole = Index::default();
        cache.reset = Reset::Yes;
        for update in cache.take_updates() {
            update.apply_to(&mut whole);
        }
        assert_eq!(index.objects_by_kind(), whole.objects_by_kind());
        index.objects_by_kind().into_iter().map(|(kind, n)| (kind.to_string(), n)).collect()
    }

    const PROFILE: &str = "Profile.projectcalico.org";

    #[test]
    fn a_profile_is_there_for_as_long_as_an_endpoint_has_it() {
        let (mut cache, mut index) = (Cache::default(), Index::default());
        assert!(cache.is_new());
        put(&mut cache, "a", &["kns.n", "ksa.n.a"]);
        put(&mut cache, "b", &["kns.n"]);
        assert_eq!(check(&mut cache, &mut index)[PROFILE], 2);
        put(&mut cache, "a", &["kns.n"]);
        assert_eq!(check(&mut cache, &mut index)[PROFILE], 1);
        cache.remove(&key("Pod", "a"));
        assert_eq!(check(&mut cache, &mut index)[PROFILE], 1);
        cache.remove(&key("Pod", "b"));
        assert!(check(&mut cache, &mut index).is_empty());
    }

    #[test]
    fn a_list_sweeps_its_own_kind() {
        let (mut cache, mut index) = (Cache::default(), Index::default());
        put(&mut cache, "a", &["kns.n"]);
        put(&mut cache, "b", &[]);
        cache.put(key("Other", "c"), Ok(Some(pod("c", &[]))));
        check(&mut cache, &mut index);
        let listed = vec![(key("Pod", "b"), Ok(Some(pod("b", &[]))))];
        cache.replace(listed, |key| &*key.0 == "Pod");
        let counts = check(&mut cache, &mut index);
        assert_eq!((counts["Pod"], counts["Other"], counts.get(PROFILE)), (1, 1, None));
    }

    #[test]
    fn many_changes_are_told_at_once() {
        let (mut cache, mut index) = (Cache::default(), Index::default());
        check(&mut cache, &mut index);
        for number in 0..500 {
            put(&mut cache, &number.to_string(), &["kns.n"]);
        }
        assert!(matches!(cache.take_updates()[..], [Update::Reset(_)]));
        put(&mut cache, "1", &["kns.n"]);
        assert_eq!(cache.take_updates(), []);
    }

    #[test]
    fn a_wrong_object_is_told_once_and_is_not_there() {
        let (mut cache, mut index) = (Cache::default(), Index::default());
        put(&mut cache, "a", &[]);
        check(&mut cache, &mut index);
        cache.put(key("Pod", "a"), Err("wrong".into()));
        cache.put(key("Pod", "a"), Err("wrong".into()));
        assert!(check(&mut cache, &mut index).is_empty());
        assert_eq!((cache.errors().collect::<Vec<_>>(), cache.wrong_count), (vec!["wrong".to_string()], 1));
        cache.replace(Vec::new(), |_| true);
        assert_eq!(cache.errors().count(), 0);
        put(&mut cache, "a", &[]);
        assert_eq!(check(&mut cache, &mut index)["Pod"], 1);
    }
}
