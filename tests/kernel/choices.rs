//! What `accountant check` says of this kernel is what the agent then does on it, for each backend and for Calico's eBPF
//! dataplane. Findings are printed as well, a line each: `cargo xtask vm-test` goes by them.

#[path = "calico_bpf/stand_in.rs"]
mod stand_in;
mod support;

use accountant_lab::felix::Backend;
use accountant_lab::scenario::demo;
use accountant_lab::{Agent, Namespace};
use serde_json::Value;
use stand_in::{NEWEST, Pins, StandIn};
use support::lab::{Lab, dialect};
use support::{Scrape, run, scrape, wait_until};

/// What `check` finds; printed under this name.
fn check(name: &str, host: &Namespace, arguments: &[&str]) -> Value {
    let (out, err, code) = run(host, &[&["check", "--json"], arguments].concat());
    let said: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    println!("\nchoice {name} {said}");
    assert_eq!(said["works"], code == 0, "{said:#}");
    said
}

/// The source that counts, as `check` has it.
fn counting(said: &Value) -> &Value {
    let counting: Vec<_> =
        said["sources"].as_array().unwrap().iter().filter(|source| source["state"] == "counting").collect();
    assert_eq!(counting.len(), 1, "{said:#}");
    counting[0]
}

/// What the agent says it does, once it has read its sources twice.
fn doing(agent: &Agent) -> Scrape {
    agent.accounts().unwrap();
    agent.accounts().unwrap();
    scrape(agent)
}

/// What cannot be has a reason, and what can be has none.
fn said_is_done(said: &Value, done: &Scrape) {
    let source = counting(said);
    let of_source = [("source", source["name"].as_str().unwrap())];
    for (field, metric) in [
        ("in_place", "calico_accountant_source_in_place"),
        ("rewrites_watched", "calico_accountant_source_rewrites_watched"),
    ] {
        let said = f64::from(u8::from(source[field].as_bool().unwrap()));
        assert_eq!(done.sum(metric, &of_source), said, "{metric}: {source:#}");
    }
    let programs = &said["kernel_programs"];
    let attached = programs["attached"].as_bool().unwrap();
    let metric = "calico_accountant_kernel_programs_attached";
    assert_eq!(done.sum(metric, &[]), f64::from(u8::from(attached)), "{programs:#}");
}

fn rules(backend: Backend) {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(backend)).apply(&scenario.model).unwrap();
    let lock = lab.node.host().lock_file().display().to_string();
    let arguments = [&lab.arguments()[..], &["--xtables-lock-file", &lock]].concat();
    let said = check(&backend.to_string(), lab.node.host(), &arguments);
    let programs = &said["kernel_programs"];
    let hooks = programs["hooks"].as_array().unwrap();
    let named = |name: &str| hooks.iter().any(|hook| hook["hook"] == name);
    let is_listed =
        named("packet filter, IPv4 forward") && named("packet filter, IPv6 prerouting, raw table");
    assert!(is_listed || said["kernel_programs"]["attached"] == false, "{programs:#}");
    let all_can = hooks.iter().all(|hook| hook["reason"].is_null());
    assert_eq!(programs["attached"].as_bool().unwrap(), all_can, "{programs:#}");
    let agent = lab.agent(&["--xtables-lock-file", &lock, "--max-age", "0s"]);
    let done = doing(&agent);
    said_is_done(&said, &done);
    let interfaces = &programs["interfaces"];
    let counted = done.sum("calico_accountant_kernel_interfaces_counted", &[]);
    let said = if interfaces.is_object() && interfaces["reason"].is_null() { 3.0 } else { 0.0 };
    assert_eq!(counted, said, "{interfaces}");
    assert!(all_can != interfaces.is_object(), "{programs:#}");
    if all_can {
        while_it_runs(&lab, &arguments);
    }
}

/// Where an agent runs, its programs are found, and nothing is said to be impossible for that.
fn while_it_runs(lab: &Lab, arguments: &[&str]) {
    let (out, ..) = run(lab.node.host(), &[&["check", "--json"], arguments].concat());
    let said: Value = serde_json::from_str(&out).unwrap();
    let programs = &said["kernel_programs"];
    assert_eq!(programs["reason"], "a running agent has attached them", "{programs:#}");
    for hook in programs["hooks"].as_array().unwrap() {
        let is_filter = hook["hook"].as_str().is_some_and(|name| name.starts_with("packet filter"));
        let is_always = is_filter && !hook["hook"].as_str().unwrap().ends_with(" table");
        assert_eq!((hook["reason"].is_null(), hook["taken"] == true), (true, is_always), "{hook:#}");
    }
}

#[test]
fn legacy() {
    rules(Backend::Legacy);
}

#[test]
fn iptables_nft() {
    rules(Backend::IptablesNft);
}

#[test]
fn native_nftables() {
    rules(Backend::Nft);
}

#[test]
fn calico_bpf() {
    let scenario = demo();
    let (lab, pins) = (Lab::new(&scenario), Pins::new());
    let at = pins.path().display().to_string();
    let _stand_in = lab
        .node
        .host()
        .enter(|| {
            let mut stand_in = StandIn::new(&pins, NEWEST);
            stand_in.attach_both("eth0");
            for pod in &scenario.model.endpoints {
                stand_in.attach_both(pod.interface.as_str());
            }
            stand_in
        })
        .unwrap();
    let more = ["--calico-bpf-pins", &at];
    let said = check("calico-bpf", lab.node.host(), &[&lab.arguments()[..], &more].concat());
    let source =
        said["sources"].as_array().unwrap().iter().find(|source| source["name"] == "calico-bpf").unwrap();
    if source["state"] == "failing" {
        let agent = lab.spawn(&more);
        let reason = source["reason"].as_str().unwrap();
        assert!(reason.contains("our programs cannot run beside Calico's: "), "{reason}");
        wait_until("the agent says why it is not ready", || {
            agent.get("/readyz").is_ok_and(|answer| answer.status == 503 && answer.body.contains(reason))
        });
    } else {
        let agent = lab.agent(&[&more[..], &["--max-age", "0s"]].concat());
        said_is_done(&said, &doing(&agent));
    }
}
