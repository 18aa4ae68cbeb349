//! Which of the kinds a cluster has; and, where something depends on them, which labels this node.

use super::connection::ApiGroup;
use super::kinds::{Kind, api_group, wanted};
use super::prefixes::Labels;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kube::api::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long an answer to what is served may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was found.
pub(super) struct Found {
    /// The kinds that are served; nothing if the server does not tell.
    pub(super) kinds: Option<Vec<&'static Kind>>,
    /// The labels of this node, if they were asked for.
    pub(super) labels: Option<Result<Labels, kube::Error>>,
}

/// Finds it out after some time. `node` is given if its labels matter.
pub(super) fn find(
    client: Client,
    told: Option<ApiGroup>,
    node: Option<String>,
    wait: Duration,
) -> BoxFuture<'static, Result<Found, kube::Error>> {
    let find = async move {
        let kinds = served(client.clone(), told).await?;
        let labels = match node {
            Some(node) => Some(labels(client, &node).await),
            None => None,
        };
        Ok(Found { kinds, labels })
    };
    async move {
        tokio::time::sleep(wait).await;
        tokio::time::timeout(PATIENCE, find)
            .await
            .unwrap_or_else(|late| Err(kube::Error::Service(late.into())))
    }
    .boxed()
}

/// Asks for a node's metadata only: its status is long.
async fn labels(client: Client, node: &str) -> Result<Labels, kube::Error> {
    let resource = ApiResource {
        group: String::new(),
        version: "v1".into(),
        api_version: "v1".into(),
        kind: "Node".into(),
        plural: "nodes".into(),
    };
    let node = Api::<DynamicObject>::all_with(client, &resource).get_metadata(node).await?;
    Ok(node.metadata.labels.unwrap_or_default())
}

/// The kinds that are served; nothing if the server does not tell us, and will not. What cannot be found out about single
/// groups is taken to be there: a watch then tells.
async fn served(client: Client, told: Option<ApiGroup>) -> Result<Option<Vec<&'static Kind>>, kube::Error> {
    let groups = match client.list_api_groups().await {
        Ok(groups) => groups.groups,
        Err(kube::Error::Api(status)) if [403, 404].contains(&status.code) => return Ok(None),
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
    Ok(Some(kinds))
}
