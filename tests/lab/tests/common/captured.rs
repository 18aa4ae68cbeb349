//! The model of the captures in `tests/fixtures/felix`: what the real Felix was told, from `manifests/` and
//! `etcd.jsonl` there.

use accountant_core::calico::PolicyKind::{self, *};
use accountant_lab::felix::Version;
use accountant_lab::policy::*;

const LONG_NAME: &str = "a-really-long-policy-name-that-will-not-fit-into-a-chain-name";

/// What Felix of this version was told in the capture of it.
pub(crate) fn model(version: Version) -> Model {
    let tiers = if version < Version::V3_29 { one_tier() } else { three_tiers(version) };
    Model {
        endpoints: endpoints(version),
        host_endpoints: vec![host()],
        tiers,
        profiles: profiles(),
        sets: sets(),
        settings: Settings::default(),
    }
}

fn endpoints(version: Version) -> Vec<Endpoint> {
    let pod = |namespace: &str, name: &str, last: u8| {
        let addresses = [format!("10.244.1.{last}"), format!("fd00:10:244:1::{last}")];
        Endpoint::new(namespace, name, &addresses.map(|address| address.parse().unwrap()))
    };
    let limits = Limits { packets: Some((1000, 50)), connections: Some(100) };
    let mut lone = pod("ops", "lone-1", 14).label("role", "lone");
    if version >= Version::V3_31 {
        (lone.ingress_limits, lone.egress_limits) = (limits, limits);
    }
    let mut api = pod("payments", "api-1", 12).label("app", "api").label("tier", "backend");
    api.profiles = vec!["kns.payments".to_string(), "ksa.payments.api-sa".to_string()];
    vec![
        pod("frontend", "web-1", 10).label("app", "web"),
        pod("frontend", "web-2", 11).label("app", "web"),
        api,
        pod("payments", "ledger-1", 13).label("app", "ledger").label("tier", "backend"),
        lone,
    ]
}

fn host() -> HostEndpoint {
    HostEndpoint {
        name: "worker-1-eth0".to_string(),
        interface: "eth0".to_string(),
        labels: [("host-role".to_string(), "worker".to_string())].into(),
        addresses: vec!["192.0.2.11".parse().unwrap()],
    }
}

fn profiles() -> Vec<Profile> {
    let mut ops = Profile::namespace("ops");
    ops.egress = vec![Rule::deny().udp(&[9999]), Rule::allow()];
    let accounts =
        [("frontend", "default"), ("ops", "default"), ("payments", "api-sa"), ("payments", "default")];
    let mut profiles = vec![Profile::namespace("frontend"), Profile::namespace("payments"), ops];
    profiles.extend(accounts.map(|(namespace, account)| Profile::service_account(namespace, account)));
    profiles
}

fn sets() -> Vec<IpSet> {
    let set = |id: &str, port: Option<u16>, members: &[&str]| IpSet {
        id: id.to_string(),
        members: members.iter().map(|net| net.parse().unwrap()).collect(),
        port,
        stands_for: None,
    };
    vec![
        set("s:y6LZ80v4Cs19ZUiS7x_hnbs", None, &["198.51.100.0/24", "198.51.101.7/32"]),
        set("s:qtTFXDeyCaGkK9lCX3IHHxt", None, &["10.244.1.10/32", "10.244.1.11/32"]),
        set("n:cl9_Kgeu4H0OGLbhovVR3NB", Some(8080), &["10.244.1.10/32", "10.244.1.12/32"]),
    ]
}

fn global(name: &str, selector: Selector) -> Policy {
    Policy::new(GlobalNetworkPolicy, "", name, selector)
}

fn net(text: &str) -> Net {
    text.parse().unwrap()
}

fn hosts() -> Selector {
    Selector::has("host-role")
}

fn with_app() -> Selector {
    Selector::has("app")
}

fn block_bad(name: &str) -> Policy {
    global(name, with_app())
        .ingress([Rule::deny().from_set("s:y6LZ80v4Cs19ZUiS7x_hnbs")])
        .egress([Rule::deny().to(net("203.0.113.66"))])
}

fn allow_mon(name: &str) -> Policy {
    let mut rule = Rule::allow().tcp(&[9100]).from(net("10.244.1.0/24")).from(net("10.245.0.0/16"));
    rule.source.not_nets.push(net("10.244.1.14"));
    global(name, Selector::one_of("app", &["api", "ledger"])).ingress([rule])
}

fn one_tier() -> Vec<Tier> {
    let telnet =
        global("telnet", with_app()).ingress([Rule::deny().tcp(&[23])]).egress([Rule::deny().udp(&[5353])]);
    let first = Tier::new("default", TierEnd::Deny)
        .with(block_bad("block-bad"))
        .with(telnet)
        .with(allow_mon("allow-mon"));
    vec![default_policies(Version::V3_28).into_iter().fold(first, Tier::with)]
}

fn three_tiers(version: Version) -> Vec<Tier> {
    let pass_rest = global("security.pass-rest", with_app())
        .ingress([
            Rule::pass().tcp(&[]).annotate("owner", "sec team").annotate("ticket", "SEC-1"),
            Rule::pass().protocol(Protocol::Icmp(None)),
            Rule::pass().protocol(Protocol::Icmpv6(None)),
            Rule { not_ports: vec![PortRange::one(7777)], ..Rule::pass().udp(&[]) },
        ])
        .egress([Rule::pass()]);
    let audit = global("security.audit-web", Selector::is("app", "web")).ingress([Rule::log().tcp(&[80])]);
    let telnet = global("platform.telnet", with_app())
        .ingress([Rule::deny().tcp(&[23]), Rule::pass().tcp(&[8081])])
        .egress([Rule::deny().udp(&[5353])]);
    let mut platform = Tier::new("platform", TierEnd::Pass);
    if version >= Version::V3_31 {
        let staged = Policy::new(StagedGlobalNetworkPolicy, "", "platform.try-lock", with_app());
        platform = platform.with(staged.ingress([Rule::deny()]));
    }
    let security = Tier::new("security", TierEnd::Deny)
        .with(block_bad("security.block-bad"))
        .with(audit)
        .with(pass_rest);
    let default = Tier::new("default", TierEnd::Deny);
    vec![
        security,
        platform.with(telnet).with(allow_mon("platform.allow-mon")),
        default_policies(version).into_iter().fold(default, Tier::with),
    ]
}

/// The policies of the default tier, in order.
fn default_policies(version: Version) -> Vec<Policy> {
    let mut policies = host_policies();
    let payments = |name: &str, selector| Policy::new(NetworkPolicy, "payments", name, selector);
    let backend = || Selector::is("tier", "backend");
    let named_port = Rule {
        port_set: Some("n:cl9_Kgeu4H0OGLbhovVR3NB".to_string()),
        ..Rule::allow().tcp(&[]).ports(8000, 8010).from_set("s:qtTFXDeyCaGkK9lCX3IHHxt")
    };
    policies.push(payments("allow-web-to-api", Selector::is("app", "api")).ingress([
        named_port,
        Rule::allow().protocol(Protocol::Icmp(Some(8))),
        Rule::allow().protocol(Protocol::Icmpv6(None)),
    ]));
    if version >= Version::V3_31 {
        let staged = Policy::new(StagedNetworkPolicy, "payments", "try-it", backend());
        policies.push(staged.ingress([Rule::deny().tcp(&[])]));
    }
    policies.extend(('a'..='g').zip(9001..).map(|(letter, port)| {
        payments(&format!("grp-{letter}"), backend()).ingress([Rule::allow().udp(&[port])])
    }));
    policies.push(payments("egress-backend", backend()).egress([Rule::deny().tcp(&[25]), Rule::allow()]));
    policies.push(
        Policy::new(NetworkPolicy, "frontend", LONG_NAME, Selector::is("app", "web")).egress([Rule::allow()]),
    );
    policies.push(kubernetes(version, "default-deny", Selector::All).ingress([]));
    let web: Vec<u16> = [80, 443].into_iter().chain(1001..=1015).collect();
    policies.push(kubernetes(version, "web-in", Selector::is("app", "web")).ingress([
        Rule::allow().tcp(&web),
        Rule::allow().udp(&[5000]),
        Rule::allow().protocol(Protocol::Icmp(None)),
        Rule::allow().protocol(Protocol::Icmpv6(None)),
    ]));
    policies.push(payments("default-deny", Selector::All).ingress([]).egress([]));
    policies
}

/// A Kubernetes policy, which in the etcd datastore is a Calico policy with a prefix, and of another kind from 3.32.
fn kubernetes(version: Version, name: &str, selector: Selector) -> Policy {
    if version < Version::V3_32 {
        return Policy::new(KubernetesNetworkPolicy, "frontend", name, selector);
    }
    let kind: PolicyKind = NetworkPolicy;
    Policy::new(kind, "frontend", &format!("knp.default.{name}"), selector)
}

fn host_policies() -> Vec<Policy> {
    vec![
        global("hep-in", hosts())
            .ingress([Rule::allow().tcp(&[22, 8022]), Rule::deny().tcp(&[8023])])
            .egress([Rule::allow()]),
        global("hep-fwd", hosts()).on_hosts(OnHosts::Forward).egress([Rule::allow()]).ingress([
            Rule::deny().from(net("192.0.2.99")),
            Rule::allow().tcp(&[]),
            Rule::allow().protocol(Protocol::Icmp(None)),
            Rule::allow().udp(&[]).ports(5000, 5100).ports(9000, 9999),
        ]),
        global("hep-prednat", hosts()).on_hosts(OnHosts::PreDnat).ingress([Rule::deny().tcp(&[31234])]),
        global("hep-untracked", hosts())
            .on_hosts(OnHosts::Untracked)
            .ingress([Rule::deny().udp(&[6666])])
            .egress([Rule::deny().udp(&[6667])]),
    ]
}
