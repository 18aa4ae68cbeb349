//! What a large cluster costs: 10 000 policies, 50 000 pods on 500 nodes, of which ours has 100. Prints what one agent takes
//! and what it asks of the server. `cargo xtask scale` runs it with a release build, which `ACCOUNTANT_PROGRAM` tells.

use crate::support::{Scrape, program};
use accountant_lab::{Agent, Namespace};
use accountant_rigs::{ApiServer, Etcd, preload};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use libtest_mimic::Failed;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const POLICIES: usize = 10_000;
const NODES: usize = 500;
const PODS_PER_NODE: usize = 100;
const NAMESPACES: usize = 200;
/// How long the cost of following is looked at.
const QUIET: Duration = Duration::from_secs(30);

fn agent() -> PathBuf {
    std::env::var_os("ACCOUNTANT_PROGRAM").map_or_else(|| program().into(), PathBuf::from)
}

fn spec(number: usize) -> Value {
    let rule = |port: usize| {
        json!({"action": "Allow", "protocol": "TCP", "source": {"selector": format!("app == 'client-{number}'")},
               "destination": {"ports": [port]}})
    };
    json!({"tier": "default", "order": number, "selector": format!("app == 'server-{number}'"),
           "types": ["Ingress", "Egress"], "ingress": (0..4).map(|port| rule(8000 + port)).collect::<Vec<_>>(),
           "egress": [{"action": "Allow"}]})
}

fn metadata(number: usize, name: &str) -> Value {
    json!({"name": name, "namespace": format!("ns-{}", number % NAMESPACES),
           "uid": format!("00000000-0000-4000-8000-{number:012}"), "creationTimestamp": "2026-08-01T09:00:00Z"})
}

fn write_cluster(path: &Path) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    let mut put =
        |key: String, value: Value| writeln!(file, "{}", json!({"key": key, "value": value})).unwrap();
    for crd in preload::established_crds("crd.projectcalico.org").unwrap() {
        put(preload::key(&crd).unwrap(), crd);
    }
    for number in 0..POLICIES / 2 {
        let namespace = number % NAMESPACES;
        let name = format!("default.policy-{number}");
        let policy = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "NetworkPolicy",
            "metadata": metadata(number, &name), "spec": spec(number)});
        put(format!("/registry/crd.projectcalico.org/networkpolicies/ns-{namespace}/{name}"), policy);
        let name = format!("policy-{number}");
        let port = json!({"protocol": "TCP", "port": 80});
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": metadata(POLICIES + number, &name),
            "spec": {"podSelector": {"matchLabels": {"app": name}}, "policyTypes": ["Ingress"], "ingress": [{"ports": [port]}]}});
        put(format!("/registry/networkpolicies/ns-{namespace}/{name}"), policy);
    }
    for number in 0..NODES * PODS_PER_NODE {
        let (node, name) = (number % NODES, format!("pod-{number}"));
        let mut metadata = metadata(100_000 + number, &name);
        metadata["labels"] = json!({"app": format!("server-{number}")});
        let address = format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255);
        let container = json!({"name": "c", "image": "registry.example/image:1", "resources": {}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"nodeName": format!("node-{node}"), "serviceAccountName": "default", "containers": [container]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
        put(format!("/registry/pods/ns-{}/{name}", number % NAMESPACES), pod);
    }
}

/// Measures both, and prints the table of `docs/datastore.md`.
pub(crate) fn measure(binary: &Path) -> Result<(), Failed> {
    let columns = [kubernetes(binary), etcd()];
    println!("\n| | `kubernetes` | `etcdv3` |\n|---|---|---|");
    for (kubernetes, etcd) in columns[0].iter().zip(&columns[1]) {
        assert_eq!(kubernetes.0, etcd.0);
        println!("| {} | {} | {} |", kubernetes.0, kubernetes.1, etcd.1);
    }
    Ok(())
}

/// A row of the table: what, and how much.
type Row = (&'static str, String);

fn kubernetes(binary: &Path) -> Vec<Row> {
    let namespace = Namespace::new("scale").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    write_cluster(file.path());
    let server = namespace.enter(|| ApiServer::start_with(binary, &[], file.path()).unwrap()).unwrap();
    let configuration = json!({"datastoreType": "kubernetes", "kubeconfig": server.kubeconfig()});
    let metrics = || {
        let get = async {
            let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
            let config =
                kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
            let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
            Client::try_from(config.unwrap()).unwrap().request_text(request).await.unwrap()
        };
        // Watches are counted when they end.
        total(&crate::block_on(get), &["apiserver_request_total{", "apiserver_longrunning_requests{"])
    };
    measure_agent(&namespace, &configuration, server.pid(), &metrics)
}

fn etcd() -> Vec<Row> {
    let namespace = Namespace::new("scale").unwrap();
    let etcd = namespace.enter(|| Etcd::start().unwrap()).unwrap();
    namespace.enter(|| crate::block_on(fill(&etcd))).unwrap();
    let configuration = json!({"etcdEndpoints": etcd.endpoint()});
    // Watches are opened within one request.
    let metrics = || {
        total(&etcd.metrics().unwrap(), &["grpc_server_started_total{", "etcd_debugging_mvcc_watcher_total "])
    };
    measure_agent(&namespace, &configuration, etcd.pid().unwrap(), &metrics)
}

/// The sum of all series that begin so.
fn total(metrics: &str, series: &[&str]) -> f64 {
    let of_these = |line: &&str| series.iter().any(|series| line.starts_with(series));
    let value = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap();
    metrics.lines().filter(of_these).map(value).sum()
}

async fn fill(etcd: &Etcd) {
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap();
    let mut puts = Vec::new();
    for number in 0..NAMESPACES {
        puts.push((format!("profiles/kns.ns-{number}"), json!({"kind": "Profile"})));
    }
    for number in 0..POLICIES {
        let name = format!("default.policy-{number}");
        let policy =
            json!({"kind": "NetworkPolicy", "metadata": metadata(number, &name), "spec": spec(number)});
        puts.push((format!("networkpolicies/ns-{}/{name}", number % NAMESPACES), policy));
    }
    for number in 0..NODES * PODS_PER_NODE {
        let (node, namespace) = (number % NODES, number % NAMESPACES);
        let name = format!("node--{node}-k8s-pod--{number}-eth0");
        let endpoint = json!({"kind": "WorkloadEndpoint", "metadata": metadata(number, &name),
            "spec": {"node": format!("node-{node}"), "orchestrator": "k8s", "pod": format!("pod-{number}"),
                     "interfaceName": format!("cali{number}"), "ipNetworks": [format!("10.{}.{}.{}/32", number >> 16, number >> 8 & 255, number & 255)],
                     "profiles": [format!("kns.ns-{namespace}")]}});
        puts.push((format!("workloadendpoints/ns-{namespace}/{name}"), endpoint));
    }
    for puts in puts.chunks(100) {
        let put = |(key, value): &(String, Value)| {
            let key = format!("/calico/resources/v3/projectcalico.org/{key}");
            etcd_client::TxnOp::put(key, value.to_string(), None)
        };
        let txn = etcd_client::Txn::new().and_then(puts.iter().map(put).collect::<Vec<_>>());
        client.txn(txn).await.unwrap();
    }
}

/// What one agent takes, and asks of the server with this process. `requests` tells how many the server had so far.
fn measure_agent(
    namespace: &Namespace,
    configuration: &Value,
    server: u32,
    requests: &(dyn Fn() -> f64 + Sync),
) -> Vec<Row> {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    let configuration =
        json!({"apiVersion": "projectcalico.org/v3", "kind": "CalicoAPIConfig", "spec": configuration});
    std::fs::write(file.path(), configuration.to_string()).unwrap();
    let program = agent();
    let alone = Agent::spawn(namespace, &program, &["--datastore-type", "none"]).unwrap();
    until(&alone, |_| true);
    let without = memory(alone.pid()).0;
    drop(alone);

    let requests = || namespace.enter(requests).unwrap();
    let arguments = ["--calico-config", file.path().to_str().unwrap(), "--node-name", "node-7"];
    let asked = requests();
    let (bytes, cpu) = (received(namespace), processor(server));
    let begin = Instant::now();
    let agent = Agent::spawn(namespace, &program, &arguments).unwrap();
    let scrape = until(&agent, |scrape| scrape.sum("calico_accountant_datastore_in_sync", &[]) == 1.0);
    let took = begin.elapsed();
    let (bytes, cpu, own) = (received(namespace) - bytes, processor(server) - cpu, processor(agent.pid()));
    let objects = scrape.sum("calico_accountant_datastore_objects", &[]);
    // The last asking of this is among what is counted.
    let asked = requests() - asked - 1.0;
    let (now, most) = memory(agent.pid());
    let before = (processor(server), processor(agent.pid()), received(namespace));
    std::thread::sleep(QUIET);
    let after = (processor(server), processor(agent.pid()), received(namespace));
    let quiet = format!(
        "{:.1} kB; {:.2} s of the server's processor, {:.2} s of the agent's",
        (after.2 - before.2) as f64 / 1e3,
        (after.0 - before.0).as_secs_f64(),
        (after.1 - before.1).as_secs_f64()
    );
    vec![
        ("names", format!("{objects}")),
        ("from start to in sync", format!("{:.1} s", took.as_secs_f64())),
        ("memory in sync (highest)", format!("{now:.1} MiB ({most:.1} MiB)")),
        ("memory without a datastore", format!("{without:.1} MiB")),
        ("processor time of the agent", format!("{:.1} s", own.as_secs_f64())),
        ("processor time of the server", format!("{:.1} s", cpu.as_secs_f64())),
        ("requests and watches", format!("{asked}")),
        ("bytes on the wire", format!("{:.1} MB", bytes as f64 / 1e6)),
        ("in the 30 s after that, nothing changing", quiet),
    ]
}

/// Waits for a scrape that fits.
fn until(agent: &Agent, fits: impl Fn(&Scrape) -> bool) -> Scrape {
    let begin = Instant::now();
    loop {
        if let Ok(answer) = agent.get("/metrics") {
            let scrape = Scrape::parse(&answer.body);
            if fits(&scrape) {
                return scrape;
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "{}", agent.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Resident memory now and at most, in MiB.
fn memory(pid: u32) -> (f64, f64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() as f64 / 1024.0
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// Processor time that a process took.
fn processor(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

/// Bytes that loopback carried.
fn received(namespace: &Namespace) -> u64 {
    let table = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
