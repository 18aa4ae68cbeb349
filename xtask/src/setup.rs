//! Installing what is missing, and nothing else.
//!
//! The toolchain parts go into the target folder; Debian packages with the tools that make rules and namespaces are
//! installed; those with servers (etcd; Prometheus, for promtool; BIRD) are only unpacked into the target folder, so that no daemon is
//! started on anybody's machine.

use crate::command::{cargo, exists, program, root, say};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// bpf-linker of this version links what rustc of today makes.
const BPF_LINKER: &str = "0.13.0";
/// Tools that building needs, and the Debian packages that have them: the protocol of etcd is compiled from its description.
const BUILD_TOOLS: [(&str, &str); 3] = [
    ("protoc", "protobuf-compiler"),
    // The compiler only recommends its own descriptions.
    ("/usr/include/google/protobuf/descriptor.proto", "libprotobuf-dev"),
    ("c++", "g++"),
];
/// Tools that tests and the demo need.
const TOOLS: [(&str, &str); 9] = [
    ("crun", "crun"),
    ("curl", "curl"),
    ("dnsmasq", "dnsmasq-base"),
    ("dpkg", "dpkg"),
    ("ip", "iproute2"),
    ("ipset", "ipset"),
    ("iptables-legacy-restore", "iptables"),
    ("nft", "nftables"),
    ("systemd-analyze", "systemd"),
];
/// Packages that are unpacked only: into which folder, which, and the file that is wanted of them. The two versions of BIRD have
/// files of the same names.
const UNPACKED: [(&str, &[&str], &str); 5] = [
    ("bird1", &["bird"], "usr/sbin/bird6"),
    ("bird2", &["bird2", "libssh-gcrypt-4"], "usr/sbin/birdcl"),
    ("debian", &["etcd-server"], "usr/bin/etcd"),
    ("debian", &["golang-github-containers-common"], "usr/share/containers/seccomp.json"),
    ("debian", &["prometheus"], "usr/bin/promtool"),
];

/// Everything.
pub(crate) fn everything() -> Result<()> {
    toolchain()?;
    packages(&TOOLS)?;
    for (folder, packages, wanted) in UNPACKED {
        unpack(folder, packages, wanted)?;
    }
    go_programs()
}

/// The Kubernetes API server, helm and kustomize, which tests use. Without Go, those tests say that they were not run.
fn go_programs() -> Result<()> {
    let server = ("the Kubernetes datastore", accountant_rigs::binary()?);
    let platform = ("the Helm chart", accountant_rigs::platform()?);
    for (of_what, program) in [server, platform] {
        if let Err(accountant_rigs::Unavailable(reason)) = program {
            say(&format!("without tests of {of_what}: it {reason}"));
        }
    }
    Ok(())
}

/// What building needs: compilers, rust-src and bpf-linker.
pub(crate) fn toolchain() -> Result<()> {
    packages(&BUILD_TOOLS)?;
    rust_src()?;
    bpf_linker()
}

/// C compilers for the static binaries of the image.
pub(crate) fn static_builds(arm64: bool) -> Result<()> {
    let all = [
        ("musl-gcc", "musl-tools"),
        ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        // The compiler only recommends its headers.
        ("/usr/aarch64-linux-gnu/include/stdint.h", "libc6-dev-arm64-cross"),
    ];
    packages(if arm64 { &all } else { &all[..1] })
}

fn rust_src() -> Result<()> {
    let sysroot = program("rustc", &["--print", "sysroot"]).output()?;
    if Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").exists() {
        return Ok(());
    }
    say("installing rust-src, the source of core, which the in-kernel programs are built with");
    program("rustup", &["component", "add", "rust-src"]).run().context("is Rust installed by rustup?")
}

/// Where bpf-linker is.
pub(crate) fn linker() -> PathBuf {
    root().join("target/tools/bin/bpf-linker")
}

/// Installs bpf-linker for the LLVM of this rustc: the linker must read what the compiler writes. LLVM itself is the shared
/// library that comes with the toolchain.
fn bpf_linker() -> Result<()> {
    let tools = root().join("target/tools");
    let version = program("rustc", &["-vV"]).output()?;
    let stamp = format!("bpf-linker {BPF_LINKER}\n{version}");
    let stamp_file = tools.join("bpf-linker.stamp");
    if linker().exists() && fs::read_to_string(&stamp_file).is_ok_and(|known| known == stamp) {
        return Ok(());
    }
    let llvm = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .context("rustc tells no LLVM version")?;
    let major = llvm.split('.').next().unwrap_or(llvm);
    say(&format!("installing bpf-linker {BPF_LINKER} for LLVM {major} into target/tools"));

    let sysroot = program("rustc", &["--print", "sysroot"]).output()?;
    let library = PathBuf::from(sysroot.trim()).join("lib");
    let prefix = tools.join("llvm");
    fs::create_dir_all(prefix.join("lib"))?;
    let link = prefix.join("lib/libLLVM.so");
    let _ = fs::remove_file(&link);
    symlink(find_llvm(&library, major)?, link)?;

    cargo(&["install", "bpf-linker", "--version", BPF_LINKER, "--force", "--quiet", "--no-default-features"])
        .args(&["--features".into(), format!("llvm-{major}"), "--root".into(), tools.display().to_string()])
        .env("LLVM_PREFIX", &prefix)
        .env("RUSTFLAGS", format!("-C link-arg=-Wl,-rpath,{}", library.display()))
        .run()?;
    fs::write(stamp_file, stamp)?;
    Ok(())
}

fn find_llvm(folder: &Path, major: &str) -> Result<PathBuf> {
    let wanted = format!("libLLVM.so.{major}.");
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&wanted)) {
            return Ok(path);
        }
    }
    bail!("the toolchain has no {wanted}* in {}: install Rust by rustup", folder.display())
}

/// Installs what Debian has in packages, where the tools are missing.
pub(crate) fn packages(tools: &[(&str, &'static str)]) -> Result<()> {
    let missing: Vec<_> =
        tools.iter().filter(|(tool, _)| !exists(tool)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !exists("apt-get") {
        bail!("please install what Debian has in these packages: {list}");
    }
    say(&format!("installing Debian packages: {list}"));
    apt_get(&["update", "--quiet=2"])?;
    let mut arguments = vec!["install", "--yes", "--quiet=2", "--no-install-recommends"];
    arguments.extend(missing);
    apt_get(&arguments).with_context(|| format!("as root: apt-get install {list}"))
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    program("apt-get", arguments).env("DEBIAN_FRONTEND", "noninteractive").run()
}

/// Unpacks packages into a folder of target/tools.
fn unpack(folder: &str, packages: &[&str], wanted: &str) -> Result<()> {
    let within = format!("target/tools/{folder}");
    let into = root().join(&within);
    if into.join(wanted).exists() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !exists("apt-get") {
        say(&format!("without {wanted}: there is no apt-get to fetch Debian's {list} with"));
        return Ok(());
    }
    say(&format!("unpacking Debian's {list} into {within}, for {wanted}"));
    fs::create_dir_all(&into)?;
    let arguments = [&["download", "--quiet=2"], packages].concat();
    let download = || program("apt-get", &arguments).within(&within).run();
    if download().is_err() {
        apt_get(&["update", "--quiet=2"])?;
        download()?;
    }
    for entry in fs::read_dir(&into)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let file = path.display().to_string();
            program("dpkg-deb", &["--extract", &file, &into.display().to_string()]).run()?;
            fs::remove_file(path)?;
        }
    }
    if !into.join(wanted).exists() {
        bail!("Debian's {list} has no {wanted}");
    }
    Ok(())
}
