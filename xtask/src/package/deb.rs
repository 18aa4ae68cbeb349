//! The Debian package, for nodes without Kubernetes: the binary, a unit of systemd, and a file of settings.
//!
//! In goes the workspace; out comes `target/calico-packet-accountant_VERSION_ARCH.deb` for each architecture. The format is deb(5):
//! an ar archive of two tar archives. The binary is static, so the package needs no other.

use super::archive::{Entry, gzip, tar};
use super::{Arch, Shipped};
use crate::command::{cargo, root, say};
use crate::setup;
use anyhow::{Context, Result};
use std::fs;

/// Arguments of `deb`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Architectures; can be given several times.
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Vec<Arch>,
    /// Install the package of this machine's architecture in a systemd that is booted for it, and see it count.
    #[arg(long)]
    test: bool,
}

const NAME: &str = "calico-packet-accountant";
const SETTINGS: &str = "etc/default/calico-packet-accountant";
const DESCRIPTION: &str = "Description: which Calico policy accepted or denied what
 A node agent that says exactly which policy of Calico accepted or denied how
 many packets of which workload, and serves it to Prometheus on port 9009. It
 reads counters of the rules that Calico programs, and changes nothing.
";

/// Builds the package.
pub(crate) fn run(args: &Args) -> Result<()> {
    for &arch in &args.arch {
        let package = package(arch, Shipped::new(arch)?)?;
        let file = format!("target/{NAME}_{}_{}.deb", env!("CARGO_PKG_VERSION"), arch.name());
        fs::write(root().join(&file), package).with_context(|| file.clone())?;
        say(&format!("wrote {file}"));
        if args.test && arch == Arch::HERE {
            setup::everything()?;
            say("running the tests of systemd with it");
            let tests = ["test", "--package", "accountant-agent", "--test", "systemd"];
            cargo(&tests).env("ACCOUNTANT_DEB", root().join(file)).run()?;
        }
    }
    Ok(())
}

/// The package's bytes.
fn package(arch: Arch, shipped: Shipped) -> Result<Vec<u8>> {
    let files = files(shipped)?;
    let mut ar = ar::Builder::new(Vec::new());
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", gzip(&tar(&control(arch, &files)?)?)?),
        ("data.tar.gz", gzip(&tar(&files)?)?),
    ];
    for (name, content) in members {
        let mut header = ar::Header::new(name.into(), content.len() as u64);
        header.set_mode(0o100_644);
        ar.append(&header, content.as_slice())?;
    }
    Ok(ar.into_inner()?)
}

fn shipped_text(path: &str) -> Result<Vec<u8>> {
    fs::read(root().join("deploy").join(path)).with_context(|| path.to_string())
}

/// What is installed, in order.
fn files(shipped: Shipped) -> Result<Vec<Entry>> {
    let documents = format!("usr/share/doc/{NAME}");
    Ok(vec![
        Entry::new(SETTINGS, 0o644, shipped_text("debian/default")?),
        Entry::new("usr/bin/accountant", 0o755, shipped.binary),
        Entry::new(
            format!("usr/lib/systemd/system/{NAME}.service"),
            0o644,
            shipped_text(&format!("systemd/{NAME}.service"))?,
        ),
        Entry::new(format!("{documents}/copyright"), 0o644, shipped.licences),
        Entry::new(format!("{documents}/sbom.spdx.json.gz"), 0o644, gzip(shipped.sbom.as_bytes())?),
    ])
}

/// What dpkg is told: what the package is, which file is the administrator's, and what to run.
fn control(arch: Arch, files: &[Entry]) -> Result<Vec<Entry>> {
    let bytes: usize = files.iter().map(|file| file.content.len()).sum();
    let control = format!(
        "Package: {NAME}\nVersion: {}\nArchitecture: {}\nMaintainer: The maintainers of {NAME} <{NAME}@example.invalid>\n\
         Installed-Size: {}\nSection: net\nPriority: optional\n{DESCRIPTION}",
        env!("CARGO_PKG_VERSION"),
        arch.name(),
        bytes.div_ceil(1024),
    );
    let mut entries =
        vec![Entry::new("control", 0o644, control), Entry::new("conffiles", 0o644, format!("/{SETTINGS}\n"))];
    for script in ["postinst", "prerm", "postrm"] {
        entries.push(Entry::new(script, 0o755, shipped_text(&format!("debian/{script}"))?));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    fn made() -> Vec<u8> {
        let text = |text: &str| text.to_string();
        let shipped =
            Shipped { binary: b"\x7fELF".to_vec(), licences: text("licences\n"), sbom: text("{}\n") };
        package(Arch::Amd64, shipped).unwrap()
    }

    fn run(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    #[test]
    fn the_same_files_are_the_same_package() {
        assert_eq!(made(), made());
    }

    #[test]
    fn dpkg_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("it.deb");
        fs::write(&file, made()).unwrap();
        let file = file.to_str().unwrap();
        let fields = run("dpkg-deb", &["--field", file, "Package", "Architecture"]);
        assert_eq!(fields.lines().count(), 2, "{fields}");
        let listed = run("dpkg-deb", &["--contents", file]);
        let lines: Vec<_> = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        let is = |path: &str, mode: &str| {
            lines.iter().any(|line| line[0] == mode && line[1] == "root/root" && line[5] == path)
        };
        assert!(is("usr/bin/accountant", "-rwxr-xr-x") && is("etc/default/", "drwxr-xr-x"), "{listed}");
        assert!(is(SETTINGS, "-rw-r--r--"), "{listed}");
    }

    /// A folder that dpkg takes for a system.
    struct System(tempfile::TempDir);

    impl System {
        fn new() -> Self {
            let system = Self(tempfile::tempdir().unwrap());
            for folder in ["info", "updates"] {
                fs::create_dir_all(system.path("var/lib/dpkg").join(folder)).unwrap();
            }
            fs::write(system.path("var/lib/dpkg/status"), "").unwrap();
            system
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn dpkg(&self, arguments: &[&str]) {
            let root = format!("--root={}", self.0.path().display());
            let log = format!("--log={}", self.path("log").display());
            run("dpkg", &[&[&root, &log, "--force-script-chrootless"], arguments].concat());
        }

        fn links(&self) -> bool {
            let link = "etc/systemd/system/multi-user.target.wants/calico-packet-accountant.service";
            self.path(link).symlink_metadata().is_ok()
        }
    }

    /// All files in a folder that are called like the package.
    fn ours(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && !path.is_symlink() {
                ours(&path, found);
            } else if name == "accountant" || name.contains(NAME) {
                found.push(path);
            }
        }
    }

    /// Installed, changed by its administrator, updated, removed, purged: in a folder of its own, by the real dpkg.
    #[test]
    fn dpkg_installs_it_and_removes_it() {
        let system = System::new();
        let file = system.path("it.deb");
        fs::write(&file, made()).unwrap();
        let file = file.to_str().unwrap();
        system.dpkg(&["--install", file]);
        assert!(system.path("usr/bin/accountant").exists() && system.links());
        // Settings and whether it runs are the administrator's.
        fs::write(system.path(SETTINGS), "ACCOUNTANT_LOG=debug\n").unwrap();
        system.dpkg(&["--force-confold", "--install", file]);
        assert_eq!(fs::read_to_string(system.path(SETTINGS)).unwrap(), "ACCOUNTANT_LOG=debug\n");
        system.dpkg(&["--remove", NAME]);
        assert!(!system.path("usr/bin/accountant").exists() && system.path(SETTINGS).exists());
        system.dpkg(&["--purge", NAME]);
        let mut left = Vec::new();
        ours(system.0.path(), &mut left);
        assert!(left.is_empty() && !system.links(), "{left:?}");
    }
}
