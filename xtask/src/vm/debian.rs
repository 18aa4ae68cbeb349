//! Kernels of Debian's releases, fetched by apt and unpacked; nothing of them is installed.
//!
//! In goes a release's code name, out comes its newest kernel with its modules in `target/vm/NAME`. apt is asked with lists
//! and a cache of our own, for the archive that this machine gets its packages from.

use crate::command::{Program, program, root, say};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// What always depends on a release's newest kernel.
const NEWEST: &str = "linux-image-amd64";
/// What packages with parts of a kernel begin with: one up to Debian 13, several afterwards.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// A kernel, unpacked.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// Debian's code name of the release.
    pub(super) suite: String,
    /// What `uname -r` says.
    pub(super) release: String,
    /// Where everything about it is.
    pub(super) folder: PathBuf,
}

impl Kernel {
    /// Fetches it, if it is not there yet.
    pub(super) fn fetch(suite: &str) -> Result<Self> {
        let folder = root().join("target/vm").join(suite);
        let stamp = folder.join("release");
        if let Ok(release) = fs::read_to_string(&stamp) {
            return Ok(Self { suite: suite.into(), release, folder });
        }
        say(&format!("fetching the kernel of Debian {suite} into target/vm/{suite}"));
        let apt = Apt::new(suite, &folder)?;
        apt.get(&["update", "--quiet=2"]).run().context("are the keys of that release installed?")?;
        let packages = apt.parts()?;
        let release = packages.iter().find_map(|package| package.strip_prefix(PARTS[0]));
        let release = release.with_context(|| format!("{NEWEST} depends on no kernel: {packages:?}"))?;
        let kernel = Self { suite: suite.into(), release: release.into(), folder };
        apt.unpack(&packages, &kernel.root())?;
        if !kernel.root().join("lib").exists() {
            symlink("usr/lib", kernel.root().join("lib"))?;
        }
        kernel.root_program("depmod", &["--basedir"], &[release]).run()?;
        fs::write(stamp, release)?;
        Ok(kernel)
    }

    /// The folder that stands for `/` in the packages.
    pub(super) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// `lib/modules`, with this kernel's.
    pub(super) fn modules(&self) -> PathBuf {
        self.root().join("lib/modules")
    }

    /// The kernel itself.
    pub(super) fn image(&self) -> Result<PathBuf> {
        let boot = self.root().join("boot").join(format!("vmlinuz-{}", self.release));
        let places = [boot, self.modules().join(&self.release).join("vmlinuz")];
        places.into_iter().find(|place| place.exists()).context("the packages have no vmlinuz")
    }

    /// Files of modules, those that others need first. What is no module of this kernel is built in; not every package lists
    /// what that is.
    pub(super) fn module_files(&self, modules: &[&str]) -> Result<Vec<PathBuf>> {
        let listed = self.modules().join(&self.release).join("modules.dep");
        let listed = fs::read_to_string(&listed).with_context(|| listed.display().to_string())?;
        let names = |line: &str| {
            Some(line.split(':').next()?.rsplit('/').next()?.split('.').next()?.replace('-', "_"))
        };
        let listed: BTreeSet<String> = listed.lines().filter_map(names).collect();
        let mut files: Vec<PathBuf> = Vec::new();
        for module in modules.iter().filter(|module| listed.contains(**module)) {
            let arguments = ["--show-depends", "--set-version", &self.release, module];
            let text = self.root_program("modprobe", &["--dirname"], &arguments).output()?;
            for file in text.lines().filter_map(|line| line.strip_prefix("insmod ")) {
                let file = PathBuf::from(file.split_whitespace().next().unwrap_or(file));
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }

    /// A program of kmod's that is told our root.
    fn root_program(&self, name: &str, root: &[&str], arguments: &[&str]) -> Program {
        let folder = self.root().display().to_string();
        program(name, root)
            .args(&[folder])
            .args(&arguments.iter().map(ToString::to_string).collect::<Vec<_>>())
    }
}

/// apt with lists and a cache of its own.
struct Apt {
    folder: PathBuf,
    config: PathBuf,
}

impl Apt {
    fn new(suite: &str, folder: &Path) -> Result<Self> {
        for part in ["apt/lists/partial", "apt/cache/archives/partial", "debs", "root"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let at = |name: &str| folder.join("apt").join(name);
        let source = format!("deb [arch=amd64 target=Packages] {} {suite} main\n", archive()?);
        fs::write(at("sources.list"), source)?;
        let config = format!(
            "Dir::Etc::sourcelist \"{0}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::State::lists \"{0}/lists\";\nDir::State::status \"/dev/null\";\nDir::Cache \"{0}/cache\";\n\
             Acquire::Languages \"none\";\nAPT::Sandbox::User \"root\";\n",
            folder.join("apt").display()
        );
        fs::write(at("apt.conf"), config)?;
        Ok(Self { folder: folder.into(), config: at("apt.conf") })
    }

    fn get(&self, arguments: &[&str]) -> Program {
        program("apt-get", arguments).env("APT_CONFIG", &self.config)
    }

    /// The packages that together are the newest kernel.
    fn parts(&self) -> Result<Vec<String>> {
        let mut parts = vec![NEWEST.to_string()];
        let mut next = 0;
        while let Some(package) = parts.get(next) {
            let show = program("apt-cache", &["show", "--no-all-versions", package]);
            let text = show.env("APT_CONFIG", &self.config).output()?;
            let depends = text.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
            let names = depends.split([',', '|']).filter_map(|one| one.split_whitespace().next());
            let new: Vec<_> = names
                .filter(|name| PARTS.iter().any(|part| name.starts_with(part)))
                .filter(|name| !parts.iter().any(|known| known == name))
                .map(String::from)
                .collect();
            parts.extend(new);
            next += 1;
        }
        Ok(parts.split_off(1))
    }

    fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let debs = self.folder.join("debs");
        self.get(&["download", "--quiet=2"]).args(packages).within(&debs).run()?;
        for deb in fs::read_dir(&debs)? {
            let deb = deb?.path();
            let [file, into] = [&deb, into].map(|path| path.display().to_string());
            program("dpkg-deb", &["--extract", &file, &into]).run()?;
            fs::remove_file(deb)?;
        }
        Ok(())
    }
}

/// The archive that this machine gets Debian's packages from.
fn archive() -> Result<String> {
    let format = "$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)";
    let targets =
        program("apt-get", &["indextargets", "--format", format, "Created-By: Packages"]).output()?;
    match targets.lines().find_map(|line| line.strip_prefix("Debian Debian main ")) {
        Some(archive) => Ok(archive.into()),
        None => bail!("apt has no lists of Debian's archive: is this Debian, and was apt-get update run?"),
    }
}
