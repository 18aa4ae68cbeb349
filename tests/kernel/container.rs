//! The agent as the chart runs it: with exactly the DaemonSet's capabilities, mounts and environment, a root that cannot be written,
//! and the system calls that container runtimes allow; and with what the systemd unit allows. It counts, and is exact.

#[path = "calico_bpf/stand_in.rs"]
mod stand_in;
mod support;

use accountant_abi::calico::INGRESS;
use accountant_abi::stand_in::Case;
use accountant_core::calico::bpf::RuleId;
use accountant_core::calico::names::pod_interface;
use accountant_lab::Agent;
use accountant_lab::books::{counted, differences, expected};
use accountant_lab::felix::Backend;
use accountant_lab::policy::Truth;
use accountant_lab::scenario::{Visit, demo};
use accountant_lab::traffic::udp;
use stand_in::{NEWEST, Pins, StandIn};
use support::container::{Bpf, Container, Mounted};
use support::lab::{self, Lab, dialect};
use support::{Scrape, scrape, wait_until};

/// Whether counters are read in place, for the source that counts.
fn in_place(agent: &Agent) -> bool {
    let scrape = Scrape::parse(&agent.get("/metrics").unwrap().body);
    scrape.sum("calico_accountant_source_in_place", &[]) > 0.0
}

/// The agent in this container counts known traffic exactly, and reads in place if it may.
fn counts(backend: Backend, container: impl Fn(&Lab) -> Container, may_read_in_place: bool) {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(backend)).apply(&scenario.model).unwrap();
    let container = container(&lab);
    let agent = Agent::start(lab.node.host(), &container.program(), &[]).unwrap();
    let mut truth = Truth::default();
    let visit = Visit::new(&lab.node).unwrap();
    visit.round(&scenario.model, &mut truth, || drop(agent.accounts())).unwrap();
    let counted = counted(&agent.settled().unwrap());
    assert_eq!(differences(&expected(&truth), &counted), Vec::<String>::new(), "{backend:?}");
    assert_eq!(in_place(&agent), may_read_in_place, "{backend:?}: {}", agent.log());
}

#[test]
fn it_counts_with_the_capabilities_of_the_chart() {
    for backend in [Backend::Legacy, Backend::Nft] {
        counts(backend, |lab| Container::new(lab, Bpf::Allowed), true);
    }
    // Without bpf(2) it does without, and says so.
    counts(Backend::Legacy, |lab| Container::new(lab, Bpf::Refused), false);
}

#[test]
fn it_counts_with_what_the_unit_allows() {
    for backend in [Backend::Legacy, Backend::Nft] {
        counts(backend, Container::of_unit, true);
    }
}

/// The chart's update: the new agent starts beside the old one, counts, and serves when the old one ends. Rules are rewritten in
/// between, which sets their counters back, so only who was there has the count.
#[test]
fn an_update_leaves_no_gap() {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    let mut felix = lab.node.felix(dialect(Backend::Nft));
    felix.apply(&scenario.model).unwrap();
    let state = tempfile::tempdir().unwrap();
    let mounted = || Mounted { state: Some(state.path().into()), ..Mounted::default() };
    let [first, second] = [(), ()].map(|()| Container::mounting(&lab, Bpf::Allowed, mounted()));
    let old = Agent::start(lab.node.host(), &first.program(), &[]).unwrap();
    let new = Agent::spawn(lab.node.host(), &second.program(), &[]).unwrap();
    wait_until("the new agent waits", || new.log().contains("waits for its end"));
    let mut truth = Truth::default();
    let visit = Visit::new(&lab.node).unwrap();
    visit.round(&scenario.model, &mut truth, || drop(old.accounts())).unwrap();
    felix.apply(&scenario.model).unwrap();
    visit.round(&scenario.model, &mut truth, || drop(old.accounts())).unwrap();
    let before = counted(&old.settled().unwrap());
    assert_eq!(differences(&expected(&truth), &before), Vec::<String>::new());
    drop(old);
    wait_until("the new agent serves", || new.log().contains("serving"));
    let after = counted(&new.settled().unwrap());
    assert_eq!(differences(&before, &after), Vec::<String>::new());
}

/// Calico's eBPF dataplane, whose maps and listings it sees by what the chart mounts, read only.
#[test]
fn it_counts_verdicts_of_calico_bpf_through_its_mounts() {
    let scenario = demo();
    let (lab, pins) = (Lab::new(&scenario), Pins::new());
    let web = lab.node.pod("shop", "web").unwrap();
    let rules = ["PPE0|gnp/security.pass-rest", "DPE1|np/shop/web-egress"].map(|rule| RuleId::of(rule).0);
    let mut denied = Case { said: 2, hits: 2, mark: 0x0100_0000, ..Case::default() };
    denied.rules[..2].copy_from_slice(&rules);
    let begin = || {
        let mut stand_in = StandIn::new(&pins, NEWEST);
        stand_in.attach_both(&pod_interface("cali", "shop", "web").to_string());
        stand_in.decide(6000, INGRESS, denied);
        stand_in
    };
    let _stand_in = lab.node.host().enter(begin).unwrap();
    let mounted = || Mounted { calico: Some(pins.run()), bpf: Some(pins.filesystem()), ..Mounted::default() };
    let up = |agent: &Agent| scrape(agent).sum("calico_accountant_source_up", &[("source", "calico-bpf")]);
    // Which programs are attached is shown to who has this only.
    let container = Container::mounting(&lab, Bpf::Allowed, mounted());
    let agent = Agent::start(lab.node.host(), &container.program(), &[]).unwrap();
    wait_until("the source says what it lacks", || agent.log().contains("CAP_SYS_ADMIN"));
    let totals = scrape(&agent).sum("calico_accountant_source_totals_only", &[("source", "calico-bpf")]);
    assert_eq!((up(&agent), totals), (1.0, 1.0));
    drop(agent);
    let mounted = Mounted { capability: Some("CAP_SYS_ADMIN"), ..mounted() };
    let container = Container::mounting(&lab, Bpf::Allowed, mounted);
    let agent = Agent::start(lab.node.host(), &container.program(), &[]).unwrap();
    udp(&web.netns, lab::v4(&lab.node, "shop", "db"), 6000, 1, 7, 10).unwrap();
    let count = |action| {
        let labels = [("pod", "web"), ("direction", "egress"), ("ip_version", "4"), ("action", action)];
        scrape(&agent).sum("calico_accountant_policy_packets_total", &labels)
    };
    wait_until("verdicts are counted", || count("deny") >= 7.0 && count("pass") >= 7.0);
    assert_eq!((count("deny"), count("pass")), (7.0, 7.0));
    assert_eq!(up(&agent), 1.0);
}
