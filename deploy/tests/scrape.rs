//! The scrape jobs: Prometheus takes each, and finds the agent, Felix and kube-controllers by it and nothing else.
//!
//! Debian's Prometheus is built without Kubernetes. What that would find stands in its place as a static list with the same labels,
//! and promtool says what the job makes of it.

use accountant_deploy::{files, read};
use accountant_rigs::{output, promtool};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::thread;

const FOLDER: &str = "deploy/prometheus/scrape";

/// What Kubernetes tells of a pod, and of the service or the node in front of it.
fn found(container: &str, app: &str, service: &str, ip: &str, port: &str) -> Value {
    let meta = |name: &str| format!("__meta_kubernetes_{name}");
    json!({
        "targets": [format!("{ip}:{port}")],
        "labels": {
            meta("pod_phase"): "Running",
            meta("pod_ip"): ip,
            meta("pod_node_name"): "worker-1",
            meta("pod_container_name"): container,
            meta("pod_label_app_kubernetes_io_name"): app,
            meta("pod_annotation_prometheus_io_scrape"): "true",
            meta("pod_annotation_prometheus_io_port"): port,
            meta("service_name"): service,
            meta("service_label_app_kubernetes_io_name"): app,
            meta("endpoint_port_name"): "metrics",
            meta("node_name"): "worker-1",
            meta("node_address_InternalIP"): ip,
        },
    })
}

/// A cluster: an agent, a Felix, kube-controllers, and somebody else, without annotations and not running.
fn cluster() -> Vec<Value> {
    let agent = "calico-packet-accountant";
    let mut other = found("web", "web", "web", "10.0.0.9", "80");
    other["labels"]["__meta_kubernetes_pod_annotation_prometheus_io_scrape"] = "".into();
    let mut pending = found("calico-node", agent, "felix-metrics-svc", "10.0.0.8", "9091");
    pending["labels"]["__meta_kubernetes_pod_phase"] = "Pending".into();
    vec![
        found("accountant", agent, agent, "10.0.0.1", "9009"),
        found("calico-node", "calico-node", "felix-metrics-svc", "10.0.0.1", "9091"),
        found("calico-kube-controllers", "c", "kube-controllers-metrics-svc", "10.0.0.2", "9094"),
        other,
        pending,
    ]
}

/// What a job scrapes of a list: addresses, and the nodes' names.
fn scraped(jobs: &Value, job: &str) -> Vec<(String, String)> {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(file.path(), jobs.to_string()).unwrap();
    // It always waits for as long, though a list is there at once.
    let arguments = ["check", "service-discovery", "--timeout=5s", file.path().to_str().unwrap(), job];
    let said = output(&promtool().unwrap(), &arguments).unwrap();
    let said: Vec<Value> = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let label = |target: &Value, name: &str| target["labels"][name].as_str().unwrap_or_default().to_string();
    let kept =
        said.iter().filter(|target| target["labels"].as_object().is_some_and(|labels| !labels.is_empty()));
    kept.map(|target| (label(target, "__address__"), label(target, "node"))).collect()
}

#[test]
fn each_job_finds_what_it_is_for() {
    let mut asked = Vec::new();
    for file in files(FOLDER, ".yaml").unwrap() {
        let mut jobs: Value = serde_saphyr::from_str(&read(&file).unwrap()).unwrap();
        let style = file.file_stem().unwrap().to_str().unwrap().to_string();
        let names: Vec<_> =
            jobs["scrape_configs"].as_array().unwrap().iter().map(|job| job["job_name"].clone()).collect();
        for job in jobs["scrape_configs"].as_array_mut().unwrap() {
            if let Some(role) = job.as_object_mut().unwrap().remove("kubernetes_sd_configs") {
                // With the role of nodes there is one of each.
                let nodes = role[0]["role"] == "node";
                let cluster: Vec<_> =
                    cluster().into_iter().take(if nodes { 1 } else { usize::MAX }).collect();
                job["static_configs"] = cluster.into();
            }
        }
        for name in names.iter().map(|name| name.as_str().unwrap().to_string()) {
            let (style, jobs) = (style.clone(), jobs.clone());
            asked.push(thread::spawn(move || {
                let mut scraped = scraped(&jobs, &name);
                // Endpoints are of pods that are ready.
                scraped.retain(|(address, _)| style != "endpoints" || address != "10.0.0.8:9091");
                (format!("{style}: {name}"), scraped)
            }));
        }
    }
    let mut all: BTreeMap<_, _> = asked.into_iter().map(|job| job.join().unwrap()).collect();
    let on = |addresses: &[&str]| -> Vec<(String, String)> {
        addresses.iter().map(|address| (address.to_string(), "worker-1".to_string())).collect()
    };
    let listed = |port: u16| -> Vec<(String, String)> {
        ["node-1.example", "node-2.example"].map(|node| (format!("{node}:{port}"), node.to_string())).to_vec()
    };
    let (agent, felix, controllers) = ("10.0.0.1:9009", "10.0.0.1:9091", "10.0.0.2:9094");
    let wanted = BTreeMap::from([
        ("annotations: annotated-pods".into(), on(&[agent, felix, controllers])),
        ("endpoints: calico-kube-controllers".into(), on(&[controllers])),
        ("endpoints: calico-packet-accountant".into(), on(&[agent])),
        ("endpoints: felix".into(), on(&[felix])),
        ("nodes: calico-packet-accountant".into(), on(&[agent])),
        ("nodes: felix".into(), on(&[felix])),
        ("pods: calico-kube-controllers".into(), on(&[controllers])),
        ("pods: calico-packet-accountant".into(), on(&[agent])),
        ("pods: felix".into(), on(&[felix])),
        ("static: calico-packet-accountant".into(), listed(9009)),
        ("static: felix".into(), listed(9091)),
    ]);
    // They come in any order.
    all.values_mut().for_each(|found| found.sort());
    assert_eq!(all, wanted);
}

/// An address of IPv6 is put in brackets, wherever jobs put a port behind it.
#[test]
fn addresses_of_ipv6_are_in_brackets() {
    let asked =
        [("pods", "felix"), ("nodes", "felix"), ("annotations", "annotated-pods")].map(|(style, job)| {
            let mut jobs: Value =
                serde_saphyr::from_str(&read(format!("{FOLDER}/{style}.yaml")).unwrap()).unwrap();
            let mut six = found("calico-node", "calico-node", "", "fd00::1", "9091");
            six["targets"] = json!(["[fd00::1]:80"]);
            for job in jobs["scrape_configs"].as_array_mut().unwrap() {
                job.as_object_mut().unwrap().remove("kubernetes_sd_configs");
                job["static_configs"] = json!([six]);
            }
            thread::spawn(move || (style, scraped(&jobs, job)))
        });
    for (style, scraped) in asked.map(|job| job.join().unwrap()) {
        assert_eq!(scraped, [("[fd00::1]:9091".to_string(), "worker-1".to_string())], "{style}");
    }
}
