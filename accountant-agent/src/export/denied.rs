//! Flows that were dropped (`/denied`) or accepted (`/flows`) lately, as JSON and as a table; and dropped ones as they are dropped, each a line of JSON
//! (`/denied/follow`) or for people.
//!
//! One entry a flow, the last one first: times, who and whom, how much, and the labels of the account that it was charged to.

use super::table;
use crate::engine::denied::{Entry, FlowsView};
use comfy_table::Table;
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime};

const HEADINGS: [&str; 8] =
    ["LAST", "PACKETS", "PROTOCOL", "FROM", "TO", "WORKLOAD", "DIRECTION", "DECIDED BY"];

/// The flows as JSON.
pub fn json(denied: &FlowsView) -> Value {
    let flows: Vec<_> = denied.flows.iter().map(entry).collect();
    json!({ "version": super::json::VERSION, "flows": flows, "lost_packets": denied.lost })
}

/// A flow as JSON.
pub fn entry((labels, flow, dropped): &Entry) -> Value {
    let mut fields = Map::new();
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
    };
    fields.insert("first".into(), seconds(dropped.first).into());
    fields.insert("last".into(), seconds(dropped.last).into());
    fields.insert("source".into(), flow.source.to_string().into());
    fields.insert("destination".into(), flow.destination.to_string().into());
    fields.insert("protocol".into(), protocol(flow.protocol).into());
    if let Some((from, to)) = flow.ports {
        fields.insert("source_port".into(), from.into());
        fields.insert("destination_port".into(), to.into());
    }
    fields.insert("packets".into(), dropped.counter.packets.into());
    fields.insert("bytes".into(), dropped.counter.bytes.into());
    fields.extend(labels.iter().map(|(name, value)| (name.to_string(), Value::from(&**value))));
    fields.insert("interface".into(), flow.account.endpoint.interface.as_str().into());
    Value::Object(fields)
}

/// Flows that were denied and that a follower is not told, as JSON.
pub fn lost(flows: u64) -> Value {
    json!({ "lost": flows })
}

/// The usual names of protocols that have one.
fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}

/// The object of [`json`] for people.
pub fn render(object: &Value, what: &str, now: SystemTime) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(HEADINGS);
    let flows = object["flows"].as_array().map(Vec::as_slice).unwrap_or_default();
    table.add_rows(flows.iter().map(|flow| row(flow, now)));
    let mut text = table.trim_fmt() + "\n";
    if flows.is_empty() {
        text.push_str(&format!(
            "no flow was {what} lately, or no programs in the kernel see them (`accountant check`)\n"
        ));
    }
    if let Some(lost) = object["lost_packets"].as_u64().filter(|lost| *lost > 0) {
        text.push_str(&format!("{lost} {what} packets are in none of these flows\n"));
    }
    text
}

fn row(flow: &Value, now: SystemTime) -> [String; 8] {
    let age = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
        - flow["last"].as_f64().unwrap_or(0.0);
    let [protocol, from, to, workload, direction, by] = who(flow);
    let packets = flow["packets"].as_u64().unwrap_or(0).to_string();
    [format!("{:.0}s ago", age.max(0.0)), packets, protocol, from, to, workload, direction, by]
}

/// The object of [`entry`] or [`lost`] for people, as a line without its end.
pub fn line(flow: &Value) -> String {
    if let Some(flows) = flow["lost"].as_u64() {
        return format!("{flows} more were denied and cannot be told: they come too fast");
    }
    let at = Duration::try_from_secs_f64(flow["first"].as_f64().unwrap_or(0.0)).unwrap_or_default();
    let at = humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + at);
    let [protocol, from, to, workload, direction, by] = who(flow);
    format!("{at} {protocol} {from} -> {to} {workload} {direction} by {by}")
}

/// Protocol, both ends, workload, direction, and who decided.
fn who(flow: &Value) -> [String; 6] {
    [
        field(flow, "protocol"),
        end(flow, "source", "source_port"),
        end(flow, "destination", "destination_port"),
        table::workload(flow),
        field(flow, "direction"),
        by(flow),
    ]
}

fn field(flow: &Value, name: &str) -> String {
    flow[name].as_str().unwrap_or_default().to_string()
}

fn end(flow: &Value, address: &str, port: &str) -> String {
    match (flow[port].as_u64(), field(flow, address)) {
        (Some(port), address) if address.contains(':') => format!("[{address}]:{port}"),
        (Some(port), address) => format!("{address}:{port}"),
        (None, address) => address,
    }
}

/// Who denied it.
fn by(flow: &Value) -> String {
    let by = match field(flow, "verdict").as_str() {
        "dropped_elsewhere" => "no policy: another rule of the packet filter".into(),
        "dropped" if flow["state"].is_string() => {
            "a policy that is not known: rules are being replaced".into()
        }
        _ => table::decided_by(flow).0,
    };
    let tier = field(flow, "tier");
    if tier.is_empty() { by } else { format!("{by} (tier {tier})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_lines() {
        let object = json!({
            "flows": [{
                "last": 90.0, "source": "fd00::2", "source_port": 40000, "destination": "fd00::3",
                "destination_port": 53, "protocol": "udp", "packets": 7, "namespace": "shop", "pod": "web",
                "direction": "ingress", "tier": "default", "policy_kind": "NetworkPolicy",
                "policy_namespace": "shop", "policy": "p", "action": "deny",
            }],
            "lost_packets": 3,
        });
        let text = render(&object, "denied", SystemTime::UNIX_EPOCH + Duration::from_secs(100));
        let lines: Vec<_> = text.lines().collect();
        let words = lines[1].split_whitespace().collect::<Vec<_>>().join(" ");
        let line =
            "10s ago 7 udp [fd00::2]:40000 [fd00::3]:53 shop/web ingress NetworkPolicy shop/p (tier default)";
        assert_eq!(words, line);
        assert_eq!(lines[2], "3 denied packets are in none of these flows");
    }

    #[test]
    fn a_flow_is_a_line_while_it_happens() {
        let mut flow = json!({
            "first": 90.25, "source": "10.0.0.2", "destination": "10.0.0.3", "protocol": "icmp", "namespace": "shop",
            "pod": "web", "direction": "egress", "tier": "t", "policy_kind": "GlobalNetworkPolicy", "policy": "p",
        });
        let start = "1970-01-01T00:01:30.250Z icmp 10.0.0.2 -> 10.0.0.3 shop/web egress by";
        assert_eq!(line(&flow), format!("{start} GlobalNetworkPolicy p (tier t)"));
        flow["tier"].take();
        (flow["state"], flow["verdict"]) = ("new".into(), "dropped".into());
        assert!(line(&flow).ends_with("by a policy that is not known: rules are being replaced"));
        assert!(line(&lost(7)).starts_with("7 more were denied"));
    }
}
