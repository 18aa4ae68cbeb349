//! Calico's maps, where it pins them, and whether we know their layouts.
//!
//! Pins are found by what their names begin with, and judged by type and sizes; the same name has had several layouts.
//! Nothing is created, written or removed here.

use accountant_core::calico::bpf::{CounterLayout, StateLayout};
use aya::maps::{Map, MapData, MapError, MapInfo, MapType};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why there is nothing to read here.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Absent {
    /// Felix does not run the eBPF dataplane.
    #[error("Calico's eBPF dataplane is not here: no map of packet states is pinned in {0}")]
    NoState(PathBuf),
    /// It runs a version that notes no rules.
    #[error("{0} is of Calico 3.24 or older, which does not note which rule decided: 3.25 is needed")]
    TooOld(PathBuf),
    /// A map is of a form that is not known.
    #[error("{path} is of a layout that is not known ({found}): please report this with Calico's version")]
    UnknownLayout {
        /// Its pin.
        path: PathBuf,
        /// Type and sizes.
        found: String,
    },
    /// It cannot be looked at.
    #[error("{operation} {path} failed: {error}{hint}", hint = hint(error))]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        error: String,
    },
    /// Its programs are not attached.
    #[error("Calico's maps are pinned, and none of its programs is attached to an interface")]
    NotAttached,
    /// Whether its programs are attached cannot be seen.
    #[error(
        "Calico's maps are pinned, but the kernel shows which programs are attached only to who has CAP_SYS_ADMIN: give it to \
         the agent (docs/security.md)"
    )]
    Unseen,
}

fn hint(error: &str) -> &'static str {
    if error.contains("Operation not permitted") || error.contains("Permission denied") {
        " (give the agent CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and the node's /sys/fs/bpf)"
    } else {
        ""
    }
}

/// A pinned map.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) map: Map,
    pub(super) id: u32,
    pub(super) value_size: usize,
}

impl Pinned {
    /// The map for a door of ours.
    pub(super) fn data(&self) -> Option<&MapData> {
        match &self.map {
            Map::PerCpuArray(data) | Map::PerCpuHashMap(data) | Map::HashMap(data) => Some(data),
            _ => None,
        }
    }
}

/// Calico's maps: the states of packets, and its counters.
#[derive(Debug)]
pub(super) struct Pins {
    pub(super) state: Pinned,
    pub(super) state_layout: StateLayout,
    pub(super) own: OwnMaps,
}

/// What Calico counts itself.
#[derive(Debug)]
pub(super) struct OwnMaps {
    pub(super) counters: Option<(Pinned, CounterLayout)>,
    /// Which interfaces are workloads'; by index, flags first.
    pub(super) interfaces: Option<Pinned>,
    /// How often each rule was hit, on the whole node.
    pub(super) rules: Option<Pinned>,
    /// The counters of interfaces that have a map each, up to 3.25.
    pub(super) per_interface: PerInterface,
    /// What could not be used, and why.
    pub(super) wrong: Vec<Absent>,
}

/// Where counters of an interface are that have a map of their own.
#[derive(Debug)]
pub(super) struct PerInterface(Option<PathBuf>);

impl PerInterface {
    /// They are as those of 3.26.
    pub(super) const LAYOUT: CounterLayout = CounterLayout::ALL[0];

    /// The map of an interface and direction, if there is one: `<interface without dots>_<igr|egr>/cali_counters1`.
    pub(super) fn of(&self, interface: &str, ingress: bool) -> Option<Pinned> {
        let suffix = if ingress { "igr" } else { "egr" };
        let folder = self.0.as_ref()?.join(format!("{}_{suffix}", interface.replace('.', "")));
        open(&folder.join("cali_counters1"), |info| {
            info.key_size() == 4
                && info.value_size() as usize == Self::LAYOUT.size
                && is(info, MapType::PerCpuArray)
        })
        .ok()
    }
}

impl Pins {
    /// Looks for them.
    pub(super) fn find(folder: &Path) -> Result<Self, Absent> {
        let names = names(folder)?;
        let Some(path) = newest(folder, &names, "cali_state") else {
            let old = folder.join("cali_v4_state3");
            return Err(if old.exists() { Absent::TooOld(old) } else { Absent::NoState(folder.into()) });
        };
        let state = open(&path, |info| info.key_size() == 4 && is(info, MapType::PerCpuArray))?;
        let state_layout = StateLayout::of(state.value_size).ok_or_else(|| unknown(&path, &state))?;
        Ok(Self { state, state_layout, own: OwnMaps::find(folder)? })
    }

    /// What tells whether other maps have taken their places.
    pub(super) fn ids(&self) -> [Option<u32>; 4] {
        let [counters, interfaces, rules] = self.own.ids();
        [Some(self.state.id), counters, interfaces, rules]
    }
}

impl OwnMaps {
    /// Looks for them.
    pub(super) fn find(folder: &Path) -> Result<Self, Absent> {
        let names = names(folder)?;
        let mut wrong = Vec::new();
        let mut other = |prefix: &str, fits: &dyn Fn(&MapInfo) -> bool| {
            let path = newest(folder, &names, prefix)?;
            open(&path, fits).map_err(|error| wrong.push(error)).ok().map(|pinned| (path, pinned))
        };
        let per_hook = |info: &MapInfo| info.key_size() == 8 && is(info, MapType::PerCpuHash);
        let counters = other("cali_counters", &per_hook);
        let rules = other("cali_rule_ctrs", &|info| per_hook(info) && info.value_size() == 8);
        let interfaces = other("cali_iface", &|info| info.key_size() == 4 && is(info, MapType::Hash));
        let counters = counters.and_then(|(path, pinned)| match CounterLayout::of(pinned.value_size) {
            Some(layout) => Some((pinned, layout)),
            None => {
                wrong.push(unknown(&path, &pinned));
                None
            }
        });
        let (interfaces, rules) = (interfaces.map(|(_, pinned)| pinned), rules.map(|(_, pinned)| pinned));
        let per_interface = PerInterface(folder.parent().map(PathBuf::from));
        Ok(Self { counters, interfaces, rules, per_interface, wrong })
    }

    /// Whether there is anything to read.
    pub(super) fn is_known(&self) -> bool {
        self.counters.is_some() || self.rules.is_some()
    }

    /// What tells whether other maps have taken their places: counters, interfaces, rules.
    pub(super) fn ids(&self) -> [Option<u32>; 3] {
        let id = |pinned: &Option<Pinned>| pinned.as_ref().map(|pinned| pinned.id);
        [self.counters.as_ref().map(|(pinned, _)| pinned.id), id(&self.interfaces), id(&self.rules)]
    }
}

fn names(folder: &Path) -> Result<Vec<String>, Absent> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Absent::NoState(folder.into())),
        Err(error) => {
            Err(Absent::Failed { operation: "looking into", path: folder.into(), error: error.to_string() })
        }
    }
}

/// The pin with this prefix and the greatest number behind it.
fn newest(folder: &Path, names: &[String], prefix: &str) -> Option<PathBuf> {
    let number = |name: &String| name.strip_prefix(prefix)?.parse::<u32>().ok();
    let numbered = names.iter().filter_map(|name| Some((number(name)?, name)));
    Some(folder.join(numbered.max_by_key(|(number, _)| *number)?.1))
}

fn open(path: &Path, fits: impl Fn(&MapInfo) -> bool) -> Result<Pinned, Absent> {
    let failed = |error: &MapError| Absent::Failed {
        operation: "opening the map pinned at",
        path: path.into(),
        error: crate::in_place::chain(error),
    };
    let map = MapData::from_pin(path).map_err(|error| failed(&error))?;
    let info = map.info().map_err(|error| failed(&error))?;
    if !fits(&info) {
        let kind = info.map_type().map_or_else(|_| "unknown type".into(), |kind| format!("{kind:?}"));
        let found = format!("{kind}, key {}, value {}", info.key_size(), info.value_size());
        return Err(Absent::UnknownLayout { path: path.into(), found });
    }
    let map = Map::from_map_data(map).map_err(|error| failed(&error))?;
    Ok(Pinned { map, id: info.id(), value_size: info.value_size() as usize })
}

fn is(info: &MapInfo, kind: MapType) -> bool {
    info.map_type().is_ok_and(|found| found == kind)
}

fn unknown(path: &Path, pinned: &Pinned) -> Absent {
    Absent::UnknownLayout { path: path.into(), found: format!("value {}", pinned.value_size) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_or_no_map_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let find = |path: &Path| Pins::find(path).map(|_| ()).unwrap_err();
        assert_eq!(find(folder.path()), Absent::NoState(folder.path().into()));
        assert_eq!(find(Path::new("/nowhere")), Absent::NoState("/nowhere".into()));
        fs::write(folder.path().join("cali_v4_state3"), "").unwrap();
        assert_eq!(find(folder.path()), Absent::TooOld(folder.path().join("cali_v4_state3")));
        fs::write(folder.path().join("cali_state6"), "").unwrap();
        assert!(matches!(find(folder.path()), Absent::Failed { .. }));
    }

    #[test]
    fn the_newest_pin_is_taken() {
        let names = ["cali_state2", "cali_state10", "cali_state4_old", "cali_states", "cali_iface4"];
        let names = names.map(String::from);
        let newest = |prefix| newest(Path::new("/x"), &names, prefix);
        assert_eq!(newest("cali_state"), Some("/x/cali_state10".into()));
        assert_eq!(newest("cali_iface"), Some("/x/cali_iface4".into()));
        assert_eq!(newest("cali_counters"), None);
    }
}
