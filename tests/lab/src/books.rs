//! The truth of the lab and the accounts of the agent in one form, to be compared or shown side by side.

use crate::policy::{By, Did, Truth};
use accountant_core::Counter;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// Packets, or bytes, by account.
pub type Books = BTreeMap<Line, u64>;

/// An account, in words.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// `NAMESPACE/POD`.
    pub workload: String,
    /// `ingress` or `egress`.
    pub direction: String,
    /// 4 or 6.
    pub ip_version: u64,
    /// The tier, where there is one.
    pub tier: String,
    /// Who decided.
    pub by: String,
    /// `allow`, `deny` or `pass`.
    pub verdict: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workload, direction, ip_version, tier, by, verdict } = self;
        write!(f, "{workload} {direction} IPv{ip_version} {tier} {by} {verdict}")
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The packets that known traffic must have been counted as.
pub fn expected(truth: &Truth) -> Books {
    of_truth(truth, |held| held.packets)
}

/// The same in bytes, from the IP header on.
pub fn expected_bytes(truth: &Truth) -> Books {
    of_truth(truth, |held| held.bytes)
}

fn of_truth(truth: &Truth, part: fn(Counter) -> u64) -> Books {
    let mut books = Books::new();
    for (account, held) in truth.balances().filter(|(_, held)| held.packets > 0) {
        let (tier, by, did) = match &account.by {
            By::Policy { tier, policy, did } => {
                (&**tier, format!("{} {}/{}", policy.kind, policy.namespace, policy.name), *did)
            }
            By::NoPolicy { tier } => (&**tier, "no_policy".into(), Did::Deny),
            By::Profile { profile, did } => ("", format!("profile {profile}"), *did),
            By::NoProfile => ("", "no_profile".into(), Did::Deny),
            By::Down => ("", "admin_down".into(), Did::Deny),
        };
        let line = Line {
            workload: format!("{}/{}", account.namespace, account.pod),
            direction: account.direction.to_string(),
            ip_version: account.ip_version.number().into(),
            tier: tier.into(),
            by,
            verdict: verdict(did).into(),
        };
        *books.entry(line).or_default() += part(held);
    }
    books
}

fn verdict(did: Did) -> &'static str {
    match did {
        Did::Allow => "allow",
        Did::Deny => "deny",
        Did::Pass => "pass",
    }
}

/// The packets that the agent counted, of its `/accounts`. Established packets and the like are left out: the truth does
/// not speak of them.
pub fn counted(object: &Value) -> Books {
    of_accounts(object, "packets")
}

/// The same in bytes.
pub fn counted_bytes(object: &Value) -> Books {
    of_accounts(object, "bytes")
}

fn of_accounts(object: &Value, field: &str) -> Books {
    let mut books = Books::new();
    for account in object["accounts"].as_array().into_iter().flatten() {
        let held = account[field].as_u64().unwrap_or(0);
        if let (Some(line), true) = (line(account), held > 0) {
            *books.entry(line).or_default() += held;
        }
    }
    books
}

fn line(account: &Value) -> Option<Line> {
    let field = |name: &str| account[name].as_str().unwrap_or_default();
    let (by, verdict) = match field("family") {
        "policy" => {
            let name = format!("{} {}/{}", field("policy_kind"), field("policy_namespace"), field("policy"));
            (name, field("action"))
        }
        "default_deny" => (field("reason").into(), "deny"),
        "profile" => (format!("profile {}", field("profile")), field("action")),
        "endpoint_chain" if field("rule") == "admin_down" => ("admin_down".into(), "deny"),
        "unattributed" => (format!("unattributed: {}", field("cause")), ""),
        _ => return None,
    };
    Some(Line {
        workload: format!("{}/{}", field("namespace"), field("pod")),
        direction: field("direction").into(),
        ip_version: account["ip_version"].as_u64().unwrap_or(0),
        tier: field("tier").into(),
        by,
        verdict: verdict.into(),
    })
}

/// Where two books differ: lines with what each of them holds. Empty if they agree.
pub fn differences(expected: &Books, counted: &Books) -> Vec<String> {
    let lines: std::collections::BTreeSet<_> = expected.keys().chain(counted.keys()).collect();
    let held = |books: &Books, line: &Line| books.get(line).copied().unwrap_or(0);
    let differ = |line: &&&Line| held(expected, line) != held(counted, line);
    let text =
        |line: &Line| format!("{line}: sent {}, counted {}", held(expected, line), held(counted, line));
    lines.iter().filter(differ).map(|line| text(line)).collect()
}
