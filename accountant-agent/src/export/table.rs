//! The accounts as a table for people, made of the same JSON that scripts read.

use comfy_table::{CellAlignment, Table};
use serde_json::Value;
use std::fmt::Write;

const HEADINGS: [&str; 8] =
    ["WORKLOAD", "DIRECTION", "IP", "TIER", "DECIDED BY", "VERDICT", "PACKETS", "BYTES"];
/// Columns that hold numbers.
const NUMBERS: [usize; 2] = [6, 7];

/// Renders the object of [`super::json::render`]; accounts in which nothing was counted only with `all`.
pub fn render(object: &Value, all: bool) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(HEADINGS);
    let counted = |account: &&Value| all || account["packets"] != 0 || account["bytes"] != 0;
    let accounts: Vec<_> = object["accounts"].as_array().into_iter().flatten().filter(counted).collect();
    table.add_rows(accounts.iter().copied().map(row));
    for number in NUMBERS {
        if let Some(column) = table.column_mut(number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = table.trim_fmt() + "\n";
    if accounts.is_empty() {
        text.push_str("nothing was counted yet\n");
    }
    for source in object["sources"].as_array().into_iter().flatten() {
        let field = |name: &str| source[name].as_str().unwrap_or_default();
        if field("state") != "absent" {
            let reason =
                Some(field("reason")).filter(|r| !r.is_empty()).map(|r| format!(": {r}")).unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "source {}: {}{reason}", field("name"), field("state"));
        }
    }
    text
}

fn row(account: &Value) -> [String; 8] {
    let field = |name: &str| account[name].as_str().unwrap_or_default();
    let (by, verdict) = decided_by(account);
    let number = |name: &str| account[name].as_u64().map(|n| n.to_string()).unwrap_or_default();
    [
        workload(account),
        field("direction").to_string(),
        number("ip_version"),
        field("tier").to_string(),
        by,
        verdict,
        number("packets"),
        number("bytes"),
    ]
}

/// Whose account it is.
pub(super) fn workload(account: &Value) -> String {
    let field = |name: &str| account[name].as_str().unwrap_or_default();
    match (field("namespace"), field("pod"), field("endpoint")) {
        ("", "", "") if account["family"] != "unattributed" => "(all of the node)".to_string(),
        ("", "", endpoint) => endpoint.to_string(),
        ("", pod, _) => pod.to_string(),
        (namespace, pod, _) => format!("{namespace}/{pod}"),
    }
}

/// Who decided, and how. Told by the labels.
pub(super) fn decided_by(account: &Value) -> (String, String) {
    let has = |name: &str| account[name].is_string();
    let field = |name: &str| account[name].as_str().unwrap_or_default();
    let (by, verdict) = if has("policy") {
        let namespace = Some(field("policy_namespace")).filter(|n| !n.is_empty()).map(|n| format!("{n}/"));
        let name = format!("{}{}", namespace.unwrap_or_default(), field("policy"));
        (format!("{} {name}", field("policy_kind")).trim().to_string(), field("action"))
    } else if has("profile") {
        (format!("profile {}", field("profile")), field("action"))
    } else if has("rule") {
        (field("rule").replace('_', " "), field("verdict"))
    } else if has("state") {
        (format!("all {} traffic", field("state")), field("verdict"))
    } else if has("cause") {
        (format!("unattributed: {}", field("cause")), "")
    } else if field("reason") == "no_policy" {
        ("no policy matched".into(), "deny")
    } else {
        ("no profile matched".into(), "deny")
    };
    (by, verdict.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn accounts_are_lines() {
        let object = json!({
            "accounts": [
                {"family": "policy", "namespace": "shop", "pod": "web", "direction": "ingress", "ip_version": 4,
                 "tier": "default", "policy_kind": "NetworkPolicy", "policy_namespace": "shop", "policy": "p",
                 "action": "deny", "packets": 7, "bytes": 420},
                {"family": "unattributed", "source": "nftables", "cause": "history", "packets": 1, "bytes": 2},
                {"family": "unattributed", "source": "nftables", "cause": "rewrite", "packets": 0, "bytes": 0},
            ],
            "sources": [{"name": "nftables", "state": "counting", "reason": ""}],
        });
        let text = render(&object, false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "shop/web ingress 4 default NetworkPolicy shop/p deny 7 420"
        );
        assert!(lines[2].contains("unattributed: history"));
        assert_eq!(lines[3], "source nftables: counting");
        let all = render(&object, true);
        assert!(all.lines().count() == 5 && all.contains("unattributed: rewrite"), "{all}");
    }
}
