//! The same sources in another folder, built anew: what comes out has to be the same, byte for byte.
//!
//! In go the files that git knows, as they are now; out comes nothing, or which part differs and where. What is packed around these
//! parts is a pure function of them (`archive`, `layout`, `deb`), with tests of its own.

use super::{Arch, Shipped};
use crate::command::{program, root, say};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Builds it once more and compares.
pub(super) fn compare(arch: Arch, first: &Shipped) -> Result<()> {
    // Of another length and depth than where we are.
    let folder = root().join("target/twin/of-another-name");
    clean(&folder)?;
    copy(&folder)?;
    say(&format!("building once more in {}", folder.display()));
    let second = Shipped::from(&folder, arch)?;
    let parts = [
        ("the binary", first.binary.as_slice(), second.binary.as_slice()),
        ("the licences", first.licences.as_bytes(), second.licences.as_bytes()),
        ("the bill of materials", first.sbom.as_bytes(), second.sbom.as_bytes()),
    ];
    for (what, first, second) in parts {
        if first != second {
            bail!("{what} for {} {}; both are left to be compared", arch.name(), difference(first, second));
        }
    }
    say(&format!("{}: binary, licences and bill of materials are the same", arch.name()));
    clean(&folder)
}

fn clean(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    Ok(())
}

/// Copies what git knows.
fn copy(into: &Path) -> Result<()> {
    let files =
        program("git", &["ls-files", "-z"]).output().context("the sources have to be a git checkout")?;
    for file in files.split_terminator('\0') {
        let (from, to) = (root().join(file), into.join(file));
        fs::create_dir_all(to.parent().unwrap_or(into))?;
        let copied = match fs::read_link(&from) {
            Ok(target) => symlink(target, &to),
            Err(_) => fs::copy(&from, &to).map(drop),
        };
        copied.with_context(|| file.to_string())?;
    }
    Ok(())
}

/// Where two that differ begin to.
fn difference(first: &[u8], second: &[u8]) -> String {
    let equal = first.iter().zip(second).take_while(|(first, second)| first == second).count();
    format!("differ from byte {equal} on (of {} and {})", first.len(), second.len())
}
