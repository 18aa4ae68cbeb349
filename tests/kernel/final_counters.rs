//! Rewrites of rules under load, by the sources themselves: what rules hand over and what they show sums to exactly
//! what was sent.

use accountant_core::reconcile::{Circumstances, Reconciler};
use accountant_core::snapshot::Snapshot;
use accountant_core::{Counter, IpVersion};
use accountant_dataplane::iptables_legacy::{IptablesLegacy, Settings};
use accountant_dataplane::kernel::Programs;
use accountant_dataplane::nftables::Nftables;
use accountant_dataplane::source::Note;
use accountant_dataplane::{Poll, RuleSource, Wanted};
use accountant_lab::felix::{Backend, Dialect, Version};
use accountant_lab::traffic::{self, Flood, Until};
use accountant_lab::{Namespace, Node, scenario};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Rules of a chain that only counts, so that each packet of the flood is counted by one of its rules.
const CHAIN: &str = "cali-tw-counts";

/// Sums of what the rules of [`CHAIN`] counted, by comment, over all their incarnations.
#[derive(Default)]
struct Sums {
    reconciler: BTreeMap<IpVersion, Reconciler>,
    packets: BTreeMap<(IpVersion, String), Counter>,
    notes: Vec<Note>,
    retired: usize,
}

impl Sums {
    fn take(&mut self, poll: Poll) {
        self.notes.extend(&poll.notes);
        for table in poll.tables {
            let snapshot = table.snapshot.unwrap();
            self.take_snapshot(table.id.ip_version, &snapshot);
        }
    }

    fn take_snapshot(&mut self, ip_version: IpVersion, snapshot: &Snapshot) {
        let reconciler = self.reconciler.entry(ip_version).or_default();
        let mut deltas = Vec::new();
        for retired in snapshot.retired.iter().filter(|r| r.chain.name.as_str() == CHAIN) {
            self.retired += retired.finals.len();
            deltas.push(reconciler.retire(retired));
        }
        let held_back = reconciler.holds_back(snapshot);
        for reading in snapshot.chains.iter().filter(|r| r.chain.name.as_str() == CHAIN) {
            let circumstances = Circumstances { first_sight: false, may_hide: false, held_back };
            deltas.extend(reconciler.read(reading, circumstances));
        }
        for delta in deltas {
            for (rule, counted) in delta.chain.rules().iter().zip(&delta.deltas) {
                let name = rule.comments.first().map(ToString::to_string).unwrap_or_default();
                *self.packets.entry((ip_version, name)).or_default() += *counted;
            }
        }
    }

    fn packets(&self, ip_version: IpVersion) -> u64 {
        self.packets.iter().filter(|((v, _), _)| *v == ip_version).map(|(_, c)| c.packets).sum()
    }

    /// How often news were lost.
    fn lost(&self) -> usize {
        self.notes.iter().filter(|note| **note == Note::LostNotifications).count()
    }

    fn missed(&self) -> usize {
        self.notes.iter().filter(|note| **note == Note::MissedRewrite).count()
    }
}

/// Restores one chain with this number in its rules' comments: rules of another number are other rules.
fn restore(node: &Namespace, backend: Backend, ip_version: IpVersion, number: usize, keep: bool) {
    let mut text = String::from("*filter\n");
    if !keep {
        text += &format!(":{CHAIN} - [0:0]\n");
        for (port, name) in [("7", format!("seven-{number}")), ("9", "nine".into())] {
            text += &format!("-A {CHAIN} -p udp --dport {port} -m comment --comment {name}\n");
        }
    }
    // Something that changes with each, in a chain of its own.
    text += &format!(":other-{} - [0:0]\n", number % 7);
    text += &format!("-A other-{} -p tcp --dport {} -j ACCEPT\n", number % 7, number % 1000 + 1);
    text += "COMMIT\n";
    node.feed(&format!("{}-restore", tool(backend, ip_version)), &["--noflush", "-w"], &text).unwrap();
}

fn tool(backend: Backend, ip_version: IpVersion) -> String {
    let family = if ip_version == IpVersion::V4 { "iptables" } else { "ip6tables" };
    format!("{family}-{}", if backend == Backend::Legacy { "legacy" } else { "nft" })
}

fn prepare(node: &Node, backend: Backend) {
    for ip_version in IpVersion::BOTH {
        restore(node.host(), backend, ip_version, 0, false);
        node.host()
            .run(&tool(backend, ip_version), &["-w", "-I", "FORWARD", "1", "-p", "udp", "-j", CHAIN])
            .unwrap();
    }
}

/// How writer and reader keep step.
#[derive(Default)]
struct Step {
    over: AtomicBool,
    /// How many rewrites there were.
    written: AtomicUsize,
    /// Of how many of them the reader has taken all news.
    seen: AtomicUsize,
}

impl Step {
    /// Waits until the reader has seen all that was written.
    fn wait(&self) {
        let written = self.written.fetch_add(1, Ordering::SeqCst) + 1;
        while self.seen.load(Ordering::SeqCst) < written {
            std::thread::yield_now();
        }
    }
}

/// Reads every 50 ms, and at once when there is news, as the agent's thread does, until it is over.
fn follow(source: &mut dyn RuleSource, sums: &mut Sums, step: &Step) {
    let mut next = Instant::now();
    while !step.over.load(Ordering::SeqCst) {
        let written = step.written.load(Ordering::SeqCst);
        let left = next.saturating_duration_since(Instant::now()).min(Duration::from_millis(2));
        let mut fds = [PollFd::new(source.events().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
        if !fds[0].any().unwrap_or(true) {
            step.seen.store(written, Ordering::SeqCst);
        } else if let Some(poll) = source.on_events().unwrap() {
            sums.take(poll);
        }
        if next <= Instant::now() {
            sums.take(source.read(&Wanted::default()).unwrap());
            next = Instant::now() + Duration::from_millis(50);
        }
    }
    while let Some(poll) = source.on_events().unwrap() {
        sums.take(poll);
    }
    sums.take(source.read(&Wanted::default()).unwrap());
}

/// What rewrites under two floods came to.
struct Outcome {
    sums: Sums,
    /// Packets that rules of [`CHAIN`] saw, by IP version.
    sent: BTreeMap<IpVersion, u64>,
    /// How many of them were sent while a tool was at work on the version's table.
    sent_meanwhile: BTreeMap<IpVersion, u64>,
}

impl Outcome {
    fn lost(&self, ip_version: IpVersion) -> u64 {
        let (sent, counted) = (self.sent[&ip_version], self.sums.packets(ip_version));
        assert!(counted <= sent, "IPv{ip_version}: {sent} sent, {:?}", self.sums.packets);
        sent - counted
    }
}

/// Rewrites tables of 1 700 rules under floods. In step, the next rewrite waits until the last was seen.
fn rewrite_under_load(backend: Backend, rewrites: usize, watch_rewrites: bool, in_step: bool) -> Outcome {
    let scenario = scenario::scale(1_700, 30);
    let node = scenario.node().unwrap();
    node.felix(Dialect::new(Version::V3_33, backend).unwrap()).apply(&scenario.model).unwrap();
    prepare(&node, backend);
    let (a, b) = (node.pods().first().unwrap(), node.pods().last().unwrap());
    let flood =
        |to| Flood { other: Some((9, 3)), rate: Some(8000), until: Until::Stopped, ..Flood::new(to, 7) };
    let step = Step::default();
    let settings = Settings { lock_file: node.host().lock_file(), watch_rewrites, ..Settings::default() };
    let (host, reader_step) = (node.host().clone(), &step);
    std::thread::scope(|scope| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let counting = scope.spawn(move || {
            host.enter(|| {
                let mut source: Box<dyn RuleSource> = match backend {
                    Backend::Legacy => Box::new(IptablesLegacy::new(settings)),
                    _ => Box::new(Nftables::new().unwrap()),
                };
                let mut sums = Sums::default();
                sums.take(source.read(&Wanted::default()).unwrap());
                ready.send(()).unwrap();
                follow(&mut *source, &mut sums, reader_step);
                sums
            })
            .unwrap()
        });
        is_ready.recv().unwrap();
        // Whoever has the file open keeps the watch attached: how soon it is attached is not what is tested in step.
        let _open = in_step.then(|| File::open(node.host().lock_file()).unwrap());
        if in_step {
            step.wait();
        }
        let flooding: BTreeMap<IpVersion, _> = [
            (IpVersion::V4, flood(b.v4().unwrap()).start(&a.netns)),
            (IpVersion::V6, flood(b.v6().unwrap()).start(&a.netns)),
        ]
        .into();
        let mut sent_meanwhile: BTreeMap<IpVersion, u64> = BTreeMap::new();
        for number in 1..=rewrites {
            let ip_version = if number % 2 == 0 { IpVersion::V4 } else { IpVersion::V6 };
            let before = flooding[&ip_version].sent();
            // Every third leaves the chain that counts alone, and iptables gives its counters back.
            restore(node.host(), backend, ip_version, number, number % 3 == 0);
            if in_step {
                step.wait();
            }
            // Zeroing is a rewrite in iptables-legacy only.
            if number % 10 == 0 && backend == Backend::Legacy {
                node.host().run(&tool(backend, ip_version), &["-w", "-Z", CHAIN]).unwrap();
                if in_step {
                    step.wait();
                }
            }
            *sent_meanwhile.entry(ip_version).or_default() += flooding[&ip_version].sent() - before;
        }
        let sent = flooding.into_iter().map(|(ip_version, flooding)| {
            let flooded = flooding.stop().unwrap();
            (ip_version, flooded.usual + flooded.other - flooded.lost)
        });
        let sent = sent.collect();
        step.over.store(true, Ordering::SeqCst);
        let sums = counting.join().unwrap();
        println!("{sent:?} sent, {} rules handed over, {} rewrites missed", sums.retired, sums.missed());
        Outcome { sums, sent, sent_meanwhile }
    })
}

#[test]
fn nothing_is_lost() {
    let outcome = rewrite_under_load(Backend::Legacy, 300, true, true);
    assert_eq!(outcome.sums.missed(), 0);
    assert!(outcome.sums.retired > 200, "{}", outcome.sums.retired);
    assert_eq!(IpVersion::BOTH.map(|ip_version| outcome.lost(ip_version)), [0, 0]);
}

#[test]
fn nothing_is_lost_in_nftables() {
    let outcome = rewrite_under_load(Backend::IptablesNft, 300, true, false);
    assert!(outcome.sums.retired > 200, "{}", outcome.sums.retired);
    assert_eq!(IpVersion::BOTH.map(|ip_version| outcome.lost(ip_version)), [0, 0]);
}

#[test]
fn writers_that_do_not_wait_are_seen_or_counted_as_missed() {
    let outcome = rewrite_under_load(Backend::Legacy, 300, true, false);
    let lost = IpVersion::BOTH.map(|ip_version| outcome.lost(ip_version));
    println!("{lost:?} lost");
    assert!(lost == [0, 0] || outcome.sums.missed() > 0, "{lost:?}");
}

/// Writers follow each other at once, and nobody reads a table before it is replaced again: what the tables in between counted is
/// told all the same.
#[test]
fn tables_that_nobody_could_read_are_known() {
    let scenario = scenario::scale(1_700, 30);
    let node = scenario.node().unwrap();
    let (backend, version) = (Backend::Legacy, IpVersion::V4);
    node.felix(Dialect::new(Version::V3_33, backend).unwrap()).apply(&scenario.model).unwrap();
    prepare(&node, backend);
    let (from, to) = (node.pods().first().unwrap(), node.pods().last().unwrap().v4().unwrap());
    let settings = Settings { lock_file: node.host().lock_file(), ..Settings::default() };
    let mut sent = 0;
    let mut send = |packets: u32| {
        sent += u64::from(packets);
        traffic::udp(&from.netns, to, 7, 1, packets, 20).map(drop).unwrap();
    };
    let sums = node.host().enter(|| {
        let mut source = IptablesLegacy::new(settings);
        let mut sums = Sums::default();
        sums.take(source.read(&Wanted::default()).unwrap());
        // Keeps the watch attached.
        let _open = File::open(node.host().lock_file()).unwrap();
        source.on_events().unwrap();
        for round in 0..24 {
            for number in 0..=round % 3 {
                send(10 + number as u32);
                if (round + number) % 5 == 4 {
                    node.host().run(&tool(backend, version), &["-w", "-Z", CHAIN]).unwrap();
                } else {
                    restore(node.host(), backend, version, 10 * round + number, number % 3 == 2);
                }
            }
            while let Some(poll) = source.on_events().unwrap() {
                sums.take(poll);
            }
            sums.take(source.read(&Wanted::default()).unwrap());
        }
        sums
    });
    let sums = sums.unwrap();
    assert_eq!((sums.packets(version), sums.missed()), (sent, 0), "{:?}", sums.packets);
    assert!(sums.retired > 20, "{}", sums.retired);
}

#[test]
fn without_the_watch_it_costs_what_passes_while_rules_are_written() {
    let outcome = rewrite_under_load(Backend::Legacy, 60, false, true);
    for ip_version in IpVersion::BOTH {
        let (lost, bound) = (outcome.lost(ip_version), outcome.sent_meanwhile[&ip_version]);
        println!("IPv{ip_version}: {lost} lost of {} sent meanwhile", bound);
        assert!(lost > 0 && lost <= bound || outcome.sums.missed() > 0, "IPv{ip_version}: {lost} of {bound}");
    }
}

/// A kernel that cannot hold news back drops them. That is noticed and counted, and all is read anew. What a counter had last
/// is told by nobody but the kernel's freeing of it then.
#[test]
fn lost_news_cost_nothing() {
    lose_news(|| Nftables::new().unwrap(), |sent| sent..=sent);
}

/// Where nobody sees it freed, what is missing is at most what was counted since the last reading.
#[test]
fn without_sight_of_the_kernel_lost_news_cost_what_they_carried() {
    lose_news(|| Nftables::with(false, Programs::new(false)).unwrap(), |sent| 0..=sent);
}

/// Packets are sent, news of the rules that counted them are lost: what is found of them is in this range. What is counted
/// afterwards is there to the packet.
fn lose_news(source: impl FnOnce() -> Nftables + Send, found_of: impl Fn(u64) -> RangeInclusive<u64> + Sync) {
    const BEFORE: u32 = 30;
    const AFTER: u32 = 20;
    let scenario = scenario::scale(1_700, 30);
    let node = scenario.node().unwrap();
    node.felix(Dialect::new(Version::V3_33, Backend::IptablesNft).unwrap()).apply(&scenario.model).unwrap();
    prepare(&node, Backend::IptablesNft);
    let (from, to) = (node.pods().first().unwrap(), node.pods().last().unwrap().v4().unwrap());
    let send = |packets| traffic::udp(&from.netns, to, 7, 1, packets, 20).map(drop).unwrap();
    node.host()
        .enter(|| {
            let mut source = source();
            source.hold_back(0).unwrap();
            let mut sums = Sums::default();
            let read = |source: &mut Nftables, sums: &mut Sums| {
                sums.take(source.read(&Wanted::default()).unwrap());
                sums.packets(IpVersion::V4)
            };
            let mut before = read(&mut source, &mut sums);
            for round in 0..4 {
                send(BEFORE);
                for number in 1..=15 {
                    restore(node.host(), Backend::IptablesNft, IpVersion::V4, 100 * round + number, false);
                }
                let lost_so_far = sums.lost();
                let found = read(&mut source, &mut sums);
                assert!(sums.lost() > lost_so_far, "the kernel held everything back");
                let range = found_of(BEFORE.into());
                assert!(range.contains(&(found - before)), "{before} {found}");
                send(AFTER);
                before = read(&mut source, &mut sums);
                assert_eq!(before, found + u64::from(AFTER));
            }
        })
        .unwrap();
}
