//! Objects that an API server has from its start on, stored as they are: nothing of them is validated or changed.

use crate::root;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes objects into a file for [`crate::ApiServer::start_with`].
pub fn write(file: &Path, objects: impl IntoIterator<Item = Value>) -> Result<()> {
    let mut out = BufWriter::new(File::create(file)?);
    for object in objects {
        let key = key(&object).with_context(|| format!("an object that names itself: {object}"))?;
        writeln!(out, "{}", json!({"key": key, "value": object}))?;
    }
    Ok(out.flush()?)
}

/// Where the API server keeps an object.
pub fn key(object: &Value) -> Option<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let lower = text("/kind")?.to_lowercase();
    let plural = lower.strip_suffix('y').map_or(format!("{lower}s"), |stem| format!("{stem}ies"));
    let group = match text("/apiVersion")?.split_once('/') {
        None | Some(("networking.k8s.io", _)) => String::new(),
        Some((group, _)) => format!("{group}/"),
    };
    let namespace = text("/metadata/namespace").map(|name| format!("{name}/")).unwrap_or_default();
    Some(format!("/registry/{group}{plural}/{namespace}{}", text("/metadata/name")?))
}

/// The custom resource definitions of a group, as a user would create them.
pub fn crds(group: &str) -> Result<Vec<Value>> {
    let all: Value = serde_json::from_str(&fs::read_to_string(root().join("tests/apiserver/crds.json"))?)?;
    let all = all["items"].as_array().context("a list of definitions")?;
    let crds: Vec<_> = all.iter().filter(|crd| crd["spec"]["group"] == group).cloned().collect();
    ensure!(!crds.is_empty(), "there are no definitions of {group}");
    Ok(crds)
}

/// The same as the API server keeps them once they are established.
pub fn established_crds(group: &str) -> Result<Vec<Value>> {
    const MADE: &str = "2026-08-01T09:00:00Z";
    let establish = |(number, mut crd): (usize, Value)| {
        let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "Preloaded", "message": "", "lastTransitionTime": MADE});
        let versions = [crd["spec"]["versions"][0]["name"].clone()];
        crd["metadata"]["uid"] = format!("00000000-0000-4000-9000-{number:012}").into();
        crd["metadata"]["creationTimestamp"] = MADE.into();
        crd["status"] = json!({"acceptedNames": crd["spec"]["names"], "storedVersions": versions,
            "conditions": [condition("NamesAccepted"), condition("Established")]});
        crd
    };
    Ok(crds(group)?.into_iter().enumerate().map(establish).collect())
}
