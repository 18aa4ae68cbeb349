//! What a flood of the smallest packets loses by programs in its path: one flow that was answered, and packets of which each
//! is a flow of its own, through iptables-legacy's rules in Felix' shape.
//!
//! Nodes of the same rules, without programs, without programs once more, with programs, with programs that note accepted
//! flows, and with those alone that count at interfaces, have their turns in short slices; who begins changes. How the second differs from the first is what can be told.
//! The link to the node hands packets over on the sender's processor, so the sender's own processor time is what a packet
//! costs on its way, rules and all, whatever else the machine does meanwhile; time on the wall is what packets a second
//! are made of, and shows everything that goes on beside.

use crate::Effort;
use crate::cost;
use crate::programs::{PORT, scenario};
use crate::report::{Measured, Report, Row, Wish};
use crate::samples::{Contender, Costs, take_turns};
use accountant_core::watch::ChainVerdicts;
use accountant_dataplane::in_place::CannotHere;
use accountant_dataplane::iptables_legacy::{IptablesLegacy, Settings};
use accountant_dataplane::kernel::{self, InterfaceCounts, Interfaces, Programs};
use accountant_dataplane::{RuleSource, Wanted};
use accountant_lab::felix::{Backend, Dialect, Version};
use accountant_lab::{Namespace, Node};
use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt, socket,
    sockopt,
};
use nix::unistd::Pid;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Policies of the pod: 16 counters are watched.
const POLICIES: usize = 4;
/// Packets of a slice.
const ANSWERED: u64 = 2000;
const NEW: u64 = 500;
/// Slices for each repetition of what takes milliseconds: they are so short that what else goes on comes to all.
const TURNS: usize = 8;
/// How many flows there are before the first comes again. Conntrack has forgotten it by then.
const FLOWS: u32 = 1 << 17;
/// Payload of a packet of 64 bytes on an Ethernet.
const SIZE: usize = 18;
/// Bytes.
const SEND_BUFFER: usize = 4096;
/// What is answered, once.
const QUESTION: &[u8] = b"?";
/// Wanted: a flood of an answered flow loses at most one packet in a hundred.
const LOSS: f64 = 1.01;
const PATIENCE: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_millis(20);

/// Measures it.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Result<()> {
    let scenario = scenario(POLICIES);
    let node = || -> Result<Node> {
        let node = scenario.node()?;
        node.felix(Dialect::new(Version::V3_31, Backend::Legacy)?).apply(&scenario.model)?;
        Ok(node)
    };
    let nodes = [node()?, node()?, node()?, node()?, node()?];
    let off = || Programs::new(false);
    let with_flows =
        || Programs::with(kernel::Settings { accepted_flows: true, ..kernel::Settings::default() });
    let at_interfaces =
        || Programs::with(kernel::Settings { interfaces: Interfaces::Only, ..kernel::Settings::default() });
    let [a, b, c, d, e] = &nodes;
    let mut ways = [
        Way::new(a, off())?,
        Way::new(b, off())?,
        Way::new(c, Programs::new(true))?,
        Way::new(d, with_flows())?,
        Way::new(e, at_interfaces())?,
    ];
    for (kind, sends, packets, most) in [
        ("one flow that was answered", Sender::send_answered as Send, ANSWERED, Some(LOSS)),
        ("each packet a new flow", Sender::send_new, NEW, None),
    ] {
        let costs = take_turns(ways.each_ref().map(|way| way.slices(sends, packets)), TURNS * effort.often)?;
        let slices = (TURNS * effort.often + 1) as u64;
        ways.iter_mut().try_for_each(|way| way.saw(slices * packets))?;
        tell(kind, packets, costs, most, report);
        // Flows that come again are new ones then.
        for node in &nodes {
            node.host().sysctl(&[("net/netfilter/nf_conntrack_udp_timeout", "1")])?;
        }
    }
    Ok(())
}

type Send = fn(&Sender, u64) -> Result<()>;

/// A node with or without programs, and who sends through it.
struct Way<'a> {
    node: &'a Node,
    programs: Arc<Programs>,
    source: IptablesLegacy,
    _receiver: Receiver,
    sender: Sender,
    seen: u64,
}

/// Who sends, on the host outside.
struct Sender {
    to: SocketAddrV4,
    answered: UdpSocket,
    raw: OwnedFd,
    next: AtomicU32,
}

impl<'a> Way<'a> {
    fn new(node: &'a Node, programs: Arc<Programs>) -> Result<Self> {
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 65, 0, 2), PORT);
        let wanted = programs.reason() != Some(CannotHere::TurnedOff);
        let lock_file = node.host().lock_file();
        let settings =
            Settings { lock_file, programs: programs.clone(), watch_rewrites: false, ..Settings::default() };
        let source = node.host().enter(|| -> Result<IptablesLegacy> {
            let mut source = IptablesLegacy::new(settings);
            source.read(&Wanted::default())?;
            Ok(source)
        })??;
        let is_there = programs.at_interfaces().is_some();
        if let Some(reason) = programs.reason().filter(|_| wanted && !is_there) {
            bail!("no programs: {reason}");
        }
        let receiver = Receiver::start(&node.pod("n", "pod")?.netns, to)?;
        let answered = node.outside().enter(|| answered(to))??;
        let open = || socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw);
        let raw = node.outside().enter(open)??;
        with_little_room(&raw)?;
        let sender = Sender { to, answered, raw, next: AtomicU32::new(0) };
        Ok(Self { node, programs, source, _receiver: receiver, sender, seen: 0 })
    }

    fn slices(&self, send: Send, packets: u64) -> Contender<'_> {
        let (outside, sender) = (self.node.outside(), &self.sender);
        Box::new(move || {
            outside.enter(|| {
                on_one_processor()?;
                cost::of_this_thread(|| send(sender, packets))
            })?
        })
    }

    /// Sees to it that the programs, if there are any, saw so many packets more, and each with its path.
    fn saw(&mut self, packets: u64) -> Result<()> {
        if let Some(counts) = self.node.host().enter(|| self.programs.at_interfaces())? {
            return self.passed(&counts, packets);
        }
        if self.programs.reason().is_some() {
            return Ok(());
        }
        let (node, source) = (self.node, &mut self.source);
        let poll = node.host().enter(|| source.read(&Wanted::default()))??;
        let snapshots = poll.tables.iter().filter_map(|table| table.snapshot.as_ref().ok());
        let chains = snapshots.filter_map(|s| s.verdicts.as_ref()).flat_map(|around| &around.after);
        let to_pod = chains.filter(|chain| chain.chain.as_str().starts_with("cali-tw-"));
        let of_chain =
            |chain: &ChainVerdicts| (chain.established[0].packets + chain.new[0].packets, chain.unresolved);
        let (seen, unresolved) = to_pod.map(of_chain).max().unwrap_or_default();
        let more = seen - std::mem::replace(&mut self.seen, seen);
        // One more asked for the answer.
        ensure!(
            (packets..=packets + 1).contains(&more) && unresolved == 0,
            "the programs saw {more} of {packets} packets, {unresolved} without a path"
        );
        Ok(())
    }
}

impl Way<'_> {
    /// Sees to it that so many packets more were sent out of the pod's interface.
    fn passed(&mut self, counts: &InterfaceCounts, packets: u64) -> Result<()> {
        let of_pod = counts.all.iter().find_map(|at| at.sent).context("the interface is not counted")?;
        let more = of_pod[0].packets - std::mem::replace(&mut self.seen, of_pod[0].packets);
        ensure!(
            (packets..=packets + 1).contains(&more),
            "at the interface passed {more} of {packets} packets"
        );
        Ok(())
    }
}

impl Sender {
    fn send_answered(&self, packets: u64) -> Result<()> {
        for _ in 0..packets {
            self.answered.send(&[0; SIZE])?;
        }
        Ok(())
    }

    /// Sends packets of the next flows, from addresses that nobody has: header and all, so that a flow costs no socket.
    fn send_new(&self, packets: u64) -> Result<()> {
        for _ in 0..packets {
            let packet = packet(self.next.fetch_add(1, Ordering::Relaxed) % FLOWS, self.to);
            sendto(self.raw.as_raw_fd(), &packet, &SockaddrIn::from(self.to), MsgFlags::empty())?;
        }
        Ok(())
    }
}

fn tell(kind: &str, packets: u64, costs: [Costs; 5], most: Option<f64>, report: &mut Report) {
    let each = |milliseconds: Vec<f64>| -> Vec<f64> {
        milliseconds.into_iter().map(|all| all * 1e6 / packets as f64).collect()
    };
    for (clock, values) in [
        ("CPU", costs.each_ref().map(|costs| each(costs.cpu()))),
        ("wall", costs.each_ref().map(|costs| each(costs.wall()))),
    ] {
        let measured = |values: Vec<f64>| Measured { what: "programs off", values, unit: "ns a packet" };
        let [off, again, on, with_flows, at_interfaces] = values.map(measured);
        let named = |row: Row, what: &str| Row { what: format!("{kind}, {what}, {clock}"), ..row };
        report.add(named(off.row(), "programs off"));
        report.add(named(again.beside(&off), "off, another node"));
        let row = named(on.beside(&off), "on");
        report.add(Row { wish: most.map(Wish::Ratio), ..row });
        report.add(named(with_flows.beside(&off), "on with accepted flows"));
        let row = named(at_interfaces.beside(&off), "at interfaces alone");
        report.add(Row { wish: most.map(Wish::Ratio), ..row });
    }
}

/// Takes all packets of the pod's until it is dropped, and answers those that ask.
struct Receiver {
    over: Arc<AtomicBool>,
}

impl Receiver {
    fn start(on: &Namespace, at: SocketAddrV4) -> Result<Self> {
        let socket = on.enter(|| UdpSocket::bind(at))??;
        socket.set_read_timeout(Some(GLANCE))?;
        let over = Arc::new(AtomicBool::new(false));
        let ends = over.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !ends.load(Ordering::Relaxed) {
                if let Ok((length, whom)) = socket.recv_from(&mut buffer)
                    && &buffer[..length] == QUESTION
                {
                    let _ = socket.send_to(QUESTION, whom);
                }
            }
        });
        Ok(Self { over })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// So few packets are on the way from a socket that the link drops none.
fn with_little_room(socket: &impl AsFd) -> Result<()> {
    Ok(setsockopt(socket, sockopt::SndBuf, &SEND_BUFFER)?)
}

/// A flow that was answered.
fn answered(to: SocketAddrV4) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    with_little_room(&socket)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(QUESTION)?;
    socket.recv(&mut [0; 8]).context("waiting for the answer that makes a flow established")?;
    Ok(socket)
}

/// A packet of a flow.
fn packet(flow: u32, to: SocketAddrV4) -> [u8; 28 + SIZE] {
    let source = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() | flow >> 4 & 0xffff);
    let port = 20_000 + (flow & 0xf) as u16;
    let mut packet = [0; 28 + SIZE];
    let length = packet.len() as u16;
    // Version, length of the header; the kernel fills in the header's checksum, and UDP over IPv4 needs none.
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[8..10].copy_from_slice(&[64, 17]);
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[24..26].copy_from_slice(&(length - 20).to_be_bytes());
    packet
}

fn on_one_processor() -> Result<()> {
    let mut first = CpuSet::new();
    first.set(0)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &first)?)
}
