//! The agent is killed with SIGKILL and started again, again and again, while traffic passes: in the end nothing that was
//! counted is lost, and nothing is counted twice.
//!
//! What the programs in the kernel count goes on in their maps, and what policies decided in the books that each agent keeps for the
//! next one: neither ever falls. Programs stay attached until somebody wants them gone.
//!
//! `ACCOUNTANT_RESTARTS` says how often.

mod support;

use accountant_core::Counter;
use accountant_lab::books::{counted, counted_bytes, differences, expected, expected_bytes};
use accountant_lab::felix::Backend;
use accountant_lab::policy::{Packet, Protocol, Truth};
use accountant_lab::traffic::{Flood, QUESTION, UdpEcho, Until, udp, udp_length};
use accountant_lab::{Agent, Scenario};
use accountant_sys::bpf;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use support::lab::{Lab, v4};
use support::place::{ANSWERED, Place, is_attached, names};
use support::streams::{ALLOWED, DENIED_LAST, NOBODYS, SIZE, Stream};
use support::{Lacks, Scrape, Series, lacks, scrape, wait_until};

/// How often the agent is killed where nothing else is said.
const RESTARTS: usize = 8;
/// Packets a second of each flood.
const RATE: u32 = 1000;
/// One packet in so many is denied.
const EVERY: u64 = 50;
const QUESTIONS: u64 = 20;
/// Below the ports that the kernel chooses.
const FIRST_PORT: u16 = 10_000;
const PATIENCE: Duration = Duration::from_secs(10);

static ALONE: Mutex<()> = Mutex::new(());

fn restarts() -> usize {
    let given = std::env::var("ACCOUNTANT_RESTARTS").ok();
    given.map_or(RESTARTS, |text| text.parse().expect("a number of restarts"))
}

/// What goes on over restarts, packets and bytes: all traffic of endpoints, and what was decided about it.
fn goes_on(scrape: &Scrape) -> Scrape {
    const KEPT: [&str; 4] = ["endpoint_packets", "endpoint_bytes", "policy_packets", "policy_bytes"];
    let is_kept = |series: &Series| {
        let name = series.0.strip_prefix("calico_accountant_").unwrap_or_default();
        KEPT.iter().any(|kept| name.starts_with(kept))
    };
    let mut kept = Scrape { types: scrape.types.clone(), ..Scrape::default() };
    let series = scrape.series.iter().filter(|(series, _)| is_kept(series));
    kept.series.extend(series.map(|(series, value)| (series.clone(), *value)));
    kept
}

/// What the policies of the web accepted and denied is no more than was sent to it by now.
fn is_not_too_much(scrape: &Scrape, streams: &[Stream; 3], flows: &AtomicU64) {
    let [allowed, also_allowed, denied] = streams;
    let allowed = allowed.most() + also_allowed.most() + flows.load(Ordering::Relaxed);
    for (action, most) in [("allow", allowed), ("deny", denied.most())] {
        let labels = [("pod", "web"), ("direction", "ingress"), ("tier", "default"), ("action", action)];
        let packets = scrape.sum("calico_accountant_policy_packets_total", &labels);
        assert!(packets <= most as f64, "{packets} of {most} {action}");
    }
}

/// Asks and is answered until it is over, and counts the flows before they begin; says how many questions there were.
fn ask(place: &Place, over: &AtomicBool, flows: &AtomicU64) -> u64 {
    let web = v4(&place.lab.node, "shop", "web");
    let client = &place.lab.node.pod("default", "client").unwrap().netns;
    let ask = || {
        let mut asked = 0;
        while !over.load(Ordering::Relaxed) {
            // A port that had an answer before is of an established flow.
            let port = FIRST_PORT + u16::try_from(flows.fetch_add(1, Ordering::Relaxed)).unwrap();
            let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            for _ in 0..QUESTIONS {
                socket.send_to(QUESTION, (web, ANSWERED)).unwrap();
                socket.recv(&mut [0; 16]).unwrap();
                asked += 1;
            }
            thread::sleep(Duration::from_millis(20));
        }
        asked
    };
    client.enter(ask).unwrap()
}

fn start_streams(place: &Place) -> [Stream; 3] {
    let node = &place.lab.node;
    let web = v4(node, "shop", "web");
    let stream = |from: (&str, &str), port, other: Option<u16>| {
        let other = other.map(|port| (port, EVERY));
        let flood =
            Flood { rate: Some(RATE), other, size: SIZE, until: Until::Stopped, ..Flood::new(web, port) };
        Stream::start(&node.pod(from.0, from.1).unwrap().netns, (v4(node, from.0, from.1), web), flood)
    };
    [
        stream(("default", "client"), ALLOWED, Some(NOBODYS)),
        stream(("shop", "db"), ALLOWED, None),
        stream(("default", "client"), DENIED_LAST, None),
    ]
}

/// Ends what looks at it, also where a test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn killed_again_and_again(backend: Backend) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let sees_packets = !lacks(Lacks::Programs);
    let place = Place::new(backend);
    let web = v4(&place.lab.node, "shop", "web");
    let _echo = UdpEcho::new(&place.lab.node.pod("shop", "web").unwrap().netns, web, ANSWERED).unwrap();
    let mut agent = place.agent();
    if sees_packets {
        wait_until("programs are attached", || is_attached(&agent));
    }
    let streams = start_streams(&place);
    let (over, flows) = (AtomicBool::new(false), AtomicU64::new(0));
    let (agent, asked) = thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&place, &over, &flows));
        let end = Ends(&over);
        let mut last = goes_on(&scrape(&agent));
        for number in 0..restarts() {
            // Dropping it kills it, now a bit later and now a bit earlier after its start.
            thread::sleep(Duration::from_millis(number as u64 * 13 % 50));
            drop(agent);
            agent = place.agent();
            let now = scrape(&agent);
            is_not_too_much(&now, &streams, &flows);
            goes_on(&now).assert_not_below(&last);
            last = goes_on(&now);
        }
        drop(end);
        (agent, asking.join().unwrap())
    });
    let flows = flows.into_inner();
    let mut truth = Truth::default();
    let mut sent = 0;
    for stream in streams {
        sent += stream.stop(&place.scenario, &mut truth);
    }
    book(&place.scenario, &mut truth, v4(&place.lab.node, "default", "client"), web, flows);
    let accounts = agent.settled().unwrap();
    assert_eq!(differences(&expected(&truth), &counted(&accounts)), [""; 0], "{backend:?}");
    assert_eq!(expected_bytes(&truth), counted_bytes(&accounts), "{backend:?}");
    if sees_packets {
        programs_saw_all(&agent, sent + flows, asked - flows, asked);
    }
    println!("{backend:?}: {sent} packets and {asked} questions while it was killed {} times", restarts());
}

fn book(scenario: &Scenario, truth: &mut Truth, source: IpAddr, destination: IpAddr, flows: u64) {
    let packet = Packet { source, destination, protocol: Protocol::Udp, port: ANSWERED };
    let length = udp_length(destination, QUESTION.len());
    truth.book(&scenario.model, &packet, Counter::new(flows, flows * length));
}

/// All packets to the web are in its totals: new ones, and established ones in both directions.
fn programs_saw_all(agent: &Agent, new: u64, established: u64, answers: u64) {
    let scrape = scrape(agent);
    let seen = |direction: &str, state: &str| {
        let labels = [("pod", "web"), ("direction", direction), ("state", state)];
        scrape.sum("calico_accountant_endpoint_packets_total", &labels) as u64
    };
    assert_eq!(seen("ingress", "new"), new);
    assert_eq!(seen("ingress", "established"), established);
    assert_eq!(seen("egress", "established"), answers);
    let lost = [("result", "lost")];
    assert_eq!(scrape.sum("calico_accountant_kernel_packets_total", &lost), 0.0);
}

#[test]
fn legacy() {
    killed_again_and_again(Backend::Legacy);
}

#[test]
fn iptables_nft() {
    killed_again_and_again(Backend::IptablesNft);
}

#[test]
fn native_nftables() {
    killed_again_and_again(Backend::Nft);
}

/// Sends the web packets that a policy allows.
fn send_to_web(lab: &Lab, packets: u32) {
    let client = &lab.node.pod("default", "client").unwrap().netns;
    udp(client, v4(&lab.node, "shop", "web"), ALLOWED, 1, packets, SIZE).unwrap();
}

/// New packets to the web that policies allowed.
fn allowed_to_web(agent: &Agent) -> u64 {
    let labels = [("pod", "web"), ("direction", "ingress"), ("action", "allow")];
    scrape(agent).sum("calico_accountant_policy_packets_total", &labels) as u64
}

/// New packets to the web, as the programs saw them.
fn new_to_web(agent: &Agent) -> u64 {
    let labels = [("pod", "web"), ("direction", "ingress"), ("state", "new")];
    scrape(agent).sum("calico_accountant_endpoint_packets_total", &labels) as u64
}

/// The kernel's statistics have each packet at least, before and after the filter rules.
fn each_run_is_counted(agent: &Agent, packets: u64) {
    let scrape = scrape(agent);
    for program in ["before", "after"] {
        let sum = |name: &str| scrape.sum(name, &[("program", program)]);
        let (runs, seconds) = (
            sum("calico_accountant_bpf_program_run_count"),
            sum("calico_accountant_bpf_program_run_seconds"),
        );
        assert!(runs >= packets as f64, "{program}: {runs} runs for {packets} packets");
        assert!(seconds > 0.0 && seconds < runs, "{program}: {seconds} s for {runs} runs");
    }
    let lost = (
        "calico_accountant_bpf_events_lost_total".to_string(),
        [("kind".into(), "denied_flow".into())].into(),
    );
    assert_eq!(scrape.series.get(&lost), Some(&0.0));
}

#[test]
fn what_stays_is_used_replaced_and_detached() {
    if lacks(Lacks::Programs) {
        return;
    }
    let place = Place::new(Backend::Nft);
    let send = |packets| send_to_web(&place.lab, packets);

    // While no agent runs, too.
    let agent = place.agent();
    wait_until("programs are attached", || is_attached(&agent));
    send(3);
    each_run_is_counted(&agent, 3);
    drop(agent);
    send(4);
    let agent = place.agent();
    assert_eq!(new_to_web(&agent), 7);
    assert!(agent.log().contains("the programs of an earlier agent go on counting"), "{}", agent.log());

    // Whoever wants to detach what is in use is told, and another agent takes over when the first one ends.
    let (_, error, code) = place.detach();
    assert!(code != 0 && error.contains("another agent has its programs"), "{code} {error}");
    assert_eq!(new_to_web(&agent), 7);
    let next = place.spawn();
    wait_until("the next agent has seen the first one", || next.log().contains("waits for its end"));
    drop(agent);
    wait_until("the next agent serves", || next.get("/readyz").is_ok_and(|answer| answer.status == 200));
    wait_until("its programs are attached", || is_attached(&next));
    send(1);
    assert_eq!(new_to_web(&next), 8);
    drop(next);

    // What another version left is replaced, and that is said.
    let (folder, left) = place.left();
    assert_eq!(left.len(), 1, "{left:?}");
    let old = folder.join("abi-0-slots-1024-cpus-2");
    std::fs::rename(folder.join(&left[0]), &old).unwrap();
    let agent = place.agent();
    assert!(agent.log().contains("abi-0-slots-1024-cpus-2"), "{}", agent.log());
    assert!(agent.log().contains("its counts are given up"), "{}", agent.log());
    assert_eq!(place.left().1, left);
    send(5);
    assert_eq!(new_to_web(&agent), 13);
    drop(agent);

    // Programs of another version of the agent that keep the same books are replaced, and the books go on.
    let maps = folder.join(&left[0]);
    let links = names(&maps).into_iter().find(|name| name.starts_with("links-")).unwrap();
    std::fs::rename(maps.join(links), maps.join("links-0000000000000000")).unwrap();
    let agent = place.agent();
    assert!(agent.log().contains("programs of an earlier agent are replaced"), "{}", agent.log());
    send(6);
    assert_eq!(new_to_web(&agent), 19);
    drop(agent);

    assert_eq!(place.why_nothing_stays(&place.pins()), None);
    let reason = place.why_nothing_stays(place.lab.manifests.path()).unwrap();
    assert!(reason.contains("mount -t bpf"), "{reason}");

    let (said, error, code) = place.detach();
    assert!(code == 0 && said.contains("detached"), "{code} {said} {error}");
    assert!(!place.pins().exists());
    let (said, _, code) = place.detach();
    assert!(code == 0 && said.contains("no agent left programs"), "{code} {said}");
    let agent = place.agent();
    wait_until("programs are attached", || is_attached(&agent));
    assert_eq!(new_to_web(&agent), 19);
    send(1);
    assert_eq!(new_to_web(&agent), 20);
}

/// Somebody detaches the programs by force: that is noticed and said, and they are attached again.
#[test]
fn what_somebody_detached_is_attached_again() {
    if lacks(Lacks::Programs) {
        return;
    }
    let place = Place::new(Backend::Nft);
    let send = |packets| send_to_web(&place.lab, packets);
    let agent = place.agent();
    wait_until("programs are attached", || is_attached(&agent));
    send(3);
    assert_eq!((new_to_web(&agent), allowed_to_web(&agent)), (3, 3));
    let (folder, left) = place.left();
    let maps = folder.join(&left[0]);
    let links = maps.join(names(&maps).into_iter().find(|name| name.starts_with("links-")).unwrap());
    let forward = names(&links).into_iter().filter(|name| name.ends_with("IPv4-forward"));
    let detached = forward.map(|name| bpf::detach(bpf::pinned(&links.join(name)).unwrap().as_fd()).unwrap());
    assert_eq!(detached.count(), 2);
    // Nobody but the rules sees these.
    send(4);
    let attached_again = || {
        agent.settled().unwrap();
        scrape(&agent).sum("calico_accountant_kernel_programs_attached_again_total", &[])
    };
    wait_until("both are attached again", || attached_again() >= 2.0);
    assert_eq!((new_to_web(&agent), allowed_to_web(&agent)), (3, 7));
    assert!(agent.log().contains("somebody detached a program from the packet filter"), "{}", agent.log());
    send(5);
    assert_eq!((new_to_web(&agent), allowed_to_web(&agent)), (8, 12));
    assert!(attached_again() == 2.0, "each once");
    // The next agent finds what this one attached.
    drop(agent);
    send(6);
    let agent = place.agent();
    assert_eq!((new_to_web(&agent), allowed_to_web(&agent)), (14, 18));
    assert!(!agent.log().contains("somebody detached"), "{}", agent.log());
}

/// Its interface has the same name then.
#[test]
fn a_pod_that_comes_back_goes_on_counting() {
    let mut place = Place::new(Backend::Nft);
    let mut without = place.scenario.model.clone();
    without.endpoints.retain(|endpoint| &*endpoint.pod != "web");
    let send = |packets| send_to_web(&place.lab, packets);
    let agent = place.agent();
    if !lacks(Lacks::Programs) {
        wait_until("programs are attached", || is_attached(&agent));
    }
    let count = || (allowed_to_web(&agent), new_to_web(&agent));
    send(3);
    let before = count();
    for model in [&without, &place.scenario.model] {
        place.felix.apply(model).unwrap();
        agent.settled().unwrap();
        assert_eq!(count(), before);
    }
    send(4);
    assert_eq!(count(), (before.0 + 4, before.1 + if before.1 == 0 { 0 } else { 4 }));
}
