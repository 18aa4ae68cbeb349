//! Which rules beside those of the filter table programs are attached around, whose interfaces' chains they are, and that what
//! is attached stays so.
//!
//! Invariant: programs stand around rules of the raw and the mangle table only where a host endpoint has chains there. Those
//! that an earlier agent left stay until all tables were surely looked at.

use super::hooks::Site;
use super::load::Loaded;
use super::owners::Key;
use crate::in_place::CannotHere;
use accountant_abi::verdict::{
    FROM_BEFORE_NAT, FROM_FORWARDED, FROM_TO_HOST, FROM_UNTRACKED, TO_AFTER_NAT, TO_FORWARDED, TO_FROM_HOST,
    TO_UNTRACKED,
};
use accountant_core::id::EndpointKind;
use accountant_core::{Direction, Table};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// By then every table that is there was read.
const ALL_READ: Duration = Duration::from_secs(60);

/// How long nobody looks whether the programs still are attached: a look asks the kernel to attach each once more, and readings
/// can be ten a second.
const CARE: Duration = Duration::from_secs(1);

/// Where programs are attached around such rules.
#[derive(Debug)]
pub(super) struct Sites {
    attached: BTreeSet<Site>,
    /// Those of an earlier agent that nobody was seen to need.
    left: BTreeSet<Site>,
    started: Instant,
    /// Where they could not be attached: that is said once.
    refused: BTreeSet<Site>,
    /// When it was last looked whether all programs are attached, and how many were not.
    cared: Instant,
    attached_again: u64,
}

impl Sites {
    pub(super) fn new(loaded: &Loaded) -> Self {
        let attached = loaded.sites();
        let now = Instant::now();
        Self {
            left: attached.clone(),
            attached,
            started: now,
            refused: BTreeSet::new(),
            cared: now,
            attached_again: 0,
        }
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self) -> bool {
        self.cared.elapsed() >= CARE
    }

    /// Attaches programs again that somebody detached.
    pub(super) fn care(&mut self, loaded: &mut Loaded) -> Result<(), CannotHere> {
        self.cared = Instant::now();
        self.attached_again += loaded.attach_again()?;
        Ok(())
    }

    /// How many programs had to be attached again.
    pub(super) fn attached_again(&self) -> u64 {
        self.attached_again
    }

    /// Attaches programs around the rules that these chains are called from, and detaches others.
    pub(super) fn hold<'a>(&mut self, loaded: &mut Loaded, chains: impl Iterator<Item = &'a Key>) {
        let wanted: BTreeSet<Site> = chains.filter_map(|(table, chain)| Site::of(*table, chain)).collect();
        self.left.retain(|site| !wanted.contains(site));
        if self.started.elapsed() > ALL_READ {
            self.left.clear();
        }
        for site in self.attached.clone() {
            if !wanted.contains(&site) && !self.left.contains(&site) {
                loaded.detach_from(site);
                self.attached.remove(&site);
            }
        }
        self.refused.retain(|site| wanted.contains(site));
        for site in wanted {
            if self.attached.contains(&site) || self.refused.contains(&site) {
                continue;
            }
            match loaded.attach_at(site) {
                Ok(()) => _ = self.attached.insert(site),
                Err(reason) => {
                    tracing::warn!(%reason, "chains of host endpoints are counted by the rules alone");
                    loaded.detach_from(site);
                    self.refused.insert(site);
                }
            }
        }
    }
}

/// In which roles an interface has the chain.
pub(super) fn roles(table: Table, kind: EndpointKind, direction: Direction, forward: bool) -> &'static [u32] {
    use Direction::{Egress, Ingress};
    use EndpointKind::{Host, Workload};
    match (table, kind, direction, forward) {
        (Table::Filter, Workload, Ingress, _) => &[TO_FORWARDED, TO_FROM_HOST],
        (Table::Filter, Workload, Egress, _) => &[FROM_FORWARDED, FROM_TO_HOST],
        (Table::Filter, Host, Ingress, false) => &[FROM_TO_HOST],
        (Table::Filter, Host, Egress, false) => &[TO_FROM_HOST],
        (Table::Filter, Host, Ingress, true) => &[FROM_FORWARDED],
        (Table::Filter, Host, Egress, true) => &[TO_FORWARDED],
        (Table::Raw, Host, Ingress, false) => &[FROM_UNTRACKED],
        (Table::Raw, Host, Egress, false) => &[TO_UNTRACKED],
        (Table::Mangle, Host, Ingress, false) => &[FROM_BEFORE_NAT],
        (Table::Mangle, Host, Egress, false) => &[TO_AFTER_NAT],
        (Table::Raw | Table::Mangle, ..) => &[],
    }
}
