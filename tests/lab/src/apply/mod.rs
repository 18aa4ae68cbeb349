//! Putting rules into the kernel as Felix does: all at first, then only what changed, in the manner of each backend.
//!
//! | backend | a changed chain |
//! |---|---|
//! | iptables-legacy | rule by rule: equal hash untouched, differing `-R`, missing `-A`, surplus `-D` |
//! | iptables-nft | flushed and appended anew |
//! | native nftables to 3.32 | rule by rule, by handle: `replace`, `add`, `delete` |
//! | native nftables from 3.33 | flushed and added anew, in one transaction |
//!
//! Unchanged chains are never touched, and sets change member by member. So counters fall exactly where they fall on a
//! real node (`facts/calico-chains.md` 6.2). One [`Felix`] at a time writes in a namespace, and nobody else does.

mod capture;
mod counters;
mod iptables;
mod native;
mod sets;

pub use capture::load_capture;

use crate::error::{Error, Result};
use crate::felix::{Backend, Dialect, Rendering, Ruleset, Table, Written, render};
use crate::netns::Namespace;
use crate::policy::Model;
use accountant_core::IpVersion;
use std::path::PathBuf;

/// The writer of one node's rules: it knows what it wrote last.
#[derive(Debug)]
pub struct Felix {
    node: Namespace,
    dialect: Dialect,
    lock_file: PathBuf,
    last: Option<Rendering>,
}

/// What an update did, as far as rules go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Chains that are new.
    pub added_chains: usize,
    /// Chains of which some rule was written, so that some counter began anew.
    pub changed_chains: usize,
    /// Chains that are gone.
    pub removed_chains: usize,
    /// Rules that were written, in new chains and old.
    pub written_rules: usize,
}

/// What is to become of one chain.
enum Change<'a> {
    Add(&'a str, &'a [Written]),
    Edit(&'a str, &'a [Written], &'a [Written]),
    Remove(&'a str, &'a [Written]),
}

impl Felix {
    /// A writer that has not written yet, in a namespace whose tables are empty.
    pub fn new(node: &Namespace, dialect: Dialect) -> Self {
        Self { node: node.clone(), dialect, lock_file: node.lock_file(), last: None }
    }

    /// This writer with another lock file for iptables-legacy than the namespace's own.
    pub fn with_lock_file(self, lock_file: impl Into<PathBuf>) -> Self {
        Self { lock_file: lock_file.into(), ..self }
    }

    /// The dialect that is written.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The rules that were written last.
    pub fn written(&self) -> Option<&Rendering> {
        self.last.as_ref()
    }

    /// Makes the kernel's rules those of the model, touching as little as Felix would.
    pub fn apply(&mut self, model: &Model) -> Result<Applied> {
        self.apply_rendering(render(model, self.dialect))
    }

    /// The same for rules that are rendered already.
    pub fn apply_rendering(&mut self, next: Rendering) -> Result<Applied> {
        let mut applied = Applied::default();
        let last = self.last.take();
        let outcome = IpVersion::BOTH.iter().try_for_each(|version| {
            let before = last.as_ref().map(|rendering| rendering.of(*version));
            self.apply_version(before, next.of(*version), &mut applied)
        });
        // After a failure nobody knows what is there: the next writing begins with removing everything.
        outcome.inspect_err(|_| drop(self.remove_everything()))?;
        self.last = Some(next);
        Ok(applied)
    }

    fn apply_version(&self, before: Option<&Ruleset>, next: &Ruleset, applied: &mut Applied) -> Result<()> {
        match self.dialect.backend() {
            Backend::Nft => native::apply(&self.node, self.dialect, before, next, applied),
            _ => {
                let tools = self.tools(next.version);
                sets::create(&self.node, before, next)?;
                for table in [Table::Raw, Table::Mangle, Table::Nat, Table::Filter] {
                    tools.apply(table, before, next, applied)?;
                }
                sets::destroy(&self.node, before, next)
            }
        }
    }

    fn tools(&self, version: IpVersion) -> iptables::Tools<'_> {
        let legacy = self.dialect.backend() == Backend::Legacy;
        iptables::Tools { node: &self.node, lock_file: &self.lock_file, legacy, version }
    }

    /// Zeroes every counter. The rules stay what they are, though in native nftables they get new handles: nft cannot
    /// zero the counter of a rule, so every rule is written anew.
    pub fn zero_counters(&self) -> Result<()> {
        for version in IpVersion::BOTH {
            match self.dialect.backend() {
                Backend::Nft => {
                    native::rewrite_all(&self.node, self.last.as_ref().map(|last| last.of(version)))?
                }
                _ => self.tools(version).zero_counters()?,
            }
        }
        Ok(())
    }

    /// Empties one chain of the filter table behind Felix' back, as a person with a shell might. Felix finds out at
    /// its next refresh, the lab with [`Self::rewrite_chain`].
    pub fn flush_chain(&self, version: IpVersion, chain: &str) -> Result<()> {
        match self.dialect.backend() {
            Backend::Nft => native::flush(&self.node, version, chain),
            _ => self.tools(version).flush(chain),
        }
    }

    /// Writes one chain of the filter table anew as it should be, whatever is in it.
    pub fn rewrite_chain(&self, version: IpVersion, chain: &str) -> Result<()> {
        let last = self.last.as_ref().map(|last| last.of(version));
        let rules =
            last.and_then(|ruleset| ruleset.filter_chain(chain)).ok_or(Error::unknown("chain", chain))?;
        match self.dialect.backend() {
            Backend::Nft => native::rewrite(&self.node, version, chain, rules),
            _ => self.tools(version).rewrite(chain, rules),
        }
    }

    /// Removes all rules and sets: the namespace is as it was before the first writing.
    pub fn remove_everything(&mut self) -> Result<()> {
        self.remove_rules()?;
        if self.dialect.backend() != Backend::Nft {
            self.node.run("ipset", &["destroy"])?;
        }
        Ok(())
    }

    /// Removes all rules, as Felix removes those of one backend when it changes to another, whose rules need the sets.
    pub fn remove_rules(&mut self) -> Result<()> {
        self.last = None;
        for version in IpVersion::BOTH {
            match self.dialect.backend() {
                Backend::Nft => native::remove(&self.node, version)?,
                _ => self.tools(version).remove_everything()?,
            }
        }
        Ok(())
    }
}

/// What has to happen to the chains of one table, new ones first: others may jump to them.
fn changes<'a>(table: Table, before: Option<&'a Ruleset>, next: &'a Ruleset) -> Vec<Change<'a>> {
    let mut changes = Vec::new();
    let mut edits = Vec::new();
    for ((_, name), rules) in next.chains.iter().filter(|((of, _), _)| *of == table) {
        match before.and_then(|ruleset| ruleset.chains.get(&(table, name.clone()))) {
            None => changes.push(Change::Add(name, rules)),
            Some(was) if was != rules => edits.push(Change::Edit(name, was, rules)),
            Some(_) => {}
        }
    }
    changes.extend(edits);
    if let Some(before) = before {
        let gone = before.chains.iter().filter(|(key, _)| key.0 == table && !next.chains.contains_key(*key));
        changes.extend(gone.map(|((_, name), rules)| Change::Remove(name, rules)));
    }
    changes
}

impl Applied {
    fn count(&mut self, change: &Change<'_>, written: usize) {
        match change {
            Change::Add(..) => self.added_chains += 1,
            Change::Edit(..) => self.changed_chains += 1,
            Change::Remove(..) => self.removed_chains += 1,
        }
        self.written_rules += written;
    }
}
