//! Rule sets of Felix' shape, one per generation, put back into a kernel with their counters.

mod support;

use accountant_core::calico::names::pod_interface;
use accountant_lab::Namespace;
use accountant_lab::apply::load_capture;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use support::{fixtures, scrape, show, start};

fn dumps() -> Vec<PathBuf> {
    let mut dumps = Vec::new();
    for folder in ["chains", "chains/nft"] {
        for entry in std::fs::read_dir(fixtures().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.ends_with(".iptables-save") || name.ends_with(".nft.txt") {
                dumps.push(path);
            }
        }
    }
    dumps.sort();
    assert!(dumps.len() >= 6, "{dumps:?}");
    dumps
}

fn load(dump: &Path) -> Namespace {
    let namespace = Namespace::new("chains").unwrap();
    namespace.run("ip", &["link", "set", "lo", "up"]).unwrap();
    load_capture(&namespace, dump).unwrap();
    namespace
}

/// Packets by (workload, direction, what).
type Accounts = BTreeMap<(String, String, String), u64>;

fn expected() -> Accounts {
    let text = std::fs::read_to_string(fixtures().join("chains/expected.json")).unwrap();
    let object: Value = serde_json::from_str(&text).unwrap();
    let mut accounts = Accounts::new();
    for (workload, directions) in object.as_object().unwrap().iter().filter(|(name, _)| name.contains('/')) {
        for (direction, kinds) in directions.as_object().unwrap() {
            let mut put = |what: String, packets: &Value| {
                let packets = packets.as_u64().unwrap();
                if packets > 0 {
                    accounts.insert((workload.clone(), direction.clone(), what), packets);
                }
            };
            for (policy, packets) in kinds["accept"].as_object().unwrap() {
                put(format!("allow {policy}"), packets);
            }
            for (policy, packets) in kinds["deny"].as_object().unwrap() {
                put(format!("deny {policy}"), packets);
            }
            put("no policy".into(), &kinds["no_match_drop"]);
            put("profile".into(), &kinds["profile_accept"]);
        }
    }
    accounts
}

fn found(object: &Value) -> Accounts {
    let mut accounts = Accounts::new();
    for account in object["accounts"].as_array().unwrap() {
        let field = |name: &str| account[name].as_str().unwrap_or_default();
        let packets = account["packets"].as_u64().unwrap();
        let what = match (field("family"), field("action")) {
            // Passes have no place in the expected file.
            ("policy", "pass") => continue,
            ("policy", action) => format!("{action} {}", field("policy")),
            ("default_deny", _) => "no policy".into(),
            ("profile", _) => "profile".into(),
            _ => continue,
        };
        let workload = match field("namespace") {
            "" => field("pod").to_string(),
            namespace => format!("{namespace}/{}", field("pod")),
        };
        if packets > 0 {
            accounts.insert((workload, field("direction").into(), what), packets);
        }
    }
    accounts
}

#[test]
fn every_generation_with_manifests() {
    let manifests = fixtures().join("chains/manifests");
    for dump in dumps() {
        let namespace = load(&dump);
        let object = show(&namespace, &["--manifests", manifests.to_str().unwrap(), "--node-name", "node1"]);
        assert_eq!(found(&object), expected(), "{dump:?}");
        let agent = start(&namespace, &["--manifests", manifests.to_str().unwrap()]);
        assert_eq!(found(&agent.accounts().unwrap()), expected(), "{dump:?}");
        assert_eq!(scrape(&agent).sum("calico_accountant_unattributed_packets_total", &[]), 0.0, "{dump:?}");
    }
}

#[test]
fn every_generation_without_a_datastore() {
    for dump in dumps() {
        let namespace = load(&dump);
        let found = found(&show(&namespace, &[]));
        let name = dump.file_name().unwrap().to_string_lossy().into_owned();
        let mut wanted = Accounts::new();
        for ((workload, direction, what), packets) in expected() {
            let (namespace, pod) = workload.split_once('/').unwrap();
            let interface = pod_interface("cali", namespace, pod).to_string();
            let what = if name.starts_with("v3.8-") {
                chain_names(&dump, &workload, &direction, &what)
            } else {
                what
            };
            wanted.insert((interface, direction, what), packets);
        }
        assert_eq!(found, wanted, "{dump:?}");
    }
}

/// Rules up to 3.21 do not name their policies: a plain chain name does, a hashed one stands for itself.
fn chain_names(dump: &Path, workload: &str, direction: &str, what: &str) -> String {
    let Some((action, policy)) = what.split_once(' ').filter(|(action, _)| *action != "no") else {
        return what.into();
    };
    let truth = dump.parent().unwrap().join("truth/v3.8.truth.json");
    let truth: Value = serde_json::from_str(&std::fs::read_to_string(truth).unwrap()).unwrap();
    let is_workload = |w: &&Value| {
        format!("{}/{}", w["namespace"].as_str().unwrap(), w["pod"].as_str().unwrap()) == workload
    };
    let of_workload = truth["workloads"].as_array().unwrap().iter().find(is_workload).unwrap();
    let entry = of_workload[direction].as_array().unwrap().iter().find(|p| p["policy"] == policy).unwrap();
    let chain = entry["chain"].as_str().unwrap();
    let hashed = chain.trim_start_matches("cali-pi-").trim_start_matches("cali-po-").starts_with('_');
    format!("{action} {}", if hashed { chain } else { policy })
}
