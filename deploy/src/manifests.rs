//! Plain manifests, made from the Helm chart with its default values: the kustomize base, one file of all of it, and the rules as
//! a PrometheusRule. The chart is the only place where an object is written down.

use crate::root;
use accountant_rigs::output;
use anyhow::{Result, bail};
use std::path::Path;

/// The chart.
pub const CHART: &str = "deploy/helm/calico-packet-accountant";
/// The kustomize base.
pub const BASE: &str = "deploy/kubernetes";
/// The base's one file.
pub const PLAIN: &str = "deploy/calico-packet-accountant.yaml";
/// The rules for the Prometheus operator.
pub const PROMETHEUS_RULE: &str = "deploy/prometheus/prometheusrule.yaml";
/// The name of the release and of its namespace.
const NAME: &str = "calico-packet-accountant";
/// The templates of which the base is made.
const OBJECTS: [&str; 5] = ["serviceaccount", "clusterrole", "clusterrolebinding", "service", "daemonset"];
const HEAD: &str = "# Made by `cargo xtask deploy` from deploy/helm; changes here are lost.\n";

/// What `helm template` makes of the chart. `tools` is the folder with helm.
pub fn template(tools: &Path, arguments: &[&str]) -> Result<String> {
    let chart = root().join(CHART).display().to_string();
    let fixed = ["template", NAME, &chart, "--namespace", NAME, "--kube-version", "1.34.0"];
    output(&tools.join("helm"), &[&fixed, arguments].concat())
}

/// One template's objects, as a file.
fn object(tools: &Path, name: &str, arguments: &[&str]) -> Result<String> {
    let show = format!("templates/{name}.yaml");
    let text = template(tools, &[arguments, &["--show-only", &show]].concat())?;
    let lines = text.lines().filter(|line| *line != "---" && !line.starts_with("# Source: "));
    Ok(lines.fold(HEAD.to_string(), |text, line| text + line.trim_end() + "\n"))
}

/// Files of the base, and the PrometheusRule.
pub fn objects(tools: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for name in OBJECTS {
        files.push((format!("{BASE}/{name}.yaml"), object(tools, name, &[])?));
    }
    let enabled = ["--set", "prometheusRule.enabled=true"];
    files.push((PROMETHEUS_RULE.into(), object(tools, "prometheusrule", &enabled)?));
    Ok(files)
}

/// All of the base in one file. The base's files must be there.
pub fn plain(tools: &Path) -> Result<(String, String)> {
    let base = root().join(BASE).display().to_string();
    let text = output(&tools.join("kustomize"), &["build", &base])?;
    if !text.contains("kind: DaemonSet") {
        bail!("kustomize makes no DaemonSet of {BASE}");
    }
    Ok((PLAIN.into(), format!("{HEAD}{text}")))
}
