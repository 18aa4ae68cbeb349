//! Decoding rules of nf_tables: those of iptables-nft, which wrap xtables matches and targets, and Felix' own.
//!
//! Source: `enum nft_rule_attributes` and the expressions of `include/uapi/linux/netfilter/nf_tables.h`; the comment is
//! in the user data as libnftnl keeps it (`NFTNL_UDATA_RULE_COMMENT`, type 0). Attributes are big endian (the bindings
//! convert), registers hold host byte order: marks and conntrack states are read as they are.
//!
//! Invariant: total. An expression that is not known counts as "has other matches", or as "does something else".

use crate::xtables;
use accountant_core::rule::{Action, MarkMatch, Matches, Rule};
use accountant_core::{ChainName, Counter, Table};
use netlink_bindings::nftables::{
    BitwiseOps, CmpOps, CtKeys, DataAttrs, ExprAttrs, ExprListAttrs, ExprOps, IterableExprBitwiseAttrs,
    IterableExprCmpAttrs, IterableExprCounterAttrs, IterableExprImmediateAttrs, IterableExprListAttrs,
    IterableExprMetaAttrs, IterableLogAttrs, IterableRuleAttrs, MetaKeys, RuleAttrs, VerdictCode,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A rule as a message tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleMessage {
    /// The kernel's number of it, unique in its table.
    pub handle: u64,
    /// The handle of the rule before it, in notifications of new rules.
    pub position: Option<u64>,
    /// The rule.
    pub rule: Rule,
    /// Its counter; zero if it has none.
    pub counter: Counter,
}

/// Table and chain that a rule message is about, as the kernel names them.
pub(crate) fn place<'a>(attributes: &IterableRuleAttrs<'a>) -> Option<(&'a str, &'a str)> {
    let table = attributes.get_table().ok()?.to_str().ok()?;
    let chain = attributes.get_chain().ok()?.to_str().ok()?;
    Some((table, chain))
}

/// The payload of a NEWRULE or DELRULE message, behind the `nfgenmsg`.
///
/// `native` tells that chains have the table-layer prefix of Felix' own tables.
pub fn decode(payload: &[u8], native: bool) -> Option<RuleMessage> {
    message(&RuleAttrs::new(payload), native)
}

pub(crate) fn message(attributes: &IterableRuleAttrs<'_>, native: bool) -> Option<RuleMessage> {
    let mut reader = Reader { native, ..Reader::default() };
    let mut handle = None;
    let mut position = None;
    for attribute in *attributes {
        match attribute.ok()? {
            RuleAttrs::Handle(number) => handle = Some(number),
            RuleAttrs::Position(number) => position = Some(number),
            RuleAttrs::Userdata(data) => reader.comments.extend(comment(data)),
            RuleAttrs::Expressions(list) => {
                for (name, data) in expressions(&list) {
                    reader.expression(name, data);
                }
            }
            _ => {}
        }
    }
    let (rule, counter) = reader.finish();
    Some(RuleMessage { handle: handle?, position, rule, counter })
}

/// Which of Felix' tables a chain of its native table stands for, and the chain's name there.
pub(crate) fn split_layer(chain: &str) -> Option<(Table, &str)> {
    Table::ALL
        .into_iter()
        .find_map(|table| Some((table, chain.strip_prefix(table.as_str())?.strip_prefix('-')?)))
}

type Expression<'a> = (&'a str, Option<ExprOps<'a>>);

fn expressions<'a>(list: &IterableExprListAttrs<'a>) -> impl Iterator<Item = Expression<'a>> + use<'a> {
    list.map_while(Result::ok).map(|element| {
        let ExprListAttrs::Elem(expression) = element;
        let mut name = "";
        let mut data = None;
        for attribute in expression.map_while(Result::ok) {
            match attribute {
                ExprAttrs::Name(text) => name = text.to_str().unwrap_or_default(),
                ExprAttrs::Data(operation) => data = Some(operation),
            }
        }
        (name, data)
    })
}

fn counter_of(counter: &IterableExprCounterAttrs<'_>) -> Option<Counter> {
    Some(Counter::new(counter.get_packets().ok()?, counter.get_bytes().ok()?))
}

/// The comment in a rule's user data: type, length, text with a zero at its end, one behind the other.
fn comment(data: &[u8]) -> Option<Box<str>> {
    let mut rest = data;
    while let [kind, length, tail @ ..] = rest {
        let value = tail.get(..usize::from(*length))?;
        if *kind == 0 {
            return xtables::text(value).map(Into::into);
        }
        rest = &tail[value.len()..];
    }
    None
}

/// What a register holds at this point of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    /// `(mark & mask) ^ flip`
    Mark { mask: u32, flip: u32 },
    /// `state & mask`
    CtState { mask: u32 },
    /// A constant.
    Value(u32),
}

#[derive(Default)]
struct Reader {
    native: bool,
    comments: Vec<Box<str>>,
    matches: Matches,
    action: Option<Action>,
    counter: Option<Counter>,
    registers: Vec<(u32, Register)>,
    content: u64,
}

impl Reader {
    fn expression(&mut self, name: &str, data: Option<ExprOps<'_>>) {
        self.content = xxh3_64_with_seed(name.as_bytes(), self.content);
        match data {
            Some(ExprOps::Counter(counter)) => self.counter = self.counter.or_else(|| counter_of(&counter)),
            Some(ExprOps::Immediate(immediate)) => self.immediate(&immediate),
            Some(ExprOps::Meta(meta)) => self.meta(&meta),
            Some(ExprOps::Ct(ct)) => self.conntrack(ct.get_key(), ct.get_dreg()),
            Some(ExprOps::Bitwise(bitwise)) => self.bitwise(&bitwise),
            Some(ExprOps::Cmp(cmp)) => self.compare(&cmp),
            Some(ExprOps::Match(wrapped)) => {
                let (name, info) = (wrapped.get_name().ok(), wrapped.get_info().unwrap_or_default());
                self.wrapped_match(name.and_then(|n| n.to_str().ok()), wrapped.get_rev().unwrap_or(0), info);
            }
            Some(ExprOps::Target(wrapped)) => {
                let (name, info) = (wrapped.get_name().ok(), wrapped.get_info().unwrap_or_default());
                let name = name.and_then(|n| n.to_str().ok()).unwrap_or_default();
                self.digest(name.as_bytes());
                self.digest(info);
                let revision = u8::try_from(wrapped.get_rev().unwrap_or(0)).unwrap_or(u8::MAX);
                self.act(xtables::read_target(name, revision, info));
            }
            Some(ExprOps::Log(log)) => self.log(&log),
            Some(ExprOps::Reject(_)) => self.act(Action::Reject),
            _ => self.other(name),
        }
    }

    fn other(&mut self, name: &str) {
        match name {
            "notrack" => self.act(Action::NoTrack),
            "reject" => self.act(Action::Reject),
            "limit" | "connlimit" if self.counter.is_some() => self.matches.limit_behind_counter = true,
            "masq" | "nat" | "redir" | "tproxy" | "queue" | "flow_offload" | "dup" | "fwd" => {
                self.act(Action::Other)
            }
            _ => self.matches.others = true,
        }
    }

    fn act(&mut self, action: Action) {
        self.action.get_or_insert(action);
    }

    fn digest(&mut self, bytes: &[u8]) {
        self.content = xxh3_64_with_seed(bytes, self.content);
    }

    fn hold(&mut self, register: Option<u32>, held: Option<Register>) {
        let Some(register) = register else { return };
        self.registers.retain(|(known, _)| *known != register);
        self.registers.extend(held.map(|held| (register, held)));
    }

    fn held(&self, register: Option<u32>) -> Option<Register> {
        self.registers.iter().find(|(known, _)| Some(*known) == register).map(|(_, held)| *held)
    }

    fn immediate(&mut self, immediate: &IterableExprImmediateAttrs<'_>) {
        let Ok(data) = immediate.get_data() else { return };
        for part in data.map_while(Result::ok) {
            match part {
                DataAttrs::Value(value) => {
                    self.digest(value);
                    self.hold(immediate.get_dreg().ok(), u32_of(value).map(Register::Value));
                }
                DataAttrs::Verdict(verdict) => {
                    let chain =
                        verdict.get_chain().ok().and_then(|chain| chain.to_str().ok()).unwrap_or_default();
                    self.digest(chain.as_bytes());
                    let code = verdict.get_code().ok().and_then(|code| VerdictCode::from_value(code.into()));
                    self.verdict(code, chain);
                }
            }
        }
    }

    fn verdict(&mut self, code: Option<VerdictCode>, chain: &str) {
        let chain = if self.native { split_layer(chain).map_or(chain, |(_, chain)| chain) } else { chain };
        let chain = ChainName::from(chain);
        match code {
            Some(VerdictCode::Accept) => self.act(Action::Accept),
            Some(VerdictCode::Drop) => self.act(Action::Drop),
            Some(VerdictCode::Return) => self.act(Action::Return),
            Some(VerdictCode::Jump) => self.act(Action::Jump(chain)),
            Some(VerdictCode::Goto) => self.act(Action::Goto(chain)),
            Some(VerdictCode::Continue) => {}
            _ => self.act(Action::Other),
        }
    }

    fn meta(&mut self, meta: &IterableExprMetaAttrs<'_>) {
        let is_mark = meta.get_key().is_ok_and(|key| key == MetaKeys::Mark as u32);
        if let Ok(source) = meta.get_sreg() {
            let action = match self.held(Some(source)).filter(|_| is_mark) {
                Some(Register::Mark { mask, flip }) => Action::SetMark { value: flip, mask: !mask },
                Some(Register::Value(value)) => Action::SetMark { value, mask: u32::MAX },
                _ => Action::Other,
            };
            self.act(action);
        } else {
            let held = is_mark.then_some(Register::Mark { mask: u32::MAX, flip: 0 });
            self.hold(meta.get_dreg().ok(), held);
        }
    }

    fn conntrack<E>(&mut self, key: Result<u32, E>, register: Result<u32, E>) {
        let is_state = key.is_ok_and(|key| key == CtKeys::State as u32);
        self.hold(register.ok(), is_state.then_some(Register::CtState { mask: u32::MAX }));
    }

    /// `(register & mask) ^ flip`, the only bitwise operation on marks and states.
    fn bitwise(&mut self, bitwise: &IterableExprBitwiseAttrs<'_>) {
        let constant = |data: Result<netlink_bindings::nftables::IterableDataAttrs<'_>, _>| {
            u32_of(data.ok()?.get_value().ok()?)
        };
        let plain = bitwise.get_op().map_or(true, |op| op == BitwiseOps::MaskXor as u32);
        let (and, xor) = (constant(bitwise.get_mask()), constant(bitwise.get_xor()));
        for part in [and, xor].into_iter().flatten() {
            self.digest(&part.to_ne_bytes());
        }
        let held = match (self.held(bitwise.get_sreg().ok()), and, xor) {
            (Some(Register::Mark { mask, flip }), Some(and), Some(xor)) if plain => {
                Some(Register::Mark { mask: mask & and, flip: (flip & and) ^ xor })
            }
            (Some(Register::CtState { mask }), Some(and), Some(0)) if plain => {
                Some(Register::CtState { mask: mask & and })
            }
            _ => None,
        };
        self.hold(bitwise.get_dreg().ok(), held);
    }

    fn compare(&mut self, cmp: &IterableExprCmpAttrs<'_>) {
        let value = cmp.get_data().ok().and_then(|data| data.get_value().ok()).unwrap_or_default();
        self.digest(value);
        let invert = match cmp.get_op().ok().and_then(|op| CmpOps::from_value(op.into())) {
            Some(CmpOps::Eq) => Some(false),
            Some(CmpOps::Neq) => Some(true),
            _ => None,
        };
        match (self.held(cmp.get_sreg().ok()), u32_of(value), invert) {
            (Some(Register::Mark { mask, flip }), Some(value), Some(invert)) => {
                self.matches.mark = Some(MarkMatch { value: value ^ flip, mask, invert });
            }
            // `state & mask != 0`: any of the states.
            (Some(Register::CtState { mask }), Some(0), Some(true)) => {
                self.matches.ct = Some(xtables::states(mask));
            }
            _ => self.matches.others = true,
        }
    }

    fn wrapped_match(&mut self, name: Option<&str>, revision: u32, info: &[u8]) {
        let name = name.unwrap_or_default();
        if name == "comment" {
            self.comments.extend(xtables::text(info).map(Into::into));
            return;
        }
        self.digest(name.as_bytes());
        self.digest(info);
        let revision = u8::try_from(revision).unwrap_or(u8::MAX);
        xtables::read_match(name, revision, info, &mut self.matches);
    }

    fn log(&mut self, log: &IterableLogAttrs<'_>) {
        let prefix = log.get_prefix().ok().and_then(|prefix| prefix.to_str().ok()).unwrap_or_default();
        self.digest(prefix.as_bytes());
        let action = if log.get_group().is_ok() { Action::NfLog(prefix.into()) } else { Action::Log };
        self.act(action);
    }

    fn finish(self) -> (Rule, Counter) {
        let (hash, comments) = Rule::split_comments(self.comments.iter().map(|comment| &**comment));
        let rule = Rule {
            hash,
            comments,
            matches: self.matches,
            action: self.action.unwrap_or(Action::None),
            content: self.content,
            counted: self.counter.is_some(),
        };
        (rule, self.counter.unwrap_or_default())
    }
}

/// Registers of marks and states are four bytes in host byte order.
fn u32_of(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}
