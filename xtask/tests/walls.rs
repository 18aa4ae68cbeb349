//! The walls of the house, as ARCHITECTURE.md draws them: who may import whom, where `unsafe` may be, what core may not
//! touch, and how long a file may get.
//!
//! In goes the source as it is, and what cargo says of dependencies; out comes every breach at once.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// About 400 lines, said so that a machine understands it.
const LONGEST: usize = 430;

/// A crate: which of ours it may import, and which others; of others, nothing means any.
struct Wall {
    name: &'static str,
    ours: &'static [&'static str],
    others: Option<&'static [&'static str]>,
    never: &'static [&'static str],
}

const ABI: &str = "accountant-abi";
const CORE: &str = "accountant-core";
const SYS: &str = "accountant-sys";
const DATAPLANE: &str = "accountant-dataplane";
const DATASTORE: &str = "accountant-datastore";
const AGENT: &str = "accountant-agent";
const EBPF: &str = "accountant-ebpf";

const WALLS: [Wall; 7] = [
    // Only user space asks for aya, for its mark of plain data.
    Wall { name: ABI, ours: &[], others: Some(&["aya"]), never: &[] },
    Wall { name: EBPF, ours: &[ABI], others: Some(&["aya-ebpf"]), never: &[] },
    // Value crates: hashes, collections, and how values are written down.
    Wall {
        name: CORE,
        ours: &[],
        others: Some(&["base64", "hashbrown", "serde", "sha1", "sha2", "slab", "smallvec", "thiserror"]),
        never: &[],
    },
    Wall { name: SYS, ours: &[ABI], others: Some(&["aya", "libc", "thiserror"]), never: &[] },
    Wall { name: DATAPLANE, ours: &[ABI, CORE, SYS], others: None, never: &["tokio"] },
    Wall { name: DATASTORE, ours: &[CORE], others: None, never: &["aya", "libc"] },
    Wall { name: AGENT, ours: &[ABI, CORE, SYS, DATAPLANE, DATASTORE], others: None, never: &[] },
];

/// Crates that may contain `unsafe`.
const UNSAFE: [&str; 3] = [SYS, ABI, EBPF];

/// What core may not touch: files, sockets, clocks, threads, the environment, chance.
const NOT_IN_CORE: [&str; 10] = [
    "std::fs",
    "Tcp",
    "Udp",
    "std::env",
    "std::process",
    "std::thread",
    "std::io",
    "std::os",
    "Instant::now",
    "SystemTime",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

/// Packages of a workspace by name.
fn packages(manifest: &str) -> BTreeMap<String, Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps", "--manifest-path"])
        .arg(root().join(manifest))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.map(|package| (package["name"].as_str().unwrap().into(), package.clone())).collect()
}

fn all_packages() -> BTreeMap<String, Value> {
    let mut all = packages("Cargo.toml");
    all.append(&mut packages("accountant-ebpf/Cargo.toml"));
    all
}

/// What it imports when it is not tested.
fn imports(package: &Value) -> Vec<&str> {
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    dependencies.filter(|d| d["kind"] != "dev").map(|d| d["name"].as_str().unwrap()).collect()
}

/// All Rust files below a folder of the workspace, with their text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().display().to_string(), text));
            }
        }
    }
    found.sort();
    found
}

fn none(breaches: &[String]) {
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

#[test]
fn crates_import_what_they_may() {
    let packages = all_packages();
    let mut breaches = Vec::new();
    for wall in WALLS {
        for import in imports(&packages[wall.name]) {
            let is_ours = packages.contains_key(import);
            let allowed = if is_ours {
                wall.ours.contains(&import)
            } else {
                wall.others.is_none_or(|others| others.contains(&import)) && !wall.never.contains(&import)
            };
            if !allowed {
                breaches.push(format!("{} may not import {import}", wall.name));
            }
        }
    }
    none(&breaches);
}

#[test]
fn unsafe_code_is_forbidden_where_it_is_not_due() {
    let mut breaches = Vec::new();
    for (name, package) in all_packages() {
        if UNSAFE.contains(&name.as_str()) {
            continue;
        }
        for target in package["targets"].as_array().unwrap() {
            let is = |kind: &str| target["kind"].as_array().unwrap().iter().any(|k| k == kind);
            let path = target["src_path"].as_str().unwrap();
            if (is("lib") || is("bin"))
                && !fs::read_to_string(path).unwrap().contains("#![forbid(unsafe_code)]")
            {
                breaches.push(format!("{path} does not forbid unsafe code"));
            }
        }
    }
    let excused = |path: &str| UNSAFE.iter().any(|name| path.starts_with(&format!("{name}/")));
    for (path, text) in sources(".").iter().filter(|(path, _)| !excused(path)) {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let unsafe_code = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"];
        let is_this_list = path.ends_with("walls.rs");
        if !is_this_list && code.clone().any(|line| unsafe_code.iter().any(|code| line.contains(code))) {
            breaches.push(format!("{path} has unsafe code"));
        }
    }
    none(&breaches);
}

#[test]
fn core_neither_reads_nor_writes_nor_looks_at_a_clock() {
    let mut breaches = Vec::new();
    for (path, text) in sources("accountant-core/src") {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for word in NOT_IN_CORE.iter().filter(|word| code.contains(**word)) {
                breaches.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    none(&breaches);
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut breaches = Vec::new();
    let files = sources(".");
    assert!(files.len() > 100, "the files were not found");
    for (path, text) in files {
        let lines = text.lines().count();
        if lines > LONGEST {
            breaches.push(format!("{path} has {lines} lines: split it"));
        }
        if !text.starts_with("//!") {
            breaches.push(format!("{path} does not open with what it is for"));
        }
    }
    none(&breaches);
}

/// The page says what these tests check.
#[test]
fn the_architecture_page_is_short_and_has_every_crate() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(page.lines().count() <= 250, "ARCHITECTURE.md is no longer read at one sitting");
    for wall in WALLS {
        assert!(page.contains(&format!("| `{}` |", wall.name)), "{} is not in ARCHITECTURE.md", wall.name);
    }
}
