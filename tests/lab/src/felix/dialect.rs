//! Which Felix writes, and to what: everything that differs between versions and backends, as one small table each.
//!
//! The facts are those of `felix/rules`, `felix/iptables` and `felix/nftables` from v3.8 to v3.33, checked against
//! the captures in `tests/fixtures/felix`.

use crate::error::{Error, Result};
use accountant_core::calico::names::{MAX_IPTABLES, MAX_NFTABLES};
use accountant_core::calico::policy::Generation;
use std::fmt;

/// The versions of Calico whose rules differ from their predecessors'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the version of the same name; the comments say what is new in it")]
pub enum Version {
    V3_8,
    /// Comments that name policies; endpoint-mark bits are gone from the static chains.
    V3_25,
    /// Policy groups; no trailing RETURN.
    V3_28,
    /// Tiers; native nftables.
    V3_29,
    /// "End of tier", flow logs, drop mark, limits, long names and verdict maps in nftables (since 3.30).
    V3_31,
    /// Policies by kind.
    V3_32,
    /// The same rules; native nftables rewrites a changed chain whole.
    V3_33,
}

/// What Felix writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// iptables-legacy: the xtables of old.
    Legacy,
    /// iptables-nft: the tables `ip filter` and so on of nf_tables.
    IptablesNft,
    /// Native nftables: Calico's own table `ip calico`.
    Nft,
}

/// A version with a backend that it can write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dialect {
    version: Version,
    backend: Backend,
}

/// The bits of the packet mark that Felix uses, with the default mask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks {
    /// A policy or profile accepted the packet.
    pub(crate) accept: u32,
    /// A policy passed the packet to the next tier.
    pub(crate) pass: u32,
    /// A policy denied the packet; only the rule that drops it looks.
    pub(crate) drop: u32,
    /// For whatever a few rules in a row need.
    pub(crate) scratch0: u32,
    /// Likewise.
    pub(crate) scratch1: u32,
}

impl Dialect {
    /// This version with this backend; native nftables came with 3.29.
    pub fn new(version: Version, backend: Backend) -> Result<Self> {
        if backend == Backend::Nft && version < Version::V3_29 {
            return Err(Error::syntax(
                &version.to_string(),
                "a version with native nftables (3.29 or later)",
            ));
        }
        Ok(Self { version, backend })
    }

    /// Every version with every backend that it can write to.
    pub fn all() -> Vec<Self> {
        let versions = [
            Version::V3_8,
            Version::V3_25,
            Version::V3_28,
            Version::V3_29,
            Version::V3_31,
            Version::V3_32,
            Version::V3_33,
        ];
        let backends = [Backend::Legacy, Backend::IptablesNft, Backend::Nft];
        let pairs = versions.iter().flat_map(|v| backends.iter().map(move |b| Self::new(*v, *b)));
        pairs.filter_map(Result::ok).collect()
    }

    /// The version.
    pub fn version(self) -> Version {
        self.version
    }

    /// The backend.
    pub fn backend(self) -> Backend {
        self.backend
    }

    pub(crate) fn is_nft(self) -> bool {
        self.backend == Backend::Nft
    }

    pub(crate) fn since(self, version: Version) -> bool {
        self.version >= version
    }

    pub(crate) fn marks(self) -> Marks {
        let [drop, scratch0, scratch1] = if self.since(Version::V3_31) {
            [0x4_0000, 0x8_0000, 0x10_0000]
        } else {
            [0, 0x4_0000, 0x8_0000]
        };
        Marks { accept: 0x1_0000, pass: 0x2_0000, drop, scratch0, scratch1 }
    }

    /// How policies are named.
    pub fn generation(self) -> Generation {
        match self.version {
            Version::V3_8 | Version::V3_25 | Version::V3_28 => Generation::A,
            Version::V3_29 | Version::V3_31 => Generation::B,
            Version::V3_32 | Version::V3_33 => Generation::C,
        }
    }

    /// The longest name of a policy or profile chain.
    pub fn policy_name_limit(self) -> usize {
        if self.is_nft() && self.since(Version::V3_31) { MAX_NFTABLES } else { MAX_IPTABLES }
    }

    /// The longest name of an endpoint chain.
    pub fn endpoint_name_limit(self) -> usize {
        if self.is_nft() { MAX_NFTABLES } else { MAX_IPTABLES }
    }
}

impl Marks {
    /// What decides: accept and pass.
    pub(crate) fn verdicts(&self) -> u32 {
        self.accept | self.pass
    }

    /// The two scratch bits.
    pub(crate) fn scratch(&self) -> u32 {
        self.scratch0 | self.scratch1
    }

    /// What is cleared where a packet enters Calico's chains of the host. The drop bit is not: whoever sets it drops.
    pub(crate) fn all(&self) -> u32 {
        self.verdicts() | self.scratch()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V3_8 => "3.8",
            Self::V3_25 => "3.25",
            Self::V3_28 => "3.28",
            Self::V3_29 => "3.29",
            Self::V3_31 => "3.31",
            Self::V3_32 => "3.32",
            Self::V3_33 => "3.33",
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::IptablesNft => "iptables-nft",
            Self::Nft => "nft",
        })
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}-{}", self.version, self.backend)
    }
}
