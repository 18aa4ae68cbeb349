//! A node: its own namespace, one for every pod, and a host outside behind `eth0`.
//!
//! ```text
//!   pod: eth0 10.65.0.2/32 ---- cali1234…:  node  :eth0 192.0.2.11 ---- 192.0.2.1 eth0 :outside
//!        fd00:65::2/128                               fd00:192::11      fd00:192::1
//! ```
//!
//! Pods are wired as Calico wires them: single addresses, a gateway 169.254.1.1 and fe80::ecee:eeff:feee:eeee that
//! exists only as a neighbour entry, one route per pod on the node.
//!
//! Invariant: nobody speaks unless a test makes them. Neighbour entries are permanent, there is no router discovery, no
//! duplicate address detection, no link-local address; multicast listener reports go out while the links come up and
//! never again; pods and the host outside answer no packet with an ICMP error. So a counter moves only for what was
//! sent. What remains are answers that protocols owe: a TCP reset, an echo reply.

use crate::apply::Felix;
use crate::error::{Error, Result};
use crate::felix::Dialect;
use crate::netns::Namespace;
use crate::policy::Endpoint;
use std::fmt::Write;
use std::fs::File;
use std::io::{Read, Seek};
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

/// The node's own addresses, on `eth0`.
pub const NODE_ADDRESSES: [&str; 2] = ["192.0.2.11", "fd00:192::11"];
/// The addresses of the host outside.
pub const OUTSIDE_ADDRESSES: [&str; 2] = ["192.0.2.1", "fd00:192::1"];

/// The address of every pod's gateway, and its hardware address.
const GATEWAYS: [&str; 2] = ["169.254.1.1", "fe80::ecee:eeff:feee:eeee"];
const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";
const NODE_MAC: &str = "0a:c0:00:02:00:0b";
const OUTSIDE_MAC: &str = "0a:c0:00:02:00:01";

/// The node's links are numbered from here on, so that none has its peer's number in the other namespace: the kernel
/// would take it for a link without peer, and tell its state to IPv6 up to a second late.
const FIRST_INDEX: u16 = 100;

/// What every namespace of the lab is set to before it gets links.
const QUIET: [(&str, &str); 12] = [
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    // Milliseconds to spread multicast listener reports over, so that they are soon gone.
    ("net/ipv6/conf/default/mldv1_unsolicited_report_interval", "1"),
    ("net/ipv6/conf/default/mldv2_unsolicited_report_interval", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];

/// What makes the node a router.
const ROUTER: [(&str, &str); 4] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

/// What makes a host send no ICMP errors: the first would be due a day after the first packet.
const SILENT: [(&str, &str); 2] =
    [("net/ipv4/icmp_ratelimit", "86400000"), ("net/ipv6/icmp/ratelimit", "86400000")];

/// How long nobody may have reported a multicast listener for the links to count as settled. The reports of a change
/// are [`QUIET`]'s millisecond apart, which the kernel rounds up to a tick of its clock, at most 10 ms.
const SETTLED: Duration = Duration::from_millis(60);
/// How long settling may take.
const SETTLING: Duration = Duration::from_secs(3);

/// A node with its pods and a host outside.
#[derive(Debug)]
pub struct Node {
    host: Namespace,
    outside: Namespace,
    pods: Vec<Pod>,
    /// Hardware addresses are numbered, and no number is used twice.
    wired: u16,
}

/// A pod that is really there.
#[derive(Debug)]
pub struct Pod {
    /// The pod's namespace in Kubernetes.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The pod's network namespace.
    pub netns: Namespace,
    interface: String,
}

impl Node {
    /// A node with these pods, reachable from each other and from outside, without any rules.
    pub fn new(endpoints: &[Endpoint]) -> Result<Self> {
        let (host, outside) = (Namespace::new("node")?, Namespace::new("outside")?);
        host.sysctl(&[&QUIET[..], &ROUTER].concat())?;
        outside.sysctl(&[&QUIET[..], &SILENT].concat())?;
        let mut node = Self { host, outside, pods: Vec::new(), wired: 0 };
        node.wire_outside()?;
        for endpoint in endpoints {
            let pod = node.wire_pod(endpoint)?;
            node.pods.push(pod);
        }
        let pods = node.pods.iter().map(|pod| &pod.netns);
        settle(pods.chain([&node.host, &node.outside]))?;
        Ok(node)
    }

    /// The node's own namespace: where the rules are.
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// The host outside.
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// All pods.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// One pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<&Pod> {
        let pod = self.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name);
        pod.ok_or_else(|| Error::unknown("pod", format!("{namespace}/{name}")))
    }

    /// A writer of rules for this node.
    pub fn felix(&self, dialect: Dialect) -> Felix {
        Felix::new(&self.host, dialect)
    }

    /// Gives the host outside one more address, from and to which it can talk with the pods.
    pub fn outside_address(&self, address: IpAddr) -> Result<()> {
        self.outside.ip_batch(&format!("addr replace {address} dev lo\n"))
    }

    fn wire_outside(&self) -> Result<()> {
        let mut node = format!(
            "link add eth0 index {FIRST_INDEX} address {NODE_MAC} type veth peer name eth0 address {OUTSIDE_MAC} netns {}\n",
            self.outside.name()
        );
        let mut outside = String::new();
        for (index, length) in [(0, 24), (1, 64)] {
            let (mine, theirs) = (NODE_ADDRESSES[index], OUTSIDE_ADDRESSES[index]);
            let _ = writeln!(node, "addr add {mine}/{length} dev eth0");
            let _ = writeln!(node, "neigh add {theirs} lladdr {OUTSIDE_MAC} dev eth0 nud permanent");
            let _ = writeln!(outside, "addr add {theirs}/{length} dev eth0");
            let _ = writeln!(outside, "neigh add {mine} lladdr {NODE_MAC} dev eth0 nud permanent");
        }
        node.push_str("link set eth0 up\n");
        outside.push_str("link set eth0 up\n");
        for index in [0, 1] {
            let _ = writeln!(node, "route add default via {}", OUTSIDE_ADDRESSES[index]);
            let _ = writeln!(outside, "route add default via {}", NODE_ADDRESSES[index]);
        }
        self.host.ip_batch(&node)?;
        self.outside.ip_batch(&outside)
    }

    /// Makes one more pod and wires it to the node.
    pub fn add_pod(&mut self, endpoint: &Endpoint) -> Result<&Pod> {
        let pod = self.wire_pod(endpoint)?;
        settle([&pod.netns, &self.host])?;
        self.pods.push(pod);
        self.pod(&endpoint.namespace, &endpoint.pod)
    }

    fn wire_pod(&mut self, endpoint: &Endpoint) -> Result<Pod> {
        let netns = Namespace::new(&endpoint.pod)?;
        netns.sysctl(&[&QUIET[..], &SILENT].concat())?;
        self.wired += 1;
        let index = FIRST_INDEX + self.wired;
        let [high, low] = self.wired.to_be_bytes();
        let (mac, interface) = (format!("0a:65:00:00:{high:02x}:{low:02x}"), &endpoint.interface);

        let mut node = format!(
            "link add {interface} index {index} address {GATEWAY_MAC} type veth peer name eth0 address {mac} netns {}\n\
             link set {interface} up\n",
            netns.name()
        );
        let mut pod = "link set eth0 up\n".to_string();
        for address in &endpoint.addresses {
            let _ = writeln!(node, "neigh add {address} lladdr {mac} dev {interface} nud permanent");
            let _ = writeln!(node, "route add {address} dev {interface}");
            let gateway = if address.is_ipv4() { GATEWAYS[0] } else { GATEWAYS[1] };
            let _ = writeln!(pod, "addr add {address} dev eth0");
            let _ = writeln!(pod, "neigh add {gateway} lladdr {GATEWAY_MAC} dev eth0 nud permanent");
            let _ = writeln!(pod, "route add {gateway} dev eth0");
            let _ = writeln!(pod, "route add default via {gateway} dev eth0");
        }
        self.host.ip_batch(&node)?;
        netns.ip_batch(&pod)?;
        Ok(Pod {
            namespace: endpoint.namespace.clone(),
            name: endpoint.pod.clone(),
            addresses: endpoint.addresses.clone(),
            netns,
            interface: interface.to_string(),
        })
    }

    /// Takes a pod away, its interface too.
    pub fn remove_pod(&mut self, namespace: &str, name: &str) -> Result<()> {
        let interface = self.pod(namespace, name)?.interface.clone();
        self.host.ip_batch(&format!("link del {interface}\n"))?;
        self.pods.retain(|pod| pod.interface != interface);
        Ok(())
    }
}

/// Waits until the kernel has told its multicast neighbours about all new addresses: nothing comes after that.
fn settle<'a>(namespaces: impl IntoIterator<Item = &'a Namespace>) -> Result<()> {
    let counts = "/proc/thread-self/net/snmp6";
    let open =
        |namespace: &Namespace| namespace.enter(|| File::open(counts))?.map_err(Error::io("open", counts));
    let files = namespaces.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let (mut reports, mut since) = (String::new(), start);
    while since.elapsed() < SETTLED && start.elapsed() < SETTLING {
        thread::sleep(SETTLED / 10);
        let now = files.iter().map(listener_reports).collect::<std::io::Result<String>>();
        let now = now.map_err(Error::io("read", counts))?;
        if now != reports {
            (reports, since) = (now, Instant::now());
        }
    }
    Ok(())
}

fn listener_reports(counts: &File) -> std::io::Result<String> {
    let mut text = String::new();
    let mut file = counts;
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text.lines().filter(|line| line.contains("OutMLDv2Reports")).collect())
}

impl Pod {
    /// The node's end of its link.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The pod's IPv4 address.
    pub fn v4(&self) -> Result<IpAddr> {
        self.address(IpAddr::is_ipv4, "IPv4 address of")
    }

    /// The pod's IPv6 address.
    pub fn v6(&self) -> Result<IpAddr> {
        self.address(IpAddr::is_ipv6, "IPv6 address of")
    }

    fn address(&self, wanted: fn(&IpAddr) -> bool, kind: &'static str) -> Result<IpAddr> {
        let found = self.addresses.iter().copied().find(wanted);
        found.ok_or_else(|| Error::unknown(kind, &self.name))
    }
}
