//! What programs in the kernel rely on goes away under them: interfaces and whole pods while packets are on their way, before
//! anybody has looked them up or after; maps that do not fit. The rest is counted, and it is said.

mod support;

use accountant_lab::felix::Backend;
use accountant_lab::policy::Endpoint;
use accountant_lab::traffic::{Flood, Until, udp};
use accountant_lab::{Agent, Namespace};
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use support::lab::{Lab, arrived, dialect, v4};
use support::place::{Place, is_attached, names};
use support::streams::{ALLOWED, DENIED_LAST, shop};
use support::{Lacks, lacks, scrape, wait_until};

/// How often the pod comes and goes.
const TIMES: usize = 5;
/// Packets a second to the pod that stays.
const RATE: u32 = 2000;
/// Packets of the pod that goes, before it does.
const AT_LEAST: u64 = 200;

/// New packets to the web, as the programs saw them and as its policy decided.
fn to_web(agent: &Agent) -> (u64, u64) {
    agent.settled().unwrap();
    let scrape = scrape(agent);
    let of = |name: &str, more: (&str, &str)| {
        scrape.sum(&format!("calico_accountant_{name}"), &[("pod", "web"), ("direction", "ingress"), more])
            as u64
    };
    (of("endpoint_packets_total", ("state", "new")), of("policy_packets_total", ("action", "allow")))
}

/// Packets that the web's policy denied.
fn denied(agent: &Agent) -> u64 {
    let labels = [("pod", "web"), ("direction", "ingress"), ("action", "deny"), ("tier", "default")];
    scrape(agent).sum("calico_accountant_policy_packets_total", &labels) as u64
}

/// Sends until it is told to end, whatever becomes of it.
struct Restless {
    sent: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<accountant_lab::error::Result<()>>>,
}

impl Restless {
    fn start(from: &Namespace, to: IpAddr) -> Self {
        let (sent, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counts, ends) = (sent.clone(), over.clone());
        let thread = from.spawn(move || {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            while !ends.load(Ordering::Relaxed) {
                if socket.send_to(&[0; 32], (to, ALLOWED)).is_ok() {
                    counts.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { sent, over, thread: Some(thread) }
    }
}

impl Drop for Restless {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

/// A pod's interface and namespace vanish while it sends, again and again, and come back with another number; its rules stay.
fn pods_vanish(backend: Backend) {
    let mut scenario = shop();
    let address = "10.65.0.9".parse().unwrap();
    let fleeting = Endpoint::new("default", "fleeting", &[address]).label("app", "fleeting");
    scenario.model.endpoints.push(fleeting.clone());
    let mut lab = Lab::new(&scenario);
    lab.node.felix(dialect(backend)).apply(&scenario.model).unwrap();
    let lock = lab.node.host().lock_file().display().to_string();
    let mut agent = lab.agent(&["--max-age", "0s", "--poll-interval", "100ms", "--xtables-lock-file", &lock]);
    let sees = !lacks(Lacks::Programs);
    if sees {
        wait_until("programs are attached", || is_attached(&agent));
    }
    let web = v4(&lab.node, "shop", "web");
    let steady = Flood { rate: Some(RATE), until: Until::Stopped, ..Flood::new(web, DENIED_LAST) };
    let steady = steady.start(&lab.node.pod("default", "client").unwrap().netns);
    let mut most = 0;
    for _ in 0..TIMES {
        let pod = lab.node.add_pod(&fleeting).unwrap();
        let restless = Restless::start(&pod.netns, web);
        wait_until("it has sent", || restless.sent.load(Ordering::Relaxed) >= AT_LEAST);
        lab.node.remove_pod("default", "fleeting").unwrap();
        most += restless.sent.load(Ordering::Relaxed);
        drop(restless);
        // Gone before anybody looks it up.
        lab.node.add_pod(&fleeting).unwrap();
        lab.node.remove_pod("default", "fleeting").unwrap();
    }
    let sent = arrived(steady.stop().unwrap()).usual;
    let (seen, allowed) = to_web(&agent);
    assert_eq!(denied(&agent), sent);
    assert!(allowed >= AT_LEAST * TIMES as u64 / 2 && allowed <= most, "{allowed} of {most}");
    if sees {
        assert_eq!(seen, allowed + sent);
        assert!(is_attached(&agent));
    }
    // It is there again, and counted again.
    let pod = lab.node.add_pod(&fleeting).unwrap();
    let of_pod = |agent: &Agent| {
        agent.settled().unwrap();
        let labels = [("pod", "fleeting"), ("direction", "egress"), ("state", "new")];
        scrape(agent).sum("calico_accountant_endpoint_packets_total", &labels) as u64
    };
    let before = of_pod(&agent);
    udp(&pod.netns, web, ALLOWED, 3, 4, 32).unwrap();
    assert_eq!(to_web(&agent).1, allowed + 12);
    if sees {
        assert_eq!(of_pod(&agent), before + 12);
    }
    let log = agent.log();
    assert!(!log.contains("ERROR") && !log.contains("panicked") && !agent.has_ended(), "{log}");
}

#[test]
fn pods_vanish_under_load_of_legacy() {
    pods_vanish(Backend::Legacy);
}

#[test]
fn pods_vanish_under_load_of_nftables() {
    pods_vanish(Backend::Nft);
}

/// Somebody else's maps have the names of ours, or one is missing: they are given up, that is said, and counting goes on.
#[test]
fn maps_that_do_not_fit_are_given_up() {
    if lacks(Lacks::Programs) {
        return;
    }
    let place = Place::new(Backend::Nft);
    let send = |packets| {
        let client = &place.lab.node.pod("default", "client").unwrap().netns;
        udp(client, v4(&place.lab.node, "shop", "web"), ALLOWED, 1, packets, 32).unwrap();
    };
    let maps = || {
        let (folder, left) = place.left();
        assert_eq!(left.len(), 1, "{left:?}");
        folder.join(&left[0])
    };
    let agent = place.agent();
    wait_until("programs are attached", || is_attached(&agent));
    send(3);
    assert_eq!(to_web(&agent), (3, 3));
    drop(agent);

    let exchange = |maps: PathBuf| {
        // A value of each is of another size.
        let [interfaces, lists, aside] = ["INTERFACES", "LISTS", "ASIDE"].map(|name| maps.join(name));
        for (from, to) in [(&interfaces, &aside), (&lists, &interfaces), (&aside, &lists)] {
            fs::rename(from, to).unwrap();
        }
    };
    let lose = |maps: PathBuf| fs::remove_file(maps.join("TOTALS")).unwrap();
    let spoils: [(&dyn Fn(PathBuf), &str); 2] = [(&exchange, "INTERFACES"), (&lose, "TOTALS")];
    let mut sent = 3;
    for (spoil, name) in spoils {
        spoil(maps());
        let agent = place.agent();
        wait_until("programs are attached", || is_attached(&agent));
        let log = agent.log();
        assert!(log.contains("what an earlier agent left does not fit"), "{log}");
        assert!(log.contains(name) && !log.contains("ends with the agent"), "{log}");
        send(4);
        sent += 4;
        assert_eq!(to_web(&agent), (sent, sent));
        drop(agent);
        // What it made in their place is used by the next one.
        let agent = place.agent();
        assert!(agent.log().contains("the programs of an earlier agent go on counting"), "{}", agent.log());
        send(1);
        sent += 1;
        assert_eq!(to_web(&agent), (sent, sent));
    }
    assert!(names(&maps()).contains(&"TOTALS".to_string()));
}
