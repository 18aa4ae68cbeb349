//! Programs that tests need and that are built with Go: once, and kept in the user's cache, under a hash of their sources and
//! of Go's version. A clean build folder does not cost the minutes that they take.

use crate::root;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Oldest Go that builds them: major and minor.
const OLDEST_GO: (u32, u32) = (1, 24);
/// What a program is made of, as far as it has them.
const SOURCES: [&str; 4] = ["build.sh", "go.mod", "go.sum", "main.go"];

/// Why a program is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub String);

/// What `tests/NAME/build.sh` builds, built if it is not there yet.
pub(crate) fn built(name: &str) -> Result<std::result::Result<PathBuf, Unavailable>> {
    let version = match Command::new("go").arg("version").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => return Ok(Err(Unavailable(format!("needs Go to build tests/{name}: {error}")))),
    };
    if parse(&version).is_none_or(|version| version < OLDEST_GO) {
        let (major, minor) = OLDEST_GO;
        let version = version.trim();
        return Ok(Err(Unavailable(format!("needs Go {major}.{minor} or newer, this is {version}"))));
    }
    let sources = root().join("tests").join(name);
    let mut hash = Sha256::new_with_prefix(&version);
    for source in SOURCES.map(|source| sources.join(source)).iter().filter(|source| source.exists()) {
        hash.update(fs::read(source).with_context(|| source.display().to_string())?);
    }
    let hash: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let cache = cache()?;
    fs::create_dir_all(&cache)?;
    let built = cache.join(format!("{name}-{hash}"));
    // Tests of several programs may come here at once.
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    lock.lock()?;
    if !built.exists() {
        eprintln!("building tests/{name} with {}: once, for some minutes", version.trim());
        let unfinished = built.with_extension("unfinished");
        let status = Command::new(sources.join("build.sh")).arg(&unfinished).status()?;
        if !status.success() {
            bail!("building tests/{name} failed: {status}");
        }
        fs::rename(unfinished, &built)?;
    }
    Ok(Ok(built))
}

/// Major and minor of `go version go1.26.3 linux/amd64`.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
    let minor = numbers.clone().nth(1)?;
    let minor = minor.split(|character: char| !character.is_ascii_digit()).next()?;
    Some((numbers.next()?.parse().ok()?, minor.parse().ok()?))
}

fn cache() -> Result<PathBuf> {
    let own = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let folder = own.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(folder.join("calico-packet-accountant"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn go_tells_its_version() {
        assert_eq!(super::parse("go version go1.26.8 linux/amd64\n"), Some((1, 26)));
        assert_eq!(super::parse("go version go1.25rc1 linux/amd64\n"), Some((1, 25)));
        assert_eq!(super::parse("nonsense"), None);
    }
}
