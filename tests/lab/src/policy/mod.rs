//! The model: what users have said about one node's endpoints, before anybody makes rules of it.
//!
//! A [`Model`] holds what manifests would: pods, host endpoints, tiers with their policies in order, profiles. Which
//! policy applies to which endpoint follows from labels, as in Calico; [`Model::uses`] answers it. What they then
//! decide about a packet is said by [`Model::decide`], and booked by [`Truth`]. Change the model
//! (add a policy, reorder a tier, edit a rule), render it again with [`crate::felix`], and let [`crate::apply`] make
//! of the difference what Felix would.

mod decide;
mod endpoint;
mod rule;
mod selector;
mod truth;

pub use decide::{Decision, End, Packet};
pub use endpoint::{Endpoint, HostEndpoint, Limits};
pub use rule::{Action, IpSet, Net, Peer, PortRange, Protocol, Rule};
pub use selector::{Labels, Selector};
pub use truth::{Account, By, Did, Truth};

use accountant_core::calico::{PolicyId, PolicyKind};
use accountant_core::id::TierName;
use accountant_core::{Direction, Interface};

/// Everything that Felix is told on one node.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The pods of this node.
    pub endpoints: Vec<Endpoint>,
    /// The node's own interfaces that policies apply to.
    pub host_endpoints: Vec<HostEndpoint>,
    /// The tiers, in the order in which they decide.
    pub tiers: Vec<Tier>,
    /// The profiles that endpoints name: what decides where no policy applies.
    pub profiles: Vec<Profile>,
    /// The IP sets that rules name.
    pub sets: Vec<IpSet>,
    /// The configuration of Felix.
    pub settings: Settings,
}

/// A tier: policies in order, and what becomes of traffic that none of them decides.
#[derive(Clone, Debug)]
pub struct Tier {
    /// Its name.
    pub name: TierName,
    /// What happens to traffic that reached the tier's end.
    pub end: TierEnd,
    /// Its policies, in the order in which they decide.
    pub policies: Vec<Policy>,
}

/// A tier's default action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierEnd {
    /// It is denied.
    Deny,
    /// The next tier decides.
    Pass,
}

/// A policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Kind, namespace and name, as users write them.
    pub id: PolicyId,
    /// Which endpoints it applies to, within its namespace if it has one.
    pub selector: Selector,
    /// How it applies to host endpoints.
    pub on_hosts: OnHosts,
    /// Its ingress rules; none means that it says nothing about ingress, empty that it allows none.
    pub ingress: Option<Vec<Rule>>,
    /// Its egress rules, likewise.
    pub egress: Option<Vec<Rule>>,
}

/// When a policy looks at the traffic of host endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnHosts {
    /// Traffic to and from the host itself.
    #[default]
    Normal,
    /// That, and forwarded traffic (`applyOnForward`).
    Forward,
    /// All incoming traffic before destination NAT (`preDNAT`), in the mangle table. Never on workloads.
    PreDnat,
    /// All traffic before connection tracking (`doNotTrack`), in the raw table. Never on workloads.
    Untracked,
}

/// A profile: rules for endpoints that no policy selects.
#[derive(Clone, Debug)]
pub struct Profile {
    /// `kns.NAMESPACE` for a namespace, `ksa.NAMESPACE.ACCOUNT` for a service account.
    pub name: String,
    /// What is allowed to the endpoint.
    pub ingress: Vec<Rule>,
    /// What is allowed from it.
    pub egress: Vec<Rule>,
}

/// Felix' configuration, as far as the rules show it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `IptablesFilterDenyAction`.
    pub deny: Deny,
    /// `IptablesFilterAllowAction`.
    pub allow: Allow,
    /// `DefaultEndpointToHostAction`.
    pub to_host: ToHost,
    /// Whether flow logs are on: NFLOG rules, from 3.30.
    pub flow_logs: bool,
    /// `InterfacePrefix`.
    pub prefixes: Vec<String>,
    /// Ports of the host that no policy can close.
    pub failsafe_in: Vec<(Protocol, u16)>,
    /// Ports that no policy can close to the host.
    pub failsafe_out: Vec<(Protocol, u16)>,
}

/// How Felix denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deny {
    /// Silently.
    Drop,
    /// With an ICMP error (3.26 and later).
    Reject,
}

/// What Felix does with traffic that it has accepted for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Ends the table.
    Accept,
    /// Lets the rules that follow Calico's see it too.
    Return,
}

/// What becomes of traffic from a pod to its node that policies allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the action of the same name")]
pub enum ToHost {
    Drop,
    Accept,
    Return,
}

/// The policies of one tier that apply to one endpoint in one direction, in order, staged ones included.
#[derive(Clone, Debug)]
pub struct TierUse<'a> {
    /// The tier.
    pub tier: &'a Tier,
    /// The policies.
    pub policies: Vec<&'a Policy>,
}

impl Tier {
    /// An empty tier.
    pub fn new(name: &str, end: TierEnd) -> Self {
        Self { name: name.into(), end, policies: Vec::new() }
    }

    /// This tier with one more policy at its end.
    pub fn with(mut self, policy: Policy) -> Self {
        self.policies.push(policy);
        self
    }
}

impl Policy {
    /// A policy without rules. `namespace` is empty for a global one; in a tier other than `default`, `name` begins
    /// with the tier's name and a dot, as Calico wants it.
    pub fn new(kind: PolicyKind, namespace: &str, name: &str, selector: Selector) -> Self {
        let id = PolicyId::new(kind, namespace, name);
        Self { id, selector, on_hosts: OnHosts::Normal, ingress: None, egress: None }
    }

    /// This policy with these ingress rules.
    pub fn ingress(mut self, rules: impl Into<Vec<Rule>>) -> Self {
        self.ingress = Some(rules.into());
        self
    }

    /// This policy with these egress rules.
    pub fn egress(mut self, rules: impl Into<Vec<Rule>>) -> Self {
        self.egress = Some(rules.into());
        self
    }

    /// This policy, applied to host endpoints in this way.
    pub fn on_hosts(mut self, on_hosts: OnHosts) -> Self {
        self.on_hosts = on_hosts;
        self
    }

    /// The rules for this direction, if the policy has any say there.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Whether this is a staged policy: it is known to Felix and never enforced.
    pub fn is_staged(&self) -> bool {
        self.id.kind.as_str().starts_with("Staged")
    }

    /// The selector with the namespace in it, in the canonical form that Felix hashes into group names.
    pub fn canonical_selector(&self) -> String {
        let own = match self.id.kind {
            PolicyKind::KubernetesNetworkPolicy => {
                format!("(projectcalico.org/orchestrator == \"k8s\" && {})", self.selector)
            }
            _ => self.selector.to_string(),
        };
        match &*self.id.namespace {
            "" => own,
            namespace => format!("({own} && projectcalico.org/namespace == \"{namespace}\")"),
        }
    }

    fn selects(&self, namespace: &str, labels: &Labels) -> bool {
        (self.id.namespace.is_empty() || *self.id.namespace == *namespace) && self.selector.matches(labels)
    }
}

impl Profile {
    /// The profile that Calico makes for a namespace: everything is allowed.
    pub fn namespace(namespace: &str) -> Self {
        let all = vec![Rule::allow()];
        Self { name: format!("kns.{namespace}"), ingress: all.clone(), egress: all }
    }

    /// The profile that Calico makes for a service account: labels only, no rules.
    pub fn service_account(namespace: &str, account: &str) -> Self {
        Self { name: format!("ksa.{namespace}.{account}"), ingress: Vec::new(), egress: Vec::new() }
    }

    /// The rules for this direction.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

impl Default for Settings {
    /// Calico's defaults, with the endpoint-to-host action of its Kubernetes manifests.
    fn default() -> Self {
        let tcp = [179, 2379, 2380, 5473, 6443, 6666, 6667].map(|port| (Protocol::Tcp, port));
        let mut failsafe_in = vec![(Protocol::Tcp, 22), (Protocol::Udp, 68)];
        let mut failsafe_out = vec![(Protocol::Udp, 53), (Protocol::Udp, 67)];
        failsafe_in.extend(tcp);
        failsafe_out.extend(tcp);
        Self {
            deny: Deny::Drop,
            allow: Allow::Accept,
            to_host: ToHost::Accept,
            flow_logs: false,
            prefixes: vec!["cali".to_string()],
            failsafe_in,
            failsafe_out,
        }
    }
}

impl Model {
    /// The pod of this name.
    pub fn endpoint(&self, namespace: &str, pod: &str) -> Option<&Endpoint> {
        self.endpoints.iter().find(|e| e.namespace == namespace && e.pod == pod)
    }

    /// The interface of this pod, for a look at its chains.
    pub fn interface(&self, namespace: &str, pod: &str) -> Option<&Interface> {
        self.endpoint(namespace, pod).map(|e| &e.interface)
    }

    /// The policy of this identity, to be edited.
    pub fn policy_mut(&mut self, namespace: &str, name: &str) -> Option<&mut Policy> {
        let mut policies = self.tiers.iter_mut().flat_map(|tier| &mut tier.policies);
        policies.find(|p| *p.id.namespace == *namespace && *p.id.name == *name)
    }

    /// The tier of this name, to be edited.
    pub fn tier_mut(&mut self, name: &str) -> Option<&mut Tier> {
        self.tiers.iter_mut().find(|tier| tier.name.as_str() == name)
    }

    /// The tiers that have a say about a pod in this direction, with the policies that apply.
    pub fn uses(&self, endpoint: &Endpoint, direction: Direction) -> Vec<TierUse<'_>> {
        self.tier_uses(direction, |policy| {
            let enforced = matches!(policy.on_hosts, OnHosts::Normal | OnHosts::Forward);
            enforced && policy.selects(&endpoint.namespace, &endpoint.labels)
        })
    }

    /// The same for a host endpoint, at one of the places where policies look at its traffic.
    pub fn host_uses(&self, host: &HostEndpoint, direction: Direction, at: OnHosts) -> Vec<TierUse<'_>> {
        self.tier_uses(direction, |policy| {
            let looks = match at {
                OnHosts::Normal => matches!(policy.on_hosts, OnHosts::Normal | OnHosts::Forward),
                other => policy.on_hosts == other,
            };
            looks && policy.id.namespace.is_empty() && policy.selector.matches(&host.labels)
        })
    }

    fn tier_uses(&self, direction: Direction, applies: impl Fn(&Policy) -> bool) -> Vec<TierUse<'_>> {
        let uses = self.tiers.iter().map(|tier| {
            let says = |policy: &&Policy| policy.rules(direction).is_some() && applies(policy);
            TierUse { tier, policies: tier.policies.iter().filter(says).collect() }
        });
        uses.filter(|tier| !tier.policies.is_empty()).collect()
    }
}
