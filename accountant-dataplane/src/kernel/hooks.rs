//! Where the programs are attached: around the filter rules always, around those of the raw and the mangle table at the
//! [`Site`]s where a host endpoint has chains, so that packets of other nodes pay nothing for them.

use accountant_core::calico::ChainKind;
use accountant_core::id::EndpointKind;
use accountant_core::snapshot::TableId;
use accountant_core::{ChainName, Direction, IpVersion, Table};

/// `NF_INET_PRE_ROUTING`, `NF_INET_LOCAL_IN`, `NF_INET_FORWARD`, `NF_INET_LOCAL_OUT`, `NF_INET_POST_ROUTING`
const PRE_ROUTING: Hook = (0, "prerouting");
const FILTER: [Hook; 3] = [(1, "local in"), (2, "forward"), LOCAL_OUT];
const LOCAL_OUT: Hook = (3, "local out");
const POST_ROUTING: Hook = (4, "postrouting");

/// A hook's number and its name.
type Hook = (u32, &'static str);

/// The programs that packets pass on every node.
pub(super) const PROGRAMS: [&str; 3] = ["dropped", "after", "before"];
/// The others.
pub(super) const OTHERS: [&str; 4] = ["raw_after", "raw_before", "mangle_after", "mangle_before"];

/// A table's rules in a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Site {
    table: Table,
    ip_version: IpVersion,
    hook: Hook,
}

impl Site {
    /// Those of the filter table.
    fn always() -> impl Iterator<Item = Self> {
        let of = |ip_version| FILTER.map(|hook| Self { table: Table::Filter, ip_version, hook });
        IpVersion::BOTH.into_iter().flat_map(of)
    }

    /// Those that only host endpoints have chains at.
    pub(super) fn of_hosts() -> impl Iterator<Item = Self> {
        let each = [
            (Table::Raw, PRE_ROUTING),
            (Table::Raw, LOCAL_OUT),
            (Table::Mangle, PRE_ROUTING),
            (Table::Mangle, POST_ROUTING),
        ];
        let of = move |ip_version| each.map(|(table, hook)| Self { table, ip_version, hook });
        IpVersion::BOTH.into_iter().flat_map(of)
    }

    /// Where a host endpoint's chain is called from, if that is no filter table.
    pub(super) fn of(table: TableId, chain: &ChainName) -> Option<Self> {
        let ChainKind::Endpoint { endpoint, direction, forward: false } = ChainKind::of(chain) else {
            return None;
        };
        let hook = match (table.table, direction) {
            (Table::Raw | Table::Mangle, Direction::Ingress) => PRE_ROUTING,
            (Table::Raw, Direction::Egress) => LOCAL_OUT,
            (Table::Mangle, Direction::Egress) => POST_ROUTING,
            (Table::Filter, _) => return None,
        };
        let site = Self { table: table.table, ip_version: table.ip_version, hook };
        (endpoint.kind == EndpointKind::Host).then_some(site)
    }

    /// Its two places, the later one first, so that a packet that only its program sees is counted by verdict.
    pub(super) fn places(self) -> [Place; 2] {
        [Place::After(self), Place::Before(self)]
    }
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Drops,
    Before(Site),
    After(Site),
}

/// All places of every node, in the order in which programs are attached.
pub(super) fn places() -> impl Iterator<Item = Place> {
    std::iter::once(Place::Drops).chain(Site::always().flat_map(Site::places))
}

/// The same of nodes with all chains that host endpoints can have.
pub(super) fn all_places() -> impl Iterator<Item = Place> {
    places().chain(Site::of_hosts().flat_map(Site::places))
}

impl Place {
    /// In words.
    pub(super) fn name(self) -> String {
        match self {
            Self::Drops => "dropped packets (kfree_skb)".into(),
            Self::Before(Site { table, ip_version, hook })
            | Self::After(Site { table, ip_version, hook }) => {
                let table = match table {
                    Table::Filter => String::new(),
                    _ => format!(", {} table", table.as_str()),
                };
                format!("packet filter, IPv{ip_version} {}{table}", hook.1)
            }
        }
    }

    /// The name of its link. A BPF file system allows no dots.
    pub(super) fn file(self) -> String {
        match self {
            Self::Drops => "dropped".into(),
            Self::Before(site) | Self::After(site) => {
                let (program, version) = (self.program().replace('_', "-"), site.ip_version);
                format!("{program}-IPv{version}-{}", site.hook.1).replace(' ', "-")
            }
        }
    }

    /// The program that stands there.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Drops => "dropped",
            Self::Before(site) => match site.table {
                Table::Filter => "before",
                Table::Raw => "raw_before",
                Table::Mangle => "mangle_before",
            },
            Self::After(site) => match site.table {
                Table::Filter => "after",
                Table::Raw => "raw_after",
                Table::Mangle => "mangle_after",
            },
        }
    }

    /// Family (`NFPROTO_IPV4`, `NFPROTO_IPV6`), hook and priority of a place in the packet filter: just before or just after
    /// the rules, whose priorities are `NF_IP_PRI_RAW`, `NF_IP_PRI_MANGLE` and `NF_IP_PRI_FILTER`.
    pub(super) fn in_filter(self) -> Option<(u32, u32, i32)> {
        let (site, beside) = match self {
            Self::Drops => return None,
            Self::Before(site) => (site, -1),
            Self::After(site) => (site, 1),
        };
        let priority = match site.table {
            Table::Raw => -300,
            Table::Mangle => -150,
            Table::Filter => 0,
        };
        let family = match site.ip_version {
            IpVersion::V4 => 2,
            IpVersion::V6 => 10,
        };
        Some((family, site.hook.0, priority + beside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use accountant_core::snapshot::Source;
    use std::collections::BTreeSet;

    #[test]
    fn names_of_places_are_different_and_those_of_the_filter_table_as_ever() {
        let files: BTreeSet<String> = all_places().map(Place::file).collect();
        assert_eq!(files.len(), 1 + 2 * (2 * FILTER.len() + 2 * 4));
        for file in ["dropped", "before-IPv4-forward", "after-IPv6-local-out", "raw-before-IPv4-prerouting"] {
            assert!(files.contains(file), "{file}: {files:?}");
        }
    }

    #[test]
    fn only_chains_of_host_endpoints_outside_of_the_filter_table_have_sites_of_their_own() {
        let site = |table, chain: &str| {
            let id = TableId { source: Source::Nftables, native: true, ip_version: IpVersion::V6, table };
            Site::of(id, &chain.into()).map(|site| Place::Before(site).file())
        };
        assert_eq!(site(Table::Raw, "cali-fh-eth0").unwrap(), "raw-before-IPv6-prerouting");
        assert_eq!(site(Table::Raw, "cali-th-eth0").unwrap(), "raw-before-IPv6-local-out");
        assert_eq!(site(Table::Mangle, "cali-fh-eth0").unwrap(), "mangle-before-IPv6-prerouting");
        assert_eq!(site(Table::Mangle, "cali-th-eth0").unwrap(), "mangle-before-IPv6-postrouting");
        for (table, chain) in [
            (Table::Filter, "cali-fh-eth0"),
            (Table::Raw, "cali-fw-cali1"),
            (Table::Mangle, "cali-pi-policy"),
            (Table::Mangle, "cali-thfw-eth0"),
        ] {
            assert_eq!(site(table, chain), None, "{chain}");
        }
    }
}
