//! The event loop with a source that takes its time, and whose totals are posted.

use super::books::Books;
use super::kept::Keeper;
use super::sources::{Make, Sources};
use super::{Engine, Settings};
use accountant_core::calico::bpf::Own;
use accountant_core::calico::bpf::totals::Decided;
use accountant_core::id::{Endpoint, EndpointKind};
use accountant_core::rule::{Action, Chain, Matches, Rule};
use accountant_core::snapshot::{Reading, Snapshot, Source, TableId};
use accountant_core::{Counter, Direction, IpVersion, Table};
use accountant_dataplane::kernel::Programs;
use accountant_dataplane::source::{How, TablePoll};
use accountant_dataplane::{Poll, RuleSource, SourceError, Wanted};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Answers when it is let to.
struct Slow(mpsc::Receiver<()>);

impl RuleSource for Slow {
    fn source(&self) -> Source {
        Source::Nftables
    }

    fn read(&mut self, _: &Wanted) -> Result<Poll, SourceError> {
        let _ = self.0.recv();
        Ok(Poll::default())
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn on_events(&mut self) -> Result<Option<Poll>, SourceError> {
        Ok(None)
    }
}

/// Nobody asks, and the next tick is far: what a source answers late is published all the same.
#[tokio::test]
async fn a_late_answer_is_published() {
    let (let_go, held) = mpsc::channel();
    let mut held = Some(held);
    let make: Make = Box::new(move || Ok(Box::new(Slow(held.take().expect("made once")))));
    let sources = Sources {
        makes: vec![(Source::Nftables, make)],
        programs: Programs::new(false),
        needs_programs: false,
    };
    let hour = Duration::from_secs(3600);
    let settings = Settings { poll_interval: hour, grace: hour };
    let (engine, handle) = Engine::new(settings, sources, None, Keeper::none()).unwrap();
    let mut published = handle.published.clone();
    tokio::spawn(engine.run());
    // The tick goes on without it.
    published.changed().await.unwrap();
    assert_ne!(handle.latest().status.not_ready(), [""; 0]);
    let_go.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(60), published.changed()).await.unwrap().unwrap();
    assert_eq!(handle.latest().status.not_ready(), [""; 0]);
}

/// A poll of Calico's eBPF dataplane whose counters say that one endpoint accepted so many packets.
fn totals(packets: u64) -> Poll {
    let endpoint = Endpoint { kind: EndpointKind::Workload, interface: "cali1".into() };
    let decided = Decided { origin: (1, 1), packets: [packets, 0, 0], policed: true, ..Decided::default() };
    let own = Own { ways: BTreeMap::from([((endpoint, Direction::Ingress), decided)]), ..Own::default() };
    Poll {
        totals: vec![own],
        how: How::Totals("our programs cannot be beside Calico's".into()),
        ..Poll::default()
    }
}

/// A poll of a table with a chain of an endpoint.
fn rules(source: Source, table: Table, chain: &str) -> Poll {
    let rule = Rule {
        hash: Some("0123456789abcdef".into()),
        comments: vec![],
        matches: Matches::default(),
        action: Action::None,
        content: 0,
        counted: true,
    };
    let chain = Arc::new(Chain::new(chain.into(), vec![rule]));
    let chains = vec![Reading { chain, counters: vec![Counter::default()] }];
    let id = TableId { source, native: false, ip_version: IpVersion::V4, table };
    let table = TablePoll { id, snapshot: Ok(Snapshot { chains, ..Snapshot::default() }) };
    Poll { tables: vec![table], ..Poll::default() }
}

/// Beside its eBPF dataplane Calico keeps chains for untracked policy of host endpoints in raw; they count other packets.
#[test]
fn totals_are_posted_unless_rules_of_the_filter_table_count_for_endpoints() {
    for (table, chain, posted) in [(Table::Raw, "cali-th-eth0", 5), (Table::Filter, "cali-tw-cali1", 0)] {
        let mut books = Books::new(Duration::from_secs(3600));
        for (tick, packets) in [0, 5].into_iter().enumerate() {
            books.take(&mut rules(Source::Nftables, table, chain));
            books.take(&mut totals(packets));
            books.end_tick(Duration::from_secs(tick as u64));
        }
        let sum: u64 = books.exactness(Source::CalicoBpf).values().sum();
        assert_eq!(sum, posted, "{table:?}");
    }
}

/// What the one that is not posted lacks can be told only if it was read last.
#[test]
fn whoever_is_not_posted_is_read_last() {
    let (old, new) = (Source::Nftables, Source::IptablesLegacy);
    let mut books = Books::new(Duration::from_secs(3600));
    books.take(&mut rules(old, Table::Filter, "cali-tw-cali1"));
    books.end_tick(Duration::ZERO);
    assert_eq!(books.followers(), BTreeSet::new(), "alone");
    books.take(&mut rules(new, Table::Raw, "cali-th-eth0"));
    books.end_tick(Duration::from_secs(1));
    assert_eq!(books.followers(), BTreeSet::new(), "of different tables");
    books.take(&mut rules(new, Table::Filter, "cali-tw-cali1"));
    assert_eq!(books.followers(), BTreeSet::from([new]), "as soon as it is known");
    books.end_tick(Duration::from_secs(2));
    assert_eq!(books.followers(), BTreeSet::from([new]));
}
