//! What a machine begins with: busybox, the modules that reach this machine's files, and a script that makes them its root.
//!
//! The root is this machine's, shared and never written: what is changed is in the guest's memory. Modules are the booted
//! kernel's. Packed as the kernel wants it (`Documentation/driver-api/early-userspace/buffer-format.rst`, "newc").

use super::debian::Kernel;
use crate::command::program;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// Reached over virtio: shared folders, and the overlay of ours over them.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// Where the folder is, in the guest, that host and guest share.
pub(super) const SHARED: &str = "/vm";

/// The first process: mounts, and becomes what runs jobs.
const INIT: &str = r#"#!/bin/busybox sh
busybox=/bin/busybox
for folder in proc sys dev lower upper root; do $busybox mkdir -p /$folder; done
$busybox mount -t proc proc /proc
for module in $($busybox cat /modules/order); do $busybox insmod /modules/$module; done
p9=trans=virtio,version=9p2000.L,msize=262144
$busybox mount -t 9p -o ro,cache=loose,$p9 root /lower
$busybox mount -t tmpfs tmpfs /upper
$busybox mkdir /upper/data /upper/work
$busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /root
cd /root
$busybox mkdir -p lib/modules vm
$busybox mount -t 9p -o $p9 shared vm
$busybox mount --bind "/lower$($busybox cat /modules/folder)" lib/modules
$busybox mount -t proc proc proc
$busybox mount -t sysfs sysfs sys
$busybox mount -t bpf bpf sys/fs/bpf
$busybox mount -t devtmpfs devtmpfs dev
$busybox mkdir -p dev/pts dev/shm
$busybox mount -t devpts devpts dev/pts
for folder in dev/shm run tmp; do $busybox mount -t tmpfs tmpfs $folder; done
exec $busybox switch_root /root /bin/sh /vm/jobs
"#;

/// Packs it for a kernel.
pub(super) fn pack(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "modules"] {
        archive.add(folder, 0o040_755, &[]);
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find_map(|path| fs::read(path).ok());
    archive.add("bin/busybox", 0o100_755, &busybox.context("busybox is not installed")?);
    let mut order = String::new();
    for file in kernel.module_files(&MODULES)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = name.split_once(".ko").map_or(name.as_str(), |(name, _)| name);
        archive.add(&format!("modules/{name}"), 0o100_644, &decompressed(&file)?);
        order += &format!("{name}\n");
    }
    archive.add("modules/order", 0o100_644, order.as_bytes());
    archive.add("modules/folder", 0o100_644, kernel.modules().display().to_string().as_bytes());
    archive.add("init", 0o100_755, INIT.as_bytes());
    Ok(archive.end())
}

/// A module's bytes, by the name that its file has.
fn decompressed(file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return Ok(fs::read(file)?),
    };
    program(tool, &["--decompress", "--stdout", &file.display().to_string()]).bytes()
}

/// A cpio archive.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: usize,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.files += 1;
        let (inode, size, name_size) = (self.files, content.len(), name.len() + 1);
        // Owner, group and time are zero; one link; no devices; no checksum.
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
            0, 1
        );
        self.bytes.extend(header.bytes().chain(name.bytes()).chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn an_archive_is_one_that_others_read() {
        let Ok(busybox) = Command::new("busybox").arg("true").status() else {
            println!("not run: busybox is not installed");
            return;
        };
        assert!(busybox.success());
        let mut archive = Archive::default();
        archive.add("folder", 0o040_755, &[]);
        archive.add("folder/file", 0o100_644, b"text\n");
        let mut list = Command::new("busybox");
        list.args(["cpio", "-tv"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut list = list.spawn().unwrap();
        list.stdin.take().unwrap().write_all(&archive.end()).unwrap();
        let listed = String::from_utf8(list.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<_> = listed.lines().collect();
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with("folder"), "{listed}");
        assert!(lines[1].starts_with("-rw-r--r--") && lines[1].contains(" 5 "), "{listed}");
    }
}
