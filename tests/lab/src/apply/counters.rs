//! Counters that a tool forgets to restore.
//!
//! `ip6tables-nft-restore` 1.8.9 takes `--counters` and leaves every IPv6 rule at zero (`ip6tables-nft -A … -c 6 624`
//! likewise; the IPv4 twins are right). Here each rule is replaced by itself, with the counter that the capture says:
//! its expressions are read over netlink, the counter's bytes are overwritten, all else is sent back as it came.
//!
//! Layouts: `linux/netlink.h`, `linux/netfilter/nfnetlink.h`, `linux/netfilter/nf_tables.h`; tried on Linux 6.18.

use crate::error::{Error, Result};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const FAMILY_IPV6: u8 = 10;
/// NFNL_SUBSYS_NFTABLES, and its messages.
const NFTABLES: u16 = 10;
const NEWRULE: u16 = NFTABLES << 8 | 6;
const GETRULE: u16 = NFTABLES << 8 | 7;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const REPLACE: u16 = 0x100;
const DUMP: u16 = 0x300;
/// NFTA_RULE_*.
const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const HANDLE: u16 = 3;
const EXPRESSIONS: u16 = 4;
const COMPAT: u16 = 5;
const USERDATA: u16 = 7;
/// NFTA_LIST_ELEM, NFTA_EXPR_NAME, NFTA_EXPR_DATA, NFTA_COUNTER_BYTES, NFTA_COUNTER_PACKETS.
const ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
const BYTES: u16 = 1;
const PACKETS: u16 = 2;
/// The flag of attributes that hold attributes.
const NESTED: u16 = 0x8000;
/// How many rules are replaced in one transaction.
const BATCH: usize = 100;

/// A rule of a capture: what a counter is wanted for.
struct Wanted {
    packets: u64,
    bytes: u64,
    /// The protocol that its xtables matches will be checked against.
    protocol: u32,
}

/// Gives the IPv6 rules of iptables-nft, in the namespace of the calling thread, the counters of this capture.
pub(super) fn restore_ipv6(capture: &str) -> Result<()> {
    let failed = || Error::io("restore the counters of", "the IPv6 rules");
    let mut wanted = wanted(capture);
    let socket = socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .map_err(io::Error::from)
    .map_err(failed())?;
    let mut replacements = Vec::new();
    for rule in dump(&socket).map_err(failed())? {
        let next = wanted.get_mut(&(rule.table.clone(), rule.chain.clone())).and_then(Iterator::next);
        replacements.extend(next.map(|wanted| rule.replacement(&wanted)));
    }
    replacements.chunks(BATCH).try_for_each(|batch| commit(&socket, batch)).map_err(failed())
}

type InOrder = std::vec::IntoIter<Wanted>;

/// The counters of a capture by table and chain, in order.
fn wanted(capture: &str) -> HashMap<(String, String), InOrder> {
    let mut table = "";
    let mut chains: HashMap<(String, String), Vec<Wanted>> = HashMap::new();
    for line in capture.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some((counters, rule)) = line.split_once(" -A ") {
            let (packets, bytes) = counters.trim_matches(['[', ']']).split_once(':').unwrap_or_default();
            let number = |text: &str| text.parse().unwrap_or(0);
            let chain = rule.split(' ').next().unwrap_or_default();
            let wanted = Wanted { packets: number(packets), bytes: number(bytes), protocol: protocol(rule) };
            chains.entry((table.to_string(), chain.to_string())).or_default().push(wanted);
        }
    }
    chains.into_iter().map(|(key, rules)| (key, rules.into_iter())).collect()
}

fn protocol(rule: &str) -> u32 {
    let name = rule.split_once("-p ").and_then(|(_, rest)| rest.split(' ').next());
    match name {
        Some("tcp") => 6,
        Some("udp") => 17,
        Some("ipv6-icmp") => 58,
        Some("ipencap") => 4,
        _ => 0,
    }
}

/// A rule as the kernel has it.
struct Rule {
    table: String,
    chain: String,
    handle: Vec<u8>,
    expressions: Vec<u8>,
    userdata: Option<Vec<u8>>,
}

impl Rule {
    fn parse(message: &[u8]) -> Option<Self> {
        let text = |kind| find(message, kind).map(|value| text(value).to_string());
        Some(Self {
            table: text(TABLE)?,
            chain: text(CHAIN)?,
            handle: find(message, HANDLE)?.to_vec(),
            expressions: find(message, EXPRESSIONS)?.to_vec(),
            userdata: find(message, USERDATA).map(<[u8]>::to_vec),
        })
    }

    /// The attributes of the message that replaces this rule by itself with another counter.
    fn replacement(&self, wanted: &Wanted) -> Vec<u8> {
        let mut expressions = Vec::new();
        for (_, element) in attributes(&self.expressions) {
            let is_counter = find(element, NAME).is_some_and(|name| text(name) == "counter");
            if is_counter {
                let bytes = attribute(BYTES, &wanted.bytes.to_be_bytes());
                let counter = [bytes, attribute(PACKETS, &wanted.packets.to_be_bytes())].concat();
                let made = [attribute(NAME, b"counter\0"), attribute(DATA | NESTED, &counter)].concat();
                expressions.extend(attribute(ELEMENT | NESTED, &made));
            } else {
                expressions.extend(attribute(ELEMENT | NESTED, element));
            }
        }
        let mut message = attribute(TABLE, format!("{}\0", self.table).as_bytes());
        message.extend(attribute(CHAIN, format!("{}\0", self.chain).as_bytes()));
        message.extend(attribute(HANDLE, &self.handle));
        message.extend(attribute(EXPRESSIONS | NESTED, &expressions));
        if wanted.protocol != 0 {
            let [number, flags] = [wanted.protocol, 0].map(u32::to_be_bytes);
            let compat = [attribute(1, &number), attribute(2, &flags)].concat();
            message.extend(attribute(COMPAT | NESTED, &compat));
        }
        message.extend(self.userdata.iter().flat_map(|data| attribute(USERDATA, data)));
        message
    }
}

/// All IPv6 rules, chain by chain and in order.
fn dump(socket: &OwnedFd) -> io::Result<Vec<Rule>> {
    send(socket, &message(GETRULE, REQUEST | DUMP, 0, &[]))?;
    let mut rules = Vec::new();
    loop {
        let received = receive(socket)?;
        for (kind, body) in messages(&received) {
            match kind {
                NLMSG_DONE => return Ok(rules),
                NLMSG_ERROR => check(body)?,
                _ => rules.extend(body.get(4..).and_then(Rule::parse)),
            }
        }
    }
}

/// Sends the replacements as one transaction and waits for the answer to each.
fn commit(socket: &OwnedFd, replacements: &[Vec<u8>]) -> io::Result<()> {
    let mut batch = message(BATCH_BEGIN, REQUEST, NFTABLES, &[]);
    for attributes in replacements {
        batch.extend(message(NEWRULE, REQUEST | ACK | REPLACE, 0, attributes));
    }
    batch.extend(message(BATCH_END, REQUEST, NFTABLES, &[]));
    send(socket, &batch)?;
    let mut answers = 0;
    while answers < replacements.len() {
        for (kind, body) in messages(&receive(socket)?) {
            if kind == NLMSG_ERROR {
                check(body)?;
                answers += 1;
            }
        }
    }
    Ok(())
}

/// An acknowledgement is an error message with the number 0.
fn check(body: &[u8]) -> io::Result<()> {
    let number = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if number == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-number)) }
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    Ok(socket::send(socket.as_raw_fd(), bytes, MsgFlags::empty()).map(drop)?)
}

fn receive(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    let length = socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    buffer.truncate(length);
    Ok(buffer)
}

fn message(kind: u16, flags: u16, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([FAMILY_IPV6, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Kind and body of each message in what was received.
fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (bytes.get(..4), bytes.get(4..6)) {
        let length = length.try_into().map_or(0, u32::from_ne_bytes) as usize;
        let kind = kind.try_into().map_or(0, u16::from_ne_bytes);
        let Some(body) = bytes.get(16..length) else { break };
        found.push((kind, body));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Kind and value of each attribute.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (bytes.get(..2), bytes.get(2..4)) {
        let length = usize::from(length.try_into().map_or(0, u16::from_ne_bytes));
        let kind = kind.try_into().map_or(0, u16::from_ne_bytes) & !NESTED;
        let Some(value) = bytes.get(4..length) else { break };
        found.push((kind, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).into_iter().find(|attribute| attribute.0 == kind).map(|attribute| attribute.1)
}

fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    str::from_utf8(&bytes[..end]).unwrap_or_default()
}
