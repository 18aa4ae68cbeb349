//! What is on the node: endpoints, policies and whom they reach, by the accounts; chains, rules and IP sets, by a census; who
//! changes Calico's chains, by the kernel's word.

use super::metrics::{self, Metric};
use super::text::{Labels, Text, render_labels};
use crate::engine::status::SourceStatus;
use accountant_core::view::{Accounts, Family, ShownAccount};
use accountant_core::{IpVersion, snapshot::Source};
use accountant_dataplane::census::{Census, Extent, Set, Table};
use std::collections::{BTreeMap, BTreeSet};

/// How many IP sets are told: the fullest.
const SETS: usize = 20;
/// What policies are told apart by.
const POLICY: [&str; 4] = ["tier", "policy_kind", "policy_namespace", "policy"];

/// Endpoints and policies that have accounts.
#[derive(Debug, Default)]
pub(super) struct Reach {
    workloads: u64,
    hosts: u64,
    /// Labels of policies, and how many endpoints each is asked for.
    policies: Labels,
    endpoints: Vec<u64>,
}

impl Reach {
    pub(super) fn new(accounts: &Accounts) -> Self {
        let mut endpoints: BTreeMap<&str, bool> = BTreeMap::new();
        let mut policies: BTreeMap<[&str; 4], BTreeSet<&str>> = BTreeMap::new();
        for account in &accounts.own {
            let is_host = !label(account, "endpoint").is_empty();
            endpoints.extend(account.interfaces.iter().map(|interface| (&**interface, is_host)));
            let policy = POLICY.map(|name| label(account, name));
            // A group is no policy; its members have accounts of their own.
            if account.family == Family::Policy && policy[1] != "PolicyGroup" {
                policies.entry(policy).or_default().extend(account.interfaces.iter().map(|i| &**i));
            }
        }
        let hosts = endpoints.values().filter(|is_host| **is_host).count() as u64;
        Self {
            workloads: endpoints.len() as u64 - hosts,
            hosts,
            endpoints: policies.values().map(|endpoints| endpoints.len() as u64).collect(),
            policies: Labels::new(
                policies.keys().map(|policy| render_labels(POLICY.into_iter().zip(*policy))),
            ),
        }
    }
}

fn label<'a>(account: &'a ShownAccount, wanted: &str) -> &'a str {
    account.labels.iter().find(|(name, _)| *name == wanted).map_or("", |(_, value)| value)
}

/// Endpoints, policies and their reach.
pub(super) fn accounts(text: &mut Text<'_>, reach: &Reach) {
    text.family(&metrics::ENDPOINTS);
    for (kind, count) in [("workload", reach.workloads), ("host", reach.hosts)] {
        text.sample(metrics::ENDPOINTS.name, &render_labels([("kind", kind)]), count);
    }
    text.family(&metrics::POLICIES);
    text.sample(metrics::POLICIES.name, "", reach.endpoints.len() as u64);
    text.family(&metrics::POLICY_ENDPOINTS);
    for (labels, endpoints) in reach.policies.of(0..reach.policies.len()).zip(&reach.endpoints) {
        text.sample(metrics::POLICY_ENDPOINTS.name, labels, *endpoints);
    }
}

/// Chains, rules and IP sets.
pub(super) fn census(text: &mut Text<'_>, census: &Census) {
    tables(text, census, &metrics::CHAINS, |extent| extent.chains);
    tables(text, census, &metrics::RULES, |extent| extent.rules);
    text.family(&metrics::IP_SETS);
    for version in IpVersion::BOTH {
        let sets = census.sets.iter().filter(|set| set.ip_version == version).count();
        text.sample(
            metrics::IP_SETS.name,
            &render_labels([("ip_version", &*version.to_string())]),
            sets as u64,
        );
    }
    let mut fullest: Vec<&Set> = census.sets.iter().collect();
    fullest.sort_by(|a, b| fill(b).total_cmp(&fill(a)).then_with(|| a.name.cmp(&b.name)));
    fullest.truncate(SETS);
    let mut each = |metric: &Metric, value: fn(&Set) -> u32| {
        text.family(metric);
        for set in &fullest {
            let labels = render_labels([("ip_version", &*set.ip_version.to_string()), ("set", &*set.name)]);
            text.sample(metric.name, &labels, value(set).into());
        }
    };
    each(&metrics::IP_SET_ENTRIES, |set| set.entries);
    each(&metrics::IP_SET_MAX_ENTRIES, |set| set.most);
}

fn fill(set: &Set) -> f64 {
    f64::from(set.entries) / f64::from(set.most.max(1))
}

fn tables(text: &mut Text<'_>, census: &Census, metric: &Metric, value: fn(&Extent) -> u64) {
    text.family(metric);
    let mut one = |(source, version, name): &(Source, IpVersion, String), owner, extent: &Extent| {
        let version = version.to_string();
        let labels =
            [("source", source.as_str()), ("ip_version", &*version), ("table", &**name), ("owner", owner)];
        text.sample(metric.name, &render_labels(labels), value(extent));
    };
    for (name, Table { calico, others }) in &census.tables {
        one(name, "calico", calico);
        one(name, "others", others);
    }
}

/// Who changes Calico's chains.
pub(super) fn rewrites(text: &mut Text<'_>, sources: &[SourceStatus]) {
    text.family(&metrics::RULE_REWRITES);
    for source in sources {
        for (writer, count) in &source.writers {
            let labels = render_labels([("source", source.source.as_str()), ("writer", writer)]);
            text.sample(metrics::RULE_REWRITES.name, &labels, *count);
        }
    }
}
