//! The lab as a whole: node, rules, traffic, and counters that say exactly what was sent.

mod common;

use accountant_core::IpVersion;
use accountant_core::calico::PolicyKind::NetworkPolicy;
use accountant_lab::apply::Felix;
use accountant_lab::felix::{Backend, Dialect, Version};
use accountant_lab::policy::{Endpoint, Policy, Rule, Selector, Truth};
use accountant_lab::scenario::{Visit, demo, scale};
use accountant_lab::traffic::{self, Flood, Until};
use common::books::packets;
use std::time::{Duration, Instant};

const BACKENDS: [Backend; 3] = [Backend::Legacy, Backend::IptablesNft, Backend::Nft];

/// One backend, in all versions that have tiers: before, a pass goes to the profiles, and the demo's model would mean
/// something else.
fn counters_say_what_was_sent(backend: Backend) {
    let with_tiers = |dialect: &Dialect| dialect.backend() == backend && dialect.version() >= Version::V3_29;
    for dialect in Dialect::all().into_iter().filter(with_tiers) {
        let scenario = demo();
        let node = scenario.node().unwrap();
        let mut felix = node.felix(dialect);
        felix.apply(&scenario.model).unwrap();
        common::books::check(node.host(), dialect.backend(), &scenario.model, &Truth::default());

        let visit = Visit::new(&node).unwrap();
        let mut truth = Truth::default();
        visit.round(&scenario.model, &mut truth, || ()).unwrap();
        assert!(truth.accounts().count() > 30, "{truth:?}");
        common::books::check(node.host(), dialect.backend(), &scenario.model, &truth);
        // Established packets are accepted on their way out of the sender: the peer's chain never sees them.
        let client = format!("cali-fw-{}", scenario.model.interface("default", "client").unwrap());
        for version in IpVersion::BOTH {
            assert!(packets(node.host(), dialect.backend(), version, &client)[0] > 8, "{dialect}");
        }
        felix.zero_counters().unwrap();
        common::books::check(node.host(), dialect.backend(), &scenario.model, &Truth::default());
    }
}

#[test]
fn counters_of_legacy_say_what_was_sent() {
    counters_say_what_was_sent(Backend::Legacy);
}

#[test]
fn counters_of_iptables_nft_say_what_was_sent() {
    counters_say_what_was_sent(Backend::IptablesNft);
}

#[test]
fn counters_of_nft_say_what_was_sent() {
    counters_say_what_was_sent(Backend::Nft);
}

#[test]
fn rewrites_break_nothing() {
    for (backend, version) in BACKENDS
        .into_iter()
        .zip([Version::V3_31, Version::V3_32, Version::V3_32])
        .chain([(Backend::Nft, Version::V3_33)])
    {
        let scenario = demo();
        let node = scenario.node().unwrap();
        let mut felix = node.felix(Dialect::new(version, backend).unwrap());
        felix.apply(&scenario.model).unwrap();
        let visit = Visit::new(&node).unwrap();
        let client = &node.pod("default", "client").unwrap().netns;
        let web = node.pod("shop", "web").unwrap().v4().unwrap();
        let flood = Flood { until: Until::Stopped, rate: Some(5000), ..Flood::new(web, 5000) }.start(client);

        let mut changed = scenario.model.clone();
        let extra = Policy::new(NetworkPolicy, "shop", "extra", Selector::is("app", "web"));
        changed.tier_mut("default").unwrap().policies.insert(0, extra.ingress([Rule::deny().tcp(&[99])]));
        let start = Instant::now();
        let mut rewrites = 0;
        while start.elapsed() < Duration::from_secs(1) {
            let model = if rewrites % 2 == 0 { &changed } else { &scenario.model };
            let applied = felix.apply(model).unwrap();
            assert!(applied.changed_chains > 0 && applied.written_rules > 0, "{applied:?}");
            let opened = traffic::connect(client, web, 80, 1, 100).unwrap();
            assert_eq!(opened.established, 1, "{backend} {version}");
            rewrites += 1;
        }
        let flooded = flood.stop().unwrap();
        assert!(flooded.usual > 1000 && flooded.lost == 0, "{flooded:?}");
        felix.apply(&scenario.model).unwrap();
        assert_eq!(
            felix.apply(&scenario.model).unwrap(),
            Default::default(),
            "nothing changed, nothing is written"
        );
        println!("{backend} {version}: {rewrites} rewrites");

        felix.zero_counters().unwrap();
        let mut truth = Truth::default();
        visit.round(&scenario.model, &mut truth, || ()).unwrap();
        common::books::check(node.host(), backend, &scenario.model, &truth);
    }
}

#[test]
fn pods_come_and_go_under_rules() {
    for backend in BACKENDS {
        let scenario = demo();
        let mut node = scenario.node().unwrap();
        let mut felix = node.felix(Dialect::new(Version::V3_32, backend).unwrap());
        felix.apply(&scenario.model).unwrap();
        let visitor =
            Endpoint::new("default", "visitor", &["10.65.0.9".parse().unwrap()]).label("app", "client");
        let mut model = scenario.model.clone();
        model.endpoints.push(visitor.clone());
        let address = node.add_pod(&visitor).unwrap().v4().unwrap();
        let client = &node.pod("default", "client").unwrap().netns.clone();
        // Calico drops what comes from or goes to an interface that it does not know.
        let pings = || traffic::ping(client, address, 1, Duration::from_millis(200)).unwrap();
        assert_eq!(pings(), 0, "{backend}");
        let applied = felix.apply(&model).unwrap();
        assert!(applied.added_chains >= 4 && applied.removed_chains == 0, "{backend} {applied:?}");
        assert_eq!(pings(), 1, "{backend}");
        node.remove_pod("default", "visitor").unwrap();
        let applied = felix.apply(&scenario.model).unwrap();
        assert!(applied.removed_chains >= 4 && applied.added_chains == 0, "{backend} {applied:?}");
        assert_eq!(pings(), 0, "{backend}");
    }
}

#[test]
fn a_change_resets_what_it_resets_on_a_real_node() {
    for backend in BACKENDS {
        let scenario = demo();
        let node = scenario.node().unwrap();
        let mut felix = node.felix(Dialect::new(Version::V3_32, backend).unwrap());
        felix.apply(&scenario.model).unwrap();
        let client = &node.pod("default", "client").unwrap().netns;
        let db = node.pod("shop", "db").unwrap().v4().unwrap();
        traffic::udp(client, db, 9001, 10, 1, 10).unwrap();

        let chain = format!("cali-tw-{}", scenario.model.interface("shop", "db").unwrap());
        let hashes = |felix: &Felix| -> Vec<String> {
            let rules = felix.written().unwrap().of(IpVersion::V4).filter_chain(&chain).unwrap();
            rules.iter().map(|rule| rule.hash.clone()).collect()
        };
        let (old, before) = (hashes(&felix), packets(node.host(), backend, IpVersion::V4, &chain));

        // A policy behind all others of its tier: the rules before it stay, those after it are written anew.
        let mut model = scenario.model.clone();
        let last = Policy::new(NetworkPolicy, "shop", "last", Selector::is("app", "db")).ingress([]);
        model.tier_mut("default").unwrap().policies.push(last);
        felix.apply(&model).unwrap();
        let (new, counters) = (hashes(&felix), packets(node.host(), backend, IpVersion::V4, &chain));
        assert_eq!((new.len(), counters.len()), (old.len() + 2, old.len() + 2));
        let same = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
        assert!(before[..same].contains(&10), "{before:?}");
        if backend == Backend::IptablesNft {
            assert!(counters.iter().all(|packets| *packets == 0), "{counters:?}");
        } else {
            assert_eq!(counters[..same], before[..same]);
            assert!(counters[same..].iter().all(|packets| *packets == 0), "{counters:?}");
        }
        felix.flush_chain(IpVersion::V4, &chain).unwrap();
        assert!(packets(node.host(), backend, IpVersion::V4, &chain).is_empty());
        felix.rewrite_chain(IpVersion::V4, &chain).unwrap();
        assert_eq!(packets(node.host(), backend, IpVersion::V4, &chain).len(), counters.len());
    }
}

#[test]
fn big_nodes_load_and_work() {
    for backend in BACKENDS {
        let scenario = scale(23_500, 110);
        let node = scenario.node().unwrap();
        let mut felix = node.felix(Dialect::new(Version::V3_31, backend).unwrap());
        let start = Instant::now();
        felix.apply(&scenario.model).unwrap();
        println!("{backend}: {:?}", start.elapsed());
        let (a, b) = (&node.pods()[0], &node.pods()[1]);
        assert_eq!(traffic::udp(&a.netns, b.v4().unwrap(), 7, 3, 4, 10).unwrap(), 12);
        traffic::udp(&a.netns, b.v4().unwrap(), 9, 5, 1, 10).unwrap();
        let chain = format!("cali-fw-{}", scenario.model.endpoints[0].interface);
        let counters = packets(node.host(), backend, IpVersion::V4, &chain);
        assert!(counters.contains(&12), "{counters:?}");
    }
}
