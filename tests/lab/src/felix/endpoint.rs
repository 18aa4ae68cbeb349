//! Endpoint chains: `cali-tw-`, `cali-fw-` of a pod; `cali-th-`, `cali-fh-`, `cali-thfw-`, `cali-fhfw-` of the host.
//!
//! After `endpointIptablesChain` of `felix/rules/endpoints.go`. The order of the rules is the contract that the
//! accountant's arithmetic rests on: every jump is followed by its "Return if policy accepted".

use super::dialect::Version;
use super::draft::{Draft, L4, Match, Rule, Table, Target};
use super::groups::{self, Step};
use crate::policy::{Allow, Endpoint, HostEndpoint, Limits, OnHosts, PortRange, Protocol, TierEnd, TierUse};
use accountant_core::Direction;
use accountant_core::calico::names::limited;

/// What sets one kind of endpoint chain apart from the others.
struct Kind<'a> {
    table: Table,
    direction: Direction,
    /// What happens to packets of known connections; nothing in the raw table, which knows none.
    established: Option<Allow>,
    failsafe: Option<&'static str>,
    limits: Limits,
    /// Packets that leave a pod may not be tunnel packets.
    refuse_tunnels: bool,
    /// Whether undecided packets are denied at the end of a tier.
    denies: bool,
    /// The profiles, if what no policy applies to is denied.
    profiles: Option<&'a [String]>,
    untracked: bool,
}

impl Draft<'_> {
    /// The two chains of a pod.
    pub(crate) fn workload_chains(&mut self, endpoint: &Endpoint) {
        for (prefix, direction) in [("cali-tw-", Direction::Ingress), ("cali-fw-", Direction::Egress)] {
            let name = self.endpoint_chain_name(prefix, endpoint.interface.as_str());
            let kind = Kind {
                table: Table::Filter,
                direction,
                established: Some(self.model.settings.allow),
                failsafe: None,
                limits: endpoint.limits(direction),
                refuse_tunnels: direction == Direction::Egress,
                denies: true,
                profiles: Some(&endpoint.profiles),
                untracked: false,
            };
            let rules = if endpoint.admin_down {
                vec![Rule::always(self.deny(Table::Filter).0).comment("Endpoint admin disabled")]
            } else {
                self.endpoint_rules(&kind, &self.model.uses(endpoint, direction))
            };
            self.chain(Table::Filter, name, rules);
        }
    }

    /// All chains of a host endpoint, in the three tables.
    pub(crate) fn host_chains(&mut self, host: &HostEndpoint) {
        for (way, direction, failsafe) in
            [("t", Direction::Egress, "cali-failsafe-out"), ("f", Direction::Ingress, "cali-failsafe-in")]
        {
            let normal = Kind {
                table: Table::Filter,
                direction,
                established: Some(self.model.settings.allow),
                failsafe: Some(failsafe),
                limits: Limits::default(),
                refuse_tunnels: false,
                denies: true,
                profiles: Some(&[]),
                untracked: false,
            };
            let forward = Kind { failsafe: None, profiles: None, ..normal };
            let before_nat = Kind {
                table: Table::Mangle,
                established: Some(Allow::Accept),
                denies: false,
                profiles: None,
                ..normal
            };
            let after_nat = Kind { table: Table::Mangle, established: Some(Allow::Return), ..normal };
            let untracked = Kind {
                table: Table::Raw,
                established: None,
                denies: false,
                untracked: true,
                profiles: None,
                ..normal
            };

            self.host_chain(host, &format!("cali-{way}h-"), &normal, OnHosts::Normal);
            self.host_chain(host, &format!("cali-{way}hfw-"), &forward, OnHosts::Forward);
            self.host_chain(host, &format!("cali-{way}h-"), &untracked, OnHosts::Untracked);
            match direction {
                Direction::Ingress => self.host_chain(host, "cali-fh-", &before_nat, OnHosts::PreDnat),
                Direction::Egress if self.dialect.since(Version::V3_25) => {
                    self.host_chain(host, "cali-th-", &after_nat, OnHosts::Normal);
                }
                Direction::Egress => {}
            }
        }
    }

    fn host_chain(&mut self, host: &HostEndpoint, prefix: &str, kind: &Kind<'_>, at: OnHosts) {
        let uses = self.model.host_uses(host, kind.direction, at);
        let only_with_policies = matches!(at, OnHosts::PreDnat | OnHosts::Untracked);
        let never = host.is_wildcard() && at == OnHosts::Untracked;
        if never || (only_with_policies && uses.is_empty()) {
            return;
        }
        let rules = self.endpoint_rules(kind, &uses);
        let name = self.endpoint_chain_name(prefix, host.chain_name());
        self.chain(kind.table, name, rules);
    }

    pub(crate) fn endpoint_chain_name(&self, prefix: &str, endpoint: &str) -> String {
        limited(prefix, endpoint, self.dialect.endpoint_name_limit())
    }

    fn endpoint_rules(&mut self, kind: &Kind<'_>, uses: &[TierUse<'_>]) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.dialect.since(Version::V3_31) {
            self.limit_packets(kind, &mut rules);
        }
        if let Some(allow) = kind.established {
            self.established(kind, allow, &mut rules);
        }
        if let (Some(most), true) = (kind.limits.connections, self.dialect.since(Version::V3_31)) {
            let comment = format!("Reject connections over {} connection limit", kind.direction);
            let tcp = [Match::Protocol(Protocol::Tcp)];
            rules.push(Rule::new(tcp, Target::LimitConnections(most)).comment(comment));
        }
        if let Some(chain) = kind.failsafe {
            rules.push(Rule::always(Target::Jump(chain.to_string())));
        }
        let groups = self.dialect.since(Version::V3_28);
        let cleared = if groups { self.marks.verdicts() } else { self.marks.accept };
        rules.push(Rule::always(Target::ClearMark(cleared)));
        if kind.refuse_tunnels {
            self.refuse_tunnels(&mut rules);
        }
        if uses.is_empty() && kind.profiles.is_none() && !kind.untracked && kind.denies {
            let accept = Rule::always(Target::SetMark(self.marks.accept));
            rules.push(accept.comment("Allow forwarded traffic by default"));
            rules.push(Rule::always(Target::Return).comment("Return for accepted forward traffic"));
        }
        self.tiers(kind, uses, &mut rules);
        if let Some(profiles) = kind.profiles {
            self.profiles(kind, profiles, &mut rules);
        }
        rules
    }

    fn established(&self, kind: &Kind<'_>, allow: Allow, rules: &mut Vec<Rule>) {
        match allow {
            Allow::Accept => rules.push(Rule::new([Match::Established], Target::Accept)),
            Allow::Return => {
                rules.push(Rule::new([Match::Established], Target::SetMark(self.marks.accept)));
                rules.push(Rule::new([Match::Established], Target::Return));
            }
        }
        let invalid = if self.dialect.since(Version::V3_28) { self.deny(kind.table).0 } else { Target::Drop };
        rules.push(Rule::new([Match::Invalid], invalid));
    }

    fn limit_packets(&self, kind: &Kind<'_>, rules: &mut Vec<Rule>) {
        let Some((rate, burst)) = kind.limits.packets else { return };
        let (direction, bit) = (kind.direction, self.marks.scratch0);
        let over = format!("Drop packets over {direction} packet rate limit");
        if self.dialect.is_nft() {
            rules.push(Rule::always(Target::LimitPackets(rate, burst)).comment(over));
            return;
        }
        let clear =
            Rule::always(Target::ClearMark(bit)).comment(format!("Clear {direction} packet rate limit mark"));
        let within = Rule::new([Match::Within(rate, burst)], Target::SetMark(bit))
            .comment(format!("Mark packets within {direction} packet rate limit"));
        let drop = Rule::new([Match::MarkNotSet(bit)], Target::Drop).comment(over);
        rules.extend([clear.clone(), within, drop, clear]);
    }

    fn refuse_tunnels(&self, rules: &mut Vec<Rule>) {
        let from = if self.dialect.since(Version::V3_25) { "workloads" } else { "pods" };
        let refuse = |matches: Vec<Match>, what: &str| {
            let (deny, word) = self.deny(Table::Filter);
            Rule::new(matches, deny).comment(format!("{word} {what} encapped packets originating in {from}"))
        };
        let vxlan = vec![Match::ProtocolNumber(17), Match::Ports(L4::Udp, vec![PortRange::one(4789)])];
        rules.push(refuse(vxlan, "VXLAN"));
        rules.push(refuse(vec![Match::ProtocolNumber(4)], "IPinIP"));
    }

    fn tiers(&mut self, kind: &Kind<'_>, uses: &[TierUse<'_>], rules: &mut Vec<Rule>) {
        if self.dialect.since(Version::V3_29) {
            for tier in uses {
                self.tier(kind, tier, rules);
            }
        } else if let Some(first) = uses.first() {
            // Before tiers there was one list of policies.
            let policies = uses.iter().flat_map(|tier| tier.policies.clone()).collect();
            self.tier(kind, &TierUse { tier: first.tier, policies }, rules);
        }
    }

    fn tier(&mut self, kind: &Kind<'_>, tier: &TierUse<'_>, rules: &mut Vec<Rule>) {
        let marks = self.marks;
        let name = tier.tier.name.as_str();
        let steps = groups::steps(tier, self.dialect);
        if self.dialect.since(Version::V3_29) {
            rules.push(Rule::always(Target::ClearMark(marks.pass)).comment(format!("Start of tier {name}")));
        } else if !self.dialect.since(Version::V3_28) {
            rules.push(Rule::always(Target::ClearMark(marks.pass)).comment("Start of policies"));
        }
        for step in &steps {
            let chain = match step {
                Step::Policy(policy) => self.policy_chain(kind.table, tier.tier, policy, kind.direction),
                Step::Group(members) => self.group_chain(kind.table, tier.tier, members, kind.direction),
            };
            rules.push(Rule::new([Match::MarkClear(marks.pass)], Target::Jump(chain)));
            let accepted = [Match::MarkSet(marks.accept)];
            if kind.untracked {
                rules.push(Rule::new(accepted.clone(), Target::NoTrack));
            }
            rules.push(Rule::new(accepted, Target::Return).comment("Return if policy accepted"));
        }
        if !kind.denies {
            return;
        }
        let passes = self.dialect.since(Version::V3_29)
            && (tier.tier.end == TierEnd::Pass || steps.iter().all(|step| step.is_staged()));
        let undecided = [Match::MarkClear(marks.pass)];
        if let Some(nflog) =
            self.nflog(kind.direction, |d| format!("{}P{d}|{name}", if passes { 'P' } else { 'D' }))
        {
            rules.push(Rule::new(undecided.clone(), nflog));
        }
        if !passes {
            let (deny, word) = self.deny(kind.table);
            let mut comment = format!("{word} if no policies passed packet");
            if self.dialect.since(Version::V3_31) {
                comment = format!("End of tier {name}. {comment}");
            }
            rules.push(Rule::new(undecided, deny).comment(comment));
        }
    }

    fn profiles(&mut self, kind: &Kind<'_>, profiles: &[String], rules: &mut Vec<Rule>) {
        for profile in profiles {
            let chain = self.profile_chain(profile, kind.direction);
            rules.push(Rule::always(Target::Jump(chain)));
            let accepted = [Match::MarkSet(self.marks.accept)];
            rules.push(Rule::new(accepted, Target::Return).comment("Return if profile accepted"));
        }
        rules.extend(self.nflog(kind.direction, |d| format!("DR{d}")).map(Rule::always));
        let (deny, word) = self.deny(kind.table);
        rules.push(Rule::always(deny).comment(format!("{word} if no profiles matched")));
    }

    /// A flow log, if they are on. `prefix` gets the letter of the direction.
    pub(crate) fn nflog(&self, direction: Direction, prefix: impl FnOnce(char) -> String) -> Option<Target> {
        let on = self.model.settings.flow_logs && self.dialect.since(Version::V3_31);
        let (letter, group) = match direction {
            Direction::Ingress => ('I', 1),
            Direction::Egress => ('E', 2),
        };
        on.then(|| Target::Nflog { group, prefix: super::hash::nflog_prefix(&prefix(letter)) })
    }
}
