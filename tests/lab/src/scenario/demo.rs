//! A small shop: three pods, three tiers, and traffic of which every kind of verdict comes about.

use super::Scenario;
use crate::error::Result;
use crate::node::{Node, OUTSIDE_ADDRESSES};
use crate::policy::{
    Endpoint, IpSet, Model, Net, OnHosts, Packet, Policy, Profile, Protocol, Rule, Selector, Tier, TierEnd,
    Truth,
};
use crate::traffic::{self, TcpListening, UdpEcho};
use accountant_core::Counter;
use accountant_core::calico::PolicyKind::{GlobalNetworkPolicy, KubernetesNetworkPolicy, NetworkPolicy};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Addresses outside that the tier `security` blocks.
const BAD_SOURCE: &str = "198.51.100.7";
const BAD_DESTINATION: &str = "203.0.113.66";
/// The pods' addresses, IPv4 and IPv6.
const WEB: [&str; 2] = ["10.65.0.2", "fd00:65::2"];
const DB: [&str; 2] = ["10.65.0.3", "fd00:65::3"];
const CLIENT: [&str; 2] = ["10.65.0.4", "fd00:65::4"];
/// The set of the pods that `db-from-web` allows.
const WEB_SET: &str = "s:web-pods-of-shop";

const SOON: Duration = Duration::from_secs(2);

/// Three pods: `shop/web`, `shop/db`, `default/client`.
///
/// | tier | policies | ends |
/// |---|---|---|
/// | security | `block-bad` and `pass-rest`, a group that all pods share | Deny |
/// | platform | `no-telnet`: denies, allows and passes | Pass |
/// | default | `metrics` and `probes`, a group of namespace shop; `db-from-web`, `default-deny`, `web`; `web-egress` | Deny |
///
/// No policy of the default tier selects the client, so its profile decides.
pub fn demo() -> Scenario {
    let pod = |namespace: &str, name: &str, addresses: [&str; 2]| {
        Endpoint::new(namespace, name, &addresses.map(address)).label("app", name)
    };
    let profiles = ["shop", "default"].iter().flat_map(|namespace| {
        [Profile::namespace(namespace), Profile::service_account(namespace, "default")]
    });
    let model = Model {
        endpoints: vec![pod("shop", "web", WEB), pod("shop", "db", DB), pod("default", "client", CLIENT)],
        tiers: vec![security(), platform(), default_tier()],
        profiles: profiles.collect(),
        sets: vec![IpSet {
            id: WEB_SET.to_string(),
            members: WEB.map(|text| Net::host(address(text))).to_vec(),
            port: None,
            stands_for: Some(("shop".to_string(), Selector::is("app", "web"))),
        }],
        ..Model::default()
    };
    Scenario { name: "demo".to_string(), model, real_pods: 3 }
}

fn security() -> Tier {
    let policy = |name: &str| Policy::new(GlobalNetworkPolicy, "", name, Selector::has("app"));
    Tier::new("security", TierEnd::Deny)
        .with(
            policy("security.block-bad")
                .ingress([Rule::deny().from(net("198.51.100.0", 24))])
                .egress([Rule::deny().to(net("203.0.113.0", 24))]),
        )
        .with(policy("security.pass-rest").ingress([Rule::pass()]).egress([Rule::pass()]))
}

fn platform() -> Tier {
    let policy = Policy::new(GlobalNetworkPolicy, "", "platform.no-telnet", Selector::has("app"));
    Tier::new("platform", TierEnd::Pass).with(policy.ingress([
        Rule::deny().tcp(&[23]),
        Rule::allow().tcp(&[9100]).from(net("192.0.2.0", 24)).from(net("fd00:192::", 64)),
        Rule::pass().tcp(&[8443]).annotate("ticket", "OPS-7"),
    ]))
}

fn default_tier() -> Tier {
    let calico = |name: &str, selector| Policy::new(NetworkPolicy, "shop", name, selector);
    let kubernetes = |name: &str, selector| Policy::new(KubernetesNetworkPolicy, "shop", name, selector);
    let app = |name: &str| Selector::is("app", name);
    Tier::new("default", TierEnd::Deny)
        .with(calico("metrics", Selector::All).ingress([Rule::allow().udp(&[9001])]))
        .with(calico("probes", Selector::All).ingress([
            Rule::allow().protocol(Protocol::Icmp(Some(8))),
            Rule::allow().protocol(Protocol::Icmpv6(Some(128))),
        ]))
        .with(kubernetes("db-from-web", app("db")).ingress([
            Rule::allow().tcp(&[5432]).from_set(WEB_SET),
            Rule::allow().udp(&[5432]).from_set(WEB_SET),
        ]))
        .with(kubernetes("default-deny", Selector::All).ingress([]))
        .with(
            kubernetes("web", app("web"))
                .ingress([Rule::allow().tcp(&[80, 443]), Rule::allow().udp(&[5000])]),
        )
        .with(calico("web-egress", app("web")).on_hosts(OnHosts::Normal).egress([
            Rule::log().udp(&[6000]),
            Rule::deny().udp(&[6000]),
            Rule::allow(),
        ]))
}

/// Visitors of the demo's pods: listeners that answer, and rounds of traffic whose truth is booked.
#[derive(Debug)]
pub struct Visit<'a> {
    node: &'a Node,
    _shops: Vec<TcpListening>,
    _echoes: Vec<UdpEcho>,
}

impl<'a> Visit<'a> {
    /// Opens the shop: TCP on port 80 and UDP on port 5000 of `shop/web`.
    pub fn new(node: &'a Node) -> Result<Self> {
        let web = node.pod("shop", "web")?;
        for bad in [BAD_SOURCE, BAD_DESTINATION] {
            node.outside_address(address(bad))?;
        }
        let shops = WEB.map(|at| TcpListening::new(&web.netns, address(at), 80));
        let echoes = WEB.map(|at| UdpEcho::new(&web.netns, address(at), 5000));
        let (shops, echoes) = (Vec::from(shops), Vec::from(echoes));
        Ok(Self {
            node,
            _shops: shops.into_iter().collect::<Result<_>>()?,
            _echoes: echoes.into_iter().collect::<Result<_>>()?,
        })
    }

    /// Sends one round of everything, and books what this model says must become of it.
    ///
    /// `between` is called after each kind of traffic. Counters of rules tell who passed what in a tier that ends in
    /// Pass only as long as they are read before the next endpoint's traffic comes to the same policy.
    pub fn round(&self, model: &Model, truth: &mut Truth, between: impl FnMut()) -> Result<()> {
        let books = &mut Books { model, truth, between };
        for version in [0, 1] {
            let [web, db, client] = [WEB, DB, CLIENT].map(|addresses| address(addresses[version]));
            let outside = address(OUTSIDE_ADDRESSES[version]);
            // Allowed by a Kubernetes policy, with established packets behind the first.
            self.tcp(books, client, web, 80, 3)?;
            self.answered(books, client, web, 5000, 2)?;
            // Allowed from the web only: denied to others because no policy of the tier allows it.
            self.udp(books, web, db, 5432, 5)?;
            self.udp(books, client, db, 5432, 4)?;
            // Allowed by either member of a group.
            self.udp(books, client, db, 9001, 6)?;
            self.ping(books, client, db, 2)?;
            // Denied, allowed and passed by one policy.
            self.tcp(books, client, web, 23, 2)?;
            self.tcp(books, outside, db, 9100, 1)?;
            self.tcp(books, client, web, 8443, 1)?;
            // Denied on the way out; allowed to the client by its profile.
            self.udp(books, web, outside, 6000, 2)?;
            self.udp(books, web, client, 4000, 3)?;
            self.udp(books, client, outside, 53, 3)?;
        }
        // Blocked in the first tier, in and out.
        self.udp(books, address(BAD_SOURCE), address(WEB[0]), 80, 3)?;
        self.udp(books, address(WEB[0]), address(BAD_DESTINATION), 80, 2)
    }

    fn udp(
        &self,
        books: &mut Books<'_, impl FnMut()>,
        from: IpAddr,
        to: IpAddr,
        port: u16,
        packets: u32,
    ) -> Result<()> {
        let sender = self.sender(from);
        let sent = traffic::udp_as(sender, from, SocketAddr::new(to, port), packets, 1)?;
        books.book(from, to, (Protocol::Udp, port), (sent, traffic::udp_length(to, traffic::AS_PAYLOAD)));
        Ok(())
    }

    /// Three packets a flow; only the first of each is new.
    fn answered(
        &self,
        books: &mut Books<'_, impl FnMut()>,
        from: IpAddr,
        to: IpAddr,
        port: u16,
        flows: u32,
    ) -> Result<()> {
        traffic::udp_answered(self.sender(from), to, port, flows, 3, SOON)?;
        let length = traffic::udp_length(to, traffic::QUESTION.len());
        books.book(from, to, (Protocol::Udp, port), (flows.into(), length));
        Ok(())
    }

    fn tcp(
        &self,
        books: &mut Books<'_, impl FnMut()>,
        from: IpAddr,
        to: IpAddr,
        port: u16,
        count: u32,
    ) -> Result<()> {
        traffic::connect(self.sender(from), to, port, count, 1000)?;
        books.book(from, to, (Protocol::Tcp, port), (count.into(), traffic::syn_length(to)));
        Ok(())
    }

    fn ping(&self, books: &mut Books<'_, impl FnMut()>, from: IpAddr, to: IpAddr, count: u32) -> Result<()> {
        traffic::ping(self.sender(from), to, count, SOON)?;
        let protocol = if to.is_ipv4() { Protocol::Icmp(Some(8)) } else { Protocol::Icmpv6(Some(128)) };
        books.book(from, to, (protocol, 0), (count.into(), traffic::ping_length(to)));
        Ok(())
    }

    fn sender(&self, address: IpAddr) -> &crate::Namespace {
        let pod = self.node.pods().iter().find(|pod| pod.addresses.contains(&address));
        pod.map_or(self.node.outside(), |pod| &pod.netns)
    }
}

/// The truth as one model sees it.
struct Books<'a, F> {
    model: &'a Model,
    truth: &'a mut Truth,
    between: F,
}

impl<F: FnMut()> Books<'_, F> {
    /// Books so many packets of this length.
    fn book(
        &mut self,
        from: IpAddr,
        to: IpAddr,
        (protocol, port): (Protocol, u16),
        (packets, length): (u64, u64),
    ) {
        let packet = Packet { source: from, destination: to, protocol, port };
        self.truth.book(self.model, &packet, Counter::new(packets, packets * length));
        (self.between)();
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

fn net(text: &str, length: u8) -> Net {
    Net { address: address(text), length }
}
