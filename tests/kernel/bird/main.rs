//! BIRD as Debian has it, 1.6 and 2: sessions that are up, filtered, down, back and never there; and sockets that are none.

mod sockets;
#[path = "../support/mod.rs"]
mod support;

use accountant_lab::Agent;
use support::routers::{Pair, Version};
use support::{Scrape, program, run, scrape, wait_until};

const SESSION: &str = "Mesh_192_0_2_2";
const NOBODY: &str = "Node_192_0_2_9";

/// The value of the one series with these labels and nothing else.
fn only(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let labels = labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    scrape.series.get(&(name.to_string(), labels)).copied()
}

fn of_session(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    only(scrape, name, &[&[("bird_protocol_instance", SESSION)], labels].concat())
}

fn state(scrape: &Scrape) -> Option<String> {
    let session = |labels: &std::collections::BTreeMap<String, String>| {
        labels.get("bird_protocol_instance").is_some_and(|name| name == SESSION)
    };
    let found = scrape.series.keys().find(|(name, labels)| name == "bird_bgp_state" && session(labels));
    found.map(|(_, labels)| labels["bird_bgp_state"].clone())
}

fn established(agent: &Agent) -> bool {
    state(&scrape(agent)).as_deref() == Some("Established")
}

fn follow_a_session(version: Version) {
    let mut pair = Pair::new(version);
    let sockets = pair.sockets();
    let agent =
        Agent::start(pair.here(), program(), &["--poll-interval", "100ms", "--bird-socket", &sockets])
            .unwrap();
    wait_until("the session is established", || established(&agent));
    // Routes follow.
    let route = |scrape: &Scrape, sort| of_session(scrape, "bird_routes", &[("bird_route_type", sort)]);
    wait_until("routes came", || {
        let now = scrape(&agent);
        ["imported", "filtered", "exported", "preferred"].map(|sort| route(&now, sort))
            == [1, 1, 2, 1].map(|n| Some(f64::from(n)))
    });
    let up = scrape(&agent);
    assert_eq!(of_session(&up, "bird_up", &[]), Some(1.0));
    assert_eq!(of_session(&up, "bird_preference", &[]), Some(100.0));
    assert_eq!(of_session(&up, "bird_hold_timer_initial", &[]), Some(30.0));
    assert_eq!(of_session(&up, "bird_keepalive_timer_initial", &[]), Some(10.0));
    assert!(of_session(&up, "bird_hold_timer_current", &[]).is_some_and(|left| left <= 30.0));
    assert!(of_session(&up, "bird_uptime_seconds", &[]).is_some_and(|age| age < 60.0));
    let change = |action, outcome| {
        let labels = [("bird_direction", "import"), ("bird_action", action), ("bird_outcome", outcome)];
        of_session(&up, "bird_route_changes", &labels)
    };
    let updates =
        ["received", "rejected", "filtered", "ignored", "accepted"].map(|outcome| change("updates", outcome));
    assert_eq!(updates, [2, 0, 1, 0, 1].map(|n| Some(f64::from(n))));
    assert_eq!(change("withdraws", "filtered"), None, "BIRD prints --- there");
    assert_eq!(only(&up, "bird_up", &[("bird_protocol_instance", "static1")]), Some(1.0));
    assert_eq!(only(&up, "bird_up", &[("bird_protocol_instance", NOBODY)]), Some(0.0));
    if version == Version::V1_6 {
        let six = [("bird_protocol_instance", "static1"), ("bird_daemon", "bird6")];
        assert_eq!(only(&up, "bird_up", &six), Some(1.0), "the daemon of IPv6");
    }
    let changes = |scrape: &Scrape| of_session(scrape, "bird_state_changes_total", &[]).unwrap();
    let before = changes(&up);
    pair.there("disable");
    wait_until("it is seen to be down", || of_session(&scrape(&agent), "bird_up", &[]) == Some(0.0));
    let down = scrape(&agent);
    assert_ne!(state(&down).unwrap(), "Established");
    assert_eq!(of_session(&down, "bird_uptime_seconds", &[]), None);
    assert!(changes(&down) > before);
    pair.there("enable");
    wait_until("it is back", || established(&agent));
    assert!(changes(&scrape(&agent)) > changes(&down));

    pair.kill();
    let answers = |agent: &Agent| only(&scrape(agent), "calico_accountant_bird_answers", &[]);
    wait_until("BIRD is missed", || answers(&agent) == Some(0.0));
    let gone = scrape(&agent);
    assert_eq!(state(&gone), None);
    assert!(
        only(&gone, "calico_accountant_bird_errors_total", &[("reason", "refused")]).is_some_and(|n| n > 0.0)
    );
    let (said, ..) = run(pair.here(), &["check", "--bird-socket", &sockets]);
    assert!(said.contains("bird: failing (cannot connect to"), "{said}");
    assert!(agent.log().contains("BIRD does not run"), "{}", agent.log());
    pair.start();
    wait_until("BIRD is back", || established(&agent));
}

#[test]
fn a_session_of_bird_1_6() {
    follow_a_session(Version::V1_6);
}

#[test]
fn a_session_of_bird_2() {
    follow_a_session(Version::V2);
}
