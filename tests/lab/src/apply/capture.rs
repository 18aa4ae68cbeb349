//! Putting captured rules back into a kernel, counters included.
//!
//! A capture is a folder of `tests/fixtures/felix` or a file of `tests/fixtures/chains`. Its name tells the backend.
//! The rules are loaded as they are: every tool reads back what it printed, so nothing is rewritten on the way. Only the
//! IPv6 counters of iptables-nft have to be set by hand, because its restore forgets them.

use super::{counters, iptables};
use crate::error::{Error, Result};
use crate::felix::Backend;
use crate::netns::Namespace;
use accountant_core::IpVersion;
use std::fs;
use std::path::{Path, PathBuf};

/// Loads the capture into a namespace whose tables are empty, and says which backend holds it now.
pub fn load_capture(namespace: &Namespace, capture: &Path) -> Result<Backend> {
    let files = Files::of(capture)?;
    if let Some(sets) = &files.ipsets {
        namespace.feed("ipset", &["restore", "-exist"], &read(sets)?)?;
    }
    for (version, rules) in &files.rules {
        match files.backend {
            Backend::Nft => drop(namespace.feed("nft", &["-f", "-"], &read(rules)?)?),
            backend => {
                let tool = iptables::tool(*version, backend == Backend::Legacy, "-restore");
                let text = read(rules)?;
                namespace.feed(&tool, &["--counters", "--wait"], &text)?;
                if backend == Backend::IptablesNft && *version == IpVersion::V6 {
                    namespace.enter(|| counters::restore_ipv6(&text))??;
                }
            }
        }
    }
    Ok(files.backend)
}

/// The files of a capture that are to be loaded.
struct Files {
    backend: Backend,
    ipsets: Option<PathBuf>,
    rules: Vec<(IpVersion, PathBuf)>,
}

impl Files {
    fn of(capture: &Path) -> Result<Self> {
        let name = capture.file_name().unwrap_or_default().to_string_lossy();
        let backend = backend(&name).ok_or(Error::UnknownCapture { path: capture.to_path_buf() })?;
        let folder = if capture.is_dir() { capture } else { capture.parent().unwrap_or(capture) };
        let there = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        let ipsets = if backend == Backend::Nft { None } else { there("ipsets.save") };
        let rules = if capture.is_file() {
            vec![(IpVersion::V4, capture.to_path_buf())]
        } else if backend == Backend::Nft {
            there("rules.nft.txt").map(|path| (IpVersion::V4, path)).into_iter().collect()
        } else {
            let v4 = there("rules.iptables-save").map(|path| (IpVersion::V4, path));
            let v6 = there("rules.ip6tables-save").map(|path| (IpVersion::V6, path));
            v4.into_iter().chain(v6).collect()
        };
        if rules.is_empty() {
            return Err(Error::UnknownCapture { path: capture.to_path_buf() });
        }
        Ok(Self { backend, ipsets, rules })
    }
}

/// `v3.31.7-legacy`, `v3.32.1-iptables-nft`, `v3.31-nft.iptables-save`, `v3.29.7-nft`, `v3.31nft.nft.txt`.
fn backend(name: &str) -> Option<Backend> {
    if name.contains("-legacy") {
        Some(Backend::Legacy)
    } else if name.contains("-iptables-nft") || (name.contains("-nft") && name.ends_with(".iptables-save")) {
        Some(Backend::IptablesNft)
    } else if name.ends_with("-nft") || name.ends_with(".nft.txt") {
        Some(Backend::Nft)
    } else {
        None
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::file("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_tells_the_backend() {
        for (name, want) in [
            ("v3.31.7-legacy", Some(Backend::Legacy)),
            ("v3.32.1-legacy-flowlogs", Some(Backend::Legacy)),
            ("v3.25-legacy.iptables-save", Some(Backend::Legacy)),
            ("v3.32.1-iptables-nft", Some(Backend::IptablesNft)),
            ("v3.31-nft.iptables-save", Some(Backend::IptablesNft)),
            ("v3.29.7-nft", Some(Backend::Nft)),
            ("v3.31nft.nft.txt", Some(Backend::Nft)),
            ("v3.32.1-bpf", None),
        ] {
            assert_eq!(backend(name), want, "{name}");
        }
    }
}
