//! What is served where: the page, families that are chosen, several addresses, a socket of systemd's.

use crate::support::{program, wait_until};
use accountant_lab::agent::ADDRESS;
use accountant_lab::{Agent, Namespace};
use std::net::TcpListener;
use std::os::fd::OwnedFd;

#[test]
fn the_page_links_what_is_served() {
    let namespace = Namespace::new("page").unwrap();
    let more = ["--web.listen-address", "127.0.0.1:9010,[::1]:9011", "--accepted-flows"];
    let agent = Agent::start(&namespace, program(), &more).unwrap();
    let page = agent.get("/").unwrap().body;
    let links: Vec<_> =
        page.split("href=").skip(1).filter_map(|rest| rest.split(['>', '<']).next()).collect();
    assert!(links.len() >= 5 && links.contains(&"/flows"), "{page}");
    for link in links {
        let link = link.trim_matches('"');
        // What would go on for ever, if there were rules here that programs could look at.
        let expected = if link == "/denied/follow" { 503 } else { 200 };
        assert_eq!(agent.get(link).unwrap().status, expected, "{link}");
    }
    for address in ["127.0.0.1:9010", "[::1]:9011"] {
        let said = namespace.run("curl", &["--silent", "--globoff", &format!("http://{address}/healthz")]);
        assert_eq!(said.unwrap(), "ok\n");
    }
}

#[test]
fn families_that_are_chosen() {
    let namespace = Namespace::new("collect").unwrap();
    let agent = Agent::start(&namespace, program(), &[]).unwrap();
    let names = |path: &str| {
        let answer = agent.get(path).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        let names = answer.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        names.map(str::to_string).collect::<Vec<_>>()
    };
    let all = names("/metrics");
    let chosen = names("/metrics?collect[]=build_info&collect%5B%5D=process");
    assert!(chosen.len() > 1 && chosen.iter().all(|name| all.contains(name)));
    assert!(chosen.iter().all(|name| name == "calico_accountant_build_info" || name.starts_with("process_")));
    let answer = agent.get("/metrics?collect[]=nonsense").unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("nonsense") && answer.body.contains("default_deny"), "{}", answer.body);
}

#[test]
fn a_socket_of_systemd() {
    let namespace = Namespace::new("socket").unwrap();
    let listener = namespace.enter(|| TcpListener::bind(ADDRESS)).unwrap().unwrap();
    // The protocol of sd_listen_fds(3): descriptors from 3 on, for the process that is named.
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    let mut command = namespace.command("sh").unwrap();
    command.args(["-c", script, "sh"]).arg(program()).args(["run", "--web.systemd-socket", "--state-dir="]);
    let mut child = command.stdin(OwnedFd::from(listener)).spawn().unwrap();
    let ask = || namespace.run("curl", &["--silent", &format!("http://{ADDRESS}/healthz")]);
    wait_until("it serves", || ask().is_ok_and(|said| said == "ok\n"));
    child.kill().unwrap();
    child.wait().unwrap();
    let none = Agent::run(&namespace, program(), &["run", "--web.systemd-socket"]).unwrap();
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(!none.status.success() && said.contains("ListenStream="), "{said}");
}
