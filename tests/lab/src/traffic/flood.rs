//! Floods: UDP in one direction, as fast as it goes or at a rate, for as long as one likes.
//!
//! A few flows carry any number of packets. As nobody answers them, each packet is new to connection tracking and is
//! decided by policy, and the table holds only a few entries. With [`Flood::ports`] there are more flows, up to
//! `flows` times `ports`; keep them below `net.netfilter.nf_conntrack_max` (262 144 by default, and a flow stays 30 s),
//! because a packet that finds the table full is dropped before any rule.
//!
//! Invariant: what was sent arrives. A veth drops what the receiving processor's queue (1 000 packets) cannot take, but
//! a socket's buffer is paid for until the packet is received, so small buffers keep few packets on the way; what the
//! link dropped all the same is said in [`Flooded::lost`].

use super::udp::drained;
use super::{anywhere, socket_error};
use crate::error::{Error, Result};
use crate::netns::Namespace;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The smallest send buffer: about six packets on the way from each socket.
const SEND_BUFFER: usize = 4096;
/// How many packets are sent between two looks at the clock.
const STRIDE: u64 = 32;

/// A flood that is to be.
#[derive(Clone, Debug)]
pub struct Flood {
    /// Where to.
    pub to: IpAddr,
    /// The usual destination port.
    pub port: u16,
    /// How many ports, from the usual one on, are used in turn.
    pub ports: u16,
    /// Another destination port, for one packet in so many: a denied one in a flood of allowed ones.
    pub other: Option<(u16, u64)>,
    /// How many source ports are used in turn.
    pub flows: u16,
    /// Bytes of payload.
    pub size: usize,
    /// Packets a second; none means as fast as it goes.
    pub rate: Option<u32>,
    /// When to end.
    pub until: Until,
    /// The processor to run on.
    pub cpu: Option<usize>,
}

/// When a flood ends. One that was started can be stopped before.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so many packets.
    Packets(u64),
    /// After this time.
    Elapsed(Duration),
    /// When it is stopped.
    Stopped,
}

/// What a flood sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flooded {
    /// Packets to the usual ports.
    pub usual: u64,
    /// Packets to the other port.
    pub other: u64,
    /// Packets that the sender's link dropped in that time, of whomever. They are among those above, and no rule saw
    /// them.
    pub lost: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// A flood that is running.
#[derive(Debug)]
pub struct Flooding {
    sent: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Result<Flooded>>>>,
}

impl Flood {
    /// A thousand packets in eight flows, as fast as they go.
    pub fn new(to: IpAddr, port: u16) -> Self {
        let until = Until::Packets(1000);
        Self { to, port, ports: 1, other: None, flows: 8, size: 32, rate: None, until, cpu: None }
    }

    /// Sends it all, and returns when every packet has left the sender.
    pub fn run(&self, from: &Namespace) -> Result<Flooded> {
        let (sent, over) = (AtomicU64::new(0), AtomicBool::new(false));
        from.enter(|| self.send(&sent, &over))?
    }

    /// Sends it from a thread of its own.
    pub fn start(&self, from: &Namespace) -> Flooding {
        let (sent, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counts, ends, flood) = (Arc::clone(&sent), Arc::clone(&over), self.clone());
        let thread = from.spawn(move || flood.send(&counts, &ends));
        Flooding { sent, over, thread: Some(thread) }
    }

    fn send(&self, progress: &AtomicU64, over: &AtomicBool) -> Result<Flooded> {
        self.choose_cpu()?;
        let sockets = (0..self.flows.max(1)).map(|_| self.open()).collect::<Result<Vec<_>>>()?;
        let payload = vec![0; self.size];
        let dropped = link_drops();
        let start = Instant::now();
        let mut flooded = Flooded::default();
        let mut number: u64 = 0;
        let mut flows = sockets.iter().cycle();
        while !over.load(Ordering::Relaxed) && !self.is_over(number, start) {
            let other = self.other.filter(|(_, every)| number % every == every - 1);
            let port = other.map_or_else(|| self.usual_port(number), |(port, _)| port);
            if let Some(socket) = flows.next() {
                socket.send_to(&payload, (self.to, port)).map_err(socket_error("flood", self.to))?;
            }
            if other.is_some() {
                flooded.other += 1
            } else {
                flooded.usual += 1
            }
            number += 1;
            if number.is_multiple_of(STRIDE) {
                progress.store(number, Ordering::Relaxed);
                self.keep_to_the_rate(number, start);
            }
        }
        drained(&sockets)?;
        progress.store(number, Ordering::Relaxed);
        let lost = link_drops().saturating_sub(dropped);
        Ok(Flooded { lost, elapsed: start.elapsed(), ..flooded })
    }

    fn usual_port(&self, number: u64) -> u16 {
        // A flow's next packet goes to the next port when all flows have had their turn.
        let turn = number / u64::from(self.flows.max(1)) % u64::from(self.ports.max(1));
        self.port.wrapping_add(u16::try_from(turn).unwrap_or(0))
    }

    fn is_over(&self, number: u64, start: Instant) -> bool {
        match self.until {
            Until::Packets(all) => number >= all,
            Until::Elapsed(time) => number.is_multiple_of(STRIDE) && start.elapsed() >= time,
            Until::Stopped => false,
        }
    }

    fn keep_to_the_rate(&self, number: u64, start: Instant) {
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(number as f64 / f64::from(rate.max(1)));
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }

    fn open(&self) -> Result<UdpSocket> {
        let open = || {
            let domain = if self.to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
            socket.set_send_buffer_size(SEND_BUFFER)?;
            socket.bind(&SockAddr::from(anywhere(self.to)))?;
            Ok(UdpSocket::from(socket))
        };
        open().map_err(socket_error("open a UDP socket for", SocketAddr::new(self.to, self.port)))
    }

    fn choose_cpu(&self) -> Result<()> {
        let Some(cpu) = self.cpu else { return Ok(()) };
        let mut set = CpuSet::new();
        let chosen = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        chosen.map_err(std::io::Error::from).map_err(Error::io("run on", format!("processor {cpu}")))
    }
}

/// Packets that the calling thread's `eth0` did not get rid of.
fn link_drops() -> u64 {
    let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let line = devices.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
    // Eight columns of what was received, then bytes, packets, errors and drops of what was sent.
    line.and_then(|columns| columns.split_whitespace().nth(11)?.parse().ok()).unwrap_or(0)
}

impl Flooding {
    /// How many packets were sent so far, to within a few.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it now.
    pub fn stop(self) -> Result<Flooded> {
        self.over.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits for its own end.
    pub fn finish(mut self) -> Result<Flooded> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(flooded)) => flooded?,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(Flooded::default()),
        }
    }
}

impl Drop for Flooding {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
