//! Names from real servers, all the way to the accounts: counted before there are names, named when they are known, and counted
//! on when the server is gone. Not one packet is lost or doubled by it.
//!
//! Servers and agent are in the namespace of the lab's node. Where there is no Go to build the API server with, its test is
//! listed as ignored; with `ACCOUNTANT_REQUIRE_SERVERS` set, as in CI, it fails. What is ignored always, and run with
//! `--ignored`, measures a large cluster for `docs/datastore.md`.

mod permissions;
mod scale;
mod srv;
#[path = "../support/mod.rs"]
mod support;
mod swap;

use accountant_lab::books::{Books, Line, counted, expected};
use accountant_lab::felix::{Backend, Dialect, Version};
use accountant_lab::policy::Truth;
use accountant_lab::scenario::{NODE_NAME, Visit, demo, etcd_entry};
use accountant_lab::{Agent, Namespace};
use accountant_rigs::preload::crds;
use accountant_rigs::{ApiServer, Etcd};
use kube::Client;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use support::{run, scrape, show, start};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let binary = match arguments.list {
        true => Err("not needed to list tests".to_string()),
        false => accountant_rigs::binary().expect("the API server").map_err(|unavailable| unavailable.0),
    };
    let missing = binary.is_err() && std::env::var_os("ACCOUNTANT_REQUIRE_SERVERS").is_none();
    if let (Err(reason), false) = (&binary, arguments.list) {
        eprintln!("NOT RUN: what needs Kubernetes' API server: it {reason}");
    }
    let etcd = || through_all::<InEtcd>(&PathBuf::new(), Version::V3_31, Backend::IptablesNft);
    let at = binary.clone().unwrap_or_default();
    let server = binary.clone();
    let permissions = move || permissions::check_names_each_that_is_missing(&server.map_err(Failed::from)?);
    let kubernetes =
        move || through_all::<InKubernetes>(&binary.map_err(Failed::from)?, Version::V3_32, Backend::Legacy);
    let tests = vec![
        Trial::test("measure", move || scale::measure(&at)).with_ignored_flag(true),
        Trial::test("etcd_is_found_by_srv_records", srv::etcd_is_found_by_srv_records),
        Trial::test("the_environment_of_calico_accountant_is_enough", swap::its_environment_is_enough),
        Trial::test("etcd_names_come_later_and_go_without_loss", etcd),
        Trial::test("check_names_each_permission_that_is_missing", permissions).with_ignored_flag(missing),
        Trial::test("kubernetes_names_come_later_and_go_without_loss", kubernetes).with_ignored_flag(missing),
    ];
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// A server with the names of a scenario.
trait Server: Sized + Send {
    /// Starts it in the present namespace and loads what a user would list.
    fn start(binary: &Path, objects: &[Value]) -> Self;
    fn kill(&mut self);
    fn restart(&mut self, binary: &Path);
    /// The fields of Calico's configuration that lead to it.
    fn configuration(&self) -> Value;
}

/// A cluster of three. When it is away, one of them is still there, without a leader.
struct InEtcd([Etcd; 3]);

impl Server for InEtcd {
    fn start(_: &Path, objects: &[Value]) -> Self {
        let members = Etcd::start_members().unwrap();
        for (key, value) in objects.iter().map(etcd_entry) {
            members[0].put(&key, &value.to_string()).unwrap();
        }
        Self(members)
    }

    fn kill(&mut self) {
        self.0[1..].iter_mut().for_each(Etcd::kill);
    }

    fn restart(&mut self, _: &Path) {
        Etcd::restart_members(&mut self.0).unwrap();
    }

    fn configuration(&self) -> Value {
        let endpoints: Vec<_> = self.0.iter().map(Etcd::endpoint).collect();
        json!({"etcdEndpoints": endpoints.join(",")})
    }
}

struct InKubernetes(ApiServer);

impl Server for InKubernetes {
    fn start(binary: &Path, objects: &[Value]) -> Self {
        let server = ApiServer::start(binary, &[]).unwrap();
        block_on(async {
            let client = client(&server).await;
            for crd in crds("projectcalico.org").unwrap() {
                create(&client, "apiextensions.k8s.io/v1", "customresourcedefinitions", &crd).await;
            }
            for object in objects {
                let version = object["apiVersion"].as_str().unwrap();
                create(&client, version, &plural(object["kind"].as_str().unwrap()), object).await;
            }
        });
        Self(server)
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    fn restart(&mut self, binary: &Path) {
        self.0.restart(binary).unwrap();
    }

    fn configuration(&self) -> Value {
        json!({"datastoreType": "kubernetes", "kubeconfig": self.0.kubeconfig()})
    }
}

fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    kind.strip_suffix('y').map_or(format!("{kind}s"), |stem| format!("{stem}ies"))
}

async fn client(server: &ApiServer) -> Client {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

async fn create(client: &Client, version: &str, plural: &str, object: &Value) {
    let root = if version.contains('/') { "apis" } else { "api" };
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
    let within = namespace.map(|namespace| format!("namespaces/{namespace}/")).unwrap_or_default();
    let path = format!("/{root}/{version}/{within}{plural}");
    let begin = Instant::now();
    loop {
        match send(client, "POST", &path, "application/json", object).await.0 {
            200..300 | 409 => break,
            // What was just installed is served soon.
            status => assert!(begin.elapsed() < Duration::from_secs(60), "{path}: {status}: {object}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if object["status"].is_object() {
        let path = format!("{path}/{}/status", object["metadata"]["name"].as_str().unwrap());
        let status = json!({"status": object["status"]});
        let answer = send(client, "PATCH", &path, "application/merge-patch+json", &status).await.0;
        assert!(answer < 300, "{path}: {answer}");
    }
}

async fn send(client: &Client, method: &str, path: &str, content: &str, body: &Value) -> (u16, Value) {
    let request = http::Request::builder().method(method).uri(path).header("content-type", content);
    let request = request.body(Body::from(body.to_string().into_bytes())).unwrap();
    let response = client.send(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect_bytes().await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

/// Runs to the end on this thread, which is in the namespace.
fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn in_sync(agent: &Agent, wanted: f64) {
    let begin = Instant::now();
    while scrape(agent).sum("calico_accountant_datastore_in_sync", &[]) != wanted {
        assert!(begin.elapsed() < Duration::from_secs(90), "{:?}", agent.accounts().unwrap()["datastore"]);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Tells what differs, and nothing else.
#[track_caller]
fn same(counted: &Books, expected: &Books) {
    let differs = |(line, packets): &(&Line, &u64), other: &Books| other.get(line) != Some(packets);
    let more: Books =
        counted.iter().filter(|entry| differs(entry, expected)).map(|(l, n)| (l.clone(), *n)).collect();
    let less: Books =
        expected.iter().filter(|entry| differs(entry, counted)).map(|(l, n)| (l.clone(), *n)).collect();
    assert!(more.is_empty() && less.is_empty(), "counted {more:#?}, and not {less:#?}");
}

fn through_all<S: Server>(binary: &Path, version: Version, backend: Backend) -> Result<(), Failed> {
    let scenario = demo();
    let node = scenario.node().unwrap();
    node.felix(Dialect::new(version, backend).unwrap()).apply(&scenario.model).unwrap();
    let host: &Namespace = node.host();
    let objects = scenario.objects().unwrap();
    let mut server = host.enter(|| S::start(binary, &objects)).unwrap();
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    let configuration = json!({"apiVersion": "projectcalico.org/v3", "kind": "CalicoAPIConfig", "spec": server.configuration()});
    std::fs::write(file.path(), configuration.to_string()).unwrap();
    let arguments = [
        "--calico-config",
        file.path().to_str().unwrap(),
        "--node-name",
        NODE_NAME,
        "--interface-prefix",
        "cali",
    ];

    // The server is not there when the agent starts: it serves, and counts.
    server.kill();
    let agent = start(host, &[&arguments[..], &["--max-age", "0s"]].concat());
    let visit = Visit::new(&node).unwrap();
    let mut truth = Truth::default();
    let round = |truth: &mut Truth| visit.round(&scenario.model, truth, || drop(agent.accounts())).unwrap();
    round(&mut truth);
    let nameless = counted(&agent.accounts().unwrap());
    assert_eq!(nameless.values().sum::<u64>(), expected(&truth).values().sum::<u64>(), "{nameless:#?}");
    assert!(nameless.keys().all(|line| line.workload.starts_with("/cali")), "{nameless:#?}");
    in_sync(&agent, 0.0);

    // Names are added when they are known, to what was counted before as well.
    host.enter(|| server.restart(binary)).unwrap();
    in_sync(&agent, 1.0);
    same(&counted(&agent.accounts().unwrap()), &expected(&truth));
    round(&mut truth);
    same(&counted(&agent.accounts().unwrap()), &expected(&truth));
    let named = scrape(&agent);
    let web = [("pod", "web"), ("pod_namespace", "shop"), ("app", "web"), ("ip", "10.65.0.2,fd00:65::2")];
    assert!(named.sum("policy_accept_counter", &web) > 0.0);
    assert!(named.sum("policy_accept_counter", &[("policy", "shop/knp.default.db-from-web")]) > 0.0);
    // Read late, shared chains may leave something undetermined; what is told has its name.
    let (direct, wanted) = (counted(&show(host, &arguments)), expected(&truth));
    assert!(
        direct.len() > 30 && direct.iter().all(|(line, packets)| wanted[line] == *packets),
        "{direct:#?}"
    );
    let (out, err, _) = run(host, &[&["check"], &arguments[..]].concat());
    assert!(out.contains(&format!("({})", file.path().display())), "{out}{err}");

    // Without the server, everything goes on.
    server.kill();
    in_sync(&agent, 0.0);
    round(&mut truth);
    same(&counted(&agent.accounts().unwrap()), &expected(&truth));
    assert!(scrape(&agent).sum("calico_accountant_datastore_errors_total", &[]) > 0.0);
    host.enter(|| server.restart(binary)).unwrap();
    in_sync(&agent, 1.0);
    round(&mut truth);
    same(&counted(&agent.accounts().unwrap()), &expected(&truth));
    scrape(&agent).assert_not_below(&named);
    drop(agent);
    server.kill();
    Ok(())
}
