//! Grafana dashboards: each is described in a file of deploy/grafana, and expanded into what Grafana (10 and later) loads.
//!
//! A description has what a person decides: titles, what a panel is about, its unit, its queries. Ids, positions, variables and the
//! words that Grafana wants follow from it. Nothing is edited in Grafana and exported.

use crate::{files, read};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

/// Where descriptions are.
pub const FOLDER: &str = "deploy/grafana";
/// Where dashboards are.
pub const DASHBOARDS: &str = "deploy/grafana/dashboards";
/// The width of a dashboard in Grafana's units.
const WIDTH: u32 = 24;
const SCHEMA_VERSION: u32 = 39;

/// A dashboard.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dashboard {
    /// What it is called.
    pub title: String,
    /// Its name in addresses; never changed.
    pub uid: String,
    /// What it is about.
    pub description: String,
    /// What can be chosen, by names of [`variable`].
    pub variables: Vec<String>,
    /// Its parts.
    pub rows: Vec<Row>,
}

/// A part of a dashboard.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What it is called.
    pub title: String,
    /// Its panels, from left to right.
    pub panels: Vec<Panel>,
}

/// A panel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Panel {
    /// What it is called.
    pub title: String,
    /// What it shows, and how to read it.
    pub description: String,
    /// How it shows it.
    #[serde(default)]
    pub kind: Kind,
    /// Grafana's name of the unit.
    pub unit: String,
    /// Its width; a row has 24.
    pub width: u32,
    /// What it shows.
    pub queries: Vec<Query>,
}

/// Kinds of panels.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Lines over time.
    #[default]
    Timeseries,
    /// Numbers of now.
    Stat,
    /// Rows of now.
    Table,
}

/// A query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// PromQL, with the words of [`SELECTIONS`].
    pub expr: String,
    /// The name of a line.
    #[serde(default)]
    pub legend: String,
}

/// What queries select by, written once.
const SELECTIONS: [(&str, &str); 6] = [
    ("$WORKLOADS", r#"cluster=~"$cluster",namespace=~"$namespace""#),
    ("$POLICY", r#"cluster=~"$cluster",tier=~"$tier",policy=~"$policy""#),
    ("$POD", r#"cluster=~"$cluster",namespace=~"$namespace",pod=~"$pod""#),
    ("$FELIX", OF_INSTANCE),
    ("$BIRD", OF_INSTANCE),
    ("$AGENT", OF_INSTANCE),
];
const OF_INSTANCE: &str = r#"cluster=~"$cluster",instance=~"$instance""#;

/// All dashboards, with the names of their files.
pub fn all() -> Result<Vec<(String, Dashboard)>> {
    let mut dashboards = Vec::new();
    for path in files(FOLDER, ".yaml")? {
        let described = read(&path)?;
        let dashboard = serde_saphyr::from_str(&described).with_context(|| path.display().to_string())?;
        let name = path.file_stem().context("a file without a name")?.to_string_lossy().into_owned();
        dashboards.push((name, dashboard));
    }
    Ok(dashboards)
}

/// The files that Grafana loads.
pub fn generated() -> Result<Vec<(String, String)>> {
    let one = |(name, dashboard): (String, Dashboard)| {
        let json = serde_json::to_string_pretty(&dashboard.expand().with_context(|| name.clone())?)?;
        Ok((format!("{DASHBOARDS}/{name}.json"), json + "\n"))
    };
    all()?.into_iter().map(one).collect()
}

/// What can be chosen: Grafana's name of it, its label, and where its values come from.
fn variable(name: &str) -> Result<(&'static str, &'static str, String)> {
    let of = |metric: &str, by: &str, label: &str| format!("label_values({metric}{{{by}}}, {label})");
    let cluster = r#"cluster=~"$cluster""#;
    let policies = "calico_accountant_policy_packets_total";
    Ok(match name {
        "cluster" => ("cluster", "Cluster", of("calico_accountant_build_info", "", "cluster")),
        "node" => ("instance", "Node", of("calico_accountant_build_info", cluster, "instance")),
        "felix" => ("instance", "Node", of("felix_resync_state", cluster, "instance")),
        "bird" => ("instance", "Node", of("bird_up", cluster, "instance")),
        "namespace" => (
            "namespace",
            "Namespace",
            of("calico_accountant_endpoint_chain_packets_total", cluster, "namespace"),
        ),
        "pod" => {
            let by = r#"cluster=~"$cluster",namespace=~"$namespace""#;
            ("pod", "Pod", of("calico_accountant_endpoint_chain_packets_total", by, "pod"))
        }
        "tier" => ("tier", "Tier", of(policies, cluster, "tier")),
        "policy" => ("policy", "Policy", of(policies, r#"cluster=~"$cluster",tier=~"$tier""#, "policy")),
        _ => bail!("there is no variable {name}"),
    })
}

impl Query {
    /// PromQL as Grafana gets it.
    pub fn promql(&self) -> String {
        SELECTIONS.iter().fold(self.expr.clone(), |expr, (name, by)| expr.replace(name, by))
    }
}

impl Dashboard {
    fn expand(&self) -> Result<Value> {
        let (mut panels, mut y) = (Vec::new(), 0);
        for row in &self.rows {
            let id = panels.len() + 1;
            panels.push(json!({
                "id": id, "type": "row", "title": row.title, "collapsed": false, "panels": [],
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            }));
            y += 1;
            let (mut x, mut height) = (0, 0);
            for panel in &row.panels {
                if x + panel.width > WIDTH {
                    y += height;
                    (x, height) = (0, 0);
                }
                let position = json!({"x": x, "y": y, "w": panel.width, "h": panel.height()});
                panels.push(panel.expand(panels.len() + 1, position)?);
                x += panel.width;
                height = height.max(panel.height());
            }
            y += height;
        }
        Ok(json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["calico"],
            "editable": false,
            "graphTooltip": 1,
            "schemaVersion": SCHEMA_VERSION,
            "time": {"from": "now-6h", "to": "now"},
            "refresh": "1m",
            "templating": {"list": self.templating()?},
            "links": [{
                "type": "dashboards", "title": "Calico", "tags": ["calico"], "asDropdown": true,
                "includeVars": true, "keepTime": true,
            }],
            "annotations": {"list": []},
            "panels": panels,
        }))
    }

    fn templating(&self) -> Result<Vec<Value>> {
        let mut list = vec![json!({
            "name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus",
        })];
        for name in &self.variables {
            let (name, label, query) = variable(name)?;
            list.push(json!({
                "name": name, "label": label, "type": "query", "datasource": source(),
                "query": {"query": query, "refId": name}, "definition": query,
                "refresh": 2, "sort": 1, "multi": true, "includeAll": true,
                // Also what does not have the label.
                "allValue": ".*",
                "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
            }));
        }
        Ok(list)
    }
}

/// The Prometheus that is chosen.
fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

impl Panel {
    fn height(&self) -> u32 {
        if self.kind == Kind::Stat { 5 } else { 8 }
    }

    fn expand(&self, id: usize, position: Value) -> Result<Value> {
        let instant = self.kind != Kind::Timeseries;
        let mut targets = Vec::new();
        for (query, letter) in self.queries.iter().zip('A'..='Z') {
            let promql = query.promql();
            let legend = if query.legend.is_empty() { "__auto" } else { &query.legend };
            targets.push(json!({
                "refId": letter, "datasource": source(), "expr": promql, "legendFormat": legend,
                "instant": instant, "range": !instant, "format": if self.kind == Kind::Table { "table" } else { "time_series" },
            }));
        }
        let mut panel = json!({
            "id": id, "title": self.title, "description": self.description, "gridPos": position,
            "datasource": source(), "targets": targets,
            "fieldConfig": {"defaults": {"unit": self.unit, "min": 0}, "overrides": []},
        });
        let (kind, options) = match self.kind {
            Kind::Timeseries => {
                panel["fieldConfig"]["defaults"]["custom"] =
                    json!({"fillOpacity": 10, "showPoints": "never"});
                (
                    "timeseries",
                    json!({"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}),
                )
            }
            Kind::Stat => ("stat", json!({"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none"})),
            Kind::Table => {
                // What Prometheus adds, and nobody reads.
                panel["transformations"] = json!([{
                    "id": "organize", "options": {"excludeByName": {"Time": true, "__name__": true, "job": true}},
                }]);
                ("table", json!({"sortBy": [{"displayName": "Value", "desc": true}]}))
            }
        };
        panel["type"] = kind.into();
        panel["options"] = options;
        Ok(panel)
    }
}
