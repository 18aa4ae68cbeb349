//! Rules are rewritten hundreds of times, as Felix does, while traffic passes and a reader asks in a tight loop.
//!
//! No exported number falls and none is more than what was sent. In nftables nothing is lost: the end is exact, and nothing
//! is unattributed on the way; where counters are not seen freed, one packet a processor and rewrite at most. In legacy
//! nothing is lost either where rewrites are watched and the agent missed none. Else a
//! rewrite loses at most what passes between the read that the opened lock triggers and the swap of the table; that bound is
//! counted twice, loosely while traffic floods, and to the packet where the swap is held back.
//!
//! A second writer is at work all the time, with the rules of kube-proxy.
//!
//! `ACCOUNTANT_REWRITES` says how often rules are rewritten, `ACCOUNTANT_RULES` how many rules kube-proxy has.

mod support;

use accountant_core::IpVersion;
use accountant_core::calico::PolicyKind::{GlobalNetworkPolicy, NetworkPolicy};
use accountant_core::calico::names::pod_interface;
use accountant_lab::apply::Felix;
use accountant_lab::books::{Books, Line, counted, counted_bytes, differences, expected, expected_bytes};
use accountant_lab::felix::{Backend, Dialect, Version, render};
use accountant_lab::kube_proxy::KubeProxy;
use accountant_lab::node::OUTSIDE_ADDRESSES;
use accountant_lab::policy::{Model, Policy, Rule, Selector, Truth};
use accountant_lab::traffic::{Flood, Until, udp};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::lab::{Lab, v4};
use support::streams::{
    ALLOWED, DENIED_IN_PASS_TIER, DENIED_LAST, Denied, NOBODYS, SIZE, STRIDE, Stream, shop,
};
use support::{Lacks, Scrape, Series, lacks, scrape, wait_until};

/// How often rules are rewritten where nothing else is said.
const REWRITES: usize = 120;
/// Packets a second of each flood: there has to be time left for the writers.
const RATE: u32 = 4000;
/// One packet in so many is denied.
const EVERY: u64 = 50;
/// Flows of each flood, and how many packets of one are on their way at most.
const FLOWS: u16 = 2;
const ON_THE_WAY: u64 = 6;

/// Rules of kube-proxy, and how long it rests between two syncs.
const RULES: usize = 400;
const REST: Duration = Duration::from_millis(100);

static ALONE: Mutex<()> = Mutex::new(());

fn rewrites() -> usize {
    number("ACCOUNTANT_REWRITES", REWRITES)
}

fn number(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |text| text.parse().expect("a number"))
}

/// The model after so many changes. No change touches what becomes of the traffic, so the truth is that of the first.
fn variant(base: &Model, number: usize) -> Model {
    let mut model = base.clone();
    let shop = |name: &str| {
        Policy::new(NetworkPolicy, "shop", name, Selector::All).ingress([Rule::deny().tcp(&[7])])
    };
    let default = |model: &mut Model, at: usize, policy: Policy| {
        model.tier_mut("default").unwrap().policies.insert(at, policy);
    };
    match number % 8 {
        0 => {}
        // Joins the group that is first: a chain of another name.
        1 => default(&mut model, 0, shop("aaa")),
        // In front of the policy that decides: what follows is rewritten.
        2 => default(&mut model, 2, shop("between")),
        // Only the policy's own chain.
        3 => {
            let web = model.policy_mut("shop", "web").unwrap();
            let mut rules = web.ingress.take().unwrap();
            rules.insert(0, Rule::allow().tcp(&[8081]));
            web.ingress = Some(rules);
        }
        // In the first tier.
        4 => {
            let policy = Policy::new(GlobalNetworkPolicy, "", "security.aaa", Selector::is("app", "web"));
            let policy = policy.ingress([Rule::deny().tcp(&[7])]).egress([Rule::deny().tcp(&[7])]);
            model.tier_mut("security").unwrap().policies.insert(0, policy);
        }
        // Rules between almost all rules.
        5 => model.settings.flow_logs = true,
        // A policy behind the one that decides.
        6 => {
            let end = model.tier_mut("default").unwrap().policies.len();
            default(&mut model, end, shop("zzz"));
        }
        // A policy that selects the pod goes.
        _ => model.tier_mut("default").unwrap().policies.retain(|policy| &*policy.id.name != "default-deny"),
    }
    model
}

/// The lab with three streams of traffic to `web`.
struct Traffic {
    lab: Lab,
    model: Model,
    scenario: accountant_lab::Scenario,
}

impl Traffic {
    fn new() -> Self {
        let scenario = shop();
        Self { lab: Lab::new(&scenario), model: scenario.model.clone(), scenario }
    }

    fn start(&self) -> [Stream; 3] {
        let node = &self.lab.node;
        let web = v4(node, "shop", "web");
        let flood = |port, other: Option<u16>| Flood {
            rate: Some(RATE),
            flows: FLOWS,
            size: SIZE,
            until: Until::Stopped,
            other: other.map(|port| (port, EVERY)),
            ..Flood::new(web, port)
        };
        let from = |namespace, pod, other| {
            let netns = &node.pod(namespace, pod).unwrap().netns;
            Stream::start(netns, (v4(node, namespace, pod), web), flood(ALLOWED, Some(other)))
        };
        let outside: IpAddr = OUTSIDE_ADDRESSES[0].parse().unwrap();
        let trickle = Flood { rate: Some(100), ..flood(DENIED_LAST, None) };
        [
            from("default", "client", NOBODYS),
            from("shop", "db", DENIED_IN_PASS_TIER),
            Stream::start(node.outside(), (outside, web), trickle),
        ]
    }

    fn stop(&self, streams: [Stream; 3]) -> Truth {
        let mut truth = Truth::default();
        for stream in streams {
            stream.stop(&self.scenario, &mut truth);
        }
        truth
    }
}

fn sent(streams: &[Stream; 3]) -> u64 {
    streams.iter().map(|stream| stream.flooding.sent()).sum()
}

/// Rewrites rules again and again; returns how many packets passed meanwhile, at most.
fn rewrite(felix: &mut Felix, model: &Model, streams: &[Stream; 3]) -> u64 {
    let mut exposed = 0;
    let chain = format!("cali-tw-{}", pod_interface("cali", "shop", "web"));
    for number in 1..=rewrites() {
        let before = sent(streams);
        // Only in nftables does Felix write a whole chain anew that is as it should be.
        if number % 9 == 0 && felix.dialect().backend() != Backend::Legacy {
            felix.rewrite_chain(IpVersion::V4, &chain).unwrap();
        } else {
            felix.apply(&variant(model, number)).unwrap();
        }
        // What was on its way when it began, and what the floods have not told yet.
        let slack = 3 * (STRIDE + u64::from(FLOWS) * ON_THE_WAY);
        exposed += sent(streams) - before + slack;
        // Time for the writer of traffic, too; a real Felix does not rewrite without a pause either.
        thread::sleep(Duration::from_millis(40));
    }
    exposed
}

/// Lines that hold more than was sent.
fn too_much(sent: &Books, counted: &Books) -> Vec<(Line, u64)> {
    let more = |(line, packets): &(&Line, &u64)| sent.get(*line).is_none_or(|sent| *packets > sent);
    counted.iter().filter(more).map(|(line, packets)| (line.clone(), *packets)).collect()
}

/// What was charged and cannot have been: to a policy, or to a tier's policies and groups together, for a group holds what
/// the numbers leave open between its members. What is unattributed is charged to nobody.
fn invented(sent: &Books, counted: &Books) -> Vec<(Line, u64)> {
    let mut more = too_much(sent, counted);
    more.retain(|(line, _)| !line.by.starts_with("PolicyGroup "));
    more.extend(too_much(&of_tiers(sent), &of_tiers(counted)));
    more.retain(|(line, _)| !line.verdict.is_empty());
    more
}

fn of_tiers(books: &Books) -> Books {
    let mut tiers = Books::new();
    for (line, packets) in books {
        *tiers.entry(Line { by: "all policies".into(), ..line.clone() }).or_default() += packets;
    }
    tiers
}

/// What says why packets are unattributed.
fn why(scrape: &Scrape) -> Vec<(&Series, &f64)> {
    let says = |series: &Series| series.0.contains("unattributed") || series.0.contains("source_events");
    scrape.series.iter().filter(|(series, value)| says(series) && **value > 0.0).collect()
}

fn read_in_a_loop(
    agent: &accountant_lab::Agent,
    streams: &[Stream; 3],
    over: &AtomicBool,
    unattributed: f64,
) -> u32 {
    let (mut last, mut reads) = (Scrape::default(), 0);
    while !over.load(Ordering::Relaxed) {
        let now = scrape(agent);
        now.assert_not_below(&last);
        let (denied, most) = (Denied::of(&now), Denied { unattributed, ..Denied::most(streams) });
        assert!(denied.fits(&most), "counted {denied:?}, sent at most {most:?}: {:#?}", why(&now));
        let accepted = now.sum("policy_accept_counter", &[("pod", "web"), ("type", "tw")]);
        let sent: u64 = streams.iter().map(Stream::most).sum();
        assert!(accepted <= sent as f64, "accepted {accepted} of {sent}");
        (last, reads) = (now, reads + 1);
    }
    reads
}

fn rewritten(dialect: Dialect, reader: bool, in_place: bool) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let legacy = dialect.backend() == Backend::Legacy;
    let traffic = Traffic::new();
    let mut felix = traffic.lab.node.felix(dialect);
    felix.apply(&traffic.model).unwrap();
    let lock = traffic.lab.node.host().lock_file().display().to_string();
    let interval = if reader { "1s" } else { "1h" };
    let in_place_flag = format!("--read-in-place={in_place}");
    let agent = traffic.lab.agent(&[
        "--max-age",
        "0s",
        "--poll-interval",
        interval,
        "--xtables-lock-file",
        &lock,
        &in_place_flag,
        "--log-filter",
        "info,accountant_dataplane::nftables=debug",
    ]);
    let streams = traffic.start();
    let over = AtomicBool::new(false);
    // What a rewrite cuts in two cannot always be told apart.
    let unattributed = if legacy || !in_place { f64::INFINITY } else { 0.0 };
    let mut proxy =
        KubeProxy::new(traffic.lab.node.host(), dialect.backend(), number("ACCOUNTANT_RULES", RULES));
    let (exposed, reads) = thread::scope(|scope| {
        let syncing = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                proxy.sync().unwrap();
                thread::sleep(REST);
            }
        });
        let reading = reader.then(|| scope.spawn(|| read_in_a_loop(&agent, &streams, &over, unattributed)));
        let exposed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            rewrite(&mut felix, &traffic.model, &streams)
        }));
        over.store(true, Ordering::Relaxed);
        let reads = reading.map_or(0, |reading| reading.join().unwrap());
        syncing.join().unwrap();
        (exposed.unwrap(), reads)
    });
    let truth = traffic.stop(streams);
    let accounts = agent.settled().unwrap();
    let unconfirmed =
        scrape(&agent).sum("calico_accountant_source_events_total", &[("event", "unconfirmed_last_values")]);
    let (sent, found) = (expected(&truth), counted(&accounts));
    let lost: u64 = sent
        .iter()
        .map(|(line, packets)| packets.saturating_sub(found.get(line).copied().unwrap_or(0)))
        .max()
        .unwrap();
    let all: u64 = sent.values().sum();
    println!(
        "{dialect:?}: {} rewrites, {} by kube-proxy, {reads} reads, {all} postings sent, at most {lost} lost in one account, {exposed} packets exposed, {unconfirmed} readings without last values",
        rewrites(),
        proxy.syncs
    );
    let missed = scrape(&agent).sum("calico_accountant_source_events_total", &[("event", "missed_rewrite")]);
    if legacy && (missed > 0.0 || lacks(Lacks::Programs)) {
        let all = differences(&sent, &found);
        assert_eq!(invented(&sent, &found), [], "{dialect:?}: more was counted than was sent: {all:#?}");
        assert!(
            lost <= exposed,
            "{dialect:?}: {lost} lost, {exposed} passed while rules were rewritten: {all:#?}"
        );
    } else if !in_place {
        let caught = rewrites() as u64 * std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let most = |line: &Line| sent.get(line).copied().unwrap_or(0);
        let more: u64 = too_much(&sent, &found).iter().map(|(line, packets)| packets - most(line)).sum();
        assert!(unconfirmed > 0.0, "{dialect:?}: nothing says that something can be lost");
        assert!(lost <= caught && more <= caught, "{dialect:?}: {:#?}", differences(&sent, &found));
    } else {
        assert_eq!(differences(&sent, &found), [""; 0], "{dialect:?}: {:#?}", why(&scrape(&agent)));
        assert_eq!(counted_bytes(&accounts), expected_bytes(&truth), "{dialect:?}");
    }
}

#[test]
fn legacy() {
    rewritten(Dialect::new(Version::V3_31, Backend::Legacy).unwrap(), true, true);
}

/// Nobody reads meanwhile: the opened lock alone makes the agent look.
#[test]
fn legacy_without_a_reader() {
    rewritten(Dialect::new(Version::V3_31, Backend::Legacy).unwrap(), false, true);
}

/// The bound to the packet: what passes between the look and the swap may be lost, nothing else, and no poll is needed
/// between two rewrites.
#[test]
fn legacy_loses_what_passes_between_the_look_and_the_swap() {
    const BEFORE: u32 = 70;
    const BETWEEN: u32 = 11;
    let traffic = Traffic::new();
    let node = &traffic.lab.node;
    let mut felix = node.felix(Dialect::new(Version::V3_31, Backend::Legacy).unwrap());
    felix.apply(&traffic.model).unwrap();
    let lock = node.host().lock_file();
    let agent = traffic.lab.agent(&[
        "--max-age",
        "0s",
        "--poll-interval",
        "1h",
        // The watch would lose nothing.
        "--watch-rewrites=false",
        "--xtables-lock-file",
        &lock.display().to_string(),
        "--log-filter",
        "accountant_dataplane=debug",
    ]);
    let looks = || agent.log().matches("looked once more").count();
    let client = &node.pod("default", "client").unwrap().netns;
    let web = v4(node, "shop", "web");
    let send = |packets| udp(client, web, ALLOWED, 1, packets, SIZE).unwrap();

    // Opening it is what a writer does first, so the agent looks.
    let mut file = File::open(&lock).unwrap();
    wait_until("the agent looks at what the test opened", || looks() == 1);
    let rewrites = [2, 6, 2, 0];
    for number in rewrites {
        send(BEFORE);
        let held = Flock::lock(file, FlockArg::LockExclusive).unwrap();
        let before = looks();
        let mut next = render(&variant(&traffic.model, number), felix.dialect());
        // One table is rewritten, so the lock is opened once.
        next.rulesets[1] = felix.written().unwrap().rulesets[1].clone();
        file = thread::scope(|scope| {
            let writing = scope.spawn(|| felix.apply_rendering(next).map(drop));
            wait_until("the agent looks", || looks() > before);
            send(BETWEEN);
            // The writer waits for the lock.
            let file = held.unlock().unwrap();
            writing.join().unwrap().unwrap();
            file
        });
    }
    let accounts = agent.settled().unwrap();
    let allowed = |line: &Line| line.by == "KubernetesNetworkPolicy shop/web" && line.verdict == "allow";
    let counted = counted(&accounts);
    let counted: u64 = counted.iter().filter(|(line, _)| allowed(line)).map(|(_, packets)| packets).sum();
    let times = rewrites.len() as u64;
    let (kept, exposed) = (times * u64::from(BEFORE), times * u64::from(BETWEEN));
    assert!((kept..=kept + exposed).contains(&counted), "{counted} counted, {accounts:#}");
}

/// A writer takes another lock, so nobody sees it come, and what rules counted since the last reading is lost. The programs saw
/// who decided on these packets: they are charged when there is nothing left that rules could tell.
#[test]
fn what_an_unseen_rewrite_lost_is_charged_by_what_programs_saw() {
    const PACKETS: u32 = 70;
    if lacks(Lacks::Programs) {
        return;
    }
    let traffic = Traffic::new();
    let node = &traffic.lab.node;
    let mut felix = node.felix(Dialect::new(Version::V3_31, Backend::Legacy).unwrap());
    felix.apply(&traffic.model).unwrap();
    let other_lock = node.host().lock_file().with_extension("other");
    let lock_flag = format!("--xtables-lock-file={}", other_lock.display());
    let agent = traffic.lab.agent(&["--max-age=0s", "--poll-interval=1h", &lock_flag]);
    let client = &node.pod("default", "client").unwrap().netns;
    let web = v4(node, "shop", "web");
    let charged = || -> u64 {
        let counted = counted(&agent.accounts().unwrap());
        let allowed = |line: &Line| line.by == "KubernetesNetworkPolicy shop/web" && line.verdict == "allow";
        counted.iter().filter(|(line, _)| allowed(line)).map(|(_, packets)| packets).sum()
    };
    let repaired = || scrape(&agent).sum("calico_accountant_reconcile_repaired_packets_total", &[]);
    // Rules and programs are compared from the first rest on.
    let begun = Instant::now();
    wait_until("traffic has rested", || charged() == 0 && begun.elapsed() > Duration::from_secs(2));
    for (number, so_far) in [(2, 1), (0, 2), (2, 3)] {
        udp(client, web, ALLOWED, 1, PACKETS, SIZE).unwrap();
        felix.apply(&variant(&traffic.model, number)).unwrap();
        let at_once = charged();
        assert!(at_once < so_far * u64::from(PACKETS), "{at_once} charged, so nothing was lost");
        wait_until("what was lost is charged", || charged() >= so_far * u64::from(PACKETS));
    }
    assert_eq!((charged(), repaired()), (3 * u64::from(PACKETS), f64::from(3 * PACKETS)));
    std::fs::remove_file(other_lock).unwrap();
}

#[test]
fn iptables_nft() {
    rewritten(Dialect::new(Version::V3_31, Backend::IptablesNft).unwrap(), true, true);
}

/// Nobody sees the kernel free counters.
#[test]
fn iptables_nft_over_netlink() {
    rewritten(Dialect::new(Version::V3_31, Backend::IptablesNft).unwrap(), true, false);
}

#[test]
fn native_nftables_rule_by_rule() {
    rewritten(Dialect::new(Version::V3_31, Backend::Nft).unwrap(), true, true);
}

#[test]
fn native_nftables_chain_by_chain() {
    rewritten(Dialect::new(Version::V3_33, Backend::Nft).unwrap(), true, true);
}
