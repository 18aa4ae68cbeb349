//! Profiles: Calico's own, and those it makes of namespaces and service accounts.

use super::{ConvertError, Named, Settings};
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

fn profile(name: String) -> Converted {
    Ok(Some(Object::Profile(ProfileName::from(name))))
}
