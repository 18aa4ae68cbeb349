//! Policies and their tiers.
//!
//! The tier is stated (`spec.tier`, else the label), or it follows from the name as Calico stores it. A name that its
//! user wrote says nothing of the tier: up to 3.28 there is one tier, 3.29 to 3.31 refuse a name that does not fit its
//! tier, and from 3.32 on names are free.

use super::resource::{Labels, cut};
use super::{ConvertError, Named, STORED, Settings};
use accountant_core::calico::policy::{PolicyKind, Spelling, is_calicos_name, tier_of_stored};
use accountant_core::id::TierName;
use accountant_core::index::Object;
use serde::Deserialize;

type Converted = Result<Option<Object>, ConvertError>;

/// networking.k8s.io NetworkPolicy.
pub(super) fn kubernetes(policy: &Named<'_>, _: &Settings) -> Converted {
    in_tier(policy, PolicyKind::KubernetesNetworkPolicy, "default")
}

/// AdminNetworkPolicy: Calico 3.29 to 3.31.
pub(super) fn admin(policy: &Named<'_>, _: &Settings) -> Converted {
    in_tier(policy, PolicyKind::AdminNetworkPolicy, "adminnetworkpolicy")
}

/// BaselineAdminNetworkPolicy: Calico 3.30 and 3.31.
pub(super) fn baseline_admin(policy: &Named<'_>, _: &Settings) -> Converted {
    in_tier(policy, PolicyKind::BaselineAdminNetworkPolicy, "baselineadminnetworkpolicy")
}

/// ClusterNetworkPolicy: Calico 3.32 and later, which drops one whose tier it does not know.
pub(super) fn cluster(policy: &Named<'_>, _: &Settings) -> Converted {
    let tier = match policy.resource.spec()?.tier.required("spec.tier")? {
        "Admin" => "kube-admin",
        "Baseline" => "kube-baseline",
        other => {
            let value = cut(other);
            return Err(ConvertError::Value { field: "spec.tier", value, wanted: "Admin or Baseline" });
        }
    };
    in_tier(policy, PolicyKind::KubernetesClusterNetworkPolicy, tier)
}

/// Calico's NetworkPolicy.
pub(super) fn calico(policy: &Named<'_>, _: &Settings) -> Converted {
    in_stated_tier(policy, PolicyKind::NetworkPolicy)
}

/// Calico's GlobalNetworkPolicy.
pub(super) fn calico_global(policy: &Named<'_>, _: &Settings) -> Converted {
    in_stated_tier(policy, PolicyKind::GlobalNetworkPolicy)
}

fn in_tier(policy: &Named<'_>, kind: PolicyKind, tier: &str) -> Converted {
    let tier = TierName::from(tier);
    let id = Spelling::of_kind(kind, policy.namespace, policy.name).in_tier(&tier);
    Ok(Some(Object::Policy(id, tier)))
}

/// Felix hashes the name under which the object is stored, whatever name an annotation shows to users, so that one
/// makes the identity.
fn in_stated_tier(policy: &Named<'_>, kind: PolicyKind) -> Converted {
    let name_tells = policy.group == STORED || is_calicos_name(policy.name);
    let tier = match stated_tier(policy)? {
        Some(tier) => tier,
        None if name_tells => TierName::from(tier_of_stored(policy.name)),
        None => TierName::default_tier(),
    };
    let id = Spelling::of_kind(kind, policy.namespace, policy.name).in_tier(&tier);
    Ok(Some(Object::Policy(id, tier)))
}

fn stated_tier(policy: &Named<'_>) -> Result<Option<TierName>, ConvertError> {
    let specified = policy.resource.spec()?.tier.text("spec.tier")?;
    if !specified.is_empty() {
        return Ok(Some(specified.into()));
    }
    if let Some(hidden) = hidden_tier(policy)? {
        return Ok(Some(hidden));
    }
    let label = policy.resource.labels()?.tier.text(TIER_LABEL)?;
    Ok((!label.is_empty()).then(|| label.into()))
}

const TIER_LABEL: &str = "label projectcalico.org/tier";

/// What the annotation `projectcalico.org/metadata` of stored objects holds: their real metadata.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Hidden {
    labels: crate::convert::field::Group<Labels>,
}

/// The label among the real labels, which count before those of the object.
fn hidden_tier(policy: &Named<'_>) -> Result<Option<TierName>, ConvertError> {
    let json = policy.resource.annotations()?.hidden.text("annotation projectcalico.org/metadata")?;
    if policy.group != STORED || json.is_empty() {
        return Ok(None);
    }
    let hidden: Hidden =
        serde_json::from_str(json).map_err(|source| ConvertError::HiddenMetadata { source })?;
    let label =
        hidden.labels.read("labels in annotation projectcalico.org/metadata")?.tier.text(TIER_LABEL)?;
    Ok((!label.is_empty()).then(|| label.into()))
}
