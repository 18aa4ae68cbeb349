//! A subscriber: everything that a datastore told, and how it says that it does.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test uses its part")]

pub mod wire;

use accountant_core::Direction;
use accountant_core::calico::names::{MAX_IPTABLES, pod_interface};
use accountant_core::calico::policy::{Generation, PolicyId, PolicyKind};
use accountant_core::id::TierName;
use accountant_core::index::{HostEndpoint, Index, Object, ObjectKey, Workload};
use accountant_datastore::{Datastore, Status, Subscription, Update, start};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(100);

/// Objects by key, and the names in them.
#[derive(Clone, Debug, Default)]
pub struct Objects(pub BTreeMap<ObjectKey, Object>);

/// What a datastore told so far.
pub struct Names {
    subscription: Subscription,
    /// What it said of itself before the last of these were taken.
    status: Status,
    pub objects: Objects,
    pub index: Index,
    /// How often everything was told anew.
    pub resets: usize,
}

impl Names {
    pub fn of(datastore: impl Datastore) -> Self {
        let subscription = start(datastore);
        let (status, objects, index) = (Status::default(), Objects::default(), Index::default());
        Self { subscription, status, objects, index, resets: 0 }
    }

    pub fn status(&self) -> &Status {
        &self.status
    }

    fn take(&mut self, update: Update) {
        match update.clone() {
            Update::Reset(objects) => {
                self.resets += 1;
                self.objects.0 = objects;
            }
            Update::Apply(key, object) => drop(self.objects.0.insert(key, object)),
            Update::Delete(key) => drop(self.objects.0.remove(&key)),
        }
        update.apply_to(&mut self.index);
    }

    /// Waits until something holds.
    #[track_caller]
    pub fn until<'a>(
        &'a mut self,
        what: &'a str,
        good: impl Fn(&Self) -> bool + 'a,
    ) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let waiting = async {
                loop {
                    // What the status says is true of all that was handed over before it: so it is read first.
                    self.status = self.subscription.status.borrow_and_update().clone();
                    while let Ok(update) = self.subscription.updates.try_recv() {
                        self.take(update);
                    }
                    if good(self) {
                        break;
                    }
                    tokio::select! {
                        update = self.subscription.updates.recv() => {
                            let update = update.expect("the datastore runs");
                            self.take(update);
                        }
                        changed = self.subscription.status.changed() => changed.expect("the datastore runs"),
                    }
                }
            };
            if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
                panic!(
                    "{caller}: {what}: not after {PATIENCE:?}: {:#?} {:#?}",
                    self.status(),
                    self.objects.0.keys()
                );
            }
        }
    }

    pub async fn in_sync(&mut self) {
        self.until("in sync", |names| names.status().in_sync).await;
    }

    /// The error that has this in it.
    pub async fn error(&mut self, part: &str) {
        self.until(part, |names| names.status().errors.iter().any(|error| error.contains(part))).await;
    }

    pub fn count(&self, reason: &str) -> u64 {
        self.status().counts.get(reason).copied().unwrap_or_default()
    }
}

impl Deref for Names {
    type Target = Objects;

    fn deref(&self) -> &Objects {
        &self.objects
    }
}

impl Objects {
    pub fn policies(&self) -> BTreeMap<PolicyId, TierName> {
        let policy = |object: &Object| match object {
            Object::Policy(id, tier) => Some((id.clone(), tier.clone())),
            _ => None,
        };
        self.0.values().filter_map(policy).collect()
    }

    /// Policies as `NAMESPACE/NAME`.
    pub fn policy_names(&self) -> BTreeSet<String> {
        self.policies().keys().map(|id| format!("{}/{}", id.namespace, id.name)).collect()
    }

    pub fn workloads(&self) -> BTreeMap<String, Workload> {
        let workload = |object: &Object| match object {
            Object::Workload(interface, workload) => Some((interface.to_string(), workload.clone())),
            _ => None,
        };
        self.0.values().filter_map(workload).collect()
    }

    pub fn pods(&self) -> BTreeSet<String> {
        self.workloads().values().map(|w| format!("{}/{}", w.namespace, w.pod)).collect()
    }

    pub fn hosts(&self) -> Vec<HostEndpoint> {
        let host = |object: &Object| match object {
            Object::HostEndpoint(host) => Some(host.clone()),
            _ => None,
        };
        self.0.values().filter_map(host).collect()
    }

    pub fn profiles(&self) -> BTreeSet<String> {
        let profile = |object: &Object| match object {
            Object::Profile(profile) => Some(profile.to_string()),
            _ => None,
        };
        self.0.values().filter_map(profile).collect()
    }
}

pub fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

pub fn json(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).expect("the fixture is JSON")
}

pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// The policy that an entry of `expected.json` is about.
pub fn id(kind: &str, namespace: &str, name: &str) -> PolicyId {
    let kind = PolicyKind::parse(kind).expect("a kind");
    PolicyId::new(kind, namespace, name)
}

const GENERATIONS: [(&str, Generation); 5] = [
    ("A_until_3.28", Generation::A),
    ("B_3.29_to_3.31", Generation::B),
    ("C_from_3.32_kdd", Generation::C),
    ("C_from_3.32_kdd_not_yet_renamed", Generation::C),
    ("C_from_3.32_etcd", Generation::C),
];

/// What a datastore can have of the fixtures.
#[derive(Clone, Copy)]
pub struct Has {
    pub policy: fn(&Value) -> bool,
    pub profile: fn(&str) -> bool,
    /// Pods of this node.
    pub node: fn(&str) -> bool,
}

impl Has {
    /// All that concerns the node `worker-1`.
    pub const ALL: Self = Self { policy: |_| true, profile: |_| true, node: |node| node == "worker-1" };
}

/// Identities, tiers, chains of every generation, old labels, endpoints and profiles, as `datastore/expected.json` has them.
pub fn check_fixture(names: &Objects, has: Has) {
    let expected = json(&accountant_rigs::fixtures().join("datastore/expected.json"));
    let policies = names.policies();
    let mut index = Index::default();
    index.reset(names.0.clone());
    let wanted = expected["policies"].as_array().expect("a list");
    let wanted: Vec<_> = wanted.iter().filter(|want| (has.policy)(want)).collect();
    assert_eq!(policies.len(), wanted.len(), "{policies:#?}");
    for want in wanted {
        let id = id(text(want, "kind"), text(want, "namespace"), text(want, "new"));
        let tier = policies.get(&id).unwrap_or_else(|| panic!("{id:?} is among {policies:?}"));
        assert_eq!(tier.as_str(), text(want, "tier"));
        assert_eq!(id.old_label(tier), text(want, "legacy_label"));
        for direction in [Direction::Ingress, Direction::Egress] {
            for (name, generation) in GENERATIONS {
                let Some(chain) = want["chains"][name][direction.as_str()].as_str() else { continue };
                let chains = id.chains(tier, direction, MAX_IPTABLES);
                assert!(chains.contains(&(generation, chain.into())), "{chain} of {name}: {chains:?}");
                assert_eq!(
                    index.policy(&chain.into(), generation, tier).as_ref(),
                    Some(&id),
                    "{chain} {name}"
                );
            }
        }
    }
    check_endpoints(names, &expected, has);
}

fn check_endpoints(names: &Objects, expected: &Value, has: Has) {
    let mut workloads = names.workloads();
    let (hosts, profiles) = (names.hosts(), names.profiles());
    for want in expected["endpoints"].as_array().expect("a list") {
        let (endpoint, interface) = (text(want, "endpoint"), text(want, "interface"));
        let node = want["node"].as_str().unwrap_or("worker-1");
        if !(has.node)(node) {
            continue;
        }
        let wanted = want["profiles"].as_array().expect("a list").iter().filter_map(Value::as_str);
        for profile in wanted.filter(|profile| (has.profile)(profile)) {
            assert!(profiles.contains(profile), "{profile} of {endpoint} is among {profiles:?}");
        }
        if let Some(name) = endpoint.strip_prefix("hostendpoint/") {
            let host = hosts.iter().find(|host| &*host.name == name).expect("the host endpoint");
            assert_eq!(&*host.interface, interface);
            continue;
        }
        let networks = want["ipNetworks"].as_array().expect("a list").iter().filter_map(Value::as_str);
        let ips: Vec<_> = networks.map(|net| net.trim_end_matches("/32").trim_end_matches("/128")).collect();
        let workload = workloads.remove(interface).unwrap_or_else(|| panic!("{endpoint} at {interface}"));
        assert_eq!(format!("{}/{}", workload.namespace, workload.pod), endpoint);
        assert_eq!(workload.ips.iter().map(|ip| &**ip).collect::<Vec<_>>(), ips, "{endpoint}");
        let app = want["effectiveLabels"]["app"].as_str();
        assert!(app.is_none_or(|app| *workload.app == *app), "{endpoint}");
    }
    assert!(workloads.is_empty(), "not expected: {workloads:?}");
}

/// Every account that a real Felix's rules came to has its pod and its policy.
pub fn check_felix(names: &Objects, version: &str, has: Has) {
    let accounts = json(&accountant_rigs::fixtures().join("felix").join(version).join("expected.json"));
    let (workloads, policies, profiles) = (names.workloads(), names.policies(), names.profiles());
    let accounts = accounts.as_array().expect("a list");
    assert!(accounts.len() > 10);
    for account in accounts {
        let (namespace, pod) = (text(account, "namespace"), text(account, "pod"));
        let workload = &workloads[pod_interface("cali", namespace, pod).as_str()];
        assert_eq!((&*workload.namespace, &*workload.pod), (namespace, pod));
        match text(account, "family") {
            "policy" => {
                let (kind, space) = (text(account, "policy_kind"), text(account, "policy_namespace"));
                let id = id(kind, space, text(account, "policy"));
                assert_eq!(policies.get(&id).map(TierName::as_str), Some(text(account, "tier")), "{id:?}");
            }
            "profile" if (has.profile)(text(account, "profile")) => {
                assert!(profiles.contains(text(account, "profile")), "{account}")
            }
            _ => {}
        }
    }
    let host = |host: &HostEndpoint| format!("{} {} {:?}", host.name, host.interface, host.expected_ips);
    let hosts: Vec<_> = names.hosts().iter().map(host).collect();
    assert_eq!(hosts, ["worker-1-eth0 eth0 [192.0.2.11]"]);
}
