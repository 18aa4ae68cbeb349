//! The unit in a systemd that is really booted: it starts, counts, is restarted with other settings, comes back when it is killed, is
//! started by a socket, and is as exposed as docs/install.md says.
//!
//! `ACCOUNTANT_DEB` names a package of `cargo xtask deb`; then that is installed by dpkg (`cargo xtask deb --test`).

mod machine;
#[path = "../support/mod.rs"]
mod support;

use accountant_lab::books::{counted, differences, expected};
use accountant_lab::felix::Backend;
use accountant_lab::policy::Truth;
use accountant_lab::scenario::{NODE_NAME, Visit, demo};
use machine::{Machine, UNIT, repository};
use support::lab::{Lab, dialect};
use support::wait_until;

const SETTINGS: &str = "/etc/default/calico-packet-accountant";
const SOCKET: &str = "calico-packet-accountant.socket";

#[test]
fn it_counts_as_a_service() {
    let scenario = demo();
    let lab = Lab::new(&scenario);
    lab.node.felix(dialect(Backend::Nft)).apply(&scenario.model).unwrap();
    let settings = format!(
        "NODENAME={NODE_NAME}\nACCOUNTANT_MANIFESTS=/etc/accountant/manifests\nACCOUNTANT_MAX_AGE=0s\n"
    );
    let mut etc = vec![(SETTINGS.trim_start_matches("/etc/").to_string(), settings.clone())];
    for entry in std::fs::read_dir(lab.manifests.path()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        etc.push((format!("accountant/manifests/{name}"), std::fs::read_to_string(entry.path()).unwrap()));
    }
    let etc: Vec<_> = etc.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let machine = Machine::boot(lab.node.host(), &etc);

    machine.run("systemctl", &["start", UNIT]);
    let ready = |port: u16| wait_until("it is ready", || machine.get(port, "/readyz").is_some());
    ready(9009);
    let status = machine.run("systemctl", &["status", "--no-pager", UNIT]);
    assert!(status.contains("active (running)") && status.contains("serving"), "{status}");
    let visit = Visit::new(&lab.node).unwrap();
    let mut truth = Truth::default();
    visit.round(&scenario.model, &mut truth, || drop(machine.accounts(9009))).unwrap();
    let exact = |port: u16| {
        let differ = || differences(&expected(&truth), &counted(&machine.accounts(port)));
        wait_until("every number is exact", || differ().is_empty());
    };
    exact(9009);
    let metrics = machine.get(9009, "/metrics").unwrap();
    assert!(metrics.contains("calico_accountant_source_in_place{source=\"nftables\"} 1\n"), "{metrics}");

    // Killed, it is started again.
    let before = machine.main_pid();
    machine.run("systemctl", &["kill", "--signal=KILL", UNIT]);
    wait_until("there is another", || ![0, before].contains(&machine.main_pid()));
    ready(9009);

    // Settings are taken by a restart, and a wrong one is told in the journal.
    machine.write(SETTINGS, &format!("{settings}ACCOUNTANT_LISTEN_ADDRESS=127.0.0.1:9010\n"));
    machine.run("systemctl", &["restart", UNIT]);
    ready(9010);
    assert!(machine.get(9009, "/healthz").is_none());
    machine.write(SETTINGS, "ACCOUNTANT_POLL_INTERVAL=often\n");
    machine.ask("systemctl", &["restart", UNIT]);
    wait_until("it says what is wrong", || machine.log().contains("often"));

    // A socket of systemd's starts it.
    machine.ask("systemctl", &["stop", UNIT]);
    machine.write(SETTINGS, &format!("{settings}ACCOUNTANT_WEB_SYSTEMD_SOCKET=true\n"));
    machine.write(
        &format!("/etc/systemd/system/{SOCKET}"),
        "[Socket]\nListenStream=127.0.0.1:9011\n[Install]\nWantedBy=sockets.target\n",
    );
    machine.run("systemctl", &["daemon-reload"]);
    machine.run("systemctl", &["start", SOCKET]);
    assert_eq!(machine.main_pid(), 0);
    assert_eq!(machine.get(9011, "/healthz").as_deref(), Some("ok\n"), "{}", machine.log());
    ready(9011);

    let judged = machine.run("systemd-analyze", &["security", "--no-pager", UNIT]);
    let figure =
        judged.lines().find_map(|line| line.split_once("Overall exposure level for ")?.1.split(' ').nth(1));
    let figure = figure.unwrap_or_else(|| panic!("{judged}"));
    let document = std::fs::read_to_string(repository("docs/install.md")).unwrap();
    assert!(document.contains(&format!("an exposure of {figure} of 10")), "docs/install.md, and {figure}");

    machine.run("systemctl", &["stop", SOCKET, UNIT]);
    assert!(!machine.ask("systemctl", &["is-failed", UNIT]).1, "{}", machine.log());
}
