//! The role that we ship, and what is left of it without one of its permissions.

use crate::root;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;

/// The name of the role.
pub const ROLE: &str = "calico-packet-accountant";

/// One permission: what may be done to which kind of which group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The API group; empty for the core's.
    pub group: String,
    /// The kind's plural.
    pub resource: String,
    /// What may be done.
    pub verb: String,
}

/// The ClusterRole that we ship.
pub fn role() -> Result<Value> {
    let file = root().join("deploy/kubernetes/clusterrole.yaml");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| file.display().to_string())
}

/// A binding of the role to a service account of a namespace.
pub fn binding(namespace: &str, account: &str) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": account},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ROLE},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]})
}

fn words(rule: &Value, field: &str) -> Vec<String> {
    let words = rule[field].as_array().into_iter().flatten();
    words.filter_map(|word| word.as_str().map(str::to_string)).collect()
}

impl Permission {
    /// All that a role gives.
    pub fn all(role: &Value) -> Vec<Self> {
        let mut all = Vec::new();
        for rule in role["rules"].as_array().into_iter().flatten() {
            for group in words(rule, "apiGroups") {
                for resource in words(rule, "resources") {
                    let one = |verb| Self { group: group.clone(), resource: resource.clone(), verb };
                    all.extend(words(rule, "verbs").into_iter().map(one));
                }
            }
        }
        all
    }

    /// How the API server says that it is missing.
    pub fn refusal(&self) -> String {
        format!("cannot {} resource \"{}\" in API group \"{}\"", self.verb, self.resource, self.group)
    }

    /// The rules of a role without it.
    pub fn taken_from(&self, role: &Value) -> Vec<Value> {
        let mut rules = Vec::new();
        for rule in role["rules"].as_array().into_iter().flatten() {
            let [groups, resources, verbs] =
                ["apiGroups", "resources", "verbs"].map(|field| words(rule, field));
            if ![(&groups, &self.group), (&resources, &self.resource), (&verbs, &self.verb)]
                .iter()
                .all(|(words, word)| words.contains(word))
            {
                rules.push(rule.clone());
                continue;
            }
            let but = |words: &[String], word: &String| -> Vec<String> {
                words.iter().filter(|one| *one != word).cloned().collect()
            };
            let only = |word: &String| vec![word.clone()];
            // The API server wants none of them empty.
            for (groups, resources, verbs) in [
                (but(&groups, &self.group), resources.clone(), verbs.clone()),
                (only(&self.group), but(&resources, &self.resource), verbs.clone()),
                (only(&self.group), only(&self.resource), but(&verbs, &self.verb)),
            ] {
                if ![&groups, &resources, &verbs].iter().any(|words| words.is_empty()) {
                    rules.push(json!({"apiGroups": groups, "resources": resources, "verbs": verbs}));
                }
            }
        }
        rules
    }
}
