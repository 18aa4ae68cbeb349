//! Scenes that must go right, each for one thing that could go wrong.

use crate::felix::{endpoint_chain, tier_name};
use crate::kernel::Backend::{self, Legacy, Native, NftWhole};
use crate::script::{
    allow, charged, deny, edit, found, insert, join, late, packet, pass, scene, unattributed,
};
use crate::session::Session;
use crate::truth::account;
use crate::world::Edit;
use accountant_core::Counter;
use accountant_core::Direction::Ingress;
use accountant_core::ledger::{Cause, What};

const ALL: [Backend; 3] = [Legacy, NftWhole, Native];

fn story(session: &Session) -> String {
    session.story.join("\n")
}

/// `facts/calico-chains.md` 1.2: a group changed, and the rules from its jump on are new. J = 1572, R = 0, N = 88 would
/// be 1484 denies that never were.
#[test]
fn a_history_with_a_rewrite_makes_no_denies() {
    let session = found(Legacy, &["p0:d [p1:a p2:a] Drop"], |s| {
        for _ in 0..1484 {
            s.send(&packet(0, &[allow(1)], 100));
        }
        s.edit(join(0, 1, 3));
        for _ in 0..88 {
            s.send(&packet(0, &[allow(2)], 100));
        }
        s.restart();
        s.finish()
    });
    let book = &session.agent.charged;
    assert_eq!(charged(book, 0, deny(0)), 0);
    assert_eq!(unattributed(book), [(Cause::History, Counter::new(1484, 148_400))]);
}

/// A policy comes in while nothing but accepted packets pass, during each reading too: at the front, where all rules are
/// replaced, and in the middle, where the rules before it stay.
fn insert_into_a_flood(backend: Backend) {
    for place in [0, 1] {
        let session = scene(backend, &["p0:ad p1:adp Drop"], |s| {
            s.edit(edit(0, 2, "d"));
            let accepted = |at: i64| packet(0, &[allow(at as usize % 2)], 60 + at as u64);
            let flow: Vec<_> = [1, 9, 11, 13, 17, 22, 24, 26].map(|at| late(accepted(at), at, 2)).into();
            for _ in 0..3 {
                s.read(&flow, true)?;
            }
            s.send(&packet(0, &[allow(1)], 999));
            s.edit(insert(0, place, 2));
            for _ in 0..3 {
                s.read(&flow, true)?;
            }
            s.finish()
        });
        for policy in 0..3 {
            let book = &session.agent.charged;
            let against = charged(book, 0, deny(policy)) + charged(book, 0, pass(policy));
            assert_eq!(against, 0, "{}", story(&session));
        }
    }
}

#[test]
fn an_insertion_into_a_flood_makes_no_denies_in_legacy() {
    insert_into_a_flood(Legacy);
}

#[test]
fn an_insertion_into_a_flood_makes_no_denies_in_nftables() {
    insert_into_a_flood(NftWhole);
    insert_into_a_flood(Native);
}

/// The last and only policy of a Pass tier denies and passes: with one endpoint its own counters tell which.
#[test]
fn the_only_policy_of_a_pass_tier_denies_and_passes() {
    for (backend, end) in ALL.into_iter().flat_map(|backend| [(backend, "Pass"), (backend, "PassLogged")]) {
        let session = scene(backend, &[&format!("p0:adp {end}")], |s| {
            for (times, choice) in [(1, allow(0)), (2, deny(0)), (3, pass(0)), (4, None)] {
                (0..times).for_each(|_| s.send(&packet(0, &[choice], 100 * times)));
            }
            s.finish()
        });
        let book = &session.agent.charged;
        let found = [allow(0), deny(0), pass(0)].map(|choice| charged(book, 0, choice));
        assert_eq!(found, [1, 2, 3], "{}", story(&session));
    }
}

/// The same behind another policy, as a member of a group.
#[test]
fn the_last_member_of_a_pass_tier_denies_and_passes() {
    for backend in ALL {
        let session = scene(backend, &["p1:d [p2:a p0:adp] PassLogged"], |s| {
            for (times, choice) in [(1, allow(0)), (2, deny(0)), (3, pass(0)), (4, None), (5, deny(1))] {
                (0..times).for_each(|_| s.send(&packet(0, &[choice], 100 * times)));
            }
            s.finish()
        });
        let book = &session.agent.charged;
        let found = [allow(0), deny(0), pass(0), deny(1)].map(|choice| charged(book, 0, choice));
        assert_eq!(found, [1, 2, 3, 5], "{}", story(&session));
    }
}

/// An endpoint goes right after a reading that could not settle what it saw.
#[test]
fn an_endpoint_goes_with_amounts_unsettled() {
    for backend in ALL {
        let line = "[p0:d p1:a] Drop";
        let session = scene(backend, &[line, line], |s| {
            s.send(&packet(0, &[deny(0)], 500));
            s.read_once(&[])?;
            s.send(&packet(1, &[deny(0)], 700));
            s.edit(Edit::Gone { slot: 0 });
            s.finish()
        });
        let book = &session.agent.charged;
        assert_eq!(charged(book, 0, deny(0)), 1, "{}", story(&session));
        assert_eq!(charged(book, 1, deny(0)), 1, "{}", story(&session));
    }
}

/// Counters run over the end of 64 bits while the agent looks on.
#[test]
fn counters_run_over() {
    for backend in ALL {
        let session = scene(backend, &["p0:ad p1:d Drop"], |s| {
            s.send(&packet(0, &[allow(0)], 10));
            s.read(&[], false)?;
            // As if they had been counting for long: rules in line have the same to lose.
            let near = |left| Counter::new(u64::MAX - left, u64::MAX - 100 * left);
            let tw = endpoint_chain(0, Ingress);
            for (chain, rule) in [(&tw, 2), (&tw, 3), (&tw, 4), (&tw, 5)] {
                s.kernel.set(chain, rule, near(2));
            }
            s.restart();
            s.settle_unchecked();
            let before = charged(&s.agent.charged, 0, allow(0));
            (0..5).for_each(|_| s.send(&packet(0, &[allow(0)], 100)));
            s.send(&packet(0, &[deny(1)], 100));
            s.settle_unchecked();
            assert_eq!(before, u64::MAX - 2);
            Ok(())
        });
        let book = &session.agent.charged;
        assert_eq!(charged(book, 0, allow(0)), u64::MAX, "balances stay full");
        assert_eq!(charged(book, 0, deny(1)), 1, "{}", story(&session));
        assert_eq!(unattributed(book), [], "{}", story(&session));
    }
}

/// One endpoint calls a policy directly, another calls it in a group.
#[test]
fn a_policy_is_called_directly_and_in_a_group() {
    for backend in ALL {
        let session = scene(backend, &["p0:ad p1:a Drop", "[p0:ad p1:a] Drop"], |s| {
            for (times, slot, choice) in
                [(1, 0, allow(0)), (2, 0, deny(0)), (3, 1, allow(0)), (4, 1, allow(1))]
            {
                (0..times).for_each(|_| s.send(&packet(slot, &[choice], 100 + times)));
            }
            (0..5).for_each(|_| s.send(&packet(1, &[deny(0)], 400)));
            s.finish()
        });
        let book = &session.agent.charged;
        let found = [(0, allow(0)), (0, deny(0)), (1, allow(0)), (1, allow(1)), (1, deny(0))];
        assert_eq!(found.map(|(slot, by)| charged(book, slot, by)), [1, 2, 3, 4, 5], "{}", story(&session));
    }
}

/// Endpoints come and go under the same and other names: their accounts do not stay.
#[test]
fn accounts_do_not_pile_up() {
    for backend in ALL {
        let line = "[p0:ad p1:ap] p2:d Drop";
        let session = scene(backend, &[line, line], |s| {
            let mut most = 0;
            for slot in 2..40 {
                s.edit(Edit::Add { slot, ingress: 0, egress: Some(0), profiles: 0 });
                s.send(&packet(slot, &[deny(0)], 100));
                s.read_once(&[])?;
                s.send(&packet(slot, &[deny(2)], 100));
                s.edit(Edit::Gone { slot });
                s.read(&[], false)?;
                most = most.max(s.agent.accounts().len());
            }
            assert!(most < 80, "{most} accounts of two or three endpoints");
            s.finish()
        });
        let key = account(39, Ingress, What::NoPolicy { tier: tier_name(0).as_str().into() });
        assert!(!session.agent.accounts().contains(&key));
    }
}
