//! The demo's node with its `eth0` as a host endpoint that has policies in every table, and traffic that asks each of them.
//!
//! | policy | where |
//! |---|---|
//! | `hosts.untracked` | raw, both directions, before connections are tracked |
//! | `hosts.before-nat` | mangle, what comes in, before its destination is changed |
//! | `hosts.normal` | filter, both directions; mangle, what leaves after its destination was changed |

use super::{Scenario, demo};
use crate::error::Result;
use crate::felix::Backend;
use crate::node::{NODE_ADDRESSES, Node, OUTSIDE_ADDRESSES};
use crate::policy::{Did, HostEndpoint, Model, OnHosts, Policy, Rule, Selector, Tier, TierEnd};
use crate::traffic::{udp, udp_length};
use accountant_core::calico::PolicyKind::GlobalNetworkPolicy;
use accountant_core::{Counter, Direction, IpVersion, Table};
use std::fmt::Write;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};

/// The policies of host endpoints that are not in the filter table.
const OUTSIDE_OF_FILTER: [&str; 2] = ["hosts.untracked", "hosts.before-nat"];
/// Packets to this port go to the other one.
const REDIRECTED: [(u16, u16); 2] = [(7201, 7101), (7202, 7102)];
/// Bytes of payload.
const SIZE: usize = 48;

/// Packets that one policy of the host endpoint decides on.
#[derive(Clone, Copy, Debug)]
pub struct HostTraffic {
    /// From outside to the node, or back.
    pub direction: Direction,
    /// The UDP port that it is sent to.
    pub port: u16,
    /// The policy.
    pub policy: &'static str,
    /// The table in which it decides, with iptables.
    table: Table,
    /// What it decides.
    pub did: Did,
    /// Packets of each IP version in a round.
    pub packets: u32,
}

/// One kind for each policy, direction, table and verdict.
pub const HOST_TRAFFIC: [HostTraffic; 12] = {
    use Did::{Allow, Deny};
    use Direction::{Egress, Ingress};
    use Table::{Filter, Mangle, Raw};
    const fn of(
        (direction, port): (Direction, u16),
        (table, policy): (Table, &'static str),
        did: Did,
        packets: u32,
    ) -> HostTraffic {
        HostTraffic { direction, port, policy, table, did, packets }
    }
    [
        of((Ingress, 6666), (Raw, "hosts.untracked"), Deny, 3),
        of((Ingress, 6668), (Raw, "hosts.untracked"), Allow, 4),
        of((Egress, 6667), (Raw, "hosts.untracked"), Deny, 5),
        of((Egress, 6669), (Raw, "hosts.untracked"), Allow, 6),
        of((Ingress, 31234), (Mangle, "hosts.before-nat"), Deny, 7),
        of((Ingress, 31235), (Mangle, "hosts.before-nat"), Allow, 8),
        of((Ingress, 7001), (Filter, "hosts.normal"), Deny, 9),
        of((Ingress, 7000), (Filter, "hosts.normal"), Allow, 10),
        of((Egress, 7101), (Filter, "hosts.normal"), Deny, 11),
        of((Egress, 7102), (Filter, "hosts.normal"), Allow, 12),
        of((Egress, 7201), (Mangle, "hosts.normal"), Deny, 13),
        of((Egress, 7202), (Mangle, "hosts.normal"), Allow, 14),
    ]
};

impl HostTraffic {
    /// The table in which the policy decides.
    ///
    /// With nftables, Felix' condition for host traffic whose destination was not changed, `ct status != dnat`, is true of
    /// all, because a status has other bits too; so the filter table decides before the mangle table would.
    pub fn table(&self, backend: Backend) -> Table {
        match (backend, self.table, self.direction) {
            (Backend::Nft, Table::Mangle, Direction::Egress) => Table::Filter,
            _ => self.table,
        }
    }
}

/// The demo with a host endpoint.
pub fn hosts() -> Scenario {
    let mut scenario = demo();
    let role = "host-role";
    scenario.model.host_endpoints.push(HostEndpoint {
        name: "lab-node-eth0".to_string(),
        interface: "eth0".to_string(),
        labels: [(role.to_string(), "worker".to_string())].into(),
        addresses: NODE_ADDRESSES.iter().filter_map(|text| text.parse().ok()).collect(),
    });
    let policy = |name: &str| Policy::new(GlobalNetworkPolicy, "", name, Selector::has(role));
    let untracked = policy("hosts.untracked")
        .on_hosts(OnHosts::Untracked)
        .ingress([Rule::deny().udp(&[6666]), Rule::allow().udp(&[6668])])
        .egress([Rule::deny().udp(&[6667]), Rule::allow().udp(&[6669])]);
    let before_nat = policy("hosts.before-nat")
        .on_hosts(OnHosts::PreDnat)
        .ingress([Rule::deny().udp(&[31234]), Rule::allow().udp(&[31235])]);
    let normal = policy("hosts.normal")
        .ingress([Rule::deny().udp(&[7001]), Rule::allow()])
        .egress([Rule::deny().udp(&[7101]), Rule::allow()]);
    let tier = Tier::new("hosts", TierEnd::Deny).with(untracked).with(before_nat).with(normal);
    scenario.model.tiers.insert(0, tier);
    scenario.name = "hosts".to_string();
    scenario
}

/// The same model with policies in the filter table alone.
pub fn without_untracked(model: &Model) -> Model {
    let mut model = model.clone();
    for tier in &mut model.tiers {
        tier.policies.retain(|policy| !OUTSIDE_OF_FILTER.contains(&&*policy.id.name));
    }
    model
}

/// Who sends to the node's ports and gets answers from none.
#[derive(Debug)]
pub struct HostVisit<'a> {
    node: &'a Node,
    /// Somebody has to be there, or the node answers with errors.
    _listeners: Vec<UdpSocket>,
}

impl<'a> HostVisit<'a> {
    /// Opens the ports that policies allow, and redirects those that are redirected.
    pub fn new(node: &'a Node) -> Result<Self> {
        let mut rules = String::new();
        for (version, to) in
            [("ip", OUTSIDE_ADDRESSES[0].to_string()), ("ip6", format!("[{}]", OUTSIDE_ADDRESSES[1]))]
        {
            let _ = writeln!(rules, "add table {version} labnat");
            let _ = writeln!(
                rules,
                "add chain {version} labnat output {{ type nat hook output priority -100; }}"
            );
            for (from, port) in REDIRECTED {
                let _ =
                    writeln!(rules, "add rule {version} labnat output udp dport {from} dnat to {to}:{port}");
            }
        }
        node.host().feed("nft", &["-f", "-"], &rules)?;
        let is_open = |kind: &&HostTraffic| kind.direction == Direction::Ingress && kind.did == Did::Allow;
        let open = || {
            let ports = HOST_TRAFFIC.iter().filter(is_open).map(|kind| kind.port);
            ports.filter_map(|port| UdpSocket::bind(("::", port)).ok()).collect()
        };
        Ok(Self { node, _listeners: node.host().enter(open)? })
    }

    /// Sends one round of everything, and returns what each kind was in one IP version.
    pub fn round(&self) -> Result<Vec<(HostTraffic, IpVersion, Counter)>> {
        let mut sent = Vec::new();
        for version in IpVersion::BOTH {
            let at = usize::from(version == IpVersion::V6);
            for kind in HOST_TRAFFIC {
                let packets = match kind.direction {
                    Direction::Ingress => {
                        let to = address(NODE_ADDRESSES[at]);
                        udp(self.node.outside(), to, kind.port, kind.packets, 1, SIZE)?
                    }
                    Direction::Egress => self.leave(address(OUTSIDE_ADDRESSES[at]), kind)?,
                };
                let length = udp_length(address(NODE_ADDRESSES[at]), SIZE);
                sent.push((kind, version, Counter::new(packets, packets * length)));
            }
        }
        Ok(sent)
    }

    /// Sends packets from the node, each as a flow of its own. It is told of those that are dropped.
    fn leave(&self, to: IpAddr, kind: HostTraffic) -> Result<u64> {
        let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        self.node.host().enter(|| {
            let mut sent = 0;
            for _ in 0..kind.packets {
                let result =
                    UdpSocket::bind((any, 0)).and_then(|socket| socket.send_to(&[0; SIZE], (to, kind.port)));
                match result {
                    Ok(_) => sent += 1,
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => sent += 1,
                    Err(error) => return Err(crate::error::Error::io("send UDP to", to.to_string())(error)),
                }
            }
            Ok(sent)
        })?
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}
