//! Writing native nftables: Calico's own tables, each update one transaction.
//!
//! After `felix/nftables/table.go`. Up to 3.32 a changed rule is replaced in place, by the handle that a listing tells;
//! from 3.33 on a changed chain is flushed and added anew.

use super::sets::difference;
use super::{Applied, Change, changes};
use crate::error::{Error, Result};
use crate::felix::text::{family, nft_chain, nft_verdicts};
use crate::felix::{Dialect, Ruleset, Table, Version, Written, nft};
use crate::netns::Namespace;
use accountant_core::IpVersion;
use std::collections::BTreeMap;
use std::fmt::Write;

const TABLES: [Table; 4] = [Table::Raw, Table::Mangle, Table::Nat, Table::Filter];

pub(super) fn apply(
    node: &Namespace,
    dialect: Dialect,
    before: Option<&Ruleset>,
    next: &Ruleset,
    applied: &mut Applied,
) -> Result<()> {
    let table = format!("{} calico", family(next.version));
    let mut text = if before.is_none() { format!("add table {table}\n") } else { String::new() };
    let (mut declarations, mut rules, mut deletions) = (String::new(), String::new(), String::new());
    set_changes(&table, before, next, &mut text);
    for change in TABLES.iter().flat_map(|of| changes(*of, before, next)) {
        let start = rules.len();
        match &change {
            Change::Add(name, new) => {
                let _ = writeln!(declarations, "add chain {table} {name}{}", nft_chain(name));
                append(&table, name, new, &mut rules);
            }
            Change::Edit(name, _, new) if dialect.version() >= Version::V3_33 => {
                let _ = writeln!(declarations, "flush chain {table} {name}");
                append(&table, name, new, &mut rules);
            }
            Change::Edit(name, old, new) => {
                let handles = handles(node, &table, name, old.len())?;
                edit(&table, name, (old, new), &handles, &mut rules);
            }
            Change::Remove(name, _) => {
                let _ = writeln!(declarations, "flush chain {table} {name}");
                let _ = writeln!(deletions, "delete chain {table} {name}");
            }
        }
        applied.count(&change, rules[start..].lines().filter(|line| !line.starts_with("delete")).count());
    }
    let maps = map_changes(&table, before, next);
    text = [text, declarations, maps.made, rules, maps.removed, deletions].concat();
    text.push_str(&set_removals(&table, before, next));
    if text.is_empty() { Ok(()) } else { nft(node, &text) }
}

/// Writes every chain anew in one transaction, so that all counters begin at zero.
pub(super) fn rewrite_all(node: &Namespace, ruleset: Option<&Ruleset>) -> Result<()> {
    let Some(ruleset) = ruleset else { return Ok(()) };
    let table = format!("{} calico", family(ruleset.version));
    let mut text = format!("flush table {table}\n");
    for ((_, name), rules) in &ruleset.chains {
        append(&table, name, rules, &mut text);
    }
    nft(node, &text)
}

/// Empties a chain of the filter table, named as in iptables.
pub(super) fn flush(node: &Namespace, version: IpVersion, chain: &str) -> Result<()> {
    nft(node, &format!("flush chain {} calico {}\n", family(version), nft::name(Table::Filter, chain)))
}

/// Empties a chain of the filter table and fills it with these rules.
pub(super) fn rewrite(node: &Namespace, version: IpVersion, chain: &str, rules: &[Written]) -> Result<()> {
    let (table, name) = (format!("{} calico", family(version)), nft::name(Table::Filter, chain));
    let mut text = format!("flush chain {table} {name}\n");
    append(&table, &name, rules, &mut text);
    nft(node, &text)
}

/// Removes Calico's table.
pub(super) fn remove(node: &Namespace, version: IpVersion) -> Result<()> {
    let table = format!("{} calico", family(version));
    nft(node, &format!("add table {table}\ndelete table {table}\n"))
}

fn nft(node: &Namespace, text: &str) -> Result<()> {
    node.feed("nft", &["-f", "-"], text).map(drop)
}

fn append(table: &str, chain: &str, rules: &[Written], text: &mut String) {
    for rule in rules {
        let _ = writeln!(text, "add rule {table} {chain} {}", rule.text);
    }
}

/// Position by position: what is equal stays, with its counter; what is replaced keeps its handle and loses it.
fn edit(table: &str, chain: &str, (old, new): (&[Written], &[Written]), handles: &[u64], text: &mut String) {
    for (position, rule) in new.iter().enumerate() {
        match (old.get(position), handles.get(position)) {
            (Some(was), _) if was.hash == rule.hash => {}
            (Some(_), Some(handle)) if has_port_range(&rule.text) => {
                let _ = writeln!(text, "add rule {table} {chain} handle {handle} {}", rule.text);
                let _ = writeln!(text, "delete rule {table} {chain} handle {handle}");
            }
            (Some(_), Some(handle)) => {
                let _ = writeln!(text, "replace rule {table} {chain} handle {handle} {}", rule.text);
            }
            _ => {
                let _ = writeln!(text, "add rule {table} {chain} {}", rule.text);
            }
        }
    }
    for handle in handles.iter().skip(new.len()) {
        let _ = writeln!(text, "delete rule {table} {chain} handle {handle}");
    }
}

/// nft 1.0.6 fails an assertion ("unhandled op 2") when a rule with ranges in an anonymous set replaces another. Such a
/// rule is added behind the old one, which is then deleted: its counter begins anew just the same, its handle is new.
fn has_port_range(rule: &str) -> bool {
    let sets = rule.split(" comment ").next().unwrap_or_default().split("port { ").skip(1);
    sets.filter_map(|rest| rest.split('}').next()).any(|ports| ports.contains('-'))
}

/// The handles of a chain's rules, in order. Felix keeps them from its last listing; so does the lab, by listing now.
fn handles(node: &Namespace, table: &str, chain: &str, expected: usize) -> Result<Vec<u64>> {
    let words: Vec<&str> =
        ["-a", "list", "chain"].into_iter().chain(table.split(' ')).chain([chain]).collect();
    let listing = node.run("nft", &words)?;
    let rules = listing.lines().filter(|line| line.starts_with("\t\t"));
    let handles: Vec<u64> = rules
        .filter_map(|line| line.rsplit_once("# handle ").and_then(|(_, handle)| handle.parse().ok()))
        .collect();
    if handles.len() == expected {
        Ok(handles)
    } else {
        Err(Error::Drift { chain: chain.to_string(), expected, found: handles.len() })
    }
}

fn set_changes(table: &str, before: Option<&Ruleset>, next: &Ruleset, text: &mut String) {
    for (name, set) in &next.sets {
        let was = before.and_then(|ruleset| ruleset.sets.get(name));
        if was.is_none() {
            let kind = nft::set_type(next.version, set.with_ports);
            let _ = writeln!(text, "add set {table} {name} {{ {kind} }}");
        }
        for (verb, member) in difference(was, set) {
            let verb = if verb == "add" { "add" } else { "delete" };
            let _ = writeln!(text, "{verb} element {table} {name} {{ {member} }}");
        }
    }
}

fn set_removals(table: &str, before: Option<&Ruleset>, next: &Ruleset) -> String {
    let sets = before.into_iter().flat_map(|ruleset| ruleset.sets.keys());
    sets.filter(|name| !next.sets.contains_key(*name))
        .map(|name| format!("delete set {table} {name}\n"))
        .collect()
}

/// What happens to verdict maps: elements lead to chains, so they come after new chains and before deletions.
struct MapChanges {
    made: String,
    removed: String,
}

fn map_changes(table: &str, before: Option<&Ruleset>, next: &Ruleset) -> MapChanges {
    let none = BTreeMap::new();
    let (mut made, mut removed) = (String::new(), String::new());
    for (name, elements) in &next.maps {
        let was = before.and_then(|ruleset| ruleset.maps.get(name));
        if was.is_none() {
            let _ = writeln!(made, "add map {table} {name} {{ type ifname : verdict; }}");
        }
        let was = was.unwrap_or(&none);
        let new: Vec<_> =
            elements.iter().filter(|(interface, chain)| was.get(*interface) != Some(chain)).collect();
        let gone: Vec<_> =
            was.iter().filter(|(interface, chain)| elements.get(*interface) != Some(chain)).collect();
        for (verb, list, text) in [("delete", gone, &mut removed), ("add", new, &mut made)] {
            if !list.is_empty() {
                let _ = writeln!(text, "{verb} element {table} {name} {{ {} }}", nft_verdicts(list));
            }
        }
    }
    MapChanges { made, removed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_replaced_by_handle() {
        let rules = |hashes: &[&str]| -> Vec<Written> {
            hashes
                .iter()
                .map(|hash| Written { hash: hash.to_string(), text: format!("counter {hash}") })
                .collect()
        };
        let edits = |old: &[&str], new: &[&str]| {
            let mut text = String::new();
            edit("ip calico", "X", (&rules(old), &rules(new)), &[7, 8, 9][..old.len()], &mut text);
            text
        };
        assert_eq!(edits(&["a", "b"], &["a", "c"]), "replace rule ip calico X handle 8 counter c\n");
        assert_eq!(edits(&["a"], &["a", "b"]), "add rule ip calico X counter b\n");
        assert_eq!(
            edits(&["a", "b", "c"], &["a"]),
            "delete rule ip calico X handle 8\ndelete rule ip calico X handle 9\n"
        );
        assert!(has_port_range("udp dport { 80, 90-91 } counter accept comment \"x\""));
        assert!(!has_port_range("udp dport { 80 } counter accept comment \"a-b port { 1-2 }\""));
    }
}
