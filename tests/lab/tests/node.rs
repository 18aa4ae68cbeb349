//! The node works, is quiet, and the traffic is what it says.

use accountant_lab::policy::Endpoint;
use accountant_lab::traffic::{self, Flood, TcpListening, UdpEcho, Until};
use accountant_lab::{Namespace, Node};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(2);

fn two_pods() -> Node {
    let pods = [("a", 2), ("b", 3)].map(|(name, last)| {
        let addresses = [format!("10.65.0.{last}"), format!("fd00:65::{last}")];
        Endpoint::new("default", name, &addresses.map(|address| address.parse().unwrap()))
    });
    Node::new(&pods).unwrap()
}

/// Rules that only count, in every chain through which a packet can come.
const COUNTERS: &str = r#"table inet count {
    chain prerouting {
        type filter hook prerouting priority -400
        counter comment "prerouting"
    }
    chain forward {
        type filter hook forward priority 0
        udp dport 7 counter comment "udp-7"
        udp dport 8 counter comment "udp-8"
        tcp flags & (syn|ack) == syn counter comment "syn"
        icmp type echo-request counter comment "ping4"
        icmpv6 type echo-request counter comment "ping6"
        tcp dport 81 drop
        counter comment "forward"
    }
    chain input {
        type filter hook input priority 0
        counter comment "input"
    }
    chain output {
        type filter hook output priority 0
        counter comment "output"
    }
}
"#;

fn counter(host: &Namespace, name: &str) -> u64 {
    let listing = host.run("nft", &["list", "table", "inet", "count"]).unwrap();
    let line = listing.lines().find(|line| line.contains(&format!("comment \"{name}\""))).unwrap();
    line.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn nobody_speaks_unless_asked() {
    let node = two_pods();
    node.host().feed("nft", &["-f", "-"], COUNTERS).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    for chain in ["prerouting", "forward", "input", "output"] {
        assert_eq!(counter(node.host(), chain), 0, "{chain}");
    }
}

#[test]
fn every_packet_is_counted_once() {
    let node = two_pods();
    let (a, b) = (node.pod("default", "a").unwrap(), node.pod("default", "b").unwrap());
    node.host().feed("nft", &["-f", "-"], COUNTERS).unwrap();
    for (index, to) in [b.v4().unwrap(), b.v6().unwrap()].into_iter().enumerate() {
        let times = index as u64 + 1;
        assert_eq!(traffic::udp(&a.netns, to, 7, 5, 4, 100).unwrap(), 20);
        assert_eq!(counter(node.host(), "udp-7"), 20 * times);
        assert_eq!(traffic::ping(&a.netns, to, 3, SOON).unwrap(), 3);

        let echo = UdpEcho::new(&b.netns, to, 8).unwrap();
        assert_eq!(traffic::udp_answered(&a.netns, to, 8, 2, 3, SOON).unwrap(), (6, 6));
        assert_eq!(echo.echoed(), 6);
        assert_eq!(counter(node.host(), "udp-8"), 6 * times);

        let listener = TcpListening::new(&b.netns, to, 80).unwrap();
        let connected = traffic::connect(&a.netns, to, 80, 4, 100_000).unwrap();
        assert_eq!((connected.established, connected.refused, connected.unanswered), (4, 0, 0));
        assert_eq!(listener.accepted(), 4);
        let denied = traffic::connect(&a.netns, to, 81, 5, 0).unwrap();
        assert_eq!((denied.established, denied.refused, denied.unanswered), (0, 0, 5));
        assert_eq!(counter(node.host(), "syn"), 10 * times - 1);
        let nobody = traffic::connect(&a.netns, to, 82, 1, 0).unwrap();
        assert_eq!(nobody.refused, 1);
        assert_eq!(counter(node.host(), "syn"), 10 * times);
    }
    assert_eq!((counter(node.host(), "ping4"), counter(node.host(), "ping6")), (3, 3));
    // Nothing of all that was for the node itself, and pods are reachable from there and from outside.
    assert_eq!((counter(node.host(), "input"), counter(node.host(), "output")), (0, 0));
    for to in [b.v4().unwrap(), b.v6().unwrap()] {
        assert_eq!(traffic::ping(node.host(), to, 1, SOON).unwrap(), 1);
        assert_eq!(traffic::ping(node.outside(), to, 1, SOON).unwrap(), 1);
    }
    for to in accountant_lab::node::OUTSIDE_ADDRESSES {
        assert_eq!(traffic::ping(&a.netns, to.parse().unwrap(), 1, SOON).unwrap(), 1);
    }
    node.outside_address("203.0.113.7".parse().unwrap()).unwrap();
    assert_eq!(traffic::ping(&a.netns, "203.0.113.7".parse().unwrap(), 1, SOON).unwrap(), 1);
}

#[test]
fn floods_from_both_processors_arrive_whole() {
    let node = two_pods();
    let (a, b) = (node.pod("default", "a").unwrap(), node.pod("default", "b").unwrap());
    node.host().feed("nft", &["-f", "-"], COUNTERS).unwrap();
    let flood = |cpu| Flood {
        other: Some((8, 1000)),
        until: Until::Elapsed(Duration::from_secs(2)),
        cpu: Some(cpu),
        ..Flood::new(b.v4().unwrap(), 7)
    };
    let running = [flood(0).start(&a.netns), flood(1).start(&a.netns)];
    let flooded = running.map(|flooding| flooding.finish().unwrap());
    println!("{flooded:?}");
    assert_eq!(counter(node.host(), "udp-7"), flooded[0].usual + flooded[1].usual);
    assert_eq!(counter(node.host(), "udp-8"), flooded[0].other + flooded[1].other);
    assert!(flooded.iter().all(|flooded| flooded.lost == 0 && flooded.usual > 10_000), "{flooded:?}");

    let paced = Flood {
        rate: Some(2000),
        until: Until::Packets(1000),
        ports: 50,
        ..Flood::new(b.v6().unwrap(), 1000)
    };
    let paced = paced.run(&a.netns).unwrap();
    assert_eq!((paced.usual, paced.other), (1000, 0));
    assert!(paced.elapsed > Duration::from_millis(450), "{paced:?}");
}

#[test]
fn pods_come_and_go() {
    let mut node = two_pods();
    let addresses = ["10.65.0.9".parse().unwrap(), "fd00:65::9".parse().unwrap()];
    node.add_pod(&Endpoint::new("default", "c", &addresses)).unwrap();
    let b = node.pod("default", "b").unwrap();
    assert_eq!(traffic::ping(&b.netns, addresses[0], 1, SOON).unwrap(), 1);
    node.remove_pod("default", "c").unwrap();
    assert!(node.pod("default", "c").is_err());
    let b = node.pod("default", "b").unwrap();
    assert_eq!(traffic::ping(&b.netns, addresses[0], 1, Duration::from_millis(100)).unwrap(), 0);
}
