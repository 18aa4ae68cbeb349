//! Endpoints as Felix itself reports them on the node, from 3.30 on: one file for each, with the interface's real name.
//!
//! ```text
//! /var/run/calico/endpoint-status/k8s shop%2Fweb-1 eth0   {"ifaceName": "cali0123", "ipv4Nets": ["10.0.0.1/32"], ...}
//! ```
//!
//! In goes the folder; out comes what all files in it say, again whenever they change. The names of the files say the pods
//! (`libcalico-go/lib/names/workloadendpointstatus.go`). A file that cannot be used is as one that is not there, and is told.

use crate::bell::Bell;
use nix::sys::inotify::AddWatchFlags;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};
use tokio::sync::watch;

/// Where Felix writes them.
pub(crate) const FOLDER: &str = "/var/run/calico/endpoint-status";
/// How often the folder is looked for, and looked at, although no change was seen.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Largest file that is read, and most files.
const MAX_BYTES: u64 = 64 << 10;
const MAX_FILES: usize = 10_000;

/// What Felix says of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalEndpoint {
    pub(crate) interface: Box<str>,
    pub(crate) networks: Vec<Box<str>>,
}

/// Namespace and name of a pod.
pub(crate) type Pod = (Box<str>, Box<str>);

/// All endpoints, by pod.
pub(crate) type LocalEndpoints = BTreeMap<Pod, LocalEndpoint>;

/// What all files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reports {
    pub(crate) endpoints: LocalEndpoints,
    /// What is wrong with files that cannot be used, by pod.
    pub(crate) wrong: BTreeMap<Pod, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    iface_name: Box<str>,
    #[serde(default)]
    ipv4_nets: Option<Vec<Box<str>>>,
    #[serde(default)]
    ipv6_nets: Option<Vec<Box<str>>>,
}

/// Follows a folder, as a task of the present runtime, until nobody looks any more. What is there now is read at once.
pub(crate) fn follow(folder: PathBuf) -> watch::Receiver<Reports> {
    let local = Local { folder, bell: Bell::new() };
    let (told, mut endpoints) = watch::channel(local.read());
    endpoints.mark_changed();
    tokio::spawn(async move {
        tokio::select! {
            () = local.run(&told) => {}
            () = told.closed() => {}
        }
    });
    endpoints
}

struct Local {
    folder: PathBuf,
    bell: io::Result<Bell>,
}

impl Local {
    async fn run(&self, told: &watch::Sender<Reports>) {
        loop {
            self.wait().await;
            let endpoints = self.read();
            told.send_if_modified(|last| {
                let news = *last != endpoints;
                *last = endpoints;
                news
            });
        }
    }

    async fn wait(&self) {
        let rung = async {
            match &self.bell {
                Ok(bell) => bell.rung().await,
                Err(_) => std::future::pending().await,
            }
        };
        // Time alone tells where inotify does not.
        let _ = tokio::time::timeout(LOOK_AGAIN, rung).await;
    }

    fn read(&self) -> Reports {
        if let Ok(bell) = &self.bell {
            let changes = AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MOVE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_ONLYDIR;
            // A folder that is not there yet is looked for again.
            let _ = bell.inotify().add_watch(&self.folder, changes);
        }
        let files = fs::read_dir(&self.folder).into_iter().flatten().take(MAX_FILES).flatten();
        let mut reports = Reports::default();
        for path in files.map(|file| file.path()) {
            match read(&path) {
                Some((pod, Ok(endpoint))) => drop(reports.endpoints.insert(pod, endpoint)),
                Some((pod, Err(error))) => drop(reports.wrong.insert(pod, error)),
                None => {}
            }
        }
        reports
    }
}

/// What a file says; nothing if it is none of a pod, or not there any more.
fn read(path: &Path) -> Option<(Pod, Result<LocalEndpoint, String>)> {
    let name = path.file_name()?.to_str()?;
    let (pod, endpoint) = match fs::metadata(path).ok()?.len() {
        // It was just made, and is being written.
        0 => return None,
        1..=MAX_BYTES => match fs::read(path) {
            Ok(json) => decode(name, &json)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => (pod(name)?, Err(error.to_string())),
        },
        length => (pod(name)?, Err(format!("it has {length} bytes"))),
    };
    let advice = "Felix writes it anew when it is restarted";
    Some((pod, endpoint.map_err(|error| format!("cannot use {}: {error}; {advice}", path.display()))))
}

/// What a file says, by its name and bytes.
pub(crate) fn decode(file: &str, json: &[u8]) -> Option<(Pod, Result<LocalEndpoint, String>)> {
    Some((pod(file)?, endpoint(json)))
}

/// Namespace and pod of a file's name: orchestrator, workload and endpoint, each escaped as in a URL.
fn pod(file: &str) -> Option<Pod> {
    let mut parts = file.split(' ');
    let (orchestrator, workload, _endpoint) = (parts.next()?, parts.next()?, parts.next()?);
    if orchestrator != "k8s" || parts.next().is_some() {
        return None;
    }
    let workload = percent_decode_str(workload).decode_utf8().ok()?;
    let (namespace, pod) = workload.split_once('/')?;
    (!namespace.is_empty() && !pod.is_empty()).then(|| (namespace.into(), pod.into()))
}

fn endpoint(json: &[u8]) -> Result<LocalEndpoint, String> {
    let File { iface_name, ipv4_nets, ipv6_nets } =
        serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let networks = ipv4_nets.into_iter().chain(ipv6_nets).flatten().collect();
    match iface_name.is_empty() {
        true => Err("ifaceName is empty".into()),
        false => Ok(LocalEndpoint { interface: iface_name, networks }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_file_is_taken(name in ".{0,40}", bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            let _ = (pod(&name), endpoint(&bytes));
        }
    }

    #[test]
    fn file_names_say_the_pod() {
        let name = |file| pod(file).map(|(namespace, pod)| format!("{namespace} {pod}"));
        assert_eq!(name("k8s shop%2Fweb-1 eth0").as_deref(), Some("shop web-1"));
        assert_eq!(name("k8s shop%2fa.b eth0").as_deref(), Some("shop a.b"));
        for other in
            ["cni shop%2Fweb eth0", "k8s shop eth0", "k8s shop%2F eth0", "k8s a%2Fb", "k8s a%2Fb c d", ""]
        {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[test]
    fn files_say_the_interface() {
        let json = br#"{"ifaceName": "cali1", "mac": "ee", "ipv4Nets": ["10.0.0.1/32"], "ipv6Nets": null}"#;
        let networks = vec!["10.0.0.1/32".into()];
        assert_eq!(endpoint(json), Ok(LocalEndpoint { interface: "cali1".into(), networks }));
        assert!(endpoint(br#"{"ifaceName": ""}"#).unwrap_err().contains("ifaceName is empty"));
        assert!(endpoint(b"nonsense").is_err() && endpoint(br#"{"mac": "ee"}"#).is_err());
    }

    #[tokio::test]
    async fn a_folder_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("k8s shop%2Fweb eth0");
        fs::write(&file, r#"{"ifaceName": "cali1"}"#).unwrap();
        let mut endpoints = follow(folder.path().into());
        let mut until = async |wanted: Option<&str>| {
            let fits = |reports: &Reports| reports.endpoints.values().next().map(|e| &*e.interface) == wanted;
            endpoints.wait_for(fits).await.map(drop).unwrap();
        };
        until(Some("cali1")).await;
        fs::write(folder.path().join("new"), r#"{"ifaceName": "cali2"}"#).unwrap();
        fs::rename(folder.path().join("new"), &file).unwrap();
        until(Some("cali2")).await;
        fs::write(&file, "nonsense").unwrap();
        until(None).await;
        let error = endpoints.borrow().wrong.values().next().cloned().unwrap();
        assert!(error.contains("shop%2Fweb eth0: expected ident"), "{error}");
        fs::remove_file(&file).unwrap();
        endpoints.wait_for(|reports| reports.wrong.is_empty()).await.map(drop).unwrap();
    }
}
