//! Which of the kinds a cluster has.

use super::connection::ApiGroup;
use super::kinds::{Kind, api_group, wanted};
use kube::Client;
use std::collections::BTreeMap;

/// The kinds that are served. What cannot be found out about single groups is taken to be there: a watch then tells.
pub(super) async fn served(
    client: Client,
    told: Option<ApiGroup>,
) -> Result<Vec<&'static Kind>, kube::Error> {
    let groups = match client.list_api_groups().await {
        Ok(groups) => groups.groups,
        // A server that does not tell is one; without Calico's rule to go by, Calico takes v1.
        Err(kube::Error::Api(_)) => return Ok(wanted(told.unwrap_or(ApiGroup::CrdV1)).collect()),
        Err(error) => return Err(error),
    };
    let group = api_group(told, |name| groups.iter().any(|group| group.name == name));
    let mut plurals: BTreeMap<String, Option<Vec<String>>> = BTreeMap::new();
    let mut kinds = Vec::new();
    for kind in wanted(group) {
        let version = kind.group_version();
        let is_served = kind.group.is_empty()
            || groups.iter().flat_map(|group| &group.versions).any(|served| served.group_version == version);
        if !is_served {
            continue;
        }
        if !kind.group.is_empty() && !plurals.contains_key(&version) {
            let resources = match client.list_api_group_resources(&version).await {
                Ok(list) => Some(list.resources.into_iter().map(|resource| resource.name).collect()),
                Err(kube::Error::Api(_)) => None,
                Err(error) => return Err(error),
            };
            plurals.insert(version.clone(), resources);
        }
        let known = plurals.get(&version).and_then(Option::as_ref);
        if known.is_none_or(|plurals| plurals.iter().any(|plural| plural == kind.plural)) {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}
