//! Felix changes from one backend to another while the agent runs, and two backends hold its chains at once: that is
//! said, and nothing is counted twice or lost.

mod support;

use accountant_lab::Agent;
use accountant_lab::apply::Felix;
use accountant_lab::books::{Books, counted, differences, expected};
use accountant_lab::felix::{Backend, Dialect, Version};
use accountant_lab::policy::{Action, Model, Tier, TierEnd, Truth};
use accountant_lab::scenario::{Visit, demo};
use serde_json::Value;
use support::lab::Lab;
use support::run;

/// Written by whom, one after the other: every change between two of them is among these.
const WAY: [(Version, Backend); 7] = [
    (Version::V3_31, Backend::Legacy),
    (Version::V3_31, Backend::IptablesNft),
    (Version::V3_33, Backend::Nft),
    (Version::V3_31, Backend::Legacy),
    (Version::V3_33, Backend::Nft),
    (Version::V3_31, Backend::IptablesNft),
    (Version::V3_31, Backend::Legacy),
];

fn source(backend: Backend) -> &'static str {
    if backend == Backend::Legacy { "iptables-legacy" } else { "nftables" }
}

/// State and reason of a source.
fn state(accounts: &Value, source: &str) -> (String, String) {
    let of_name = |s: &&Value| s["name"] == source;
    let found = accounts["sources"].as_array().unwrap().iter().find(of_name).unwrap();
    let text = |field: &str| found[field].as_str().unwrap().to_string();
    (text("state"), text("reason"))
}

/// One round of traffic, then every number.
fn round(agent: &Agent, visit: &Visit<'_>, model: &Model, truth: &mut Truth, when: &str) -> Value {
    visit.round(model, truth, || drop(agent.accounts())).unwrap();
    let accounts = agent.settled().unwrap();
    assert_eq!(differences(&expected(truth), &counted(&accounts)), [""; 0], "{when}");
    accounts
}

#[test]
fn felix_changes_the_backend() {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    let model = &scenario.model;
    let felix = |(version, backend)| lab.node.felix(Dialect::new(version, backend).unwrap());
    let mut present: Felix = felix(WAY[0]);
    present.apply(model).unwrap();
    let lock = lab.node.host().lock_file().display().to_string();
    let agent = lab.agent(&["--max-age", "0s", "--xtables-lock-file", &lock]);
    let visit = Visit::new(&lab.node).unwrap();
    let mut truth = Truth::default();
    round(&agent, &visit, model, &mut truth, "at first");

    for (number, next) in WAY.into_iter().enumerate().skip(1) {
        let (old, new) = (present.dialect().backend(), next.1);
        let mut following = felix(next);
        following.apply(model).unwrap();
        let accounts = round(&agent, &visit, model, &mut truth, &format!("{number}: {old} and {new}"));
        assert!(agent.log().contains("several backends hold Calico's chains"), "{}", agent.log());
        if source(old) != source(new) {
            // Which of the two is counted depends on which of them the kernel asks first.
            let reasons = [old, new].map(|backend| {
                let (state, reason) = state(&accounts, source(backend));
                assert_eq!(state, "counting", "{reason}");
                reason
            });
            let second = |reason: &&String| reason.contains("another backend has Calico's chains");
            assert_eq!(reasons.iter().filter(second).count(), 1, "{reasons:?}");
        }

        present.remove_rules().unwrap();
        let accounts = round(&agent, &visit, model, &mut truth, &format!("{number}: {old} is gone, {new}"));
        assert_eq!(state(&accounts, source(new)), ("counting".into(), String::new()));
        if source(old) != source(new) {
            assert_eq!(state(&accounts, source(old)).0, "absent", "{number}");
        }
        present = following;
    }
    let scrape = support::scrape(&agent);
    assert_eq!(scrape.sum("calico_accountant_unattributed_packets_total", &[]), 0.0);
}

/// Verdicts. What was passed on follows from several counters and is told late, so what two backends tell of it without
/// readings in between cannot always be told apart; which members of a group allowed how much neither.
fn roughly(books: Books) -> Books {
    let mut rough = Books::new();
    for (mut line, packets) in books {
        if line.verdict == "pass" {
            continue;
        }
        if ["NetworkPolicy shop/metrics", "NetworkPolicy shop/probes"].contains(&line.by.as_str()) {
            line.by = "PolicyGroup shop/metrics,probes".into();
        }
        *rough.entry(line).or_default() += packets;
    }
    rough
}

/// Both backends count for a while in which nobody asks.
#[test]
fn a_change_between_two_polls() {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    let lock = lab.node.host().lock_file().display().to_string();
    for way in WAY.windows(2) {
        let [mut old, mut new] = [way[0], way[1]]
            .map(|(version, backend)| lab.node.felix(Dialect::new(version, backend).unwrap()));
        old.apply(&scenario.model).unwrap();
        let agent = lab.agent(&["--poll-interval", "1h", "--max-age", "0s", "--xtables-lock-file", &lock]);
        let visit = Visit::new(&lab.node).unwrap();
        let mut truth = Truth::default();
        let never = || ();
        new.apply(&scenario.model).unwrap();
        visit.round(&scenario.model, &mut truth, never).unwrap();
        old.remove_rules().unwrap();
        // The agent notices by itself, but not at once; what passes until then is not told from what both counted. Whoever
        // asks can be answered by readings that began before.
        drop(agent.settled().unwrap());
        visit.round(&scenario.model, &mut truth, never).unwrap();
        let (sent, found) = (roughly(expected(&truth)), roughly(counted(&agent.settled().unwrap())));
        assert_eq!(differences(&sent, &found), [""; 0], "{way:?}");
        new.remove_everything().unwrap();
    }
}

/// Old chains that nothing passes any more are not what is counted.
#[test]
fn what_moves_is_counted() {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    let [mut old, mut living] =
        [Backend::Legacy, Backend::Nft].map(|backend| lab.node.felix(support::lab::dialect(backend)));
    old.apply(&scenario.model).unwrap();
    // Nothing leads to the old chains any more.
    for tool in ["iptables-legacy", "ip6tables-legacy"] {
        for base in ["INPUT", "FORWARD", "OUTPUT"] {
            lab.node.host().run(tool, &["-w", "-F", base]).unwrap();
        }
    }
    living.apply(&scenario.model).unwrap();
    let agent = lab.agent(&["--max-age", "0s"]);
    let visit = Visit::new(&lab.node).unwrap();
    let mut truth = Truth::default();
    visit.round(&scenario.model, &mut truth, || drop(agent.accounts())).unwrap();
    let accounts = agent.accounts().unwrap();
    assert_eq!(differences(&expected(&truth), &counted(&accounts)), [""; 0]);
}

/// Old chains of other rules are still in the way of packets, and accept more than the living ones: what these drop is
/// counted, though the old ones count more packets.
#[test]
fn what_either_drops_is_counted() {
    let scenario = demo();
    let mut lenient = scenario.model.clone();
    decide(&mut lenient.tiers, Action::Allow);
    for number in 0..3 {
        let mut passing = lenient.tiers[..1].to_vec();
        decide(&mut passing, Action::Pass);
        passing[0].name = format!("passing-{number}").into();
        passing[0].end = TierEnd::Pass;
        passing[0]
            .policies
            .iter_mut()
            .for_each(|policy| policy.id.name = format!("{}-{number}", policy.id.name).into());
        lenient.tiers.splice(..0, passing);
    }
    for [old, living] in [[Backend::Legacy, Backend::Nft], [Backend::Nft, Backend::Legacy]] {
        let lab = Lab::new(&scenario);
        let [mut old, mut living] =
            [old, living].map(|backend| lab.node.felix(support::lab::dialect(backend)));
        old.apply(&lenient).unwrap();
        let lock = lab.node.host().lock_file().display().to_string();
        let agent = lab.agent(&["--max-age", "0s", "--xtables-lock-file", &lock]);
        drop(agent.settled().unwrap());
        living.apply(&scenario.model).unwrap();
        drop(agent.settled().unwrap());
        let visit = Visit::new(&lab.node).unwrap();
        let mut truth = Truth::default();
        visit.round(&scenario.model, &mut truth, || drop(agent.accounts())).unwrap();
        let denies = |mut books: Books| {
            books.retain(|line, _| line.verdict == "deny");
            books
        };
        let sent = denies(expected(&truth));
        assert!(sent.values().sum::<u64>() > 20, "{sent:?}");
        let found = denies(counted(&agent.settled().unwrap()));
        assert_eq!(differences(&sent, &found), [""; 0]);
    }
}

fn decide(tiers: &mut [Tier], action: Action) {
    let policies = tiers.iter_mut().flat_map(|tier| &mut tier.policies);
    for rule in policies.flat_map(|policy| [&mut policy.ingress, &mut policy.egress]).flatten().flatten() {
        rule.action = action;
    }
}

#[test]
fn two_backends_are_told_by_check_and_show() {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    for backend in [Backend::Legacy, Backend::Nft] {
        lab.node.felix(support::lab::dialect(backend)).apply(&scenario.model).unwrap();
    }
    for command in ["check", "show"] {
        let (out, err, code) = run(lab.node.host(), &[command]);
        assert_eq!(code, 0, "{out}{err}");
        assert!(out.contains("another backend has Calico's chains"), "{command}: {out}{err}");
    }
}
