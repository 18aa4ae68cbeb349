//! The chains that every node has: the hooks and what leads from them to the endpoints.
//!
//! After `felix/rules/static.go`. Left out, because the lab has none of it: tunnels between hosts, WireGuard, IPVS,
//! floating IPs, masquerade, DSCP.

use super::dialect::Version;
use super::draft::{Chain, Draft, L4, Match, Rule, Table, Target};
use crate::policy::{PortRange, Protocol, ToHost};
use accountant_core::{Direction, IpVersion};

/// ICMPv6 that a node must get from its pods to work at all: multicast listeners, router and neighbour discovery.
const NEIGHBOURHOOD: [u8; 6] = [130, 131, 132, 133, 135, 136];

impl Draft<'_> {
    pub(crate) fn fixed_chains(&mut self) {
        self.filter_chains();
        self.raw_chains();
        self.mangle_chains();
        self.nat_chains();
    }

    fn hook(&mut self, table: Table, name: &str, target: &str) {
        self.chain(table, name, vec![jump([], target)]);
    }

    fn filter_chains(&mut self) {
        let marks = self.marks;
        let accepted = || vec![Match::MarkSet(marks.accept)];
        let ours =
            || Rule::new(accepted(), self.final_accept()).comment("Host endpoint policy accepted packet.");
        let explicit =
            Rule::new(accepted(), self.final_accept()).comment("Policy explicitly accepted packet.");
        let appends = self.dialect.since(Version::V3_25);

        let mut base = vec![jump([], "cali-FORWARD")];
        let mut forward = vec![Rule::always(Target::ClearMark(marks.pass | marks.scratch()))];
        forward.push(jump([Match::MarkClear(marks.accept)], "cali-from-hep-forward"));
        for prefix in &self.model.settings.prefixes {
            forward.push(jump([Match::In(format!("{prefix}+"))], "cali-from-wl-dispatch"));
            forward.push(jump([Match::Out(format!("{prefix}+"))], "cali-to-wl-dispatch"));
        }
        forward.push(jump([], "cali-to-hep-forward"));
        if appends {
            forward.push(jump([], "cali-cidr-block"));
            base.extend([explicit, Rule::always(Target::SetMark(marks.accept))]);
        } else {
            forward.push(explicit);
        }

        let mut input = Vec::new();
        for prefix in &self.model.settings.prefixes {
            let from_workload = [Match::In(format!("{prefix}+"))];
            input.push(Rule::new(from_workload, Target::Goto("cali-wl-to-host".to_string())));
        }
        input.push(Rule::new(accepted(), self.final_accept()));
        input.push(Rule::always(Target::ClearMark(marks.all())));
        input.push(jump([], "cali-from-host-endpoint"));
        input.push(ours());

        let mut output = vec![Rule::new(accepted(), self.final_accept())];
        for prefix in &self.model.settings.prefixes {
            output.push(Rule::new([Match::Out(format!("{prefix}+"))], Target::Return));
        }
        output.push(Rule::always(Target::ClearMark(marks.all())));
        let not_nat = appends.then_some(Match::Dnat(false));
        output.push(jump(Vec::from_iter(not_nat), "cali-to-host-endpoint"));
        output.push(ours());

        let to_host = self.to_host_rules();
        self.chains.insert(
            (Table::Filter, "FORWARD".to_string()),
            Chain { appended: (base.len() > 1).then_some(1), rules: base },
        );
        self.hook(Table::Filter, "INPUT", "cali-INPUT");
        self.hook(Table::Filter, "OUTPUT", "cali-OUTPUT");
        self.chain(Table::Filter, "cali-FORWARD", forward);
        self.chain(Table::Filter, "cali-INPUT", input);
        self.chain(Table::Filter, "cali-OUTPUT", output);
        self.chain(Table::Filter, "cali-wl-to-host", to_host);
        self.chain(Table::Filter, "cali-cidr-block", Vec::new());
    }

    fn final_accept(&self) -> Target {
        match self.model.settings.allow {
            crate::policy::Allow::Accept => Target::Accept,
            crate::policy::Allow::Return => Target::Return,
        }
    }

    fn to_host_rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.version == IpVersion::V6 {
            rules.extend(NEIGHBOURHOOD.map(|kind| {
                let icmp = [Match::ProtocolNumber(58), Match::Icmpv6Type(kind)];
                Rule::new(icmp, Target::Accept)
            }));
        }
        rules.push(jump([], "cali-from-wl-dispatch"));
        let configured = match self.model.settings.to_host {
            ToHost::Drop => self.deny(Table::Filter).0,
            ToHost::Accept => Target::Accept,
            ToHost::Return => Target::Return,
        };
        rules.push(Rule::always(configured).comment("Configured DefaultEndpointToHostAction"));
        rules
    }

    fn raw_chains(&mut self) {
        let marks = self.marks;
        let from_workload = Match::MarkSet(marks.scratch0);
        let accept = Rule::new([Match::MarkSet(marks.accept)], Target::Accept);
        let mut incoming = vec![Rule::always(Target::ClearMark(marks.all()))];
        for prefix in &self.model.settings.prefixes {
            let matches = [Match::In(format!("{prefix}+"))];
            incoming.push(Rule::new(matches, Target::SetMark(marks.scratch0)));
        }
        if self.dialect.since(Version::V3_25) {
            incoming.push(jump([from_workload.clone()], "cali-rpf-skip"));
        }
        incoming.push(Rule::new([from_workload, Match::ReversePathFails], Target::Drop));
        incoming.push(jump([Match::MarkClear(marks.scratch0)], "cali-from-host-endpoint"));
        incoming.push(accept.clone());
        let clear = Rule::always(Target::ClearMark(marks.all()));
        let outgoing = vec![clear, jump([], "cali-to-host-endpoint"), accept];

        self.hook(Table::Raw, "PREROUTING", "cali-PREROUTING");
        self.hook(Table::Raw, "OUTPUT", "cali-OUTPUT");
        self.chain(Table::Raw, "cali-PREROUTING", incoming);
        self.chain(Table::Raw, "cali-OUTPUT", outgoing);
        self.chain(Table::Raw, "cali-rpf-skip", Vec::new());
    }

    fn mangle_chains(&mut self) {
        let marks = self.marks;
        let accepted = || vec![Match::MarkSet(marks.accept)];
        let ours = |target| Rule::new(accepted(), target).comment("Host endpoint policy accepted packet.");
        let incoming = vec![
            Rule::new([Match::Established], Target::Accept),
            Rule::new(accepted(), Target::Accept),
            jump([], "cali-from-host-endpoint"),
            ours(Target::Accept),
        ];
        self.hook(Table::Mangle, "PREROUTING", "cali-PREROUTING");
        self.chain(Table::Mangle, "cali-PREROUTING", incoming);
        if self.dialect.since(Version::V3_25) {
            let leaving = vec![
                Rule::new(accepted(), Target::Return),
                Rule::always(Target::ClearMark(marks.all())),
                jump([Match::Dnat(true)], "cali-to-host-endpoint"),
                ours(Target::Return),
            ];
            self.hook(Table::Mangle, "POSTROUTING", "cali-POSTROUTING");
            self.chain(Table::Mangle, "cali-POSTROUTING", leaving);
        }
    }

    fn nat_chains(&mut self) {
        for (hook, chains) in [
            ("PREROUTING", &["cali-fip-dnat"][..]),
            ("OUTPUT", &["cali-fip-dnat"]),
            ("POSTROUTING", &["cali-fip-snat", "cali-nat-outgoing"]),
        ] {
            self.hook(Table::Nat, hook, &format!("cali-{hook}"));
            self.chain(
                Table::Nat,
                format!("cali-{hook}"),
                chains.iter().map(|next| jump([], next)).collect(),
            );
        }
        for empty in ["cali-fip-dnat", "cali-fip-snat", "cali-nat-outgoing"] {
            self.chain(Table::Nat, empty, Vec::new());
        }
    }

    /// The ports that no policy can close. The raw table, which knows no connections, lists the answers too.
    pub(crate) fn failsafe(&self, table: Table, direction: Direction) -> (&'static str, Vec<Rule>) {
        let settings = &self.model.settings;
        let (name, ports, answers) = match direction {
            Direction::Ingress => ("cali-failsafe-in", &settings.failsafe_in, &settings.failsafe_out),
            Direction::Egress => ("cali-failsafe-out", &settings.failsafe_out, &settings.failsafe_in),
        };
        let open = |(protocol, port): &(Protocol, u16), side: fn(L4, Vec<PortRange>) -> Match| {
            let l4 = if *protocol == Protocol::Udp { L4::Udp } else { L4::Tcp };
            let matches = [Match::Protocol(*protocol), side(l4, vec![PortRange::one(*port)])];
            Rule::new(matches, Target::Accept)
        };
        let mut rules: Vec<Rule> = ports.iter().map(|port| open(port, Match::Ports)).collect();
        if table == Table::Raw {
            rules.extend(answers.iter().map(|port| open(port, Match::SourcePorts)));
        }
        (name, rules)
    }
}

fn jump(matches: impl Into<Vec<Match>>, chain: &str) -> Rule {
    Rule::new(matches, Target::Jump(chain.to_string()))
}
