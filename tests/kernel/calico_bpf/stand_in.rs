//! A stand-in for Calico's eBPF dataplane on a node of the lab: pinned maps of any of its layouts, and programs of the same
//! shape (`accountant-ebpf/src/stand_in`) on its interfaces, which decide what the test tells them to.
#![allow(dead_code, reason = "each test uses its part")]

use accountant_abi::calico::{EGRESS, HookKey, INGRESS, Layout};
use accountant_abi::stand_in::Case;
use accountant_core::calico::bpf::layout::padded_name;
use accountant_core::calico::bpf::{CounterLayout, StateLayout};
use accountant_dataplane::calico_bpf::STAND_IN;
use accountant_dataplane::calico_bpf::kernel::known;
use aya::maps::{HashMap, Map, MapData, PerCpuHashMap, PerCpuValues, ProgramArray};
use aya::programs::links::FdLink;
use aya::programs::tc::{NlOptions, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use aya_obj::EbpfSectionKind;
use aya_obj::generated::bpf_map_type;
use aya_obj::maps::{LegacyMap, PinningType, bpf_map_def};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A layout by the names and sizes of its maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) state: (&'static str, usize),
    pub(crate) counters: (&'static str, usize),
}

pub(crate) const VERSIONS: [Version; 6] = [
    Version { state: ("cali_state2", 416), counters: ("cali_counters2", 112) },
    Version { state: ("cali_state4", 464), counters: ("cali_counters2", 112) },
    Version { state: ("cali_state4", 480), counters: ("cali_counters2", 112) },
    Version { state: ("cali_state4", 488), counters: ("cali_counters3", 136) },
    Version { state: ("cali_state4", 488), counters: ("cali_counters5", 200) },
    NEWEST,
];
pub(crate) const NEWEST: Version = Version { state: ("cali_state6", 512), counters: ("cali_counters6", 216) };

/// The first Linux with tcx.
const TCX: KernelVersion = KernelVersion::new(6, 6, 0);

/// A filesystem for pins, and Calico's folder with the listings; as on a node, but for where they are.
pub(crate) struct Pins {
    folder: tempfile::TempDir,
}

impl Pins {
    pub(crate) fn new() -> Self {
        let pins = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(pins.filesystem()).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "bpf", "bpf"]).arg(pins.filesystem()).status().unwrap();
        assert!(mounted.success());
        std::fs::create_dir_all(pins.path()).unwrap();
        std::fs::create_dir_all(pins.listings()).unwrap();
        pins
    }

    /// What is `/sys/fs/bpf` on a node.
    pub(crate) fn filesystem(&self) -> PathBuf {
        self.folder.path().join("bpf")
    }

    /// What is `/var/run/calico` on a node.
    pub(crate) fn run(&self) -> PathBuf {
        self.folder.path().join("calico")
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.filesystem().join("tc/globals")
    }

    pub(crate) fn listings(&self) -> PathBuf {
        self.run().join("bpf/policy")
    }

    /// Removes all pins.
    pub(crate) fn clear(&self) {
        for entry in std::fs::read_dir(self.path()).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.filesystem()).status();
    }
}

/// Makes a map and pins it.
pub(crate) fn make(path: &Path, kind: bpf_map_type, key: u32, value: usize, entries: u32) {
    let def = bpf_map_def {
        map_type: kind as u32,
        key_size: key,
        value_size: value as u32,
        max_entries: entries,
        map_flags: 0,
        id: 0,
        pinning: PinningType::None,
    };
    let map = aya_obj::Map::Legacy(LegacyMap {
        def,
        inner_def: None,
        section_index: 0,
        section_kind: EbpfSectionKind::Maps,
        symbol_index: None,
        data: Vec::new(),
    });
    let name = path.file_name().unwrap().to_str().unwrap();
    MapData::create(map, name, None).unwrap().pin(path).unwrap();
}

/// The programs on the interfaces.
pub(crate) struct StandIn {
    version: Version,
    pins: PathBuf,
    loaded: BTreeMap<(String, u8), (Ebpf, Option<FdLink>)>,
}

impl StandIn {
    /// Makes the maps; the programs come with the interfaces. To be called in the node's namespace.
    pub(crate) fn new(pins: &Pins, version: Version) -> Self {
        let at = |name: &str| pins.path().join(name);
        make(&at(version.state.0), bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY, 4, version.state.1, 2);
        make(&at(version.counters.0), bpf_map_type::BPF_MAP_TYPE_PERCPU_HASH, 8, version.counters.1, 1000);
        make(&at("cali_rule_ctrs2"), bpf_map_type::BPF_MAP_TYPE_PERCPU_HASH, 8, 8, 10_000);
        make(&at("cali_iface4"), bpf_map_type::BPF_MAP_TYPE_HASH, 4, 52, 1000);
        Self { version, pins: pins.path(), loaded: BTreeMap::new() }
    }

    fn layout(&self) -> Layout {
        let state = StateLayout::of(self.version.state.1).unwrap();
        known(state, CounterLayout::of(self.version.counters.1))
    }

    /// The same on clsact, as Calico did it up to 3.30 and does it before Linux 6.6.
    pub(crate) fn attach_to_clsact(&mut self, interface: &str) {
        // It may be there.
        let _ = aya::programs::tc::qdisc_add_clsact(interface);
        for hook in [INGRESS, EGRESS] {
            self.loaded.remove(&(interface.to_string(), hook));
            let mut ebpf = self.load(interface);
            self.announce(interface, hook);
            let (name, at) = named(hook);
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
            program
                .attach_with_options(interface, at, TcAttachOptions::Netlink(NlOptions::default()))
                .unwrap();
            self.loaded.insert((interface.to_string(), hook), (ebpf, None));
        }
    }

    /// Attaches a program to a hook of an interface, behind all that are there; anew if there is one.
    pub(crate) fn attach(&mut self, interface: &str, hook: u8) {
        self.loaded.remove(&(interface.to_string(), hook));
        let mut ebpf = self.load(interface);
        self.announce(interface, hook);
        let (name, at) = named(hook);
        let link = attach(&mut ebpf, name, interface, at, LinkOrder::last());
        self.loaded.insert((interface.to_string(), hook), (ebpf, Some(link)));
    }

    /// Attaches to both hooks, as Calico does it on this kernel.
    pub(crate) fn attach_both(&mut self, interface: &str) {
        if KernelVersion::current().unwrap() < TCX {
            return self.attach_to_clsact(interface);
        }
        self.attach(interface, INGRESS);
        self.attach(interface, EGRESS);
    }

    /// Puts a new program in the place of the one at a hook, as Felix does when a policy changes.
    pub(crate) fn replace(&mut self, interface: &str, hook: u8) {
        let mut ebpf = self.load(interface);
        let (name, _) = named(hook);
        let (_, link) = self.loaded.remove(&(interface.to_string(), hook)).unwrap();
        let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
        let link = link.unwrap().try_into().unwrap();
        let id = program.attach_to_link(link).unwrap();
        let link = program.take_link(id).unwrap().try_into().unwrap();
        self.loaded.insert((interface.to_string(), hook), (ebpf, Some(link)));
    }

    /// Attaches the XDP program.
    pub(crate) fn attach_xdp(&mut self, interface: &str) {
        let mut ebpf = self.load(interface);
        let program: &mut Xdp = ebpf.program_mut("cali_xdp_preamb").unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach(interface, XdpMode::Skb).unwrap();
        self.loaded.insert((interface.to_string(), 2), (ebpf, None));
    }

    /// Takes all programs away.
    pub(crate) fn detach_all(&mut self) {
        self.loaded.clear();
    }

    fn load(&self, interface: &str) -> Ebpf {
        let padded = padded_name(interface);
        let name: Vec<u32> =
            padded.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        let name: [u32; 4] = name.try_into().unwrap();
        let layout = self.layout();
        let at = |name: &str| self.pins.join(name);
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader.override_global("LAYOUT", &layout, true);
        loader.override_global("NAME", &name, true);
        loader.map_pin_path("cali_state", at(self.version.state.0));
        loader.map_pin_path("cali_counters", at(self.version.counters.0));
        loader.map_pin_path("cali_rule_ctrs2", at("cali_rule_ctrs2"));
        let fresh = !at("cali_progs").exists();
        loader.map_pin_path("cali_progs", at("cali_progs"));
        loader.map_pin_path("cases", at("cases"));
        let mut ebpf = loader.load(STAND_IN).unwrap();
        if fresh {
            for (index, name) in ["cali_main", "p4_policy", "cali_accepted", "cali_drop"].iter().enumerate() {
                let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
                program.load().unwrap();
                let fd = program.fd().unwrap().try_clone().unwrap();
                let mut programs: ProgramArray<_> = ebpf.map_mut("cali_progs").unwrap().try_into().unwrap();
                programs.set(index as u32, &fd, 0).unwrap();
            }
        }
        ebpf
    }

    /// What Felix does when it attaches: counters of zero, and the interface in its list.
    fn announce(&self, interface: &str, hook: u8) {
        let index = nix::net::if_::if_nametoindex(interface).unwrap();
        let map = |name| Map::from_map_data(MapData::from_pin(self.pins.join(name)).unwrap()).unwrap();
        let mut flags = [0_u8; 52];
        flags[0] = if interface.starts_with("cali") { 3 } else { 10 };
        let mut interfaces: HashMap<_, u32, [u8; 52]> = map("cali_iface4").try_into().unwrap();
        interfaces.insert(index, flags, 0).unwrap();
        let key = HookKey { interface: index, hook: hook.into() };
        let counters = map(self.version.counters.0);
        match self.version.counters.1 / 8 {
            14 => zero::<14>(counters, key),
            17 => zero::<17>(counters, key),
            25 => zero::<25>(counters, key),
            _ => zero::<27>(counters, key),
        }
    }

    /// Says what is decided about packets to a port at a hook.
    pub(crate) fn decide(&self, port: u16, hook: u8, case: Case) {
        let data = MapData::from_pin(self.pins.join("cases")).unwrap();
        let mut cases: HashMap<_, u32, Case> = Map::from_map_data(data).unwrap().try_into().unwrap();
        cases.insert(u32::from(port) | u32::from(hook) << 16, case, 0).unwrap();
    }

    /// Counts hits of a rule that no packet made.
    pub(crate) fn hit(&self, rule: u64, times: u64) {
        let mut map = self.rule_counters();
        let mut values: Vec<u64> = map.get(&rule, 0).unwrap().iter().copied().collect();
        values[0] += times;
        map.insert(rule, PerCpuValues::try_from(values).unwrap(), 0).unwrap();
    }

    /// Makes a counter for a rule that no packet has hit.
    pub(crate) fn note(&self, rule: u64) {
        let zeros = vec![0; aya::util::nr_cpus().unwrap()];
        self.rule_counters().insert(rule, PerCpuValues::try_from(zeros).unwrap(), 0).unwrap();
    }

    /// Deletes the counters of all rules, as Felix does it when it starts.
    pub(crate) fn forget_rules(&self) {
        let mut map = self.rule_counters();
        for rule in self.rules().keys() {
            map.remove(rule).unwrap();
        }
    }

    fn rule_counters(&self) -> PerCpuHashMap<MapData, u64, u64> {
        let data = MapData::from_pin(self.pins.join("cali_rule_ctrs2")).unwrap();
        Map::from_map_data(data).unwrap().try_into().unwrap()
    }

    /// How often each rule was hit, as the dataplane counts it.
    pub(crate) fn rules(&self) -> BTreeMap<u64, u64> {
        let map = self.rule_counters();
        let sum = |values: PerCpuValues<u64>| values.iter().sum();
        map.iter().map(|entry| entry.map(|(id, values)| (id, sum(values))).unwrap()).collect()
    }
}

fn named(hook: u8) -> (&'static str, TcAttachType) {
    if hook == INGRESS {
        ("cali_tc_preamble_in", TcAttachType::Ingress)
    } else {
        ("cali_tc_preamble_eg", TcAttachType::Egress)
    }
}

fn zero<const N: usize>(map: Map, key: HookKey) {
    let mut map: PerCpuHashMap<_, HookKey, [u64; N]> = map.try_into().unwrap();
    if map.get(&key, 0).is_err() {
        let zeros = vec![[0; N]; aya::util::nr_cpus().unwrap()];
        map.insert(key, PerCpuValues::try_from(zeros).unwrap(), 0).unwrap();
    }
}

/// Attaches a program of an object to a hook.
pub(crate) fn attach(
    ebpf: &mut Ebpf,
    name: &str,
    interface: &str,
    at: TcAttachType,
    order: LinkOrder,
) -> FdLink {
    let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
    program.load().unwrap();
    let id = program.attach_with_options(interface, at, TcAttachOptions::TcxOrder(order)).unwrap();
    program.take_link(id).unwrap().try_into().unwrap()
}

/// Somebody else's program at a hook, for as long as this lives.
pub(crate) struct Foreign {
    _ebpf: Ebpf,
    _link: FdLink,
}

impl Foreign {
    pub(crate) fn attach(interface: &str, at: TcAttachType, order: LinkOrder) -> Self {
        let mut ebpf = EbpfLoader::new().btf(None).load(STAND_IN).unwrap();
        let link = attach(&mut ebpf, "foreign", interface, at, order);
        Self { _ebpf: ebpf, _link: link }
    }
}
