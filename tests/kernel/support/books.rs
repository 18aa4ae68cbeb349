//! The truth of the lab and the accounts of the agent in one form.

use accountant_lab::policy::{By, Did, Truth};
use serde_json::Value;
use std::collections::BTreeMap;

/// Packets by account, as text.
pub type Books = BTreeMap<String, u64>;

/// What known traffic must have led to.
pub fn expected(truth: &Truth) -> Books {
    let mut books = Books::new();
    for (account, packets) in truth.accounts().filter(|(_, packets)| *packets > 0) {
        let did = |did: &Did| match did {
            Did::Allow => "allow",
            Did::Deny => "deny",
            Did::Pass => "pass",
        };
        let by = match &account.by {
            By::Policy { tier, policy, did: d } => {
                format!("{tier} {} {}/{} {}", policy.kind, policy.namespace, policy.name, did(d))
            }
            By::NoPolicy { tier } => format!("{tier} no_policy"),
            By::Profile { profile, did: d } => format!("profile {profile} {}", did(d)),
            By::NoProfile => " no_profile".into(),
            By::Down => "admin_down".into(),
        };
        let (namespace, pod) = (&account.namespace, &account.pod);
        books
            .insert(format!("{namespace}/{pod} {} v{} {by}", account.direction, account.ip_version), packets);
    }
    books
}

/// What the agent counted. Established packets and the like are left out: the truth does not speak of them.
pub fn counted(accounts: &Value) -> Books {
    let mut books = Books::new();
    for account in accounts["accounts"].as_array().unwrap() {
        let field = |name: &str| account[name].as_str().unwrap_or_default();
        let by = match field("family") {
            "policy" => format!(
                "{} {} {}/{} {}",
                field("tier"),
                field("policy_kind"),
                field("policy_namespace"),
                field("policy"),
                field("action")
            ),
            "default_deny" => format!("{} {}", field("tier"), field("reason")),
            "profile" => format!("profile {} {}", field("profile"), field("action")),
            "endpoint_chain" if field("rule") == "admin_down" => "admin_down".into(),
            "unattributed" => format!("unattributed {}", field("cause")),
            _ => continue,
        };
        let (namespace, pod) = (field("namespace"), field("pod"));
        let packets = account["packets"].as_u64().unwrap();
        if packets > 0 {
            let key = format!("{namespace}/{pod} {} v{} {by}", field("direction"), account["ip_version"]);
            *books.entry(key).or_default() += packets;
        }
    }
    books
}
