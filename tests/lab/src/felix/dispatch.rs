//! Dispatch: from the hooks to the chains of the endpoint whose interface a packet uses.
//!
//! After `felix/rules/dispatch.go`. iptables, and nftables of 3.29, walk a tree by the interface's name; nftables
//! from 3.30 on looks it up in a verdict map. Always a goto: an endpoint chain's RETURN goes back to the hook's chain.

use super::dialect::Version;
use super::draft::{Draft, Match, Rule, Table, Target, Way};
use crate::policy::{HostEndpoint, OnHosts};
use accountant_core::Direction;
use std::collections::BTreeMap;

/// One dispatch chain: where it is, which interface it looks at, and the prefix of the chains that it leads to.
#[derive(Clone, Copy)]
struct Dispatch {
    table: Table,
    name: &'static str,
    way: Way,
    prefix: &'static str,
}

impl Dispatch {
    fn condition(&self, interface: &str) -> Match {
        match self.way {
            Way::In => Match::In(interface.to_string()),
            Way::Out => Match::Out(interface.to_string()),
        }
    }
}

impl Draft<'_> {
    pub(crate) fn workload_dispatch(&mut self) {
        for (name, way, prefix) in
            [("cali-from-wl-dispatch", Way::In, "cali-fw-"), ("cali-to-wl-dispatch", Way::Out, "cali-tw-")]
        {
            let dispatch = Dispatch { table: Table::Filter, name, way, prefix };
            let endpoints = self.model.endpoints.iter().map(|endpoint| {
                let interface = endpoint.interface.to_string();
                let chain = self.endpoint_chain_name(prefix, &interface);
                (interface, chain)
            });
            let endpoints: BTreeMap<String, String> = endpoints.collect();
            let end = vec![Rule::always(self.deny(Table::Filter).0).comment("Unknown interface")];
            if self.dialect.is_nft() && self.dialect.since(Version::V3_31) {
                let look_up = Rule::always(Target::Dispatch(way, name.to_string()));
                self.maps.insert(name.to_string(), endpoints);
                self.chain(Table::Filter, name, [vec![look_up], end].concat());
            } else {
                self.tree(dispatch, &endpoints, end);
            }
        }
    }

    pub(crate) fn host_dispatch(&mut self) {
        use OnHosts::{Forward, Normal, PreDnat, Untracked};
        let egress_after_nat = self.dialect.since(Version::V3_25);
        for (table, name, way, prefix, at) in [
            (Table::Filter, "cali-from-host-endpoint", Way::In, "cali-fh-", Normal),
            (Table::Filter, "cali-to-host-endpoint", Way::Out, "cali-th-", Normal),
            (Table::Filter, "cali-from-hep-forward", Way::In, "cali-fhfw-", Forward),
            (Table::Filter, "cali-to-hep-forward", Way::Out, "cali-thfw-", Forward),
            (Table::Mangle, "cali-from-host-endpoint", Way::In, "cali-fh-", PreDnat),
            (Table::Mangle, "cali-to-host-endpoint", Way::Out, "cali-th-", Normal),
            (Table::Raw, "cali-from-host-endpoint", Way::In, "cali-fh-", Untracked),
            (Table::Raw, "cali-to-host-endpoint", Way::Out, "cali-th-", Untracked),
        ] {
            if table == Table::Mangle && way == Way::Out && !egress_after_nat {
                continue;
            }
            let dispatch = Dispatch { table, name, way, prefix };
            let has_chain = |host: &&HostEndpoint| {
                let chain = self.endpoint_chain_name(prefix, host.chain_name());
                self.chains.contains_key(&(table, chain))
            };
            let hosts: Vec<&HostEndpoint> = self.model.host_endpoints.iter().filter(has_chain).collect();
            let named = hosts.iter().filter(|host| !host.is_wildcard());
            let named: BTreeMap<String, String> = named
                .map(|host| (host.interface.clone(), self.endpoint_chain_name(prefix, &host.interface)))
                .collect();
            let wildcard = hosts.iter().find(|host| host.is_wildcard());
            let end = wildcard.map(|host| self.wildcard_end(dispatch, at, host)).unwrap_or_default();
            self.tree(dispatch, &named, end);
        }
    }

    /// What ends a dispatch chain where an endpoint stands for all other interfaces.
    fn wildcard_end(&self, dispatch: Dispatch, at: OnHosts, host: &HostEndpoint) -> Vec<Rule> {
        let mut rules = Vec::new();
        if dispatch.way == Way::Out && at == OnHosts::Normal {
            rules.extend(self.model.settings.prefixes.iter().map(|prefix| {
                Rule::new([Match::Out(format!("{prefix}+"))], Target::Return)
                    .comment("Skip egress WHEP policy for traffic to local workload")
            }));
        }
        let chain = self.endpoint_chain_name(dispatch.prefix, host.chain_name());
        rules.push(Rule::always(Target::Goto(chain)));
        rules
    }

    /// A chain that goes by the first letter in which the interfaces differ, and one more chain for every letter that
    /// several share.
    fn tree(&mut self, dispatch: Dispatch, endpoints: &BTreeMap<String, String>, end: Vec<Rule>) {
        let common = common_prefix(endpoints.keys());
        let mut bins: BTreeMap<String, Vec<(&String, &String)>> = BTreeMap::new();
        for (interface, chain) in endpoints {
            let letter = interface[common.len()..].chars().next();
            bins.entry(letter.map(String::from).unwrap_or_default()).or_default().push((interface, chain));
        }
        let mut root = Vec::new();
        for (letter, members) in bins {
            let gotos = members.iter().map(|(interface, chain)| {
                Rule::new([dispatch.condition(interface)], Target::Goto((*chain).clone()))
            });
            if members.len() == 1 {
                root.extend(gotos);
                continue;
            }
            let child = format!("{}-{letter}", dispatch.name);
            let rules = gotos.chain(end.iter().cloned()).collect();
            let whoever = dispatch.condition(&format!("{common}{letter}+"));
            root.push(Rule::new([whoever], Target::Goto(child.clone())));
            self.chain(dispatch.table, child, rules);
        }
        root.extend(end);
        self.chain(dispatch.table, dispatch.name, root);
    }

    /// The failsafe chains of the tables that have host endpoints.
    pub(crate) fn failsafes(&mut self) {
        for table in [Table::Filter, Table::Mangle, Table::Raw] {
            for direction in [Direction::Ingress, Direction::Egress] {
                let (name, rules) = self.failsafe(table, direction);
                self.chain(table, name, rules);
            }
        }
    }
}

fn common_prefix<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let mut names = names.into_iter();
    let mut common = names.next().cloned().unwrap_or_default();
    for name in names {
        while !name.starts_with(&common) {
            common.pop();
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_branches_where_names_first_differ() {
        let names = ["cali1a", "cali1b", "cali2"].map(String::from);
        assert_eq!(common_prefix(&names), "cali");
        assert_eq!(common_prefix(&names[..1]), "cali1a");
        assert_eq!(common_prefix(&[]), "");
    }
}
