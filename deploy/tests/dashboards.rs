//! The dashboards as Grafana loads them: made from their descriptions, complete, and without overlap. That their queries return data
//! is tested with a real Prometheus and a running agent, in tests/kernel/dashboards.rs.

use accountant_deploy::grafana::{Kind, all, generated};
use accountant_deploy::read;
use serde_json::Value;
use std::collections::BTreeSet;

#[test]
fn dashboards_are_made_from_their_descriptions() {
    for (path, text) in generated().unwrap() {
        assert!(
            read(&path).is_ok_and(|there| there == text),
            "{path} is stale: `cargo xtask deploy` writes it"
        );
    }
}

#[test]
fn every_panel_says_what_it_shows() {
    let mut uids = BTreeSet::new();
    for (name, dashboard) in all().unwrap() {
        assert!(uids.insert(dashboard.uid.clone()), "{name}: two of one uid");
        assert_eq!(dashboard.variables[0], "cluster", "{name}");
        for panel in dashboard.rows.iter().flat_map(|row| &row.panels) {
            let of = format!("{name}: {}", panel.title);
            assert!(panel.description.ends_with('.') && panel.description.len() > 10, "{of}");
            assert!(!panel.unit.is_empty() && !panel.queries.is_empty(), "{of}");
            for query in &panel.queries {
                assert!(query.expr.contains("$"), "{of} is of no cluster");
                assert!(panel.kind == Kind::Table || !query.legend.is_empty(), "{of} has no legend");
            }
        }
    }
    assert_eq!(uids.len(), 7);
}

#[test]
fn panels_have_their_own_place_and_number() {
    for (path, text) in generated().unwrap() {
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for panel in dashboard["panels"].as_array().unwrap() {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{path}");
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|at| panel["gridPos"][at].as_u64().unwrap());
            assert!(x + w <= 24, "{path}: {}", panel["title"]);
            for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(taken.insert(place), "{path}: {} overlaps", panel["title"]);
            }
        }
        // What is not replaced is a word of ours that does not exist.
        assert!(!text.contains("$WORK") && !text.contains("$POD,") && !text.contains("$FELIX"), "{path}");
    }
}
