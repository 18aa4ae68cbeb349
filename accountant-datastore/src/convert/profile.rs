//! Profiles: Calico's own, and those it makes of namespaces and service accounts.

use super::endpoint::texts;
use super::{ConvertError, Named, Resource, Settings};
use accountant_core::id::ProfileName;
use accountant_core::index::Object;

type Converted = Result<Option<Object>, ConvertError>;

/// A namespace's profile, which allows all.
pub(super) fn of_namespace(namespace: &Named<'_>, _: &Settings) -> Converted {
    profile(format!("kns.{}", namespace.name))
}

/// A service account's profile, which has labels and no rules.
pub(super) fn of_service_account(account: &Named<'_>, _: &Settings) -> Converted {
    profile(format!("ksa.{}.{}", account.namespace, account.name))
}

/// A profile by its own name.
pub(super) fn of_calico(own: &Named<'_>, _: &Settings) -> Converted {
    profile(own.name.to_string())
}

/// The profiles of a pod or endpoint: those of a node's endpoints are all whose chains the node has.
///
/// Also those of a pod: `kns.NAMESPACE`, and `ksa.NAMESPACE.ACCOUNT` where it has an account.
pub(crate) fn of_endpoint(endpoint: &Resource) -> Result<Vec<ProfileName>, ConvertError> {
    let spec = endpoint.spec()?;
    if endpoint.kind.text("kind")? != "Pod" {
        let names = texts(&spec.profiles, "spec.profiles")?;
        return Ok(names.into_iter().map(ProfileName::from).collect());
    }
    let namespace = endpoint.metadata()?.namespace.text("metadata.namespace")?;
    let account = spec.service_account_name.text("spec.serviceAccountName")?;
    let own = (!account.is_empty()).then(|| format!("ksa.{namespace}.{account}"));
    Ok([Some(format!("kns.{namespace}")), own].into_iter().flatten().map(ProfileName::from).collect())
}

fn profile(name: String) -> Converted {
    Ok(Some(Object::Profile(ProfileName::from(name))))
}
