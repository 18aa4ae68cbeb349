//! Where the agent listens, and where it is reached from its own host.

use clap::Args;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where the agent listens.
#[derive(Clone, Debug, Args)]
pub struct ListenArgs {
    /// Address and port to serve on; can be given several times. Default: port 9009, or $METRICS_SERVER_PORT, on all
    /// addresses.
    #[arg(long, alias = "web.listen-address", env = "ACCOUNTANT_LISTEN_ADDRESS", value_name = "ADDR:PORT", value_delimiter = ',', value_parser = address)]
    pub listen_address: Vec<SocketAddr>,
    /// Port of the default listen address, as calico-accountant has it.
    #[arg(long, env = "METRICS_SERVER_PORT", hide = true, default_value_t = 9009)]
    pub metrics_server_port: u16,
}

impl ListenArgs {
    /// The addresses to serve on. With none given, both IP versions' wildcard of the port.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        if self.listen_address.is_empty() {
            vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, self.metrics_server_port))]
        } else {
            self.listen_address.clone()
        }
    }

    /// Where such an agent is reached from this host: a wildcard is all of its addresses, loopback among them.
    pub fn reached_at(&self) -> Vec<SocketAddr> {
        let reached = |address: SocketAddr| -> Vec<IpAddr> {
            match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => vec![Ipv4Addr::LOCALHOST.into()],
                IpAddr::V6(ip) if ip.is_unspecified() => {
                    vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
                }
                ip => vec![ip],
            }
        };
        let all = self.addresses().into_iter();
        all.flat_map(|at| reached(at).into_iter().map(move |ip| (ip, at.port()).into())).collect()
    }
}

/// As Prometheus' exporters take it: without an address, a port of all of them.
fn address(text: &str) -> Result<SocketAddr, String> {
    let wildcard = text.strip_prefix(':').map(|port| format!("[::]:{port}"));
    let parsed = wildcard.as_deref().unwrap_or(text).parse();
    parsed.map_err(|_| "write an address and a port, like 127.0.0.1:9009, [::1]:9009 or :9009".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_reached_where_it_listens() {
        let reached = |given: &[&str]| {
            let listen_address = given.iter().map(|text| address(text).unwrap()).collect();
            let listening = ListenArgs { listen_address, metrics_server_port: 7000 };
            listening.reached_at().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(reached(&[]), ["127.0.0.1:7000", "[::1]:7000"]);
        assert_eq!(reached(&[":9100"]), ["127.0.0.1:9100", "[::1]:9100"]);
        assert_eq!(
            reached(&["0.0.0.0:1", "192.0.2.1:2", "[::1]:3"]),
            ["127.0.0.1:1", "192.0.2.1:2", "[::1]:3"]
        );
    }
}
