//! Rule sets of known size in namespaces of their own.

use accountant_core::calico::ChainKind;
use accountant_core::{ChainName, IpVersion};
use accountant_lab::felix::{Backend, Dialect, Rendering, Table, Version};
use accountant_lab::{Node, Scenario, apply::Felix, scenario};
use anyhow::{Context, Result};
use std::fmt;

/// How big a rule set is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// IPv4 rules in the filter table, about.
    pub(crate) rules: usize,
    /// Pods on the node.
    pub(crate) pods: usize,
}

/// A small, a usual and a very big node.
pub(crate) const SIZES: [Size; 3] =
    [Size { rules: 1_700, pods: 30 }, Size { rules: 23_500, pods: 110 }, Size { rules: 107_000, pods: 250 }];

/// All ways in which Felix writes rules.
pub(crate) const BACKENDS: [Backend; 3] = [Backend::Legacy, Backend::IptablesNft, Backend::Nft];

/// A node with rules. Everything is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct LoadedRules {
    pub(crate) size: Size,
    pub(crate) scenario: Scenario,
    pub(crate) node: Node,
    felix: Felix,
}

/// A chain of an endpoint, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelChain {
    pub(crate) ip_version: IpVersion,
    pub(crate) table: &'static str,
    pub(crate) chain: String,
}

impl LoadedRules {
    /// Makes a node and writes the rules.
    pub(crate) fn load(size: Size, backend: Backend) -> Result<Self> {
        let scenario = scenario::scale(size.rules, size.pods);
        let node = scenario.node()?;
        let mut felix = node.felix(Dialect::new(Version::V3_33, backend)?);
        felix.apply(&scenario.model)?;
        Ok(Self { size, scenario, node, felix })
    }

    /// What Felix writes to.
    pub(crate) fn backend(&self) -> Backend {
        self.felix.dialect().backend()
    }

    /// The chains that a poll reads.
    pub(crate) fn endpoint_chains(&self) -> Result<Vec<KernelChain>> {
        let mut chains = Vec::new();
        for ip_version in IpVersion::BOTH {
            let names = self.written()?.of(ip_version).chains.keys();
            let of_endpoints = names.filter(|(table, name)| *table == Table::Filter && is_endpoint(name));
            let table = if self.backend() == Backend::Nft { "calico" } else { "filter" };
            chains.extend(of_endpoints.map(|(_, name)| KernelChain {
                ip_version,
                table,
                chain: name.clone(),
            }));
        }
        Ok(chains)
    }

    fn written(&self) -> Result<&Rendering> {
        self.felix.written().context("no rules are written")
    }

    fn rules(&self, ip_version: IpVersion) -> usize {
        self.felix.written().map_or(0, |written| written.of(ip_version).rule_count())
    }
}

impl fmt::Display for LoadedRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (backend, pods) = (self.backend(), self.size.pods);
        let [v4, v6] = IpVersion::BOTH.map(|version| self.rules(version));
        write!(f, "{backend}: {pods} pods, {v4} rules of IPv4 and {v6} of IPv6")
    }
}

/// In native nftables names carry the table.
fn is_endpoint(name: &str) -> bool {
    let name = ChainName::from(name.strip_prefix("filter-").unwrap_or(name));
    matches!(ChainKind::of(&name), ChainKind::Endpoint { .. })
}
