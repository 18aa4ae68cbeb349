//! Where programs and counts outlive the agent: a folder of ours in a BPF file system.
//!
//! ```text
//! FOLDER/NAMESPACE/abi-4-slots-1024-cpus-2/      the maps of this version and size
//!                                  links-HASH/   the places that these programs are attached to
//!                  interfaces-1/                  what is counted at interfaces, where there are no such programs
//! ```
//!
//! Names say what is in there, so that an agent that cannot use it knows without looking in. The file system forgets
//! everything at the next boot, as the kernel does.
//!
//! Invariant: nothing outside of that folder is touched.

use super::load::Sizes;
use crate::in_place::CannotHere;
use accountant_abi::verdict::ABI;
use accountant_sys::{bpf, netns};
use aya::maps::MapInfo;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What the folder's name begins with in which there is what is counted at interfaces.
const AT_INTERFACES: &str = "interfaces-";

/// The folder of the calling thread's network namespace.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// Makes the folder. It has to be in a BPF file system, and we have to be allowed to write there.
    pub(super) fn open(base: &Path) -> Result<Self, CannotHere> {
        let here = |error: io::Error| refused("keeping counts", base, &error);
        let parent = base.ancestors().find(|folder| folder.is_dir()).unwrap_or(base);
        let kind = statfs(parent).map_err(|error| here(error.into()))?.filesystem_type();
        if kind != BPF_FS_MAGIC {
            return Err(CannotHere::NoPins {
                folder: base.display().to_string(),
                reason: "it is not in a BPF file system (mount -t bpf bpf /sys/fs/bpf)".into(),
            });
        }
        let folder = base.join(netns::cookie().map_err(here)?.to_string());
        fs::create_dir_all(&folder).map_err(here)?;
        Ok(Self { folder })
    }

    /// The maps that an earlier agent left, if they are of this version and big enough; what cannot be used goes.
    pub(super) fn find(&self, cpus: u32, least_slots: u32) -> Option<u32> {
        let mut found = None;
        for name in self.around_rules() {
            match slots_of(&name, cpus) {
                Some(slots) if slots >= least_slots && found.is_none() => found = Some(slots),
                _ => {
                    tracing::warn!(
                        left = name,
                        "what an earlier agent left is of another version or size: its counts are given up"
                    );
                    self.remove(&name);
                }
            }
        }
        found
    }

    /// Where maps of these sizes are.
    pub(super) fn maps(&self, sizes: Sizes) -> Result<PathBuf, CannotHere> {
        let folder = self.folder.join(name_of(sizes.slots, sizes.cpus));
        fs::create_dir_all(&folder).map_err(|error| refused("keeping maps", &folder, &error))?;
        Ok(folder)
    }

    /// Where the map of what is counted at interfaces is; whatever else is here goes.
    pub(super) fn at_interfaces(&self, abi: u32) -> Result<PathBuf, CannotHere> {
        let name = format!("{AT_INTERFACES}{abi}");
        for left in names(&self.folder).into_iter().filter(|left| *left != name) {
            tracing::warn!(left, "what an earlier agent left is of other programs: its counts are given up");
            self.remove(&left);
        }
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).map_err(|error| refused("keeping maps", &folder, &error))?;
        Ok(folder)
    }

    /// What there is but for that: programs around rules are tried first, and where they cannot be it is gone on with.
    fn around_rules(&self) -> impl Iterator<Item = String> {
        names(&self.folder).into_iter().filter(|name| !name.starts_with(AT_INTERFACES))
    }

    /// Removes what was made for programs around rules, which cannot be.
    pub(super) fn give_up(&self) {
        self.around_rules().for_each(|name| self.remove(&name));
        self.tidy();
    }

    /// Removes what an earlier agent counted at interfaces.
    pub(super) fn forget_interfaces(&self) {
        let of_interfaces = names(&self.folder).into_iter().filter(|name| name.starts_with(AT_INTERFACES));
        of_interfaces.for_each(|name| self.remove(&name));
    }

    /// Removes everything: programs are detached when nobody else holds them. Says whether there was anything.
    pub(super) fn clear(&self) -> bool {
        let left = names(&self.folder);
        left.iter().for_each(|name| self.remove(name));
        self.tidy();
        !left.is_empty()
    }

    /// Removes folders that nothing is in.
    pub(super) fn tidy(&self) {
        let _ = fs::remove_dir(&self.folder);
        let _ = self.folder.parent().map(fs::remove_dir);
    }

    fn remove(&self, name: &str) {
        let folder = self.folder.join(name);
        if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "cannot be removed");
        }
    }
}

/// What a map is: the sizes of a key and of a value, and how many values it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) key: u32,
    pub(super) value: u32,
    pub(super) entries: u32,
}

impl Shape {
    /// That of the map of this name that is pinned in a folder under it.
    fn of(folder: &Path, name: &str) -> Option<Self> {
        let info = MapInfo::from_pin(folder.join(name)).ok().filter(|info| info.name() == name.as_bytes())?;
        Some(Self { key: info.key_size(), value: info.value_size(), entries: info.max_entries() })
    }
}

/// Has the maps that an earlier agent left stay if all are there and as they have to be. Else everything goes: who takes a map
/// for another one reads no counts from it, and some maps alone have none.
pub(super) fn keep_what_fits(folder: &Path, wanted: &[(&str, Shape)]) {
    let left = names(folder);
    let wrong = wanted.iter().find(|(name, shape)| Shape::of(folder, name) != Some(*shape));
    let Some((name, wanted)) = wrong.filter(|_| !left.is_empty()) else { return };
    tracing::warn!(
        folder = %folder.display(),
        map = name,
        ?wanted,
        found = ?Shape::of(folder, name),
        "what an earlier agent left does not fit: its counts are given up"
    );
    for name in left {
        let path = folder.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "cannot be removed");
        }
    }
}

/// Links to the places where programs are attached, and the programs, each by a name.
#[derive(Debug)]
pub(super) struct Links {
    folder: PathBuf,
    links: Vec<(String, OwnedFd)>,
}

impl Links {
    /// What an earlier agent left of programs with this hash, if all of these are there. Others go, and their programs with them.
    pub(super) fn find(maps: &Path, hash: u64, wanted: &[String]) -> Self {
        let own = format!("links-{hash:016x}");
        for name in names(maps).into_iter().filter(|name| name.starts_with("links-") && *name != own) {
            tracing::info!(left = name, "programs of an earlier agent are replaced");
            // What stays attached would count everything twice.
            if let Err(error) = fs::remove_dir_all(maps.join(&name)) {
                tracing::error!(left = name, %error, "programs of an earlier agent cannot be detached");
            }
        }
        let folder = maps.join(own);
        let pinned = |name: String| Some((bpf::pinned(&folder.join(&name)).ok()?, name));
        let mut links: Vec<_> = names(&folder).into_iter().filter_map(pinned).map(|(l, n)| (n, l)).collect();
        if !wanted.iter().all(|name| links.iter().any(|(known, _)| known == name)) {
            links.clear();
            let _ = fs::remove_dir_all(&folder);
        }
        Self { folder, links }
    }

    /// Whether all are there.
    pub(super) fn are_there(&self) -> bool {
        !self.links.is_empty()
    }

    /// What has this name.
    pub(super) fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.links.iter().find(|(known, _)| known == name).map(|(_, link)| link.as_fd())
    }

    /// Keeps a link in place of the one that had its name.
    pub(super) fn replace(&mut self, name: &str, link: OwnedFd) -> Result<(), CannotHere> {
        self.forget(name);
        self.keep(name, link)
    }

    /// Keeps it no longer: nothing is attached by it any more.
    pub(super) fn forget(&mut self, name: &str) {
        self.links.retain(|(known, _)| known != name);
        // It may be gone, too.
        let _ = fs::remove_file(self.folder.join(name));
    }

    /// Keeps a link, or a program.
    pub(super) fn keep(&mut self, name: &str, link: OwnedFd) -> Result<(), CannotHere> {
        let path = self.folder.join(name);
        let pin = || {
            fs::create_dir_all(&self.folder)?;
            bpf::pin(link.as_fd(), &path)
        };
        pin().map_err(|error| refused("keeping programs attached", &path, &error))?;
        self.links.push((name.into(), link));
        Ok(())
    }
}

fn refused(operation: &str, path: &Path, error: &io::Error) -> CannotHere {
    CannotHere::NoPins {
        folder: path.display().to_string(),
        reason: format!("{operation} there failed: {error}"),
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn name_of(slots: u32, cpus: u32) -> String {
    format!("abi-{ABI}-slots-{slots}-cpus-{cpus}")
}

/// The number of slots of maps of this version.
fn slots_of(name: &str, cpus: u32) -> Option<u32> {
    let slots = name.strip_prefix(&format!("abi-{ABI}-slots-"))?.split('-').next()?.parse().ok()?;
    (name_of(slots, cpus) == name && u32::is_power_of_two(slots)).then_some(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_can_be_used() {
        assert_eq!(slots_of(&name_of(1024, 2), 2), Some(1024));
        for (name, cpus) in [
            (name_of(1024, 2), 3),
            (name_of(1000, 2), 2),
            (name_of(1024, 2) + "x", 2),
            (format!("abi-{}-slots-1024-cpus-2", ABI + 1), 2),
            ("links".into(), 2),
        ] {
            assert_eq!(slots_of(&name, cpus), None, "{name}");
        }
    }

    #[test]
    fn a_folder_elsewhere_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let reason = Pins::open(&folder.path().join("a/b")).unwrap_err().to_string();
        assert!(reason.contains("a/b") && reason.contains("mount -t bpf"), "{reason}");
        assert!(!folder.path().join("a").exists());
    }
}
