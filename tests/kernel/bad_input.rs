//! Tables, counters, objects and circumstances as they should not be: each is said or set apart, the agent goes on, and
//! nothing that is counted is lost.

mod support;

use accountant_core::calico::names::pod_interface;
use accountant_lab::books::{Books, Line, counted, differences, expected};
use accountant_lab::felix::Backend;
use accountant_lab::policy::Truth;
use accountant_lab::scenario::{Visit, demo};
use accountant_lab::traffic::udp;
use accountant_lab::{Agent, Namespace};
use serde_json::Value;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::lab::{Lab, dialect, v4};
use support::{program, run, scrape, wait_until};

/// A lab with rules and an agent that reads at every question.
fn counting(backend: Backend) -> (Lab, Agent) {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(backend)).apply(&scenario.model).unwrap();
    let agent = lab.agent(&["--max-age", "0s"]);
    (lab, agent)
}

/// One round of traffic, every number exact.
fn exact(lab: &Lab, agent: &Agent, truth: &mut Truth) {
    let model = demo().model;
    Visit::new(&lab.node).unwrap().round(&model, truth, || drop(agent.accounts())).unwrap();
    let accounts = agent.accounts().unwrap();
    assert_eq!(differences(&expected(truth), &counted(&accounts)), [""; 0]);
}

/// What the pod `web` was sent and allowed by the policy `web`.
fn allowed(accounts: &Value) -> u64 {
    counted(accounts).iter().filter(|(line, _)| is_allowed(line)).map(|(_, packets)| packets).sum()
}

/// What the policy `web` allowed to anybody.
fn is_allowed(line: &Line) -> bool {
    line.by == "KubernetesNetworkPolicy shop/web" && line.verdict == "allow"
}

/// Packets that the policy `web` allows.
fn send(lab: &Lab, packets: u32) {
    let client = &lab.node.pod("default", "client").unwrap().netns;
    udp(client, v4(&lab.node, "shop", "web"), 5000, 1, packets, 10).unwrap();
}

/// Chains of others in Calico's tables, and tables of others with chains of Calico's names.
#[test]
fn foreign_chains_and_tables() {
    let foreign = "*filter\n:KUBE-FORWARD - [0:0]\n:CNI-FORWARD - [0:0]\n:cali - [0:0]\n:cali-unheard-of - [0:0]\n\
        [7:700] -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n[9:900] -A CNI-FORWARD -j RETURN\n\
        [5:500] -A cali-unheard-of -j DROP\n[3:300] -A FORWARD -j KUBE-FORWARD\nCOMMIT\n\
        *security\n:cali-tw-eth9 - [0:0]\n[8:80] -A cali-tw-eth9 -j DROP\nCOMMIT\n";
    for (backend, tool) in
        [(Backend::Legacy, "iptables-legacy-restore"), (Backend::IptablesNft, "iptables-nft-restore")]
    {
        let (lab, agent) = counting(backend);
        let host = lab.node.host();
        host.feed(tool, &["--noflush", "--counters", "--wait"], foreign).unwrap();
        let rule = "counter packets 5 bytes 50 drop";
        let tables = ["ip mine", "inet filter", "bridge calico", "netdev calico"].map(|table| {
            format!("table {table} {{ chain cali-tw-eth9 {{ {rule}; }}; chain filter-cali-tw-eth9 {{ {rule}; }}; }}\n")
        });
        host.feed("nft", &["-f", "-"], &tables.concat()).unwrap();
        // What is sent before the agent has seen the rewrite is not what this is about.
        agent.settled().unwrap();
        let mut truth = Truth::default();
        exact(&lab, &agent, &mut truth);
        let strange = |line: &&Line| line.workload.contains("eth9");
        assert_eq!(counted(&agent.accounts().unwrap()).keys().find(strange), None, "{backend}");
    }
}

/// Rules without counters count nothing; others of the same table do.
#[test]
fn chains_without_counters() {
    let (lab, agent) = counting(Backend::Nft);
    let text = "add chain ip calico filter-cali-tw-cali00000000001\n\
        add rule ip calico filter-cali-tw-cali00000000001 ct state established accept\n\
        add rule ip calico filter-cali-tw-cali00000000001 drop comment \"cali:0123456789abcdef; Drop if no profiles matched\"\n\
        add chain ip calico filter-cali-tw-cali00000000002\n";
    lab.node.host().feed("nft", &["-f", "-"], text).unwrap();
    let mut truth = Truth::default();
    exact(&lab, &agent, &mut truth);
    assert_eq!(scrape(&agent).sum("calico_accountant_unattributed_packets_total", &[]), 0.0);
}

/// Comments that are cut short, empty, of no known form, or full of what text formats have to escape.
#[test]
fn strange_comments() {
    for (backend, tool) in
        [(Backend::Legacy, "iptables-legacy-restore"), (Backend::IptablesNft, "iptables-nft-restore")]
    {
        let (lab, agent) = counting(backend);
        let mut text = String::from("*filter\n:cali-tw-calistrange - [0:0]\n");
        let long = "x".repeat(255);
        let comments = [
            "cali:",
            "cali:short",
            "cali:\u{fffd}\u{e9}\u{4e16}",
            "Start of tier ",
            "Start of tier a\\\"b\\\\c",
            "Policy  ingress",
            "Policy shop/ ingress",
            "End of tier",
            "Return if policy",
            "cali:0123456789abcdef;;",
            &long,
        ];
        for (number, comment) in comments.iter().enumerate() {
            text.push_str(&format!(":cali-pi-strange{number} - [0:0]\n"));
            text.push_str(&format!(
                "[{number}:60] -A cali-pi-strange{number} -m comment --comment \"{comment}\" -j MARK --set-mark 0x10000/0x10000\n"
            ));
            text.push_str(&format!(
                "[{number}:60] -A cali-tw-calistrange -m comment --comment \"{comment}\" -m mark --mark 0x0/0x20000 -j cali-pi-strange{number}\n"
            ));
            text.push_str(&format!(
                "[{number}:60] -A cali-tw-calistrange -m comment --comment \"{comment}\" -m mark --mark 0x10000/0x10000 -j RETURN\n"
            ));
        }
        text.push_str("COMMIT\n");
        lab.node.host().feed(tool, &["--noflush", "--counters", "--wait"], &text).unwrap();
        // Parsing it finds label values that are not escaped, and series that are there twice.
        let accounts = agent.accounts().unwrap();
        scrape(&agent);
        let strange = |account: &&Value| account["pod"] == "calistrange";
        assert!(
            accounts["accounts"].as_array().unwrap().iter().any(|account| strange(&account)),
            "{backend}"
        );
        send(&lab, 3);
        assert_eq!(allowed(&agent.accounts().unwrap()), 3, "{backend}");
    }
}

/// A counter that wraps around in the kernel goes on; a balance that is full stays full.
#[test]
fn counters_near_their_limit() {
    let (lab, agent) = counting(Backend::Legacy);
    drop(agent);
    let host = lab.node.host();
    let chain = format!("-A cali-tw-{}", pod_interface("cali", "shop", "web"));
    let near = u64::MAX - 2;
    let mut last_jump = 0;
    let saved = host.run("iptables-legacy-save", &["-c", "-t", "filter"]).unwrap();
    let lines: Vec<_> = saved.lines().collect();
    let mut changed: Vec<String> = lines.iter().map(ToString::to_string).collect();
    for (number, line) in lines.iter().enumerate() {
        let ours = line.contains(&chain);
        if ours && line.contains("-j cali-pi-") {
            last_jump = number;
        }
    }
    for number in [last_jump, last_jump + 1] {
        let rule = changed[number].split_once(' ').unwrap().1.to_string();
        changed[number] = format!("[{near}:{near}] {rule}");
    }
    host.feed("iptables-legacy-restore", &["--counters", "--wait"], &(changed.join("\n") + "\n")).unwrap();
    let agent = lab.agent(&["--max-age", "0s"]);
    let before = scrape(&agent);
    assert!(allowed(&agent.accounts().unwrap()) >= near, "{:#}", agent.accounts().unwrap());
    send(&lab, 10);
    let after = scrape(&agent);
    after.assert_not_below(&before);
    assert_eq!(allowed(&agent.accounts().unwrap()), u64::MAX, "full, not begun anew");
    send(&lab, 10);
    scrape(&agent).assert_not_below(&after);
}

/// Whether a manifest is the pod or the policy `web`.
fn is_web(document: &str) -> bool {
    ["name: web,", "name: web}"].iter().any(|name| document.contains(name))
        && !document.contains("kind: Namespace")
}

/// Two objects claim one interface; a pod goes and returns under the same name; a policy goes and its chain stays.
#[test]
fn objects_that_change_under_living_rules() {
    let (lab, agent) = counting(Backend::IptablesNft);
    let mut truth = Truth::default();
    exact(&lab, &agent, &mut truth);
    let before = scrape(&agent);
    let file = lab.manifests.path().join("pods.yaml");
    let pods = fs::read_to_string(&file).unwrap();
    let web = |accounts: &Value| {
        let books = counted(accounts);
        books.into_iter().filter(|(line, _)| line.workload == "shop/web").collect::<Books>()
    };
    let sent = web(&agent.accounts().unwrap());

    // The pod goes: its rules still count, for the interface or under the name that it had.
    let without: Vec<&str> = pods.split("---\n").filter(|document| !is_web(document)).collect();
    assert!(without.len() < pods.split("---\n").count(), "{pods}");
    let news = || agent.log().matches("names changed").count();
    let sum = |accounts: &Value| -> u64 {
        counted(accounts).iter().filter(|(line, _)| is_allowed(line)).map(|(_, packets)| packets).sum()
    };
    let seen = news();
    fs::write(&file, without.join("---\n")).unwrap();
    wait_until("the pod is gone", || news() > seen);
    let before_return = sum(&agent.accounts().unwrap());
    send(&lab, 4);
    let accounts = agent.accounts().unwrap();
    assert_eq!(sum(&accounts), before_return + 4, "{accounts:#}");
    scrape(&agent).assert_not_below(&before);

    // It returns, and counts on.
    let seen = news();
    fs::write(&file, &pods).unwrap();
    wait_until("the pod is back", || news() > seen);
    send(&lab, 1);
    let accounts = agent.accounts().unwrap();
    assert_eq!(sum(&accounts), before_return + 5, "{accounts:#}");
    let named = web(&accounts);
    assert!(sent.iter().all(|(line, packets)| named[line] >= *packets), "{accounts:#}");
    scrape(&agent).assert_not_below(&before);

    // A second object with the same name and interface.
    fs::write(lab.manifests.path().join("again.yaml"), &pods).unwrap();
    send(&lab, 2);
    scrape(&agent).assert_not_below(&before);

    // The policy's object goes, its chain stays.
    let file = lab.manifests.path().join("policies.yaml");
    let policies = fs::read_to_string(&file).unwrap();
    let without: Vec<&str> = policies.split("---\n").filter(|document| !is_web(document)).collect();
    assert!(without.len() < policies.split("---\n").count(), "{policies}");
    let counted_all = |accounts: &Value| {
        let is_it =
            |line: &Line| line.by.contains("web") && line.verdict == "allow" && line.direction == "ingress";
        counted(accounts).iter().filter(|(line, _)| is_it(line)).map(|(_, packets)| packets).sum::<u64>()
    };
    let allowed_before = counted_all(&agent.accounts().unwrap());
    let seen = news();
    fs::write(&file, without.join("---\n")).unwrap();
    wait_until("the policy is gone", || news() > seen);
    send(&lab, 5);
    assert_eq!(counted_all(&agent.accounts().unwrap()), allowed_before + 5);
    scrape(&agent).assert_not_below(&before);
}

/// Runs a command of ours as nobody, without any capability.
fn run_as_nobody(on: &Namespace, arguments: &[&str]) -> (String, i32) {
    let mut command = on.command("setpriv").unwrap();
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]);
    let output = command.arg(program()).args(arguments).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (text, output.status.code().unwrap())
}

#[test]
fn no_permission() {
    let (lab, agent) = counting(Backend::Legacy);
    drop(agent);
    let lock = ["--xtables-lock-file", "/nowhere/xtables.lock", "--xtables-lock-wait", "0s"];
    for (command, status) in [("check", 1), ("show", 1)] {
        let direct: &[&str] = if command == "show" { &["--direct"] } else { &[] };
        let (text, code) = run_as_nobody(lab.node.host(), &[&[command], &lock[..], direct].concat());
        assert_eq!(code, status, "{command}: {text}");
        assert!(text.contains("CAP_NET_ADMIN"), "{command}: {text}");
        assert!(
            text.to_lowercase().contains("permission") || text.contains("not permitted"),
            "{command}: {text}"
        );
    }
}

/// A node on which Calico has not written anything yet.
#[test]
fn no_such_table_and_then_there_is_one() {
    let scenario = demo();
    for backend in [Backend::Legacy, Backend::IptablesNft, Backend::Nft] {
        let lab = Lab::new(&scenario);
        let agent = lab.agent(&["--max-age", "0s"]);
        let names = lab.node.host().enter(|| fs::read_to_string("/proc/thread-self/net/ip_tables_names"));
        assert_eq!(names.unwrap().unwrap_or_default(), "", "reading makes no table");
        let accounts = agent.accounts().unwrap();
        let sources = accounts["sources"].as_array().unwrap();
        assert!(
            !sources.is_empty() && sources.iter().all(|source| source["state"] == "absent"),
            "{sources:?}"
        );
        let (out, err, code) = run(lab.node.host(), &["check"]);
        assert_eq!(code, 1, "{out}{err}");
        assert!(out.contains("no chains of Calico's"), "{out}{err}");
        lab.node.felix(dialect(backend)).apply(&scenario.model).unwrap();
        let mut truth = Truth::default();
        exact(&lab, &agent, &mut truth);
    }
}

/// Somebody keeps the lock: tables are read without it, and that is counted.
#[test]
fn the_lock_is_held_for_long() {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(Backend::Legacy)).apply(&scenario.model).unwrap();
    let (held, lock) = lab.hold_lock();
    let agent = lab.agent(&["--max-age", "0s", "--xtables-lock-file", &lock, "--xtables-lock-wait", "10ms"]);
    let mut truth = Truth::default();
    exact(&lab, &agent, &mut truth);
    let unlocked = |agent: &Agent| {
        scrape(agent).sum(
            "calico_accountant_source_events_total",
            &[("source", "iptables-legacy"), ("event", "unlocked")],
        )
    };
    assert!(unlocked(&agent) > 0.0);
    drop(held);
    exact(&lab, &agent, &mut truth);
    let before = unlocked(&agent);
    agent.accounts().unwrap();
    assert_eq!(unlocked(&agent), before);
}

#[test]
fn invalid_environment_values() {
    let namespace = Namespace::new("environment").unwrap();
    for (variable, value) in [
        ("ACCOUNTANT_POLL_INTERVAL", "often"),
        ("ACCOUNTANT_POLL_INTERVAL", "1ms"),
        ("ACCOUNTANT_MAX_AGE", "-1s"),
        ("ACCOUNTANT_LISTEN_ADDRESS", "node:http"),
        ("METRICS_SERVER_PORT", "99999"),
        ("MINIMUM_COUNTER", "-1"),
        ("DATASTORE_TYPE", "consul"),
        ("FELIX_INTERFACEPREFIX", "cali,,x"),
        ("ACCOUNTANT_COMPAT_METRICS", "perhaps"),
        ("ACCOUNTANT_LOG_FORMAT", "xml"),
        ("ACCOUNTANT_LOG", "a=b=c"),
        ("ACCOUNTANT_XTABLES_LOCK_WAIT", "2"),
    ] {
        let mut command = namespace.command(&program().display().to_string()).unwrap();
        let mut child = command.arg("run").env(variable, value).stderr(Stdio::piped()).spawn().unwrap();
        // It must not run.
        let deadline = Instant::now() + Duration::from_secs(10);
        while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            panic!("{variable}={value} is taken");
        }
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{variable}={value}");
        assert!(error.contains(value), "{variable}={value}: {error}");
        let names_it = error.contains("--") || error.contains(&format!("${variable}"));
        assert!(names_it, "it names the flag or the variable: {variable}: {error}");
    }
}

/// A manifest that does not parse is said, by file and line, and the others are kept.
#[test]
fn a_manifest_that_does_not_parse() {
    let (lab, agent) = counting(Backend::Legacy);
    fs::write(lab.manifests.path().join("broken.yaml"), "kind: Pod\n  metadata: [\n").unwrap();
    let said = || {
        let accounts = agent.accounts().unwrap();
        accounts["datastore"]["reason"].as_str().unwrap().contains("broken.yaml")
    };
    wait_until("it is said", said);
    let mut truth = Truth::default();
    exact(&lab, &agent, &mut truth);
    assert!(agent.log().contains("broken.yaml"), "{}", agent.log());
}
