//! Floods on all processors, scraped every 100 ms. Counters are read while packets pass, and what follows only from several
//! counters must not take a packet on its way for a denied one: with accepted packets alone no deny is ever counted, and
//! with one denied packet in a thousand exactly those, never more than were sent so far.
//!
//! `ACCOUNTANT_FLOOD_SECONDS` says how long each flood lasts.

mod support;

use accountant_lab::Agent;
use accountant_lab::books::{counted, counted_bytes, differences, expected, expected_bytes};
use accountant_lab::felix::Backend;
use accountant_lab::node::OUTSIDE_ADDRESSES;
use accountant_lab::policy::Truth;
use accountant_lab::traffic::{Flood, Until};
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use support::lab::{Lab, dialect, v4};
use support::streams::{
    ALLOWED, DENIED_IN_PASS_TIER, DENIED_LAST, Denied, NOBODYS, SIZE, Stream, moved, shop,
};
use support::{Scrape, scrape};

/// How long each flood lasts where nothing else is said.
const SECONDS: u64 = 6;
/// How often it is scraped.
const PAUSE: Duration = Duration::from_millis(100);
/// One packet in so many is denied.
const EVERY: u64 = 1000;

/// Both processors are needed for one flood.
static ALONE: Mutex<()> = Mutex::new(());

fn seconds() -> Duration {
    let given = std::env::var("ACCOUNTANT_FLOOD_SECONDS").ok();
    Duration::from_secs(given.map_or(SECONDS, |text| text.parse().expect("a number of seconds")))
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
        assert_eq!(
            Denied::of(scrape),
            Denied::default(),
            "{backend:?}: nothing was denied: {:#?}",
            moved(scrape)
        );
        let accepted = scrape.sum("policy_accept_counter", &[("pod", "web"), ("type", "tw")]);
        let sent: u64 = streams.iter().map(Stream::most).sum();
        assert!(accepted <= sent as f64, "{backend:?}: accepted {accepted} of {sent}");
    });
    let sent: u64 = streams.into_iter().map(|stream| stream.finish(&scenario, &mut truth)).sum();
    let accounts = agent.settled().unwrap();
    assert_eq!(
        differences(&expected(&truth), &counted(&accounts)),
        [""; 0],
        "{backend:?}: accepted packets alone"
    );
    println!("{backend:?}: {sent} accepted packets, {scrapes} scrapes, never a deny");

    // One in a thousand denied: by no policy, in the tier that ends in Pass, and by the last policy.
    let [first, second] = senders;
    let outside: IpAddr = OUTSIDE_ADDRESSES[0].parse().unwrap();
    let trickle =
        Flood { rate: Some(50), size: SIZE, until: Until::Elapsed(time), ..Flood::new(web, DENIED_LAST) };
    let streams = [
        start((0, first), Some(NOBODYS)),
        start((1, second), Some(DENIED_IN_PASS_TIER)),
        Stream::start(lab.node.outside(), (outside, web), trickle),
    ];
    let scrapes = watch(&agent, time, |scrape| {
        let denied = Denied::of(scrape);
        let most = Denied::most(&streams);
        let fits = denied.fits(&most);
        assert!(fits, "{backend:?}: counted {denied:?}, sent at most {most:?}: {:#?}", moved(scrape));
    });
    let sent: u64 = streams.into_iter().map(|stream| stream.finish(&scenario, &mut truth)).sum();
    let accounts = agent.settled().unwrap();
    assert_eq!(
        differences(&expected(&truth), &counted(&accounts)),
        [""; 0],
        "{backend:?}: one in a thousand denied"
    );
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
