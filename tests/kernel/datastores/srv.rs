//! etcd found by the SRV records of a domain, as `ETCD_DISCOVERY_SRV` has it, with a real DNS server: dnsmasq.

use crate::support::run;
use accountant_lab::Namespace;
use accountant_rigs::Etcd;
use libtest_mimic::Failed;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

const DOMAIN: &str = "calico.test";

/// A DNS server in a namespace, and the namespace told to ask it. Both go when dropped.
struct Dns {
    server: Child,
    folder: PathBuf,
}

impl Dns {
    /// With one server of etcd behind the service, at a name of its own.
    fn start(namespace: &Namespace, port: u16) -> Self {
        // What is in this folder takes the place of the same in /etc for whoever `ip netns exec` starts.
        let folder = PathBuf::from("/etc/netns").join(namespace.name());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("resolv.conf"), "nameserver 127.0.0.1\noptions attempts:20 timeout:1\n")
            .unwrap();
        let server = namespace
            .command("dnsmasq")
            .unwrap()
            .args([
                "--keep-in-foreground",
                "--conf-file",
                "--no-resolv",
                "--no-hosts",
                "--pid-file",
                "--user=root",
            ])
            .arg(format!("--address=/etcd-0.{DOMAIN}/127.0.0.1"))
            .arg(format!("--srv-host=_etcd-client._tcp.{DOMAIN},etcd-0.{DOMAIN},{port}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { server, folder }
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn etcd_is_found_by_srv_records() -> Result<(), Failed> {
    let namespace = Namespace::new("srv").unwrap();
    let etcd = namespace.enter(|| Etcd::start().unwrap()).unwrap();
    let key = "/calico/resources/v3/projectcalico.org/networkpolicies/n/found";
    namespace.enter(|| etcd.put(key, r#"{"spec": {"tier": "default"}}"#).unwrap()).unwrap();
    let port = etcd.endpoint().rsplit(':').next().unwrap().parse().unwrap();
    let dns = Dns::start(&namespace, port);

    let found = check(&namespace, DOMAIN);
    assert_eq!(found["in_sync"], true, "{found}");
    assert_eq!(found["objects"]["NetworkPolicy.projectcalico.org"], 1, "{found}");
    let none = check(&namespace, "nothing.test");
    let reason = none["reason"].as_str().unwrap();
    assert!(reason.contains("nothing.test") && reason.contains("ETCD_DISCOVERY_SRV"), "{none}");
    drop(dns);
    Ok(())
}

/// What `accountant check` says of the datastore, etcd being behind a domain.
fn check(namespace: &Namespace, domain: &str) -> Value {
    let configuration = json!({"apiVersion": "projectcalico.org/v3", "kind": "CalicoAPIConfig",
        "spec": {"datastoreType": "etcdv3", "etcdDiscoverySrv": domain}});
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    fs::write(file.path(), configuration.to_string()).unwrap();
    let (out, err, _) =
        run(namespace, &["check", "--json", "--calico-config", file.path().to_str().unwrap()]);
    let findings: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    findings["datastore"].clone()
}
