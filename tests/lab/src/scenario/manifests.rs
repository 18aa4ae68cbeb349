//! A model as the YAML that a user would write: pods, tiers, policies, host endpoints.

use super::NODE_NAME;
use crate::policy::{
    Action, Endpoint, HostEndpoint, Model, Net, OnHosts, Peer, Policy, PortRange, Protocol, Rule, Selector,
    Tier, TierEnd,
};
use accountant_core::Direction;
use accountant_core::calico::PolicyKind;
use std::collections::BTreeSet;

/// The namespaces and pods.
pub(super) fn pods(model: &Model) -> String {
    let namespaces: BTreeSet<&str> =
        model.endpoints.iter().map(|endpoint| endpoint.namespace.as_str()).collect();
    let namespaces = namespaces.iter().map(|name| {
        format!(
            "apiVersion: v1\nkind: Namespace\n\
             metadata: {{name: {name}, labels: {{kubernetes.io/metadata.name: {name}}}}}\n"
        )
    });
    documents(namespaces.chain(model.endpoints.iter().map(pod)))
}

fn pod(endpoint: &Endpoint) -> String {
    let Endpoint { namespace, pod, .. } = endpoint;
    let labels = endpoint.labels.iter().map(|(key, value)| format!("{key}: {}", quoted(value)));
    let addresses: Vec<String> = endpoint.addresses.iter().map(|ip| quoted(&ip.to_string())).collect();
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{namespace: {namespace}, name: {pod}, labels: {{{}}}}}\n\
         spec: {{nodeName: {NODE_NAME}, serviceAccountName: default, containers: [{{name: {pod}, image: example/{pod}}}]}}\n\
         status: {{phase: Running, podIP: {}, podIPs: {}}}\n",
        comma(labels),
        addresses.first().map_or("\"\"", String::as_str),
        list(addresses.iter().map(|ip| format!("{{ip: {ip}}}"))),
    )
}

/// The tiers, policies and host endpoints.
pub(super) fn policies(model: &Model) -> String {
    let tiers = model.tiers.iter().enumerate().map(|(position, tier)| tier_manifest(position, tier));
    let policies = model.tiers.iter().flat_map(|tier| {
        let first_kubernetes = tier.policies.iter().position(is_kubernetes).unwrap_or(usize::MAX);
        tier.policies.iter().enumerate().map(move |(position, policy)| {
            if is_kubernetes(policy) {
                return kubernetes(model, policy);
            }
            // Kubernetes policies have the order 1000.
            let order = if position < first_kubernetes { 1 } else { 2000 } + position;
            calico(model, tier, policy, order)
        })
    });
    documents(tiers.chain(policies).chain(model.host_endpoints.iter().map(host_endpoint)))
}

fn is_kubernetes(policy: &Policy) -> bool {
    policy.id.kind == PolicyKind::KubernetesNetworkPolicy
}

fn tier_manifest(position: usize, tier: &Tier) -> String {
    let order = if tier.name.as_str() == "default" { 1_000_000 } else { 100 * (position + 1) };
    let action = if tier.end == TierEnd::Deny { "Deny" } else { "Pass" };
    format!(
        "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {{name: {}}}\n\
         spec: {{order: {order}, defaultAction: {action}}}\n",
        tier.name
    )
}

fn host_endpoint(host: &HostEndpoint) -> String {
    let labels = host.labels.iter().map(|(key, value)| format!("{key}: {}", quoted(value)));
    let addresses = host.addresses.iter().map(|ip| quoted(&ip.to_string()));
    format!(
        "apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {{name: {}, labels: {{{}}}}}\n\
         spec: {{node: {NODE_NAME}, interfaceName: {}, expectedIPs: {}}}\n",
        host.name,
        comma(labels),
        quoted(&host.interface),
        list(addresses),
    )
}

fn metadata(policy: &Policy) -> String {
    match &*policy.id.namespace {
        "" => format!("metadata: {{name: {}}}\n", policy.id.name),
        namespace => format!("metadata: {{namespace: {namespace}, name: {}}}\n", policy.id.name),
    }
}

fn types(policy: &Policy) -> String {
    let has = |direction| policy.rules(direction).is_some();
    let names = [(Direction::Ingress, "Ingress"), (Direction::Egress, "Egress")];
    list(names.into_iter().filter(|(direction, _)| has(*direction)).map(|(_, name)| name.to_string()))
}

fn calico(model: &Model, tier: &Tier, policy: &Policy, order: usize) -> String {
    let mut text =
        format!("apiVersion: projectcalico.org/v3\nkind: {}\n{}spec:\n", policy.id.kind, metadata(policy));
    text.push_str(&format!(
        "  tier: {}\n  order: {order}\n  selector: {}\n",
        tier.name,
        quoted(&selector(&policy.selector))
    ));
    text.push_str(match policy.on_hosts {
        OnHosts::Normal => "",
        OnHosts::Forward => "  applyOnForward: true\n",
        OnHosts::PreDnat => "  preDNAT: true\n  applyOnForward: true\n",
        OnHosts::Untracked => "  doNotTrack: true\n  applyOnForward: true\n",
    });
    text.push_str(&format!("  types: {}\n", types(policy)));
    for (word, direction) in [("ingress", Direction::Ingress), ("egress", Direction::Egress)] {
        let rules = policy.rules(direction).unwrap_or_default();
        if !rules.is_empty() {
            text.push_str(&format!("  {word}:\n"));
        }
        for rule in rules {
            text.push_str(&format!("  - {}\n", calico_rule(model, rule)));
        }
    }
    text
}

fn calico_rule(model: &Model, rule: &Rule) -> String {
    let action = match rule.action {
        Action::Allow => "Allow",
        Action::Deny => "Deny",
        Action::Pass => "Pass",
        Action::Log => "Log",
    };
    let mut fields = vec![format!("action: {action}")];
    fields.extend(protocol(rule.protocol).map(|name| format!("protocol: {name}")));
    if let Protocol::Icmp(Some(kind)) | Protocol::Icmpv6(Some(kind)) = rule.protocol {
        fields.push(format!("icmp: {{type: {kind}}}"));
    }
    let source = calico_peer(model, &rule.source);
    let mut destination = calico_peer(model, &rule.destination);
    destination.extend(ports("ports", &rule.ports));
    destination.extend(ports("notPorts", &rule.not_ports));
    for (word, peer) in [("source", source), ("destination", destination)] {
        if !peer.is_empty() {
            fields.push(format!("{word}: {{{}}}", peer.join(", ")));
        }
    }
    if !rule.annotations.is_empty() {
        let annotations = rule.annotations.iter().map(|(key, value)| format!("{key}: {}", quoted(value)));
        fields.push(format!("metadata: {{annotations: {{{}}}}}", comma(annotations)));
    }
    format!("{{{}}}", fields.join(", "))
}

fn calico_peer(model: &Model, peer: &Peer) -> Vec<String> {
    let nets = |word: &str, nets: &[Net]| {
        (!nets.is_empty())
            .then(|| format!("{word}: {}", list(nets.iter().map(|net| quoted(&net.to_string())))))
    };
    let mut fields: Vec<String> =
        [nets("nets", &peer.nets), nets("notNets", &peer.not_nets)].into_iter().flatten().collect();
    let set = peer.set.as_ref().and_then(|id| model.sets.iter().find(|set| set.id == *id));
    if let Some((namespace, pods)) = set.and_then(|set| set.stands_for.as_ref()) {
        fields.push(format!("selector: {}", quoted(&selector(pods))));
        fields.push(format!(
            "namespaceSelector: {}",
            quoted(&format!("kubernetes.io/metadata.name == '{namespace}'"))
        ));
    }
    fields
}

fn kubernetes(model: &Model, policy: &Policy) -> String {
    let mut text =
        format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n{}spec:\n", metadata(policy));
    text.push_str(&format!(
        "  podSelector: {}\n  policyTypes: {}\n",
        pod_selector(&policy.selector),
        types(policy)
    ));
    for (word, peers, direction) in
        [("ingress", "from", Direction::Ingress), ("egress", "to", Direction::Egress)]
    {
        let rules = policy.rules(direction).unwrap_or_default();
        if !rules.is_empty() {
            text.push_str(&format!("  {word}:\n"));
        }
        for rule in rules {
            let peer = if direction == Direction::Ingress { &rule.source } else { &rule.destination };
            let mut fields = Vec::new();
            let list_of_peers = kubernetes_peers(model, policy, peer);
            if !list_of_peers.is_empty() {
                fields.push(format!("{peers}: {}", list(list_of_peers)));
            }
            if let Some(protocol) = protocol(rule.protocol) {
                fields.push(format!("ports: {}", list(kubernetes_ports(protocol, &rule.ports))));
            }
            text.push_str(&format!("  - {{{}}}\n", fields.join(", ")));
        }
    }
    text
}

fn kubernetes_peers(model: &Model, policy: &Policy, peer: &Peer) -> Vec<String> {
    let mut peers: Vec<String> =
        peer.nets.iter().map(|net| format!("{{ipBlock: {{cidr: {}}}}}", quoted(&net.to_string()))).collect();
    let set = peer.set.as_ref().and_then(|id| model.sets.iter().find(|set| set.id == *id));
    peers.extend(set.and_then(|set| set.stands_for.as_ref()).map(|(namespace, pods)| {
        let pods = pod_selector(pods);
        if **namespace == *policy.id.namespace {
            return format!("{{podSelector: {pods}}}");
        }
        let namespace = format!("{{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}");
        format!("{{namespaceSelector: {namespace}, podSelector: {pods}}}")
    }));
    peers
}

fn kubernetes_ports(protocol: &str, ports: &[PortRange]) -> Vec<String> {
    if ports.is_empty() {
        return vec![format!("{{protocol: {protocol}}}")];
    }
    let spell = |range: &PortRange| match range.first == range.last {
        true => format!("{{protocol: {protocol}, port: {}}}", range.first),
        false => format!("{{protocol: {protocol}, port: {}, endPort: {}}}", range.first, range.last),
    };
    ports.iter().map(spell).collect()
}

fn pod_selector(selector: &Selector) -> String {
    match selector {
        Selector::All => "{}".to_string(),
        Selector::Has(key) => format!("{{matchExpressions: [{{key: {key}, operator: Exists}}]}}"),
        Selector::Is(key, value) => format!("{{matchLabels: {{{key}: {}}}}}", quoted(value)),
        Selector::In(key, values) => {
            let values = list(values.iter().map(|value| quoted(value)));
            format!("{{matchExpressions: [{{key: {key}, operator: In, values: {values}}}]}}")
        }
    }
}

/// A selector with the quotes that people use.
fn selector(selector: &Selector) -> String {
    selector.to_string().replace('"', "'")
}

fn protocol(protocol: Protocol) -> Option<&'static str> {
    match protocol {
        Protocol::Any => None,
        Protocol::Tcp => Some("TCP"),
        Protocol::Udp => Some("UDP"),
        Protocol::Icmp(_) => Some("ICMP"),
        Protocol::Icmpv6(_) => Some("ICMPv6"),
    }
}

fn ports(word: &str, ranges: &[PortRange]) -> Option<String> {
    let spell = |range: &PortRange| match range.first == range.last {
        true => range.first.to_string(),
        false => quoted(&format!("{}:{}", range.first, range.last)),
    };
    (!ranges.is_empty()).then(|| format!("{word}: {}", list(ranges.iter().map(spell))))
}

fn documents(documents: impl Iterator<Item = String>) -> String {
    documents.collect::<Vec<_>>().join("---\n")
}

fn comma(items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().collect::<Vec<_>>().join(", ")
}

fn list(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", comma(items))
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use crate::scenario::demo;

    #[test]
    fn manifests_read_as_if_typed() {
        let [pods, policies] = demo().manifests();
        for document in [
            "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: web, labels: {app: \"web\"}}\n",
            "status: {phase: Running, podIP: \"10.65.0.3\", podIPs: [{ip: \"10.65.0.3\"}, {ip: \"fd00:65::3\"}]}\n",
        ] {
            assert!(pods.text.contains(document), "{document}");
        }
        for document in [
            "kind: Tier\nmetadata: {name: platform}\nspec: {order: 200, defaultAction: Pass}\n",
            "  selector: \"has(app)\"\n  types: [Ingress, Egress]\n  ingress:\n  - {action: Pass}\n",
            "kind: NetworkPolicy\nmetadata: {namespace: shop, name: db-from-web}\nspec:\n  podSelector: {matchLabels: {app: \"db\"}}\n",
            "  - {from: [{podSelector: {matchLabels: {app: \"web\"}}}], ports: [{protocol: TCP, port: 5432}]}\n",
            "metadata: {namespace: shop, name: default-deny}\nspec:\n  podSelector: {}\n  policyTypes: [Ingress]\n---\n",
        ] {
            assert!(policies.text.contains(document), "{document}");
        }
    }
}
