//! What a large cluster costs: 10 000 policies, 50 000 pods on 500 nodes, of which ours has 100. Prints what one agent takes
//! and what it asks of the server. `ACCOUNTANT_PROGRAM` is the agent to measure, to be built in release.

use crate::support::{Scrape, program};
use accountant_lab::{Agent, Namespace};
use accountant_rigs::{ApiServer, Etcd, preload};
use libtest_mimic::Failed;
use serde_json::{Value, json};
use std::fmt::Write as _;
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

pub(crate) fn kubernetes(binary: &Path) -> Result<(), Failed> {
    let namespace = Namespace::new("scale").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    write_cluster(file.path());
    let server = namespace.enter(|| ApiServer::start_with(binary, &[], file.path()).unwrap()).unwrap();
    let configuration = json!({"datastoreType": "kubernetes", "kubeconfig": server.kubeconfig()});
    measure("kubernetes", &namespace, &configuration, Some(server.pid()));
    Ok(())
}

pub(crate) fn etcd() -> Result<(), Failed> {
    let namespace = Namespace::new("scale").unwrap();
    let etcd = namespace
        .enter(|| {
            let etcd = Etcd::start().unwrap();
            crate::block_on(fill(&etcd));
            etcd
        })
        .unwrap();
    measure("etcdv3", &namespace, &json!({"etcdEndpoints": etcd.endpoint()}), etcd.pid());
    Ok(())
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

fn measure(name: &str, namespace: &Namespace, configuration: &Value, server: Option<u32>) {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    let configuration =
        json!({"apiVersion": "projectcalico.org/v3", "kind": "CalicoAPIConfig", "spec": configuration});
    std::fs::write(file.path(), configuration.to_string()).unwrap();
    let program = agent();
    let alone = Agent::spawn(namespace, &program, &["--datastore-type", "none"]).unwrap();
    until(&alone, |_| true);
    let without = memory(alone.pid());
    drop(alone);

    let arguments = ["--calico-config", file.path().to_str().unwrap(), "--node-name", "node-7"];
    let (bytes, cpu) = (received(namespace), server.map(processor));
    let begin = Instant::now();
    let agent = Agent::spawn(namespace, &program, &arguments).unwrap();
    let scrape = until(&agent, |scrape| scrape.sum("calico_accountant_datastore_in_sync", &[]) == 1.0);
    let took = begin.elapsed();
    let (bytes, own) = (received(namespace) - bytes, processor(agent.pid()));
    let cpu = server.zip(cpu).map(|(server, before)| processor(server) - before);
    let objects = scrape.sum("calico_accountant_datastore_objects", &[]);
    let mut report =
        format!("{name}: in sync after {took:?}, {objects} objects, {bytes} bytes on loopback both ways\n");
    let _ = writeln!(
        report,
        "  agent: {}; {own:?} of a processor; without a datastore {without}",
        memory(agent.pid())
    );
    let _ = writeln!(report, "  server: {cpu:?} of a processor for that");
    let (before, bytes) = ((server.map(processor), processor(agent.pid())), received(namespace));
    let end = Instant::now() + QUIET;
    while let Some(rest) = end.checked_duration_since(Instant::now()) {
        std::thread::sleep(rest);
    }
    let after = (server.map(processor), processor(agent.pid()));
    let _ = writeln!(
        report,
        "  quiet for {QUIET:?}: server {:?}, agent {:?} of a processor, {} bytes; agent {}",
        after.0.zip(before.0).map(|(after, before)| after - before),
        after.1 - before.1,
        received(namespace) - bytes,
        memory(agent.pid())
    );
    println!("{report}");
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

/// Resident memory now and at most.
fn memory(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() as f64 / 1024.0
    };
    format!("{:.1} MiB resident, {:.1} MiB at most", field("VmRSS:"), field("VmHWM:"))
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
