//! What the systemd unit allows its service, in the words of containers.
//!
//! In goes deploy/systemd/calico-packet-accountant.service; out come a pod and a list of system calls that allow the same.
//! `systemd-analyze` says what systemd's names of groups of system calls stand for.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// A unit's text.
pub struct Unit(String);

/// Families of sockets (socket.h).
const FAMILIES: [(&str, u32); 4] = [("AF_UNIX", 1), ("AF_INET", 2), ("AF_INET6", 10), ("AF_NETLINK", 16)];

impl Unit {
    pub fn read(path: &Path) -> Self {
        Self(std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    /// All words that are given for a key, line by line.
    fn lines(&self, key: &str) -> Vec<Vec<&str>> {
        let values = self.0.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        values.map(|value| value.split_whitespace().collect()).collect()
    }

    fn one(&self, key: &str) -> &str {
        let lines = self.lines(key);
        assert_eq!(lines.len(), 1, "{key} in the unit");
        lines[0][0]
    }

    /// A pod that may do the same; it has the mounts of the node's files that the agent reads.
    pub fn pod(&self) -> Value {
        assert_eq!(self.one("ProtectSystem"), "strict");
        assert_eq!(self.one("NoNewPrivileges"), "yes");
        let allowed = self.lines("CapabilityBoundingSet").concat();
        let capabilities: Vec<_> = allowed.iter().map(|name| name.strip_prefix("CAP_").unwrap()).collect();
        let command = self.lines("ExecStart").concat();
        json!({
            "hostNetwork": true,
            "containers": [{
                "args": command[1..],
                "env": [{"name": "NODENAME"}, {"name": "DATASTORE_TYPE"}],
                "securityContext": {
                    "runAsUser": 0, "runAsGroup": 0, "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"], "add": capabilities},
                },
                "volumeMounts": [
                    {"name": "xtables-lock", "mountPath": "/run/xtables.lock", "readOnly": true},
                    {"name": "calico-run", "mountPath": "/var/run/calico", "readOnly": true},
                    {"name": "bpf-pins", "mountPath": "/sys/fs/bpf", "readOnly": true},
                ],
            }],
        })
    }

    /// The system calls: everything else is refused with EPERM, as the unit says.
    pub fn seccomp(&self) -> Value {
        assert_eq!(self.one("SystemCallErrorNumber"), "EPERM");
        // What systemd always allows.
        let mut allowed = calls("@default");
        for line in self.lines("SystemCallFilter") {
            let named: BTreeSet<_> =
                line.iter().flat_map(|word| calls(word.trim_start_matches('~'))).collect();
            allowed = if line[0].starts_with('~') { &allowed - &named } else { &allowed | &named };
        }
        assert!(allowed.remove("socket"));
        let mut rules = vec![json!({"names": allowed, "action": "SCMP_ACT_ALLOW"})];
        for family in self.lines("RestrictAddressFamilies").concat() {
            let (_, number) = FAMILIES.iter().find(|(name, _)| *name == family).unwrap();
            let first = json!({"index": 0, "value": number, "op": "SCMP_CMP_EQ"});
            rules.push(json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [first]}));
        }
        json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": rules})
    }
}

/// The system calls that a word of a filter stands for.
fn calls(word: &str) -> BTreeSet<String> {
    if !word.starts_with('@') {
        return BTreeSet::from([word.to_string()]);
    }
    let output = Command::new("systemd-analyze").args(["syscall-filter", word]).output().unwrap();
    assert!(output.status.success(), "{word}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let members = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    members.filter(|member| *member != word).flat_map(calls).collect()
}
