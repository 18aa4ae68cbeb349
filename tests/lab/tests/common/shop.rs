//! The model of the files in `tests/fixtures/chains`: its `manifests/`, and the policy that has none.

use accountant_core::calico::PolicyKind::*;
use accountant_lab::felix::Version;
use accountant_lab::policy::*;

/// What the rules of this version in the fixtures were made from.
pub(crate) fn model(version: Version) -> Model {
    let set = |id: &str, members: &[&str]| IpSet {
        id: format!("s:{id}"),
        members: members.iter().map(|net| net.parse().unwrap()).collect(),
        port: None,
        stands_for: None,
    };
    let pod = |namespace: &str, name: &str, last: u8| {
        Endpoint::new(namespace, name, &[format!("10.65.0.{last}").parse().unwrap()])
    };
    let mut tiers = vec![default_tier()];
    if version >= Version::V3_29 {
        tiers.insert(0, admin_tier());
    }
    let profiles = ["shop", "default"].into_iter();
    let profiles =
        profiles.flat_map(|name| [Profile::namespace(name), Profile::service_account(name, "default")]);
    let settings = Settings { flow_logs: version >= Version::V3_31, ..Settings::default() };
    Model {
        endpoints: vec![
            pod("shop", "web-7c9d8f6b5-x2x9z", 2).label("app", "web"),
            pod("shop", "db-0", 3).label("app", "db"),
            pod("default", "client", 4).label("role", "client"),
        ],
        host_endpoints: Vec::new(),
        tiers,
        profiles: profiles.collect(),
        sets: vec![
            set("ZqPtkkcelbTMAqZV2mSAdJ7", &["10.65.0.2", "10.65.0.3"]),
            set("6JhgAVAsTmT3i26A6PwUl8t", &["10.65.0.2"]),
            set("eATOzwSvlYOdUH7quIOvYtG", &["10.65.0.3"]),
        ],
        settings,
    }
}

fn admin_tier() -> Tier {
    let policy = Policy::new(AdminNetworkPolicy, "", "no-telnet", Selector::has("app"));
    Tier::new("adminnetworkpolicy", TierEnd::Pass)
        .with(policy.ingress([Rule::deny().tcp(&[23]), Rule::pass().udp(&[7777])]))
}

fn default_tier() -> Tier {
    let net = |text: &str| text.parse::<Net>().unwrap();
    let app = |name: &str| Selector::is("app", name);
    let kubernetes = |name: &str, selector| Policy::new(KubernetesNetworkPolicy, "shop", name, selector);
    let global = |name: &str, selector| Policy::new(GlobalNetworkPolicy, "", name, selector);
    Tier::new("default", TierEnd::Deny)
        .with(global("deny-bad-net", app("db")).ingress([Rule::deny().from(net("198.51.100.0/24"))]))
        .with(
            global("allow-monitoring", Selector::has("app"))
                .ingress([Rule::allow().tcp(&[9100]).from(net("192.0.2.0/24"))]),
        )
        .with(Policy::new(NetworkPolicy, "shop", "web-egress", app("web")).egress([
            Rule::allow().tcp(&[5432]).to_set("s:eATOzwSvlYOdUH7quIOvYtG"),
            Rule::log(),
            Rule::deny().to(net("203.0.113.0/24")),
        ]))
        .with(
            kubernetes("allow-same-ns", Selector::All)
                .ingress([Rule::allow().udp(&[]).from_set("s:ZqPtkkcelbTMAqZV2mSAdJ7")]),
        )
        .with(
            kubernetes("db-allow-web", app("db"))
                .ingress([Rule::allow().tcp(&[5432]).from_set("s:6JhgAVAsTmT3i26A6PwUl8t")]),
        )
        .with(kubernetes("default-deny", Selector::All).ingress([]))
        .with(kubernetes("web-allow-http", app("web")).ingress([Rule::allow().tcp(&[80, 8080])]))
}
