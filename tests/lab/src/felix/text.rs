//! A whole rendering as text, for the tools that load it in one go.

use super::{Rendering, Ruleset, SetContent, Table, nft};
use accountant_core::IpVersion;
use std::fmt::Write;

/// The tables in the order in which restore files have them.
const TABLES: [Table; 4] = [Table::Raw, Table::Mangle, Table::Nat, Table::Filter];

impl Rendering {
    /// Everything of one IP version for `iptables-restore` or `ip6tables-restore`. Load [`Self::ipset_text`] first.
    pub fn restore_text(&self, version: IpVersion) -> String {
        let ruleset = self.of(version);
        let mut text = String::new();
        for table in TABLES {
            let chains = || ruleset.chains.iter().filter(move |((of, _), _)| *of == table);
            let _ = writeln!(text, "*{}", table.as_str());
            for ((_, name), _) in chains() {
                let policy = if is_base(name) { "ACCEPT [0:0]" } else { "- -" };
                let _ = writeln!(text, ":{name} {policy}");
            }
            for ((_, name), rules) in chains() {
                for rule in rules {
                    let _ = writeln!(text, "-A {name} {}", rule.text);
                }
            }
            text.push_str("COMMIT\n");
        }
        text
    }

    /// The IP sets of both IP versions for `ipset restore`.
    pub fn ipset_text(&self) -> String {
        let mut text = String::new();
        for ruleset in &self.rulesets {
            for (name, set) in &ruleset.sets {
                text.push_str(&ipset_create(name, set, ruleset.version));
                for member in &set.members {
                    let _ = writeln!(text, "add {name} {member}");
                }
            }
        }
        text
    }

    /// Everything of both IP versions for `nft -f`: Calico's tables as if they were new.
    pub fn nft_text(&self) -> String {
        self.rulesets.iter().map(nft_table).collect()
    }
}

/// The line that makes an IP set as Felix makes it.
pub(crate) fn ipset_create(name: &str, set: &SetContent, version: IpVersion) -> String {
    let kind = if set.with_ports { "hash:ip,port" } else { "hash:net" };
    let family = if version == IpVersion::V4 { "inet" } else { "inet6" };
    format!("create {name} {kind} family {family} maxelem 1048576\n")
}

/// Whether this is one of the kernel's own chains.
pub(crate) fn is_base(chain: &str) -> bool {
    !chain.contains("cali-")
}

/// The family word of a table of native nftables.
pub(crate) fn family(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "ip",
        IpVersion::V6 => "ip6",
    }
}

/// How a chain of native nftables is declared: the base chains hook into the kernel, all others do not.
pub(crate) fn nft_chain(name: &str) -> String {
    let hook = match name {
        "raw-PREROUTING" => "type filter hook prerouting priority raw",
        "raw-OUTPUT" => "type filter hook output priority raw",
        "mangle-PREROUTING" => "type filter hook prerouting priority mangle",
        "mangle-POSTROUTING" => "type filter hook postrouting priority mangle",
        "nat-PREROUTING" => "type nat hook prerouting priority dstnat",
        "nat-OUTPUT" => "type nat hook output priority 110",
        "nat-POSTROUTING" => "type nat hook postrouting priority srcnat + 10",
        "filter-INPUT" => "type filter hook input priority filter",
        "filter-FORWARD" => "type filter hook forward priority filter",
        "filter-OUTPUT" => "type filter hook output priority filter",
        _ => return String::new(),
    };
    format!(" {{ {hook}; policy accept; }}")
}

/// The elements of a verdict map.
pub(crate) fn nft_verdicts<'a>(elements: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let elements = elements.into_iter().map(|(interface, chain)| format!("\"{interface}\" : goto {chain}"));
    elements.collect::<Vec<_>>().join(", ")
}

fn nft_table(ruleset: &Ruleset) -> String {
    let table = format!("{} calico", family(ruleset.version));
    let mut text = format!("add table {table}\n");
    for (name, set) in &ruleset.sets {
        let kind = nft::set_type(ruleset.version, set.with_ports);
        let _ = writeln!(text, "add set {table} {name} {{ {kind} }}");
        if !set.members.is_empty() {
            let members = set.members.iter().cloned().collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "add element {table} {name} {{ {members} }}");
        }
    }
    for (_, name) in ruleset.chains.keys() {
        let _ = writeln!(text, "add chain {table} {name}{}", nft_chain(name));
    }
    for (name, elements) in &ruleset.maps {
        let _ = writeln!(text, "add map {table} {name} {{ type ifname : verdict; }}");
        if !elements.is_empty() {
            let _ = writeln!(text, "add element {table} {name} {{ {} }}", nft_verdicts(elements));
        }
    }
    for ((_, name), rules) in &ruleset.chains {
        for rule in rules {
            let _ = writeln!(text, "add rule {table} {name} {}", rule.text);
        }
    }
    text
}
