//! Nodes of any size: a few thousand or a hundred thousand rules.
//!
//! The shape is that of a busy node: some twenty rules in each endpoint chain, and most rules in policy chains that
//! few endpoints share.

use super::Scenario;
use crate::policy::{Endpoint, Model, Net, Policy, Profile, Rule, Selector, Tier, TierEnd};
use accountant_core::calico::PolicyKind::NetworkPolicy;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Policies of each pod, where there are rules enough.
const POLICIES: usize = 5;
/// Rules of a pod besides those of its policies: both endpoint chains' own, and dispatch.
const RULES_OF_A_POD: usize = 24;
/// Rules that a policy adds to the two chains of a pod.
const RULES_OF_A_JUMP: usize = 4;
/// Rules that are there without pods and policies.
const FIXED_RULES: usize = 60;
/// Apps of a namespace.
const APPS_OF_A_NAMESPACE: usize = 25;
/// How many pods are real: those between which traffic goes.
const REAL_PODS: usize = 3;

/// How a number of rules is made of pods and policies.
struct Shape {
    pods: usize,
    /// Pods of one app have the same policies.
    apps: usize,
    /// Policies of an app, each with a chain in both directions.
    policies: usize,
    /// Lines of all policy chains together.
    lines: usize,
}

impl Shape {
    fn new(rules: usize, pods: usize) -> Self {
        let left = rules.saturating_sub(FIXED_RULES + pods * RULES_OF_A_POD);
        let policies = (left * 2 / 3 / (pods.max(1) * RULES_OF_A_JUMP)).clamp(1, POLICIES);
        let lines = left.saturating_sub(pods * policies * RULES_OF_A_JUMP);
        // An app's last policy has at least three lines a direction, the others one.
        let apps = (lines / (2 * (policies + 2))).clamp(1, pods.max(1));
        Self { pods, apps, policies, lines }
    }

    fn app_of(&self, pod: usize) -> usize {
        pod * self.apps / self.pods.max(1)
    }

    /// The lines of the chain of this number, so that all chains together have all lines.
    fn lines_of(&self, chain: usize) -> usize {
        let chains = self.apps * self.policies * 2;
        self.lines * (chain + 1) / chains - self.lines * chain / chains
    }

    fn policies_of(&self, app: usize) -> impl Iterator<Item = Policy> {
        (0..self.policies).map(move |number| {
            let chain = (app * self.policies + number) * 2;
            let last = number + 1 == self.policies;
            // Neighbours with one selector would be a group, with one jump for all.
            let label = format!("app-{app}");
            let selector = if number % 2 == 0 {
                Selector::is("app", &label)
            } else {
                Selector::one_of("app", &[&label])
            };
            Policy::new(NetworkPolicy, &namespace(app), &format!("app-{app}-{number}"), selector)
                .ingress(rules_of(self.lines_of(chain), last, Rule::from))
                .egress(rules_of(self.lines_of(chain + 1), last, Rule::to))
        })
    }

    fn endpoint(&self, pod: usize) -> Endpoint {
        let app = self.app_of(pod);
        let number = u16::try_from(pod + 2).unwrap_or(u16::MAX);
        let [high, low] = number.to_be_bytes();
        let addresses = [
            IpAddr::V4(Ipv4Addr::new(10, 66, high, low)),
            IpAddr::V6(Ipv6Addr::new(0xfd00, 0x66, 0, 0, 0, 0, 0, number)),
        ];
        Endpoint::new(&namespace(app), &format!("pod-{pod}"), &addresses).label("app", &format!("app-{app}"))
    }
}

/// A node with about so many IPv4 rules in its filter table, and this many pods. The first three are real, in namespace
/// `team-0`: UDP to port 7 is allowed between all pods, by the last policy that looks, port 9 is denied, and anything
/// else is decided by no policy.
///
/// Rules of policies are about IPv4 only, but for those of ports 7 and 9; the IPv6 tables are smaller.
pub fn scale(rules: usize, pods: usize) -> Scenario {
    let shape = Shape::new(rules, pods);
    let policies = (0..shape.apps).flat_map(|app| shape.policies_of(app));
    let profiles = (0..shape.apps.div_ceil(APPS_OF_A_NAMESPACE)).flat_map(|number| {
        let namespace = namespace(number * APPS_OF_A_NAMESPACE);
        [Profile::namespace(&namespace), Profile::service_account(&namespace, "default")]
    });
    let model = Model {
        endpoints: (0..pods).map(|pod| shape.endpoint(pod)).collect(),
        tiers: vec![policies.fold(Tier::new("default", TierEnd::Deny), Tier::with)],
        profiles: profiles.collect(),
        ..Model::default()
    };
    Scenario { name: format!("scale-{rules}-{pods}"), model, real_pods: REAL_PODS.min(pods) }
}

/// Rules about these peers that make about so many lines of a chain: an allow makes two, but the chain's last only one.
fn rules_of(lines: usize, last: bool, peer: fn(Rule, Net) -> Rule) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    if last {
        rules.push(Rule::deny().udp(&[9]));
    }
    let more = (lines + 1).saturating_sub(rules.len() * 2) / 2;
    let others = more.saturating_sub(usize::from(last)).max(usize::from(!last));
    rules.extend((0..others).map(|number| {
        let [high, low] = u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
        let net = Net { address: IpAddr::V4(Ipv4Addr::new(100, 64 | high & 63, low, 0)), length: 24 };
        peer(Rule::allow().tcp(&[8000 + u16::from(low)]), net)
    }));
    if last {
        rules.push(Rule::allow().udp(&[7]));
    }
    rules
}

fn namespace(app: usize) -> String {
    format!("team-{}", app / APPS_OF_A_NAMESPACE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::felix::{Backend, Dialect, Table, Version, render};
    use accountant_core::IpVersion;

    #[test]
    fn a_node_is_about_as_big_as_it_should_be() {
        let dialect = Dialect::new(Version::V3_31, Backend::Legacy).unwrap();
        for (rules, pods) in [(1_700, 30), (1_700, 60), (23_500, 110), (107_000, 250), (45_000, 250)] {
            let rendering = render(&scale(rules, pods).model, dialect);
            let chains = &rendering.of(IpVersion::V4).chains;
            let filter = chains.iter().filter(|((table, _), _)| *table == Table::Filter);
            let count: usize = filter.clone().map(|(_, rules)| rules.len()).sum();
            let endpoint_chains =
                filter.filter(|((_, name), _)| name.starts_with("cali-tw-") || name.starts_with("cali-fw-"));
            let (endpoint_chains, endpoint_rules) =
                endpoint_chains.fold((0, 0), |(chains, count), (_, rules)| (chains + 1, count + rules.len()));
            println!("{rules}/{pods}: {count}, endpoint chains: {endpoint_chains} with {endpoint_rules}");
            assert_eq!(endpoint_chains, pods * 2);
            assert!(count.abs_diff(rules) < rules / 20, "{rules}/{pods}: {count}");
        }
    }
}
