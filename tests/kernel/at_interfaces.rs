//! Where no programs see what rules do, others count at the endpoints' interfaces: every packet of IP that a pod sends or is sent is
//! in its accounts once, packet for packet and byte for byte as the pod's own packet filter counts it on the other side of the link.

mod support;

use accountant_abi::stand_in::FOREIGN;
use accountant_core::{Counter, IpVersion};
use accountant_dataplane::calico_bpf::STAND_IN;
use accountant_lab::books::{counted, differences, expected};
use accountant_lab::felix::Backend;
use accountant_lab::node::Pod;
use accountant_lab::policy::Truth;
use accountant_lab::scenario::{Visit, demo};
use accountant_lab::traffic::{Flood, Until};
use accountant_lab::{Agent, Namespace};
use aya::EbpfLoader;
use aya::programs::tc::{self, NlOptions, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use support::bpffs::BpfFilesystem;
use support::lab::{Lab, dialect, v4};
use support::{Lacks, lacks, run, scrape, start, wait_until};

/// Of a pod, a direction and an IP version.
type Counts = BTreeMap<(String, String, u64), Counter>;

/// Has a pod count what it sends and is sent.
const WITNESS: &str = "
    table inet witness {
        counter ingress4 {}
        counter ingress6 {}
        counter egress4 {}
        counter egress6 {}
        chain in {
            type filter hook prerouting priority -500;
            iifname lo accept
            meta nfproto ipv4 counter name ingress4
            meta nfproto ipv6 counter name ingress6
        }
        chain out {
            type filter hook postrouting priority 500;
            oifname lo accept
            meta nfproto ipv4 counter name egress4
            meta nfproto ipv6 counter name egress6
        }
    }";

fn counter(of: &Value) -> Counter {
    Counter::new(of["packets"].as_u64().unwrap(), of["bytes"].as_u64().unwrap())
}

/// What the pods themselves have counted so far.
fn by_pods(lab: &Lab) -> Counts {
    let mut counts = Counts::new();
    for pod in lab.node.pods() {
        let said = pod.netns.run("nft", &["-j", "list", "counters", "table", "inet", "witness"]).unwrap();
        let said: Value = serde_json::from_str(&said).unwrap();
        for of in said["nftables"].as_array().unwrap().iter().filter_map(|object| object.get("counter")) {
            let name = of["name"].as_str().unwrap();
            let (direction, version) = name.split_at(name.len() - 1);
            counts.insert((pod.name.clone(), direction.into(), version.parse().unwrap()), counter(of));
        }
    }
    counts
}

/// The same by the agent's accounts.
fn by_agent(agent: &Agent) -> Counts {
    let mut counts = Counts::new();
    for account in agent.accounts().unwrap()["accounts"].as_array().unwrap() {
        if account["family"] != "endpoint" || account["pod"] == "" {
            continue;
        }
        let text = |field: &str| account[field].as_str().unwrap().to_string();
        let verdict = if account["direction"] == "ingress" { "accepted" } else { "any" };
        assert_eq!((text("state").as_str(), text("verdict").as_str()), ("any", verdict), "{account}");
        let version = account["ip_version"].to_string().trim_matches('"').parse().unwrap();
        counts.insert((text("pod"), text("direction"), version), counter(account));
    }
    counts
}

/// Reads the agent between two readings of the pods that are the same: neighbours are looked for at any time.
fn at_rest(lab: &Lab, agent: &Agent) -> (Counts, Counts) {
    loop {
        let (before, told) = (by_pods(lab), by_agent(agent));
        if before == by_pods(lab) {
            return (before, told);
        }
    }
}

fn since(now: &Counts, before: &Counts) -> Counts {
    let before = |key| before.get(key).copied().unwrap_or_default();
    now.iter().map(|(key, counter)| (key.clone(), counter.since(before(key)))).collect()
}

fn interfaces(agent: &Agent) -> f64 {
    scrape(agent).sum("calico_accountant_kernel_interfaces_counted", &[])
}

/// A node with Felix' rules whose pods count, and a place for what outlives its agents.
struct Counted {
    lab: Lab,
    bpffs: BpfFilesystem,
    state: tempfile::TempDir,
}

impl Counted {
    fn new(backend: Backend) -> Self {
        let scenario = demo();
        let lab = Lab::new(&scenario);
        lab.node.felix(dialect(backend)).apply(&scenario.model).unwrap();
        for pod in lab.node.pods() {
            pod.netns.feed("nft", &["-f", "-"], WITNESS).unwrap();
        }
        Self { lab, bpffs: BpfFilesystem::new(), state: tempfile::tempdir().unwrap() }
    }

    /// An agent that counts at all interfaces.
    fn agent(&self) -> Agent {
        let agent = self.spawn();
        let pods = self.lab.node.pods().len() as f64;
        wait_until("all interfaces are counted", || interfaces(&agent) == pods);
        agent
    }

    /// Where programs around rules cannot be, each agent tries them first.
    fn spawn(&self) -> Agent {
        let mode = if lacks(Lacks::Programs) { "auto" } else { "interfaces" };
        let lock = self.lab.node.host().lock_file().display().to_string();
        let pins = self.bpffs.pins().display().to_string();
        let state = self.state.path().join("books").display().to_string();
        let places = ["--xtables-lock-file", &lock, "--kernel-pins", &pins, "--state-dir", &state];
        let more = ["--kernel-programs", mode, "--max-age", "0s", "--kernel-program-statistics=true"];
        let arguments = [&self.lab.arguments()[..], &places, &more].concat();
        start(self.lab.node.host(), &arguments)
    }

    fn detach(&self) -> (String, String, i32) {
        run(self.lab.node.host(), &["detach", "--kernel-pins", self.bpffs.pins().to_str().unwrap()])
    }
}

/// The filters of clsact at a pod's interface.
fn filters(host: &Namespace, pod: &Pod) -> String {
    let of = |hook| host.run("tc", &["filter", "show", "dev", pod.interface(), hook]).unwrap();
    of("ingress") + &of("egress")
}

fn every_packet_is_counted_once(backend: Backend) {
    let scenario = demo();
    let place = Counted::new(backend);
    let agent = place.agent();
    let lab = &place.lab;
    let visit = Visit::new(&lab.node).unwrap();
    let (before, told_before) = at_rest(lab, &agent);
    let mut truth = Truth::default();
    for _ in 0..2 {
        visit.round(&scenario.model, &mut truth, || drop(agent.accounts())).unwrap();
    }
    let (after, told) = at_rest(lab, &agent);
    let sent = since(&after, &before);
    assert_eq!(since(&told, &told_before), sent, "{backend:?}");
    for version in IpVersion::BOTH.map(|version| u64::from(version.number())) {
        let all = sent.iter().filter(|((_, _, of), _)| *of == version).map(|(_, counter)| counter.packets);
        assert!(all.clone().count() == 6 && all.sum::<u64>() > 100, "{version}: {sent:?}");
    }
    let runs =
        |program| scrape(&agent).sum("calico_accountant_bpf_program_run_count", &[("program", program)]);
    let passed = |direction| -> u64 {
        let those = told.iter().filter(|((_, way, _), _)| way == direction);
        those.map(|(_, counter)| counter.packets).sum()
    };
    // They see what is not of IP, too.
    assert!(runs("sent") >= passed("ingress") as f64 && runs("received") >= passed("egress") as f64);
    // Policies are told from the rules alone, as without any programs.
    assert_eq!(differences(&expected(&truth), &counted(&agent.settled().unwrap())), [""; 0], "{backend:?}");
    assert_eq!(scrape(&agent).sum("calico_accountant_kernel_programs_attached", &[]), 0.0);
}

#[test]
fn legacy() {
    every_packet_is_counted_once(Backend::Legacy);
}

#[test]
fn iptables_nft() {
    every_packet_is_counted_once(Backend::IptablesNft);
}

#[test]
fn native_nftables() {
    every_packet_is_counted_once(Backend::Nft);
}

/// Agents are killed under load: what comes meanwhile is counted, and nothing twice. What they leave goes when it is asked for.
#[test]
fn counting_goes_on_while_no_agent_is_there() {
    let place = Counted::new(Backend::Nft);
    let lab = &place.lab;
    let (host, client) = (lab.node.host(), lab.node.pod("default", "client").unwrap());
    let mut agent = place.agent();
    let (before, told_before) = at_rest(lab, &agent);
    let flood =
        Flood { rate: Some(2000), until: Until::Stopped, ..Flood::new(v4(&lab.node, "shop", "web"), 5000) };
    let running = flood.start(&client.netns);
    for pause in [0, 30, 100, 250] {
        std::thread::sleep(Duration::from_millis(pause));
        drop(agent);
        assert!(filters(host, client).contains("acct_sent"), "programs stay");
        std::thread::sleep(Duration::from_millis(pause));
        agent = place.agent();
    }
    running.stop().unwrap();
    let (after, told) = at_rest(lab, &agent);
    let sent = since(&after, &before);
    assert_eq!(since(&told, &told_before), sent);
    assert!(sent[&("web".into(), "ingress".into(), 4)].packets > 1000, "{sent:?}");

    let (_, said, code) = place.detach();
    assert!(code != 0 && said.contains("another agent"), "{said}");
    drop(agent);
    let (said, _, code) = place.detach();
    assert!(code == 0 && said.contains("detached the programs"), "{said}");
    for pod in lab.node.pods() {
        assert!(!filters(host, pod).contains("acct_"), "{}", filters(host, pod));
    }
}

/// Attaches somebody else's program behind all others, which drops what is sent to [`FOREIGN`]; it stays when this is over.
fn attach_foreign(interface: &str, at: TcAttachType) {
    let mut ebpf = EbpfLoader::new().btf(None).load(STAND_IN).unwrap();
    let program: &mut SchedClassifier = ebpf.program_mut("foreign").unwrap().try_into().unwrap();
    program.load().unwrap();
    let _ = tc::qdisc_add_clsact(interface);
    let behind = NlOptions { priority: 7, ..NlOptions::default() };
    let link = program.attach_with_options(interface, at, TcAttachOptions::Netlink(behind)).unwrap();
    std::mem::forget(program.take_link(link).unwrap());
}

/// Others' filters are let alone, and what they drop was counted; if somebody takes clsact away, the programs come back.
#[test]
fn others_at_the_interface_are_let_alone() {
    let place = Counted::new(Backend::Legacy);
    let lab = &place.lab;
    let (host, web) = (lab.node.host(), lab.node.pod("shop", "web").unwrap());
    let interface = web.interface();
    host.enter(|| attach_foreign(interface, TcAttachType::Ingress)).unwrap();
    let agent = place.agent();
    let (before, told_before) = at_rest(lab, &agent);
    let to_client = Flood::new(v4(&lab.node, "default", "client"), FOREIGN);
    Flood { until: Until::Packets(20), ..to_client }.run(&web.netns).unwrap();
    let (after, told) = at_rest(lab, &agent);
    let sent = since(&after, &before);
    assert_eq!(since(&told, &told_before), sent);
    let packets = |pod: &str, direction: &str| sent[&(pod.into(), direction.into(), 4)].packets;
    assert_eq!((packets("web", "egress"), packets("client", "ingress")), (20, 0));

    host.run("tc", &["qdisc", "del", "dev", interface, "clsact"]).unwrap();
    wait_until("the programs are attached again", || filters(host, web).contains("acct_sent"));
    drop(agent);
    host.enter(|| attach_foreign(interface, TcAttachType::Egress)).unwrap();
    assert_eq!(place.detach().2, 0);
    let left = filters(host, web);
    assert!(left.contains("foreign") && !left.contains("acct_"), "{left}");
}

/// An agent that keeps nothing for the next one takes its programs with it, unless it is killed: then `detach` does.
#[test]
fn programs_go_with_an_agent_that_keeps_nothing() {
    let place = Counted::new(Backend::Nft);
    let (lab, web) = (&place.lab, place.lab.node.pod("shop", "web").unwrap());
    let begin = || {
        let agent = lab.agent(&["--kernel-programs", "interfaces", "--kernel-pins=", "--max-age", "0s"]);
        wait_until("all interfaces are counted", || interfaces(&agent) == 3.0);
        agent
    };
    let mut agent = begin();
    kill(Pid::from_raw(agent.pid().cast_signed()), Signal::SIGTERM).unwrap();
    while !agent.has_ended() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(filters(lab.node.host(), web), "");
    drop(begin());
    assert!(filters(lab.node.host(), web).contains("acct_"), "killed");
    let (said, _, code) = run(lab.node.host(), &["detach", "--kernel-pins", "/nowhere"]);
    assert!(code == 0 && said.contains("detached the programs"), "{said}");
    assert_eq!(filters(lab.node.host(), web), "");
}

/// Where there is no place for programs, there is no account, rather than one that is wrong.
#[test]
fn what_cannot_be_counted_has_no_account() {
    let place = Counted::new(Backend::Legacy);
    let lab = &place.lab;
    let web = lab.node.pod("shop", "web").unwrap();
    lab.node.host().run("tc", &["qdisc", "add", "dev", web.interface(), "ingress"]).unwrap();
    let agent = place.spawn();
    wait_until("the other interfaces are counted", || interfaces(&agent) == 2.0);
    let before = at_rest(lab, &agent).0;
    let to_client = Flood::new(v4(&lab.node, "default", "client"), 5000);
    Flood { until: Until::Packets(20), ..to_client }.run(&web.netns).unwrap();
    let (after, told) = at_rest(lab, &agent);
    let of_web: Vec<_> =
        told.keys().filter(|(pod, ..)| pod == "web").map(|(_, way, _)| way.as_str()).collect();
    assert_eq!(of_web, ["egress"; 2]);
    let sent = since(&after, &before)[&("web".into(), "egress".into(), 4)];
    assert_eq!((sent.packets, told[&("web".into(), "egress".into(), 4)].packets >= 20), (20, true));
    assert!(agent.log().contains("its qdisc ingress has no place for what is sent"), "{}", agent.log());
}

/// Whatever an interface counted stays counted when it goes, and the next one of its name counts on.
#[test]
fn a_pod_that_goes_takes_nothing_with_it() {
    let scenario = demo();
    let mut place = Counted::new(Backend::Nft);
    let agent = place.agent();
    let web = ("web".to_string(), "ingress".to_string(), 4);
    let send = |place: &Counted, packets| {
        let client = place.lab.node.pod("default", "client").unwrap();
        let flood =
            Flood { until: Until::Packets(packets), ..Flood::new(v4(&place.lab.node, "shop", "web"), 5000) };
        flood.run(&client.netns).unwrap();
    };
    let before = at_rest(&place.lab, &agent).1[&web];
    send(&place, 30);
    place.lab.node.remove_pod("shop", "web").unwrap();
    let pod = scenario.model.endpoints.iter().find(|endpoint| endpoint.pod == "web").unwrap();
    place.lab.node.add_pod(pod).unwrap();
    let web_is_back = |place: &Counted| {
        filters(place.lab.node.host(), place.lab.node.pod("shop", "web").unwrap()).contains("acct_sent")
    };
    wait_until("the new interface is counted", || web_is_back(&place));
    send(&place, 12);
    let now = by_agent(&agent)[&web];
    assert_eq!(now.since(before).packets, 42);
}
