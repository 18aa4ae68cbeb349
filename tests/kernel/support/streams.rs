//! Floods to the demo's pod `web`, of which the model says what becomes of each packet, and what a scrape says of them.

use super::lab::{arrived, prepend};
use super::{Scrape, Series};
use accountant_core::Counter;
use accountant_lab::Namespace;
use accountant_lab::policy::{Packet, Protocol, Rule, Truth};
use accountant_lab::scenario::{Scenario, demo};
use accountant_lab::traffic::{Flood, Flooded, Flooding, udp_length};
use std::net::IpAddr;

/// What the policy `web` allows.
pub const ALLOWED: u16 = 5000;
/// What no policy of the default tier allows.
pub const NOBODYS: u16 = 5999;
/// What a policy in a tier that ends in Pass denies.
pub const DENIED_IN_PASS_TIER: u16 = 23;
/// What the last policy of the default tier denies.
pub const DENIED_LAST: u16 = 24;
/// A flood tells its progress in steps of this many packets.
pub const STRIDE: u64 = 32;
/// Bytes of payload.
pub const SIZE: usize = 32;

/// The demo's shop, with denies of UDP in two tiers.
pub fn shop() -> Scenario {
    let mut scenario = demo();
    prepend(&mut scenario, ("", "platform.no-telnet"), Rule::deny().udp(&[DENIED_IN_PASS_TIER]));
    prepend(&mut scenario, ("shop", "web"), Rule::deny().udp(&[DENIED_LAST]));
    scenario
}

/// A flood to the pod `web`, and where it comes from.
pub struct Stream {
    pub source: IpAddr,
    to: IpAddr,
    port: u16,
    /// The other port, and how many packets there are for each that goes there.
    other: Option<(u16, u64)>,
    pub flooding: Flooding,
}

impl Stream {
    pub fn start(from: &Namespace, (source, to): (IpAddr, IpAddr), flood: Flood) -> Self {
        Self { source, to, port: flood.port, other: flood.other, flooding: flood.start(from) }
    }

    /// So many packets at most were sent by now.
    pub fn most(&self) -> u64 {
        self.flooding.sent() + STRIDE
    }

    /// So many packets at most were sent to the other port by now.
    pub fn most_others(&self) -> u64 {
        self.other.map_or(0, |(_, every)| self.most() / every + 1)
    }

    /// Waits for its end and books what it sent.
    pub fn finish(self, scenario: &Scenario, truth: &mut Truth) -> u64 {
        let Self { source, to, port, other, flooding } = self;
        book(scenario, truth, (source, to, port, other), arrived(flooding.finish().unwrap()))
    }

    /// Ends it and books what it sent.
    pub fn stop(self, scenario: &Scenario, truth: &mut Truth) -> u64 {
        let Self { source, to, port, other, flooding } = self;
        book(scenario, truth, (source, to, port, other), arrived(flooding.stop().unwrap()))
    }
}

fn book(
    scenario: &Scenario,
    truth: &mut Truth,
    (source, destination, port, other): (IpAddr, IpAddr, u16, Option<(u16, u64)>),
    sent: Flooded,
) -> u64 {
    let other = other.map_or(0, |(port, _)| port);
    for (port, packets) in [(port, sent.usual), (other, sent.other)] {
        let packet = Packet { source, destination, protocol: Protocol::Udp, port };
        if packets > 0 {
            let sent = Counter::new(packets, packets * udp_length(destination, SIZE));
            truth.book(&scenario.model, &packet, sent);
        }
    }
    sent.usual + sent.other
}

/// Denied packets of a scrape, by who denied them.
#[derive(Debug, Default, PartialEq)]
pub struct Denied {
    pub no_policy: f64,
    pub pass_tier: f64,
    pub last: f64,
    pub other: f64,
    pub unattributed: f64,
}

impl Denied {
    /// What may have been denied by now: no more than was sent.
    pub fn most(streams: &[Stream; 3]) -> Self {
        let [no_policy, pass_tier, last] = streams;
        Self {
            no_policy: no_policy.most_others() as f64,
            pass_tier: pass_tier.most_others() as f64,
            last: last.most() as f64,
            ..Self::default()
        }
    }

    /// Whether nothing is more than in `most`.
    pub fn fits(&self, most: &Self) -> bool {
        self.no_policy <= most.no_policy
            && self.pass_tier <= most.pass_tier
            && self.last <= most.last
            && self.other <= most.other
            && self.unattributed <= most.unattributed
    }

    pub fn of(scrape: &Scrape) -> Self {
        let policy = |labels: &[(&str, &str)]| {
            let deny = [&[("action", "deny")], labels].concat();
            scrape.sum("calico_accountant_policy_packets_total", &deny)
        };
        let (no_policy, pass_tier, last) = (
            scrape.sum("calico_accountant_default_deny_packets_total", &[("reason", "no_policy")]),
            policy(&[("policy", "platform.no-telnet")]),
            policy(&[("policy", "web")]),
        );
        let all = [
            scrape.sum("calico_accountant_default_deny_packets_total", &[]),
            policy(&[]),
            scrape.sum("calico_accountant_profile_packets_total", &[("action", "deny")]),
            scrape.sum("calico_accountant_endpoint_chain_packets_total", &[("verdict", "dropped")]),
        ];
        let other = all.iter().sum::<f64>() - no_policy - pass_tier - last;
        let old = scrape.sum("no_policy_drop_counter", &[]) + scrape.sum("policy_accept_drop_counter", &[]);
        assert_eq!(old, no_policy + pass_tier + last, "the old metrics agree with ours");
        let unattributed = scrape.sum("calico_accountant_unattributed_packets_total", &[]);
        Self { no_policy, pass_tier, last, other, unattributed }
    }
}

/// All packets of a scrape, for whoever looks into a failure.
pub fn moved(scrape: &Scrape) -> Vec<(&Series, &f64)> {
    let packets = |series: &Series| series.0.ends_with("_packets_total");
    scrape.series.iter().filter(|(series, value)| packets(series) && **value > 0.0).collect()
}
