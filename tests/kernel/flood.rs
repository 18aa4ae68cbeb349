//! Floods on all processors, scraped every 100 ms. Counters are read while packets pass, and what follows only from several
//! counters must not take a packet on its way for a denied one: with accepted packets alone no deny is ever counted, and
//! with one denied packet in a thousand exactly those, never more than were sent so far.
//!
//! `ACCOUNTANT_FLOOD_SECONDS` says how long each flood lasts.

mod support;

use accountant_core::Counter;
use accountant_lab::books::{counted, counted_bytes, expected, expected_bytes};
use accountant_lab::felix::Backend;
use accountant_lab::policy::{Packet, Protocol, Rule, Truth};
use accountant_lab::scenario::{Scenario, demo};
use accountant_lab::traffic::{Flood, Flooding, Until, udp_length};
use accountant_lab::{Agent, Namespace};
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use support::lab::{Lab, arrived, dialect, prepend, v4};
use support::{Scrape, Series, scrape};

/// How long each flood lasts where nothing else is said.
const SECONDS: u64 = 6;
/// How often it is scraped.
const PAUSE: Duration = Duration::from_millis(100);
/// What the policy `web` allows.
const ALLOWED: u16 = 5000;
/// What no policy of the default tier allows.
const NOBODYS: u16 = 5999;
/// What a policy in a tier that ends in Pass denies.
const DENIED_IN_PASS_TIER: u16 = 23;
/// What the last policy of the default tier denies.
const DENIED_LAST: u16 = 24;
/// One packet in so many is denied.
const EVERY: u64 = 1000;
/// A flood tells its progress in steps of this many packets.
const STRIDE: u64 = 32;
/// Bytes of payload.
const SIZE: usize = 32;

/// Both processors are needed for one flood.
static ALONE: Mutex<()> = Mutex::new(());

/// The demo's shop, with denies of UDP in two tiers.
fn shop() -> Scenario {
    let mut scenario = demo();
    prepend(&mut scenario, ("", "platform.no-telnet"), Rule::deny().udp(&[DENIED_IN_PASS_TIER]));
    prepend(&mut scenario, ("shop", "web"), Rule::deny().udp(&[DENIED_LAST]));
    scenario
}

fn seconds() -> Duration {
    let given = std::env::var("ACCOUNTANT_FLOOD_SECONDS").ok();
    Duration::from_secs(given.map_or(SECONDS, |text| text.parse().expect("a number of seconds")))
}

/// A flood to the pod `web`, and where it comes from.
struct Stream {
    source: IpAddr,
    to: IpAddr,
    port: u16,
    other: u16,
    flooding: Flooding,
}

impl Stream {
    fn start(from: &Namespace, (source, to): (IpAddr, IpAddr), flood: Flood) -> Self {
        let (port, other) = (flood.port, flood.other.map_or(0, |(port, _)| port));
        Self { source, to, port, other, flooding: flood.start(from) }
    }

    /// So many packets at most were sent to the other port by now.
    fn others(&self) -> u64 {
        (self.flooding.sent() + STRIDE) / EVERY + 1
    }

    /// Ends it and books what it sent.
    fn finish(self, scenario: &Scenario, truth: &mut Truth) -> u64 {
        let sent = arrived(self.flooding.finish().unwrap());
        for (port, packets) in [(self.port, sent.usual), (self.other, sent.other)] {
            let packet = Packet { source: self.source, destination: self.to, protocol: Protocol::Udp, port };
            if packets > 0 {
                let sent = Counter::new(packets, packets * udp_length(self.to, SIZE));
                truth.book(&scenario.model, &packet, sent);
            }
        }
        sent.usual + sent.other
    }
}

/// Denied packets of a scrape, by who denied them.
#[derive(Debug, PartialEq)]
struct Denied {
    no_policy: f64,
    pass_tier: f64,
    last: f64,
    other: f64,
}

impl Denied {
    const NONE: Self = Self { no_policy: 0.0, pass_tier: 0.0, last: 0.0, other: 0.0 };

    fn of(scrape: &Scrape) -> Self {
        let policy = |labels: &[(&str, &str)]| {
            let deny = [&[("action", "deny")], labels].concat();
            scrape.sum("calico_accountant_policy_packets_total", &deny)
        };
        let (no_policy, pass_tier, last) = (
            scrape.sum("calico_accountant_default_deny_packets_total", &[("reason", "no_policy")]),
            policy(&[("policy", "platform.no-telnet")]),
            policy(&[("policy", "web")]),
        );
        let all = [
            scrape.sum("calico_accountant_default_deny_packets_total", &[]),
            policy(&[]),
            scrape.sum("calico_accountant_profile_packets_total", &[("action", "deny")]),
            scrape.sum("calico_accountant_endpoint_chain_packets_total", &[("verdict", "dropped")]),
            scrape.sum("calico_accountant_unattributed_packets_total", &[]),
        ];
        let other = all.iter().sum::<f64>() - no_policy - pass_tier - last;
        let old = scrape.sum("no_policy_drop_counter", &[]) + scrape.sum("policy_accept_drop_counter", &[]);
        assert_eq!(old, no_policy + pass_tier + last, "the old metrics agree with ours");
        Self { no_policy, pass_tier, last, other }
    }
}

/// All packets of a scrape, for whoever looks into a failure.
fn moved(scrape: &Scrape) -> Vec<(&Series, &f64)> {
    let packets = |series: &Series| series.0.ends_with("_packets_total");
    scrape.series.iter().filter(|(series, value)| packets(series) && **value > 0.0).collect()
}

/// Scrapes until the time is over, and hands each scrape to `check`.
fn watch(agent: &Agent, time: Duration, check: impl Fn(&Scrape)) -> usize {
    let start = Instant::now();
    let (mut last, mut scrapes) = (Scrape::default(), 0);
    while start.elapsed() < time {
        let began = Instant::now();
        let now = scrape(agent);
        now.assert_not_below(&last);
        check(&now);
        (last, scrapes) = (now, scrapes + 1);
        std::thread::sleep(PAUSE.saturating_sub(began.elapsed()));
    }
    scrapes
}

fn floods(backend: Backend) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let scenario = shop();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(backend)).apply(&scenario.model).unwrap();
    let agent = lab.agent(&["--max-age", "0s", "--poll-interval", "1s"]);
    let web = v4(&lab.node, "shop", "web");
    let senders = [("default", "client"), ("shop", "db")];
    let time = seconds();
    let mut truth = Truth::default();
    let start = |(cpu, (namespace, pod)): (usize, (&str, &str)), other: Option<u16>| {
        let other = other.map(|port| (port, EVERY));
        let until = Until::Elapsed(time);
        let flood = Flood { other, size: SIZE, until, cpu: Some(cpu), ..Flood::new(web, ALLOWED) };
        let from = &lab.node.pod(namespace, pod).unwrap().netns;
        Stream::start(from, (v4(&lab.node, namespace, pod), web), flood)
    };

    // Accepted packets alone.
    let streams: Vec<_> = senders.into_iter().enumerate().map(|sender| start(sender, None)).collect();
    let scrapes = watch(&agent, time, |scrape| {
        assert_eq!(Denied::of(scrape), Denied::NONE, "{backend:?}: nothing was denied: {:#?}", moved(scrape));
        let accepted = scrape.sum("policy_accept_counter", &[("pod", "web"), ("type", "tw")]);
        let sent: u64 = streams.iter().map(|stream| stream.flooding.sent() + STRIDE).sum();
        assert!(accepted <= sent as f64, "{backend:?}: accepted {accepted} of {sent}");
    });
    let sent: u64 = streams.into_iter().map(|stream| stream.finish(&scenario, &mut truth)).sum();
    let accounts = agent.accounts().unwrap();
    assert_eq!(counted(&accounts), expected(&truth), "{backend:?}: accepted packets alone");
    println!("{backend:?}: {sent} accepted packets, {scrapes} scrapes, never a deny");

    // One in a thousand denied: by no policy, in the tier that ends in Pass, and by the last policy.
    let streams: Vec<_> = senders
        .into_iter()
        .enumerate()
        .zip([NOBODYS, DENIED_IN_PASS_TIER])
        .map(|(sender, other)| start(sender, Some(other)))
        .collect();
    let outside: IpAddr = accountant_lab::node::OUTSIDE_ADDRESSES[0].parse().unwrap();
    let trickle =
        Flood { rate: Some(50), size: SIZE, until: Until::Elapsed(time), ..Flood::new(web, DENIED_LAST) };
    let trickle = Stream::start(lab.node.outside(), (outside, web), trickle);
    let scrapes = watch(&agent, time, |scrape| {
        let denied = Denied::of(scrape);
        let most = Denied {
            no_policy: streams[0].others() as f64,
            pass_tier: streams[1].others() as f64,
            last: (trickle.flooding.sent() + STRIDE) as f64,
            other: 0.0,
        };
        let fits = denied.no_policy <= most.no_policy
            && denied.pass_tier <= most.pass_tier
            && denied.last <= most.last
            && denied.other == 0.0;
        assert!(fits, "{backend:?}: counted {denied:?}, sent at most {most:?}: {:#?}", moved(scrape));
    });
    let streams = streams.into_iter().chain([trickle]);
    let sent: u64 = streams.map(|stream| stream.finish(&scenario, &mut truth)).sum();
    let accounts = agent.accounts().unwrap();
    assert_eq!(counted(&accounts), expected(&truth), "{backend:?}: one in a thousand denied");
    assert_eq!(counted_bytes(&accounts), expected_bytes(&truth), "{backend:?}: bytes");
    println!("{backend:?}: {sent} packets with denied ones among them, {scrapes} scrapes, exact");
}

#[test]
fn legacy() {
    floods(Backend::Legacy);
}

#[test]
fn iptables_nft() {
    floods(Backend::IptablesNft);
}

#[test]
fn native_nftables() {
    floods(Backend::Nft);
}
