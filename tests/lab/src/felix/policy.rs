//! Policy and profile chains: `cali-pi-`, `cali-po-`, `cali-pri-`, `cali-pro-`.
//!
//! After `felix/rules/policy.go`. A rule of the model becomes a helper or two where it matches more than one rule of
//! the packet filter can say ("match blocks"), then what sets the verdict's mark, then what acts on the mark.

use super::dialect::Version;
use super::draft::{Draft, L4, Match, Rule, Table, Target};
use super::groups::stored_name;
use crate::policy::{self, Action, Net, Policy, PortRange, Protocol, Tier};
use accountant_core::Direction;
use accountant_core::calico::names::{limited, policy_prefix, profile_prefix};
use accountant_core::calico::policy::Generation;

/// How many ports one multiport match holds; a range counts twice.
const MOST_PORTS: usize = 15;

/// Who owns the rules of a chain, as comments and flow logs say it.
struct Owner {
    /// The naming comment, without the direction.
    comment: String,
    letter: char,
    log_id: String,
    direction: Direction,
    /// The table that the chain is in. Flow logs know nothing of raw.
    table: Table,
}

impl Draft<'_> {
    /// The chain of a policy, made if it is not there yet.
    pub(crate) fn policy_chain(
        &mut self,
        table: Table,
        tier: &Tier,
        policy: &Policy,
        direction: Direction,
    ) -> String {
        let generation = self.dialect.generation();
        let ids = policy.id.hashed_ids(&tier.name);
        let id = ids.into_iter().find(|id| id.generation == generation).map(|id| id.text).unwrap_or_default();
        let chain = limited(policy_prefix(direction), &id, self.dialect.policy_name_limit());
        if !self.chains.contains_key(&(table, chain.clone())) {
            let stored = stored_name(policy, tier);
            let (comment, log_id) = match generation {
                Generation::C => (format!("{} {}", policy.id.kind, after_kind(&id)), id),
                Generation::A | Generation::B => (format!("Policy {stored}"), stored),
            };
            let owner = Owner { comment, letter: 'P', log_id, direction, table };
            let rules = self.owned_rules(&owner, policy.rules(direction).unwrap_or_default());
            self.chain(table, chain.clone(), rules);
        }
        chain
    }

    /// The chain of a profile of this name, made if it is not there yet.
    pub(crate) fn profile_chain(&mut self, name: &str, direction: Direction) -> String {
        let chain = limited(profile_prefix(direction), name, self.dialect.policy_name_limit());
        if !self.chains.contains_key(&(Table::Filter, chain.clone())) {
            let profile = self.model.profiles.iter().find(|profile| profile.name == name);
            let (comment, log_id) = (format!("Profile {name}"), name.to_string());
            let owner = Owner { comment, letter: 'R', log_id, direction, table: Table::Filter };
            let rules = self.owned_rules(&owner, profile.map_or(&[], |profile| profile.rules(direction)));
            self.chain(Table::Filter, chain.clone(), rules);
        }
        chain
    }

    fn owned_rules(&self, owner: &Owner, rules: &[policy::Rule]) -> Vec<Rule> {
        let mut written = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            if let Some(rule) = rule.in_version(self.version) {
                let first = written.len();
                self.one_rule(owner, index, &rule, &mut written);
                for made in &mut written[first..] {
                    made.comments
                        .extend(rule.annotations.iter().map(|(key, value)| format!("{key}={value}")));
                }
            }
        }
        if self.dialect.since(Version::V3_28) {
            while written.last().is_some_and(|rule| matches!(rule.target, Target::Return)) {
                written.pop();
            }
        }
        if self.dialect.since(Version::V3_25) {
            if written.is_empty() {
                written.push(Rule::always(Target::Nothing));
            }
            if let Some(first) = written.first_mut() {
                first.comments.push(format!("{} {}", owner.comment, owner.direction));
            }
        }
        written
    }

    fn one_rule(&self, owner: &Owner, index: usize, rule: &policy::Rule, written: &mut Vec<Rule>) {
        let marks = self.marks;
        let matches = self.conditions(rule, written);
        let marked = |bit| vec![Match::MarkSet(bit)];
        let log = |letter: char| {
            let prefix = |d| format!("{letter}{}{d}{index}|{}", owner.letter, owner.log_id);
            (owner.table != Table::Raw).then(|| self.nflog(owner.direction, prefix)).flatten()
        };
        match rule.action {
            Action::Allow | Action::Pass => {
                let (bit, letter) =
                    if rule.action == Action::Allow { (marks.accept, 'A') } else { (marks.pass, 'P') };
                written.push(Rule::new(matches, Target::SetMark(bit)));
                written.extend(log(letter).map(|target| Rule::new(marked(bit), target)));
                written.push(Rule::new(marked(bit), Target::Return));
            }
            Action::Deny if marks.drop != 0 => {
                written.push(Rule::new(matches, Target::SetMark(marks.drop)));
                written.extend(log('D').map(|target| Rule::new(marked(marks.drop), target)));
                written.push(Rule::new(marked(marks.drop), self.deny(owner.table).0));
            }
            Action::Deny => written.push(Rule::new(matches, self.deny(owner.table).0)),
            Action::Log => written.push(Rule::new(matches, Target::Log)),
        }
    }

    /// What a rule matches; what does not fit into one rule goes before it, as blocks that leave a mark.
    fn conditions(&self, rule: &policy::Rule, written: &mut Vec<Rule>) -> Vec<Match> {
        let mut blocks = Blocks { scratch: self.marks, written, used: 0 };
        let l4 = if rule.protocol == Protocol::Udp { L4::Udp } else { L4::Tcp };

        let source = |net: &Net| vec![Match::Source(*net)];
        let inline_source = blocks.unless_one(rule.source.nets.iter().map(source).collect());

        let mut port_matches: Vec<Vec<Match>> = chunks(&rule.ports)
            .into_iter()
            .map(|ports| vec![Match::Protocol(rule.protocol), Match::Ports(l4, ports)])
            .collect();
        port_matches.extend(rule.port_set.iter().map(|id| vec![Match::DestinationPortSet(self.set(id))]));
        let mut inline_ports = blocks.unless_one(port_matches);
        inline_ports.retain(|condition| !matches!(condition, Match::Protocol(_)));

        let destination = |net: &Net| vec![Match::Destination(*net)];
        let inline_destination = blocks.unless_one(rule.destination.nets.iter().map(destination).collect());
        let blocked = blocks.used > 0;

        let mut matches = Vec::new();
        if rule.protocol != Protocol::Any {
            matches.push(Match::Protocol(rule.protocol));
        }
        matches.extend(inline_source);
        matches.extend(rule.source.set.iter().map(|id| Match::SourceSet(self.set(id))));
        matches.extend(inline_destination);
        matches.extend(rule.destination.set.iter().map(|id| Match::DestinationSet(self.set(id))));
        matches.extend(inline_ports);
        match rule.protocol {
            Protocol::Icmp(Some(kind)) => matches.push(Match::IcmpType(kind)),
            Protocol::Icmpv6(Some(kind)) => matches.push(Match::Icmpv6Type(kind)),
            _ => {}
        }
        matches.extend(rule.source.not_nets.iter().copied().map(Match::NotSource));
        matches.extend(rule.destination.not_nets.iter().copied().map(Match::NotDestination));
        matches.extend(chunks(&rule.not_ports).into_iter().map(|ports| Match::NotPorts(l4, ports)));
        matches.extend(blocked.then_some(Match::MarkSet(self.marks.scratch0)));
        matches
    }

    /// What the kernel calls a set of the model.
    pub(crate) fn set(&self, id: &str) -> String {
        let name = format!("cali{}0{id}", self.version);
        if self.dialect.is_nft() { name.replace(':', "-") } else { name }
    }
}

/// Match blocks: each says "one of these", by setting a mark; the first sets the mark of "all blocks so far", a later
/// one sets its own and clears the first where it failed.
struct Blocks<'a> {
    scratch: super::dialect::Marks,
    written: &'a mut Vec<Rule>,
    used: usize,
}

impl Blocks<'_> {
    /// The alternatives as one condition if there is at most one of them; else as a block, and no condition.
    fn unless_one(&mut self, mut alternatives: Vec<Vec<Match>>) -> Vec<Match> {
        if alternatives.len() < 2 {
            return alternatives.pop().unwrap_or_default();
        }
        let (all, this) = (self.scratch.scratch0, self.scratch.scratch1);
        let first = self.used == 0;
        self.used += 1;
        self.written.push(Rule::always(if first {
            Target::MaskMark(all | this)
        } else {
            Target::ClearMark(this)
        }));
        let mark = if first { all } else { this };
        self.written.extend(alternatives.into_iter().map(|one| Rule::new(one, Target::SetMark(mark))));
        if !first {
            self.written.push(Rule::new([Match::MarkClear(this)], Target::ClearMark(all)));
        }
        Vec::new()
    }
}

/// The ports in portions that fit into one match.
fn chunks(ports: &[PortRange]) -> Vec<Vec<PortRange>> {
    let mut chunks: Vec<Vec<PortRange>> = Vec::new();
    let mut room = 0;
    for range in ports {
        let takes = if range.first == range.last { 1 } else { 2 };
        match chunks.last_mut() {
            Some(last) if takes <= room => last.push(*range),
            _ => {
                chunks.push(vec![*range]);
                room = MOST_PORTS;
            }
        }
        room -= takes;
    }
    chunks
}

/// `KIND/NAMESPACE/NAME` without the kind.
fn after_kind(id: &str) -> &str {
    id.split_once('/').map_or(id, |(_, rest)| rest)
}
