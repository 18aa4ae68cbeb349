//! What a binary is made of: a bill of materials (SPDX 2.3) and the licences of all of it.
//!
//! In go the resolved dependencies, as cargo tells them: what is linked, or made code that is linked (macros), for one target; and
//! the same of the in-kernel programs, which the binary has inside. Texts are what each package ships.

use crate::command::{cargo, program, root};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// How names of licence files begin.
const LICENCE_FILES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// The packages of a binary.
pub(super) struct Materials {
    packages: BTreeMap<(String, String), Package>,
    /// The compiler, whose standard library is linked.
    rust: String,
}

struct Package {
    licence: String,
    source: String,
    folder: PathBuf,
}

/// What the agent for a target is made of, by the sources in this folder.
pub(super) fn of(folder: &Path, triple: &str) -> Result<Materials> {
    let mut packages = BTreeMap::new();
    collect(folder, "accountant-agent", triple, &mut packages)?;
    collect(&folder.join("accountant-ebpf"), "accountant-ebpf", triple, &mut packages)?;
    let rust = program("rustc", &["--version"]).output()?;
    let rust = rust.split_whitespace().nth(1).context("rustc tells no version")?.to_string();
    Ok(Materials { packages, rust })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn collect(
    workspace: &Path,
    package: &str,
    triple: &str,
    into: &mut BTreeMap<(String, String), Package>,
) -> Result<()> {
    let arguments = ["metadata", "--format-version=1", "--locked", "--filter-platform", triple];
    let metadata: Value = serde_json::from_str(&cargo(&arguments).within(workspace).output()?)?;
    let empty = Vec::new();
    let list = |value: &'_ Value| value.as_array().unwrap_or(&empty).clone();
    let packages: BTreeMap<_, _> =
        list(&metadata["packages"]).into_iter().map(|p| (text(&p["id"]).to_string(), p)).collect();
    let nodes: BTreeMap<_, _> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|n| (text(&n["id"]).to_string(), n)).collect();
    let first = packages.iter().find(|(_, found)| found["name"] == package);
    let mut waiting = vec![first.context("cargo does not know its own package")?.0.clone()];
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        for dependency in list(&nodes[&id]["deps"]) {
            // No kind: neither for tests nor for building.
            if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                waiting.push(text(&dependency["pkg"]).to_string());
            }
        }
        let found = &packages[&id];
        let folder =
            Path::new(text(&found["manifest_path"])).parent().unwrap_or(Path::new("/")).to_path_buf();
        let licence = found["license"].as_str().unwrap_or("NOASSERTION").replace('/', " OR ");
        let source = found["source"].as_str().unwrap_or_default().to_string();
        let key = (text(&found["name"]).to_string(), text(&found["version"]).to_string());
        into.insert(key, Package { licence, source, folder });
    }
    Ok(())
}

impl Materials {
    /// The bill of materials. No time and no random name: it is the same for the same packages.
    pub(super) fn sbom(&self) -> Result<String> {
        let id = |name: &str, version: &str| {
            let fits = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
            format!("SPDXRef-{}", format!("{name}-{version}").chars().map(fits).collect::<String>())
        };
        let rust = (
            ("rust-std".to_string(), self.rust.clone()),
            Package { licence: "MIT OR Apache-2.0".into(), source: String::new(), folder: PathBuf::new() },
        );
        let all = || self.packages.iter().chain([(&rust.0, &rust.1)]);
        let package = |((name, version), package): (&(String, String), &Package)| {
            let mut described = json!({
                "SPDXID": id(name, version), "name": name, "versionInfo": version,
                "licenseDeclared": package.licence, "licenseConcluded": "NOASSERTION",
                "downloadLocation": "NOASSERTION", "copyrightText": "NOASSERTION", "filesAnalyzed": false,
            });
            if package.source.starts_with("registry+") {
                described["externalRefs"] = json!([{
                    "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",
                    "referenceLocator": format!("pkg:cargo/{name}@{version}"),
                }]);
            }
            described
        };
        let agent = self.packages.keys().find(|(name, _)| name == "accountant-agent").context("the agent")?;
        let agent = id(&agent.0, &agent.1);
        let contained = all().filter(|((name, _), _)| name != "accountant-agent").map(|((name, version), _)| {
            json!({
                "spdxElementId": agent, "relationshipType": "CONTAINS", "relatedSpdxElement": id(name, version),
            })
        });
        let described = json!({
            "spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": agent,
        });
        let relationships: Vec<_> = [described].into_iter().chain(contained).collect();
        let document = json!({
            "spdxVersion": "SPDX-2.3",
            "SPDXID": "SPDXRef-DOCUMENT",
            "dataLicense": "CC0-1.0",
            "name": "accountant",
            "documentNamespace": format!("https://spdx.invalid/calico-packet-accountant/{}", env!("CARGO_PKG_VERSION")),
            "creationInfo": {"created": "1970-01-01T00:00:00Z", "creators": ["Tool: cargo-xtask-image"]},
            "packages": all().map(package).collect::<Vec<_>>(),
            "relationships": relationships,
        });
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }

    /// All packages with their licences, and then each text once, with the packages that ship it.
    pub(super) fn licences(&self) -> Result<String> {
        let mut document = String::from("What this program is made of, and under which licences.\n\n");
        let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for ((name, version), package) in &self.packages {
            writeln!(document, "{name} {version}: {}", package.licence)?;
            for file in licence_files(package)? {
                let text = fs::read(&file).with_context(|| file.display().to_string())?;
                let text = String::from_utf8_lossy(&text).trim().to_string();
                texts.entry(text).or_default().push(format!("{name} {version}"));
            }
        }
        writeln!(document, "rust-std {}: MIT OR Apache-2.0, with musl libc: MIT", self.rust)?;
        let mut texts: Vec<_> = texts.into_iter().map(|(text, packages)| (packages, text)).collect();
        texts.sort();
        for (packages, text) in texts {
            let packages = packages.iter().map(String::as_str).collect::<BTreeSet<_>>();
            let packages = packages.into_iter().collect::<Vec<_>>().join(", ");
            write!(document, "\n{}\n{packages}\n\n{text}\n", "-".repeat(80))?;
        }
        Ok(document)
    }
}

/// The licences that a package ships; our own crates share that of the workspace, beside theirs.
fn licence_files(package: &Package) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if package.source.is_empty() {
        files.push(root().join("LICENSE"));
    }
    for entry in fs::read_dir(&package.folder).with_context(|| package.folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && LICENCE_FILES.iter().any(|beginning| name.starts_with(beginning)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_that_is_linked_is_named_and_what_is_not_is_not() {
        let materials = super::of(&crate::command::root(), "x86_64-unknown-linux-gnu").unwrap();
        let sbom: serde_json::Value = serde_json::from_str(&materials.sbom().unwrap()).unwrap();
        let names: Vec<_> =
            sbom["packages"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        for linked in
            ["accountant-agent", "accountant-ebpf", "aya-ebpf", "tokio", "rustls", "ring", "rust-std"]
        {
            assert!(names.contains(&linked), "{linked}");
        }
        for not in
            ["accountant-lab", "accountant-rigs", "libtest-mimic", "proptest", "tonic-prost-build", "xtask"]
        {
            assert!(!names.contains(&not), "{not}");
        }
        assert!(sbom["packages"].as_array().unwrap().iter().all(|p| p["licenseDeclared"] != "NOASSERTION"));
        let licences = materials.licences().unwrap();
        assert!(
            licences.contains("\naya-ebpf ")
                && licences.contains("Apache License")
                && licences.contains("MIT License")
        );
    }
}
