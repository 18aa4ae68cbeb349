//! The published view as JSON: what `accountant show --json` prints and `/accounts` serves.
//!
//! Version 1. One entry an account: `family` without prefix and unit, the labels as fields, `interface`, `packets`,
//! `bytes`.

use crate::engine::Published;
use accountant_core::view::{ShownAccount, View};
use serde_json::{Map, Value, json};
use std::time::SystemTime;

/// The version of the form.
pub const VERSION: u64 = 1;

/// The whole view: every account that `/metrics` has a series of, also those in which nothing was counted.
pub fn render(published: &Published) -> Value {
    let view = &published.view;
    let accounts: Vec<_> = view.accounts.own.iter().map(|account| entry(view, account)).collect();
    let sources: Vec<_> = published
        .status
        .sources
        .iter()
        .map(|source| {
            json!({
                "name": source.source.as_str(),
                "state": source.state.as_str(),
                "reason": source.reason,
                "last_success": source.last_success.and_then(timestamp),
                "poll_seconds": source.took.as_secs_f64(),
                "in_place": source.how.is_in_place(),
            })
        })
        .collect();
    let datastore = &published.status.datastore;
    let state = match (datastore.name, datastore.in_sync) {
        ("none", _) => "absent",
        (_, true) => "in_sync",
        (_, false) => "not_in_sync",
    };
    json!({
        "version": VERSION,
        "accounts": accounts,
        "sources": sources,
        "datastore": {
            "name": datastore.name,
            "state": state,
            "reason": datastore.reason,
            "last_event": datastore.last_event.and_then(timestamp),
        },
    })
}

fn entry(view: &View, account: &ShownAccount) -> Value {
    let mut fields = Map::new();
    fields.insert("family".into(), account.family.as_str().into());
    for (name, value) in &account.labels {
        let value = match (*name, value.parse::<u8>()) {
            ("ip_version", Ok(version)) => version.into(),
            _ => Value::from(&**value),
        };
        fields.insert((*name).into(), value);
    }
    if !account.interfaces.is_empty() {
        fields.insert("interface".into(), account.interfaces.join(",").into());
    }
    let balance = view.balance(account);
    fields.insert("packets".into(), balance.packets.into());
    fields.insert("bytes".into(), balance.bytes.into());
    Value::Object(fields)
}

fn timestamp(time: SystemTime) -> Option<f64> {
    time.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs_f64())
}
