//! BPF programs on clsact, the way to attach programs to interfaces before tcx: which interfaces and programs there are, in the order
//! in which they run, and whether there is clsact.
//!
//! Source: `include/uapi/linux/rtnetlink.h` (`struct tcmsg`), `.../pkt_sched.h` (`TC_H_*`), `.../pkt_cls.h` (`TCA_BPF_*`) of
//! Linux 6.18, host byte order. The kernel dumps filters in order of their priorities, which is the order in which they run.
//!
//! Invariant: total; what does not fit is left out.

use crate::nftables::wire::{self, Message};
use accountant_abi::calico::INGRESS;
use nix::errno::Errno;
use nix::net::if_::if_nameindex;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket,
};
use nix::sys::time::TimeVal;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

/// `RTM_NEWQDISC` and `RTM_GETQDISC`, `RTM_NEWTFILTER` and `RTM_GETTFILTER`
const NEW_QDISC: u16 = 36;
const GET_QDISC: u16 = 38;
const NEW_FILTER: u16 = 44;
const GET_FILTER: u16 = 46;
/// `NLM_F_REQUEST | NLM_F_ECHO | NLM_F_ACK`: without the second the kernel tells everybody but who asked.
const ECHO: u16 = 0xd;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x301;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and `…_EGRESS`
const PARENTS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
/// `TC_H_INGRESS`, which is `TC_H_CLSACT`
const INGRESS_QDISC: u32 = 0xffff_fff1;
/// Length of `struct tcmsg`.
const HEAD: usize = 20;
/// `TCA_KIND`, `TCA_OPTIONS`; among those of a BPF filter `TCA_BPF_NAME`, `TCA_BPF_ID`.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const NAME: u16 = 7;
const ID: u16 = 11;
const BUFFER: usize = 1 << 15;

/// All interfaces, by index.
pub(crate) fn interfaces() -> BTreeMap<u32, String> {
    // Without a list there is nothing that could be attached to.
    let Ok(interfaces) = if_nameindex() else { return BTreeMap::new() };
    let named =
        interfaces.iter().filter_map(|one| Some((one.index(), one.name().to_str().ok()?.to_string())));
    named.collect()
}

/// A BPF program as a filter at a hook of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The program's number.
    pub(crate) id: u32,
    /// Its name, as whoever attached it said it.
    pub(crate) name: String,
    /// Filters with lower ones come first.
    pub(crate) priority: u16,
    /// Which of that priority.
    pub(crate) handle: u32,
}

/// The kernel answers at once; what it does not answer is an error, and nobody waits for it.
const PATIENCE: TimeVal = TimeVal::new(2, 0);

/// Asks for filters.
#[derive(Debug)]
pub(crate) struct Clsact {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Clsact {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open() -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, ReceiveTimeout, &PATIENCE)?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// The programs at a hook of an interface. None where there is no clsact.
    pub(crate) fn filters(&mut self, interface: u32, hook: u8) -> nix::Result<Vec<Filter>> {
        let parent = PARENTS[usize::from(hook != INGRESS)];
        self.ask((GET_FILTER, DUMP), interface, parent)?;
        let mut filters = Vec::new();
        while self.hear(|message| filters.extend(filter(message, parent)))? {}
        Ok(filters)
    }

    /// What kind of qdisc stands where clsact would. None where there is none.
    ///
    /// Only clsact has a place for what is sent: filters for that go to where `ingress` has its own, too.
    pub(crate) fn kind(&mut self, interface: u32) -> nix::Result<Option<String>> {
        self.ask((GET_QDISC, ECHO), interface, INGRESS_QDISC)?;
        let mut kind = None;
        while self.hear(|message| kind = qdisc(message))? {}
        Ok(kind)
    }

    fn ask(&mut self, (kind, flags): (u16, u16), interface: u32, parent: u32) -> nix::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut head = [0; HEAD];
        head[4..8].copy_from_slice(&interface.to_ne_bytes());
        head[12..16].copy_from_slice(&parent.to_ne_bytes());
        let request = wire::request(kind, flags, self.sequence, &head);
        send(self.fd.as_raw_fd(), &request, MsgFlags::empty()).map(drop)
    }

    /// Takes the next messages that answer; says whether there are more to come.
    fn hear(&mut self, mut take: impl FnMut(&Message<'_>)) -> nix::Result<bool> {
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            let messages = wire::messages(&self.buffer[..length]).map_while(Result::ok);
            let answers: Vec<_> = messages.filter(|message| message.sequence == self.sequence).collect();
            for message in &answers {
                match message.kind {
                    wire::DONE | wire::ERROR => return Ok(false),
                    _ => take(message),
                }
            }
            if !answers.is_empty() {
                return Ok(true);
            }
        }
    }
}

/// A filter that is a program.
fn filter(message: &Message<'_>, parent: u32) -> Option<Filter> {
    let word = |at: usize| Some(u32::from_ne_bytes(message.payload.get(at..at + 4)?.try_into().ok()?));
    if message.kind != NEW_FILTER || word(12)? != parent {
        return None;
    }
    let mut options = None;
    let mut is_bpf = false;
    for (kind, value) in attributes(message.payload.get(HEAD..)?) {
        match kind {
            KIND => is_bpf = value == b"bpf\0",
            OPTIONS => options = Some(value),
            _ => {}
        }
    }
    let (mut id, mut name) = (None, String::new());
    for (kind, value) in attributes(options.filter(|_| is_bpf)?) {
        match kind {
            ID => id = value.try_into().ok().map(u32::from_ne_bytes),
            NAME => name = String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned(),
            _ => {}
        }
    }
    // The priority is the upper half of `tcm_info`.
    Some(Filter { id: id?, name, priority: (word(16)? >> 16) as u16, handle: word(8)? })
}

/// The kind of a qdisc.
fn qdisc(message: &Message<'_>) -> Option<String> {
    let mut attributes = attributes(message.payload.get(HEAD..)?);
    let (_, kind) = attributes.find(|(kind, _)| message.kind == NEW_QDISC && *kind == KIND)?;
    Some(String::from_utf8_lossy(kind.strip_suffix(b"\0").unwrap_or(kind)).into_owned())
}

/// Attributes (`struct nlattr`), one behind the other; one that is cut short ends them.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let half = |at: usize| Some(u16::from_ne_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(half(0)?), half(2)?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two upper bits say how to read it (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
        Some((kind & 0x3fff, value))
    })
}

/// Reads any bytes as answers. For fuzzing.
#[doc(hidden)]
pub fn read_any(stream: &[u8]) {
    for message in wire::messages(stream).map_while(Result::ok) {
        let read = PARENTS.map(|parent| filter(&message, parent));
        assert!(read.iter().flatten().count() <= 1, "a filter is at one hook: {read:?}");
        let _ = qdisc(&message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_filter_has_a_number_and_a_name_and_pieces_of_it_have_none() {
        let options = [attribute(NAME, b"cali_tc_preambl\0"), attribute(ID, &7_u32.to_ne_bytes())].concat();
        let mut payload = vec![0; HEAD];
        for (at, word) in [(8, 9_u32), (12, PARENTS[0]), (16, 3 << 16 | 0x300)] {
            payload[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        payload.extend([attribute(KIND, b"bpf\0"), attribute(OPTIONS | 0x8000, &options)].concat());
        let read = |payload: &[u8], parent| {
            filter(&Message { kind: NEW_FILTER, flags: 0, sequence: 0, payload }, parent)
        };
        let whole = Filter { id: 7, name: "cali_tc_preambl".into(), priority: 3, handle: 9 };
        assert_eq!(read(&payload, PARENTS[0]), Some(whole));
        assert_eq!(read(&payload, PARENTS[1]), None);
        for length in 0..payload.len() {
            assert_eq!(read(&payload[..length], PARENTS[0]), None, "{length}");
        }
        let kind = |payload: &[u8]| qdisc(&Message { kind: NEW_QDISC, flags: 0, sequence: 0, payload });
        assert_eq!(kind(&[vec![0; HEAD], attribute(KIND, b"clsact\0")].concat()).as_deref(), Some("clsact"));
        assert_eq!(kind(&[0; HEAD + 3]), None);
    }
}
