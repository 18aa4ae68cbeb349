//! Writing through `iptables-restore`, legacy and nft.
//!
//! After `applyUpdates` of `felix/iptables/table.go`: one restore per table with what changed, chains to be deleted
//! last and in the same transaction.

use super::{Applied, Change, changes};
use crate::error::Result;
use crate::felix::text::is_base;
use crate::felix::{Ruleset, Table, Written};
use crate::netns::Namespace;
use accountant_core::IpVersion;
use std::fmt::Write;
use std::path::Path;

/// The iptables of one backend and IP version, in one namespace.
pub(super) struct Tools<'a> {
    pub(super) node: &'a Namespace,
    pub(super) lock_file: &'a Path,
    pub(super) legacy: bool,
    pub(super) version: IpVersion,
}

impl Tools<'_> {
    pub(super) fn apply(
        &self,
        table: Table,
        before: Option<&Ruleset>,
        next: &Ruleset,
        applied: &mut Applied,
    ) -> Result<()> {
        let (mut declarations, mut rules, mut deletions) = (String::new(), String::new(), String::new());
        for change in changes(table, before, next) {
            let start = rules.len();
            match &change {
                Change::Add(name, new) => {
                    if !is_base(name) {
                        let _ = writeln!(declarations, ":{name} - -");
                    }
                    append(name, new, &mut rules);
                }
                Change::Edit(name, _, new) if !self.legacy && !is_base(name) => {
                    let _ = writeln!(declarations, ":{name} - -");
                    append(name, new, &mut rules);
                }
                Change::Edit(name, old, new) => edit(name, old, new, &mut rules),
                Change::Remove(name, old) if is_base(name) => edit(name, old, &[], &mut rules),
                Change::Remove(name, _) => {
                    let _ = writeln!(declarations, ":{name} - -");
                    let _ = writeln!(deletions, "--delete-chain {name}");
                }
            }
            applied.count(&change, rules[start..].lines().count());
        }
        if declarations.is_empty() && rules.is_empty() {
            return Ok(());
        }
        self.restore(&format!("*{}\n{declarations}{rules}{deletions}COMMIT\n", table.as_str()))
    }

    pub(super) fn flush(&self, chain: &str) -> Result<()> {
        self.restore(&format!("*filter\n:{chain} - -\nCOMMIT\n"))
    }

    pub(super) fn rewrite(&self, chain: &str, rules: &[Written]) -> Result<()> {
        let mut text = format!("*filter\n:{chain} - -\n");
        append(chain, rules, &mut text);
        self.restore(&format!("{text}COMMIT\n"))
    }

    pub(super) fn zero_counters(&self) -> Result<()> {
        self.for_every_table(&["-Z"])
    }

    pub(super) fn remove_everything(&self) -> Result<()> {
        self.for_every_table(&["-F"])?;
        self.for_every_table(&["-X"])
    }

    fn for_every_table(&self, arguments: &[&str]) -> Result<()> {
        let tool = self.tool("");
        for table in [Table::Raw, Table::Mangle, Table::Nat, Table::Filter] {
            let words = [&["-w", "-t", table.as_str()], arguments].concat();
            let mut command = self.node.command(&tool)?;
            crate::tool::run(command.env("XTABLES_LOCKFILE", self.lock_file).args(words))?;
        }
        Ok(())
    }

    fn restore(&self, text: &str) -> Result<()> {
        let mut command = self.node.command(&self.tool("-restore"))?;
        command.env("XTABLES_LOCKFILE", self.lock_file).args(["--noflush", "--wait"]);
        crate::tool::feed(&mut command, text).map(drop)
    }

    fn tool(&self, what: &str) -> String {
        tool(self.version, self.legacy, what)
    }
}

/// The name of a tool of the iptables family: `ip6tables-legacy-restore`.
pub(super) fn tool(version: IpVersion, legacy: bool, what: &str) -> String {
    let family = if version == IpVersion::V4 { "iptables" } else { "ip6tables" };
    let backend = if legacy { "legacy" } else { "nft" };
    format!("{family}-{backend}{what}")
}

fn append(chain: &str, rules: &[Written], text: &mut String) {
    for rule in rules {
        let _ = writeln!(text, "-A {chain} {}", rule.text);
    }
}

/// Position by position: what is equal stays, with its counters.
fn edit(chain: &str, old: &[Written], new: &[Written], text: &mut String) {
    for (position, rule) in new.iter().enumerate() {
        match old.get(position) {
            Some(was) if was.hash == rule.hash => {}
            Some(_) => {
                let _ = writeln!(text, "-R {chain} {} {}", position + 1, rule.text);
            }
            None => {
                let _ = writeln!(text, "-A {chain} {}", rule.text);
            }
        }
    }
    for number in (new.len()..old.len()).rev() {
        let _ = writeln!(text, "-D {chain} {}", number + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_edited() {
        let rules = |hashes: &[&str]| -> Vec<Written> {
            hashes.iter().map(|hash| Written { hash: hash.to_string(), text: format!("-j {hash}") }).collect()
        };
        for (old, new, text) in [
            (&["a", "b"][..], &["a", "b"][..], ""),
            (&["a", "b"], &["a", "c", "d"], "-R X 2 -j c\n-A X -j d\n"),
            (&["a", "b", "c"], &["a"], "-D X 3\n-D X 2\n"),
            (&[], &["a"], "-A X -j a\n"),
        ] {
            let mut edits = String::new();
            edit("X", &rules(old), &rules(new), &mut edits);
            assert_eq!(edits, text, "{old:?} -> {new:?}");
        }
    }
}
