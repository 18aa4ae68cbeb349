//! A second writer of the packet filter: rules of the shapes that kube-proxy writes, synced again and again.
//!
//! With iptables it has chains of its own in `filter` and `nat`, in the very tables that Calico uses, and each sync
//! restores both (`--noflush --counters`, as in pkg/proxy/iptables of Kubernetes 1.34). With nftables it has a table of
//! its own, `ip kube-proxy` (pkg/proxy/nftables), and all that is shared is the kernel's generation.
//!
//! Nothing of it decides about packets of the lab: no address of a service is sent to.

use crate::felix::Backend;
use crate::{Namespace, Result};
use std::fmt::Write;

/// Rules of one service with two endpoints, in iptables.
const RULES_OF_A_SERVICE: usize = 8;

/// Writes them into one namespace.
#[derive(Debug)]
pub struct KubeProxy {
    node: Namespace,
    backend: Backend,
    services: usize,
    /// How often it has synced.
    pub syncs: usize,
}

impl KubeProxy {
    /// With about so many rules.
    pub fn new(node: &Namespace, backend: Backend, rules: usize) -> Self {
        Self { node: node.clone(), backend, services: rules.div_ceil(RULES_OF_A_SERVICE), syncs: 0 }
    }

    /// Writes all of it anew; each time one service has other endpoints.
    pub fn sync(&mut self) -> Result<()> {
        let moved = self.syncs % self.services;
        let first = self.syncs == 0;
        self.syncs += 1;
        let tool = match self.backend {
            Backend::Legacy => "iptables-legacy-restore",
            Backend::IptablesNft => "iptables-nft-restore",
            Backend::Nft => {
                let text = nftables(self.services, moved);
                return self.node.feed("nft", &["-f", "-"], &text).map(drop);
            }
        };
        let text = iptables(self.services, moved);
        self.node.feed(tool, &["--wait", "--noflush", "--counters"], &text)?;
        match first {
            // The jumps from the kernel's chains are made once, one by one.
            true => self.jump(tool.trim_end_matches("-restore")),
            false => Ok(()),
        }
    }

    fn jump(&self, tool: &str) -> Result<()> {
        for (table, chain, target) in [
            ("filter", "FORWARD", "KUBE-FORWARD"),
            ("filter", "INPUT", "KUBE-NODEPORTS"),
            ("filter", "OUTPUT", "KUBE-SERVICES"),
            ("nat", "PREROUTING", "KUBE-SERVICES"),
            ("nat", "OUTPUT", "KUBE-SERVICES"),
            ("nat", "POSTROUTING", "KUBE-POSTROUTING"),
        ] {
            self.node.run(tool, &["--wait", "-t", table, "-A", chain, "-j", target])?;
        }
        Ok(())
    }
}

/// Address of a service, and of one of its endpoints.
fn service(number: usize) -> String {
    format!("10.97.{}.{}", number / 256, number % 256)
}

fn endpoint(service: usize, which: usize, moved: usize) -> String {
    format!("10.{}.{}.{}", if service == moved { 99 } else { 98 } + 2 * which, service / 256, service % 256)
}

/// What is in front of the services' rules in each table, as it is restored.
const FILTER: &str = "*filter\n:KUBE-FORWARD - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-SERVICES - [0:0]\n\
    -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -m comment --comment \"kubernetes forwarding rules\" -j ACCEPT\n\
    -A KUBE-NODEPORTS -p tcp -m tcp --dport 30000 -m comment --comment \"health check\" -j ACCEPT\n";
const NAT: &str = "*nat\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-SERVICES - [0:0]\n\
    -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
    -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
    -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
    -A KUBE-POSTROUTING -j MASQUERADE\n";

fn iptables(services: usize, moved: usize) -> String {
    let (mut filter, mut chains, mut rules) = (FILTER.to_string(), NAT.to_string(), String::new());
    for number in 0..services {
        let (address, comment) =
            (service(number), format!("-m comment --comment \"shop/svc-{number}:http\""));
        // Some services have no endpoint.
        if number % 10 == 9 {
            let _ = writeln!(
                filter,
                "-A KUBE-SERVICES -d {address}/32 -p tcp {comment} -m tcp --dport 80 -j REJECT"
            );
        }
        let _ = writeln!(chains, ":KUBE-SVC-{number:016X} - [0:0]");
        let _ = writeln!(
            rules,
            "-A KUBE-SERVICES -d {address}/32 -p tcp {comment} -m tcp --dport 80 -j KUBE-SVC-{number:016X}\n\
             -A KUBE-SVC-{number:016X} ! -s 10.0.0.0/8 -d {address}/32 -p tcp {comment} -m tcp --dport 80 -j KUBE-MARK-MASQ"
        );
        for which in 0..2 {
            let (chain, to) = (format!("KUBE-SEP-{number:015X}{which}"), endpoint(number, which, moved));
            let chance = if which == 0 { "-m statistic --mode random --probability 0.5 " } else { "" };
            let _ = writeln!(chains, ":{chain} - [0:0]");
            let _ = writeln!(
                rules,
                "-A KUBE-SVC-{number:016X} {comment} {chance}-j {chain}\n\
                 -A {chain} -s {to}/32 {comment} -j KUBE-MARK-MASQ\n\
                 -A {chain} -p tcp {comment} -m tcp -j DNAT --to-destination {to}:8080"
            );
        }
    }
    format!("{filter}COMMIT\n{chains}{rules}COMMIT\n")
}

fn nftables(services: usize, moved: usize) -> String {
    let mut text = String::from(
        "add table ip kube-proxy\n\
         add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority dstnat; }\n\
         add chain ip kube-proxy services\n\
         add chain ip kube-proxy mark-for-masquerade\n\
         add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }\n\
         flush map ip kube-proxy service-ips\n\
         flush chain ip kube-proxy nat-prerouting\n\
         flush chain ip kube-proxy services\n\
         flush chain ip kube-proxy mark-for-masquerade\n\
         add rule ip kube-proxy nat-prerouting jump services\n\
         add rule ip kube-proxy mark-for-masquerade meta mark set meta mark or 0x4000\n\
         add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips\n",
    );
    for number in 0..services {
        let (address, chain) = (service(number), format!("service-{number:08X}/shop/svc-{number}/tcp/http"));
        let _ = writeln!(
            text,
            "add chain ip kube-proxy {chain}\nflush chain ip kube-proxy {chain}\n\
             add rule ip kube-proxy {chain} ip daddr {address} tcp dport 80 ip saddr != 10.0.0.0/8 jump mark-for-masquerade"
        );
        for which in 0..2 {
            let to = endpoint(number, which, moved);
            let _ = writeln!(
                text,
                "add rule ip kube-proxy {chain} numgen random mod 2 {which} tcp dport 80 dnat to {to}:8080"
            );
        }
        let _ =
            writeln!(text, "add element ip kube-proxy service-ips {{ {address} . tcp . 80 : goto {chain} }}");
    }
    text
}
