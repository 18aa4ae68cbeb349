//! Identities as newtypes, so that an interface is never taken for a chain or a policy for a pod.
//!
//! All are cheap to clone (shared text) and compare by their text.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text of it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id! {
    /// A network interface, by its name (at most 15 bytes, `IFNAMSIZ - 1`).
    Interface
}
text_id! {
    /// A chain of the packet filter, without the table-layer prefix (`filter-`, `raw-`, ...) of Calico's native
    /// nftables mode: `cali-tw-cali1234`.
    ChainName
}
text_id! {
    /// A tier of policies. Calico up to 3.28 has one, `default`.
    TierName
}
text_id! {
    /// A profile, as Felix names it: `kns.NAMESPACE`, `ksa.NAMESPACE.SERVICEACCOUNT`, or a name of the user's.
    ProfileName
}

impl TierName {
    /// The tier that every version of Calico has.
    pub fn default_tier() -> Self {
        Self::from("default")
    }
}

/// The version of the Internet Protocol that a table filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IpVersion {
    /// IPv4: `iptables`, nftables family `ip`.
    V4,
    /// IPv6: `ip6tables`, nftables family `ip6`.
    V6,
}

impl IpVersion {
    /// Both versions, for loops.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// 4 or 6, as labels print it.
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
}

impl fmt::Display for IpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

/// Direction of traffic as the endpoint sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Direction {
    /// To the endpoint (`cali-tw-`, `cali-fh-`, `cali-fhfw-`): its ingress policies decide.
    Ingress,
    /// From the endpoint (`cali-fw-`, `cali-th-`, `cali-thfw-`): its egress policies decide.
    Egress,
}

impl Direction {
    /// `ingress` or `egress`, as labels print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The tables in which Felix keeps endpoint chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Table {
    /// Workloads, and normal and forward policy of host endpoints.
    Filter,
    /// Pre-DNAT policy of host endpoints (and egress of DNATed host traffic from 3.18 on).
    Mangle,
    /// Untracked policy of host endpoints.
    Raw,
}

impl Table {
    /// All three, for loops.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Mangle, Self::Raw];

    /// The name that iptables gives the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Mangle => "mangle",
            Self::Raw => "raw",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which kind of thing an interface's chains belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EndpointKind {
    /// A pod, a virtual machine, a container.
    Workload,
    /// An interface of the host itself.
    Host,
}

/// A local endpoint, known by its interface: what the kernel's rules know of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Workload or host endpoint.
    pub kind: EndpointKind,
    /// The interface that its chains are named after.
    pub interface: Interface,
}
