//! What platforms take from here: Prometheus rules, Grafana dashboards, a Helm chart and plain manifests.
//!
//! In go the files of this folder that people write; out come those that are generated from them, by `cargo xtask deploy`, and
//! tests of both. Nothing of this is in the agent.

#![forbid(unsafe_code)]

pub mod grafana;
pub mod manifests;
pub mod rules;

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The text of a file of the workspace.
pub fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = root().join(path);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The files of a folder of the workspace whose names end in this, in order, relative to the workspace.
pub fn files(folder: &str, ending: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(root().join(folder)).with_context(|| folder.to_string())?;
    let mut files = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if name.to_string_lossy().ends_with(ending) {
            files.push(Path::new(folder).join(name));
        }
    }
    files.sort();
    Ok(files)
}

/// Writes everything that is generated, with helm and kustomize of this folder; returns what was written.
pub fn write(tools: &Path) -> Result<Vec<String>> {
    let mut written = Vec::new();
    let mut write = |(path, text): (String, String)| {
        fs::write(root().join(&path), text).with_context(|| path.clone())?;
        written.push(path);
        anyhow::Ok(())
    };
    for file in grafana::generated()?.into_iter().chain(manifests::objects(tools)?) {
        write(file)?;
    }
    write(manifests::plain(tools)?)?;
    Ok(written)
}
