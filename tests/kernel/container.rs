//! The agent as the chart runs it: with exactly the DaemonSet's capabilities, mounts and environment, a root that cannot be written,
//! and the system calls that container runtimes allow. It counts, and is exact.

mod support;

use accountant_lab::Agent;
use accountant_lab::books::{Books, counted, differences, expected};
use accountant_lab::felix::Backend;
use accountant_lab::policy::Truth;
use accountant_lab::scenario::{Visit, demo};
use support::container::{Bpf, Container};
use support::lab::{Lab, dialect};
use support::{Scrape, wait_until};

/// Whether counters are read in place, for the source that counts.
fn in_place(agent: &Agent) -> bool {
    let scrape = Scrape::parse(&agent.get("/metrics").unwrap().body);
    scrape.sum("calico_accountant_source_in_place", &[]) > 0.0
}

#[test]
fn it_counts_with_the_capabilities_of_the_chart() {
    let scenario = demo();
    for (backend, bpf) in
        [(Backend::Legacy, Bpf::Allowed), (Backend::Nft, Bpf::Allowed), (Backend::Legacy, Bpf::Refused)]
    {
        let lab = Lab::new(&scenario);
        lab.node.felix(dialect(backend)).apply(&scenario.model).unwrap();
        let container = Container::new(&lab, bpf);
        let agent = Agent::start(lab.node.host(), &container.program(), &[]).unwrap();
        let mut truth = Truth::default();
        let visit = Visit::new(&lab.node).unwrap();
        visit.round(&scenario.model, &mut truth, || drop(agent.accounts())).unwrap();
        let counted = counted(&agent.settled().unwrap());
        assert_eq!(differences(&expected(&truth), &counted), Vec::<String>::new(), "{backend:?} {bpf:?}");
        // Without bpf(2) it does without, and says so.
        assert_eq!(in_place(&agent), bpf == Bpf::Allowed, "{backend:?} {bpf:?}: {}", agent.log());
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
    let [first, second] = [Container::new(&lab, Bpf::Allowed), Container::new(&lab, Bpf::Allowed)];
    let old = Agent::start(lab.node.host(), &first.program(), &[]).unwrap();
    let new = Agent::spawn(lab.node.host(), &second.program(), &[]).unwrap();
    // It says so when it has begun to count and finds the port taken.
    wait_until("the new agent finds the port taken", || new.log().contains("cannot listen"));
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
    assert_eq!(differences(&of_own_rules(before), &of_own_rules(after)), Vec::<String>::new());
}

/// What a rule of its own counts. The rest is worked out from readings, and the new agent had few: nobody asked it.
fn of_own_rules(books: Books) -> Books {
    books.into_iter().filter(|(line, _)| line.verdict == "allow" || line.by == "no_policy").collect()
}
