//! What is kept of an [`Attributor`] while the agent is away: all that it goes on with afterwards, as it stood between two
//! snapshots.
//!
//! Rules are kept once, and what is read out of them is read anew. What programs told is not kept: it is evidence of what
//! counters count, and the counters' side is here whole.

use super::Attributor;
use super::equation::Equation;
use super::indexed::Indexed;
use super::store::{Store, Unknown};
use super::structure::{Feed, Program, Role, Shared};
use crate::ChainName;
use crate::calico::chain::ChainKind;
use crate::calico::endpoint::{EndpointChain, Marks};
use crate::calico::policy::Generation;
use crate::calico::shared::{PolicyChain, group_members};
use crate::reconcile::Reconciler;
use crate::rule::Chain;
use crate::snapshot::TableId;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use slab::Slab;
use std::collections::HashMap;
use std::sync::Arc;

/// As it is written: the fields of [`Kept`].
#[derive(Serialize)]
struct Keeping<'a> {
    id: TableId,
    reconciler: &'a Reconciler,
    equations: &'a Slab<Equation>,
    unknowns: &'a Slab<Unknown>,
    feeding: Vec<(&'a ChainName, Option<&'a Chain>, &'a [Feed])>,
    marks: Marks,
    generation: Generation,
    snapshot: u64,
    version: Option<u64>,
    in_flight: u32,
}

/// As it is read.
#[derive(Deserialize)]
struct Kept {
    id: TableId,
    reconciler: Reconciler,
    equations: Slab<Equation>,
    unknowns: Slab<Unknown>,
    /// The chains whose rules feed equations, and which; with their rules where these are not what the reconciler has.
    feeding: Vec<(ChainName, Option<Arc<Chain>>, Vec<Feed>)>,
    marks: Marks,
    generation: Generation,
    snapshot: u64,
    version: Option<u64>,
    in_flight: u32,
}

impl Serialize for Attributor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let endpoints = self.endpoints.values().map(|program| (&program.chain, &*program.feeds));
        let shared = self.shared.values().map(|shared| (&shared.chain, &*shared.feeds));
        let feeding = endpoints.chain(shared).map(|(chain, feeds)| {
            let known = self.reconciler.chain(&chain.name).is_some_and(|known| known.same_rules(chain));
            (&chain.name, (!known).then_some(&**chain), feeds)
        });
        let kept = Keeping {
            id: self.id,
            reconciler: &self.reconciler,
            equations: self.store.equations.things(),
            unknowns: self.store.unknowns.things(),
            feeding: feeding.collect(),
            marks: self.marks,
            generation: self.generation,
            snapshot: self.snapshot,
            version: self.version,
            in_flight: self.in_flight,
        };
        kept.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Attributor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let kept = Kept::deserialize(deserializer)?;
        let (mut endpoints, mut shared) = (HashMap::new(), HashMap::new());
        for (name, chain, feeds) in kept.feeding {
            let chain = chain.or_else(|| kept.reconciler.chain(&name).cloned());
            let chain = chain.ok_or_else(|| D::Error::custom(format!("chain {name} has no rules")))?;
            match ChainKind::of(&name) {
                ChainKind::Endpoint { endpoint, .. } => {
                    let read = EndpointChain::read(&chain);
                    endpoints.insert(name, Program { chain, read, endpoint, feeds });
                }
                kind => {
                    let role = match kind {
                        ChainKind::Group(_) => Role::Group(
                            group_members(&chain).into_iter().map(|member| member.chain).collect(),
                        ),
                        _ => Role::Policy(PolicyChain::read(&chain, kept.marks)),
                    };
                    shared.insert(name, Shared { chain, role, feeds });
                }
            }
        }
        let store =
            Store { equations: Indexed::from(kept.equations), unknowns: Indexed::from(kept.unknowns) };
        Ok(Self {
            reconciler: kept.reconciler,
            store,
            endpoints,
            shared,
            marks: kept.marks,
            generation: kept.generation,
            snapshot: kept.snapshot,
            version: kept.version,
            in_flight: kept.in_flight,
            was_away: true,
            ..Self::new(kept.id)
        })
    }
}
