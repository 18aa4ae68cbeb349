//! The agent in a container: what the chart's DaemonSet (or the systemd unit) says, run by a real container runtime (crun) on a
//! node of the lab.
//!
//! In go the pod of deploy/kubernetes/daemonset.yaml and the list of system calls that runtimes allow by default, as Debian
//! packages it; out comes a program that starts the container in the namespace that it is called in. Its root is the image that
//! `ACCOUNTANT_IMAGE` names (a folder that `cargo xtask image` made), else the binary under test and its libraries.

use super::lab::Lab;
use super::program;
use super::unit::Unit;
use accountant_lab::scenario::NODE_NAME;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// What the runtime's list of system calls lets whoever has `CAP_BPF` do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bpf {
    /// bpf(2), as in containerd since 1.6.9 and Docker since 23.
    Allowed,
    /// Not bpf(2), as in older lists.
    Refused,
}

/// Folders of the node that the pod mounts.
#[derive(Clone, Debug, Default)]
pub struct Mounted {
    /// What is `/var/run/calico` on a node; default: an empty one.
    pub calico: Option<PathBuf>,
    /// What is `/sys/fs/bpf` on a node; default: an empty one.
    pub bpf: Option<PathBuf>,
    /// What is `/run/packet-accountant` on a node; default: an empty one.
    pub state: Option<PathBuf>,
    /// A capability beside those of the pod.
    pub capability: Option<&'static str>,
}

/// A container that is not started yet.
pub struct Container {
    folder: TempDir,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Container {
    /// The pod of the DaemonSet on this node, with names from the lab's manifests.
    pub fn new(lab: &Lab, bpf: Bpf) -> Self {
        Self::mounting(lab, bpf, Mounted::default())
    }

    /// The same on a node that has these folders.
    pub fn mounting(lab: &Lab, bpf: Bpf, mounted: Mounted) -> Self {
        let daemonset = read(&root().join("deploy/kubernetes/daemonset.yaml"));
        let daemonset: Value = serde_saphyr::from_str(&daemonset).unwrap();
        let pod = &daemonset["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        Self::of(pod, |capabilities| seccomp(capabilities, bpf), lab, mounted)
    }

    /// The service of the systemd unit: the capabilities, system calls and kinds of sockets that it allows, and a root that cannot
    /// be written.
    pub fn of_unit(lab: &Lab) -> Self {
        let unit = Unit::read(&root().join("deploy/systemd/calico-packet-accountant.service"));
        Self::of(&unit.pod(), |_| unit.seccomp(), lab, Mounted::default())
    }

    fn of(pod: &Value, seccomp: impl Fn(&[String]) -> Value, lab: &Lab, mut mounted: Mounted) -> Self {
        let container = Self { folder: tempfile::tempdir().unwrap() };
        let at = |name: &str| container.folder.path().join(name);
        let made = |name: &str| {
            fs::create_dir(at(name)).unwrap();
            at(name)
        };
        fill(&made("rootfs"));
        mounted.calico.get_or_insert_with(|| made("calico"));
        mounted.bpf.get_or_insert_with(|| made("bpf"));
        mounted.state.get_or_insert_with(|| made("state"));
        let config = config(pod, seccomp, lab, &mounted);
        fs::write(at("config.json"), config.to_string()).unwrap();
        // A namespace of processes ends all of it with the shell. crun looks for cgroups; the machine's are not touched.
        let script = format!(
            "#!/bin/sh\nexec unshare --mount --pid --fork --kill-child --mount-proc sh -c 'mount -t cgroup2 none \
             /sys/fs/cgroup && exec crun --root {0}/state --cgroup-manager=disabled run --bundle {0} accountant'\n",
            container.folder.path().display()
        );
        fs::write(container.program(), script).unwrap();
        fs::set_permissions(container.program(), fs::Permissions::from_mode(0o755)).unwrap();
        container
    }

    /// What starts it.
    pub fn program(&self) -> PathBuf {
        self.folder.path().join("start")
    }
}

/// Puts the image, or the binary and its libraries, into a folder.
fn fill(rootfs: &Path) {
    if let Some(image) = std::env::var_os("ACCOUNTANT_IMAGE") {
        return unpack(Path::new(&image), rootfs);
    }
    let mut files = vec![(program().to_path_buf(), PathBuf::from("accountant"))];
    for word in run("ldd", &[program().to_str().unwrap()]).split_whitespace() {
        if let Some(path) = word.strip_prefix('/') {
            files.push((word.into(), path.into()));
        }
    }
    for (from, to) in files {
        let to = rootfs.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
}

/// Unpacks the image of this machine's architecture.
fn unpack(image: &Path, rootfs: &Path) {
    let blob = |digest: &Value| image.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let json = |path: &Path| -> Value { serde_json::from_str(&read(path)).unwrap() };
    let index = json(&image.join("index.json"));
    let here = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let manifests = index["manifests"].as_array().unwrap();
    let ours = manifests.iter().find(|manifest| manifest["platform"]["architecture"] == here).unwrap();
    for layer in json(&blob(&ours["digest"]))["layers"].as_array().unwrap() {
        let layer = blob(&layer["digest"]).display().to_string();
        run("tar", &["--extract", "--gzip", "--file", &layer, "--directory", rootfs.to_str().unwrap()]);
    }
}

/// The runtime's configuration, of the pod's.
fn config(pod: &Value, seccomp: impl Fn(&[String]) -> Value, lab: &Lab, mounted: &Mounted) -> Value {
    assert_eq!(pod["hostNetwork"], true);
    let container = &pod["containers"][0];
    let context = &container["securityContext"];
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    let added = context["capabilities"]["add"].as_array().unwrap().iter();
    let added = added.map(|name| format!("CAP_{}", name.as_str().unwrap()));
    let capabilities: Vec<_> = added.chain(mounted.capability.map(str::to_string)).collect();
    let arguments = ["/accountant"].into_iter().chain(container["args"].as_array().unwrap().iter().map(text));
    let node = |name: &str| match name {
        "NODENAME" => Some(NODE_NAME.to_string()),
        "DATASTORE_TYPE" => Some("manifests".into()),
        _ => None,
    };
    let ours = ["ACCOUNTANT_MANIFESTS=/manifests".to_string(), "ACCOUNTANT_MAX_AGE=0s".into()];
    let variable = |variable: &Value| {
        let name = text(&variable["name"]);
        format!("{name}={}", node(name).unwrap_or_else(|| text(&variable["value"]).to_string()))
    };
    let variables = container["env"].as_array().unwrap().iter().map(variable).chain(ours);
    json!({
        "ociVersion": "1.0.0",
        "root": {"path": "rootfs", "readonly": context["readOnlyRootFilesystem"]},
        "process": {
            "user": {"uid": context["runAsUser"], "gid": context["runAsGroup"]},
            "cwd": "/",
            "args": arguments.collect::<Vec<_>>(),
            "env": variables.collect::<Vec<_>>(),
            "noNewPrivileges": context["allowPrivilegeEscalation"] == false,
            "capabilities": {
                "bounding": capabilities, "permitted": capabilities, "effective": capabilities,
            },
        },
        "mounts": mounts(container, lab, mounted),
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
            "seccomp": seccomp(&capabilities),
        },
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// What every container has, what the pod mounts, and the manifests.
fn mounts(container: &Value, lab: &Lab, mounted: &Mounted) -> Vec<Value> {
    let bind = |from: &Path, to: &str, read_only: bool| {
        let mode = if read_only { "ro" } else { "rw" };
        json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", mode, "nosuid"]})
    };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        bind(Path::new("/sys"), "/sys", true),
        bind(lab.manifests.path(), "/manifests", true),
    ];
    for mount in container["volumeMounts"].as_array().unwrap() {
        let from = match text(&mount["name"]) {
            "xtables-lock" => {
                // FileOrCreate.
                let file = lab.node.host().lock_file();
                fs::OpenOptions::new().create(true).append(true).open(&file).unwrap();
                file
            }
            "calico-run" => mounted.calico.clone().unwrap_or_default(),
            "state" => mounted.state.clone().unwrap_or_default(),
            "bpf-pins" => mounted.bpf.clone().unwrap_or_default(),
            other => panic!("what is the volume {other} in the lab?"),
        };
        mounts.push(bind(&from, text(&mount["mountPath"]), mount["readOnly"] == true));
    }
    mounts
}

/// The default list for a container with these capabilities, in the runtime's form.
fn seccomp(capabilities: &[String], bpf: Bpf) -> Value {
    let file = root().join("target/tools/debian/usr/share/containers/seccomp.json");
    let list: Value = serde_json::from_str(&read(&file)).unwrap();
    let has = |names: &Value, held: &[&str]| {
        names.as_array().is_some_and(|names| names.iter().any(|name| held.contains(&text(name))))
    };
    let held: Vec<&str> = capabilities.iter().map(String::as_str).collect();
    let here = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let applies = |entry: &&Value| {
        let (includes, excludes) = (&entry["includes"], &entry["excludes"]);
        (includes["caps"].is_null() || has(&includes["caps"], &held))
            && (includes["arches"].is_null() || has(&includes["arches"], &[here]))
            && !has(&excludes["caps"], &held)
            && !has(&excludes["arches"], &[here])
    };
    let of_bpf = ["bpf", "perf_event_open"];
    let mut calls = Vec::new();
    for entry in list["syscalls"].as_array().unwrap().iter().filter(applies) {
        let names = entry["names"].as_array().unwrap().iter();
        let names: Vec<_> = names.filter(|name| !of_bpf.contains(&text(name))).collect();
        let mut call = json!({"names": names, "action": entry["action"]});
        for field in ["args", "errnoRet"] {
            if entry[field].is_number() || entry[field].as_array().is_some_and(|args| !args.is_empty()) {
                call[field] = entry[field].clone();
            }
        }
        calls.push(call);
    }
    let action = if bpf == Bpf::Allowed { "SCMP_ACT_ALLOW" } else { "SCMP_ACT_ERRNO" };
    calls.push(json!({"names": of_bpf, "action": action}));
    json!({"defaultAction": list["defaultAction"], "defaultErrnoRet": list["defaultErrnoRet"], "syscalls": calls})
}
