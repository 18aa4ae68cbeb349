//! Where things are in Calico's maps, by the size of their values.
//!
//! A name of a map says little: `cali_state4` has had three layouts. Source: `felix/bpf-gpl/types.h` (`struct
//! cali_tc_state`), `globals.h`, `counters.h` of Calico 3.25 to 3.33; the offsets were compared with the types that the
//! compiler wrote, and with a Felix that ran. Host byte order, unless said otherwise.
//!
//! Invariant: a size that is not in the tables has no layout; nothing is read by a layout that it does not have.

/// Where the fields of the state of a packet are: `cali_state*`, entry 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateLayout {
    /// Size of the map's values.
    pub size: usize,
    /// Source address, 16 bytes in network order; IPv4 has the first four.
    pub source: usize,
    /// Destination address.
    pub destination: usize,
    /// `pol_rc`, four bytes.
    pub verdict: usize,
    /// Source port, two bytes.
    pub source_port: usize,
    /// Destination port, two bytes.
    pub destination_port: usize,
    /// IP protocol, one byte.
    pub protocol: usize,
    /// `rules_hit`: the low byte counts.
    pub hits: usize,
    /// `rule_ids`: eight bytes for each of [`StateLayout::MAX_HITS`].
    pub rules: usize,
    /// `flags`, eight bytes.
    pub flags: usize,
    /// Whether entry 1 has the constants of the packet's interface.
    pub globals: bool,
    /// Calico's versions, for people.
    pub versions: &'static str,
}

impl StateLayout {
    /// How many rules a state can name.
    pub const MAX_HITS: usize = 32;

    /// All that are known.
    pub const ALL: [Self; 5] = [
        Self { flags: 408, globals: false, ..Self::old(416, "3.25 and 3.26") },
        Self::old(464, "3.27"),
        Self::old(480, "3.28 and 3.29"),
        Self::new(488, "3.30 and 3.31"),
        Self::new(512, "3.32 and later"),
    ];

    /// The layout of values of this size.
    pub fn of(size: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| layout.size == size)
    }

    const fn old(size: usize, versions: &'static str) -> Self {
        Self {
            size,
            source: 0,
            destination: 16,
            verdict: 84,
            source_port: 88,
            destination_port: 90,
            protocol: 96,
            hits: 100,
            rules: 104,
            flags: 360,
            globals: true,
            versions,
        }
    }

    /// With the eight bytes of an event's head in front.
    const fn new(size: usize, versions: &'static str) -> Self {
        Self {
            source: 8,
            destination: 24,
            verdict: 92,
            source_port: 96,
            destination_port: 98,
            protocol: 104,
            hits: 108,
            rules: 112,
            flags: 368,
            ..Self::old(size, versions)
        }
    }
}

/// What the counters of an interface and hook are: `cali_counters*`, one 64-bit number for each reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterLayout {
    /// Size of the map's values.
    pub size: usize,
    /// Where the name of the interface is in entry 1 of the state, where the state has it.
    pub name: usize,
    /// Calico's versions, for people.
    pub versions: &'static str,
}

impl CounterLayout {
    /// Index of all packets.
    pub const TOTAL: usize = 0;
    /// Index of packets that policy accepted.
    pub const ACCEPTED: usize = 2;
    /// Index of packets that policy denied, by a rule or because none matched.
    pub const DENIED: usize = 4;

    /// All that are known, of maps whose key is interface and hook. (3.25 had a map for each interface.)
    pub const ALL: [Self; 5] = [
        Self { size: 112, name: 76, versions: "3.26 to 3.29" },
        Self { size: 136, name: 76, versions: "3.30" },
        Self { size: 200, name: 80, versions: "3.31" },
        Self { size: 208, name: 80, versions: "3.32.0" },
        Self { size: 216, name: 80, versions: "3.32.1 and later" },
    ];

    /// The layout of values of this size.
    pub fn of(size: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| layout.size == size)
    }

    /// Indexes of packets that were dropped without asking policy: what all versions have, and what came later.
    pub fn drops(self) -> &'static [usize] {
        const DROPS: [usize; 15] = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 22, 23, 25];
        match self.size / 8 {
            0..17 => &DROPS[..9],
            17..25 => &DROPS[..12],
            25 => &DROPS[..14],
            _ => &DROPS,
        }
    }

    /// The number for a reason.
    pub fn count(self, value: &[u8], reason: usize) -> Option<u64> {
        let value = value.get(..self.size)?;
        Some(u64::from_ne_bytes(value.get(reason * 8..reason * 8 + 8)?.try_into().ok()?))
    }
}

/// How Calico writes an interface's name into the constants of its programs: 15 characters, `-` behind the name.
///
/// Source: `felix/bpf/libbpf` and `felix/bpf-gpl/globals.h`; a name that is longer cannot be.
pub fn padded_name(interface: &str) -> [u8; 16] {
    let mut padded = [b'-'; 16];
    padded[15] = 0;
    for (to, from) in padded[..15].iter_mut().zip(interface.bytes()) {
        *to = from;
    }
    padded
}

/// What `cali_iface*` says of an interface: bit 0 of its flags is a workload's, bit 3 a host endpoint's.
pub fn is_workload(flags: u32) -> bool {
    flags & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_fields_are_within_the_value() {
        for layout in StateLayout::ALL {
            assert_eq!(StateLayout::of(layout.size), Some(layout));
            assert!(layout.rules + 8 * StateLayout::MAX_HITS <= layout.size, "{layout:?}");
            assert!(layout.flags + 8 <= layout.size, "{layout:?}");
        }
        for layout in CounterLayout::ALL {
            assert_eq!(CounterLayout::of(layout.size), Some(layout));
            assert!(layout.drops().iter().all(|reason| reason * 8 < layout.size));
        }
        assert_eq!((StateLayout::of(80), StateLayout::of(500), CounterLayout::of(0)), (None, None, None));
    }

    #[test]
    fn names_are_padded() {
        assert_eq!(&padded_name("eth0"), b"eth0-----------\0");
        assert_eq!(&padded_name("cali1f5825c42b0"), b"cali1f5825c42b0\0");
        assert_eq!(&padded_name("much-longer-than-a-name"), b"much-longer-tha\0");
    }
}
