//! The listings of policy programs that Felix writes (`/var/run/calico/bpf/policy`): which file is whose, what is in it, and
//! which have changed.
//!
//! Felix truncates and writes them in place, so one can be found half written: then what it said before stays until it can be
//! read. Source of the form: `felix/bpf/asm` (`Insn`), `felix/dataplane/linux/bpf_ep_mgr.go` of 3.25 to 3.33.
//!
//! Invariant: total. Any bytes give a program or an error.

use accountant_core::calico::bpf::{PolicyProgram, Step};
use accountant_core::{Direction, Interface, IpVersion};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files bigger than this are nobody's policy.
const BIGGEST: u64 = 64 << 20;

#[derive(Deserialize)]
struct Listing {
    #[serde(rename = "policyInfo")]
    steps: Option<Vec<Item>>,
}

#[derive(Deserialize)]
struct Item {
    inst: [u8; 8],
    #[serde(default)]
    comments: Option<Vec<Box<str>>>,
}

/// Whose program a listing is of.
pub type Whose = (Interface, Direction, IpVersion);

/// Reads a listing.
pub fn decode(bytes: &[u8], direction: Direction) -> Result<PolicyProgram, serde_json::Error> {
    let listing: Listing = serde_json::from_slice(bytes)?;
    let steps = listing.steps.unwrap_or_default().into_iter();
    let steps: Vec<_> = steps
        .map(|item| Step { instruction: item.inst, comments: item.comments.unwrap_or_default() })
        .collect();
    Ok(PolicyProgram::read(direction, &steps))
}

/// Whose listing a file is, by its name: `<interface>_<ingress|egress>_v<4|6>.json`. Untracked policy (`xdp`) has no verdicts
/// that could be read.
pub fn whose(file: &str) -> Option<Whose> {
    let mut parts = file.strip_suffix(".json")?.rsplitn(3, '_');
    let ip_version = match parts.next()? {
        "v4" => IpVersion::V4,
        "v6" => IpVersion::V6,
        _ => return None,
    };
    let direction = match parts.next()? {
        "ingress" => Direction::Ingress,
        "egress" => Direction::Egress,
        _ => return None,
    };
    let interface = parts.next().filter(|interface| !interface.is_empty())?;
    Some((interface.into(), direction, ip_version))
}

/// What tells that a file was written again.
type Stamp = (u64, i64, i64, u64);

#[derive(Debug)]
struct Known {
    stamp: Option<Stamp>,
    program: Option<Arc<PolicyProgram>>,
}

/// All listings of a folder, as they were last read.
#[derive(Debug)]
pub(super) struct Listings {
    folder: PathBuf,
    known: HashMap<Whose, Known>,
    /// Why the folder or a file cannot be read.
    pub(super) wrong: Option<String>,
}

impl Listings {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.into(), known: HashMap::new(), wrong: None }
    }

    /// Reads what has changed.
    pub(super) fn refresh(&mut self) {
        self.wrong = None;
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) => {
                self.wrong = Some(format!("reading the listings in {}: {error}", self.folder.display()));
                return;
            }
        };
        let files = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((whose(&name)?, entry.path()))
        });
        let files: HashMap<Whose, PathBuf> = files.collect();
        self.known.retain(|whose, _| files.contains_key(whose));
        for (whose, path) in files {
            if let Err(error) = self.look(whose, &path) {
                self.wrong = Some(format!("reading {}: {error}", path.display()));
            }
        }
    }

    /// The program of an endpoint, if its listing could ever be read.
    pub(super) fn program(&self, whose: &Whose) -> Option<Arc<PolicyProgram>> {
        self.known.get(whose)?.program.clone()
    }

    /// All programs whose listings could ever be read.
    pub(super) fn programs(&self) -> impl Iterator<Item = Arc<PolicyProgram>> {
        self.known.values().filter_map(|known| known.program.clone())
    }

    fn look(&mut self, whose: Whose, path: &Path) -> io::Result<()> {
        let meta = fs::metadata(path)?;
        let stamp = (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size());
        let direction = whose.1;
        let known = self.known.entry(whose).or_insert(Known { stamp: None, program: None });
        if known.stamp == Some(stamp) {
            return Ok(());
        }
        if meta.size() > BIGGEST {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too big for a listing"));
        }
        // Felix writes no times finer than the kernel's clock ticks: what has just been written is read once more.
        let settled =
            meta.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age.as_secs() >= 1);
        known.stamp = None;
        let program = decode(&fs::read(path)?, direction)?;
        if known.program.as_deref() != Some(&program) {
            known.program = Some(Arc::new(program));
        }
        known.stamp = settled.then_some(stamp);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_whose_they_are() {
        let (v4, v6) = (IpVersion::V4, IpVersion::V6);
        let (ingress, egress) = (Direction::Ingress, Direction::Egress);
        assert_eq!(whose("cali1_ingress_v4.json"), Some(("cali1".into(), ingress, v4)));
        assert_eq!(whose("my_nic_egress_v6.json"), Some(("my_nic".into(), egress, v6)));
        for odd in
            ["eth0_xdp_v4.json", "_ingress_v4.json", "eth0_ingress_v5.json", "x.json", "eth0_ingress_v4"]
        {
            assert_eq!(whose(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_half_written_listing_leaves_what_was_known() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cali1_ingress_v4.json");
        let whole = r#"{"ifacename":"cali1","policyInfo":[{"inst":[0,0,0,0,0,0,0,0],
            "comments":["Start of tier t"]},{"inst":[1,0,0,0,0,0,0,0]}],"error":""}"#;
        let whose = ("cali1".into(), Direction::Ingress, IpVersion::V4);
        let mut listings = Listings::new(folder.path());
        let mut read = |text: &str| {
            fs::write(&file, text).unwrap();
            listings.refresh();
            (listings.program(&whose).map(|program| program.tiers.len()), listings.wrong.is_some())
        };
        assert_eq!(read(&whole[..40]), (None, true));
        assert_eq!(read(whole), (Some(1), false));
        assert_eq!(read(&whole[..90]), (Some(1), true));
        assert_eq!(read("{}"), (Some(0), false));
        assert_eq!(read(r#"{"policyInfo":[{"inst":[1,2,3]}]}"#), (Some(0), true));
        fs::remove_file(&file).unwrap();
        listings.refresh();
        assert_eq!((listings.program(&whose), &listings.wrong), (None, &None));
        let mut nowhere = Listings::new(Path::new("/nowhere"));
        nowhere.refresh();
        assert!(nowhere.wrong.unwrap().contains("/nowhere"));
    }
}
