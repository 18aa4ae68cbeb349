//! Scenes in which the core once broke a law when rules were rewritten, or counters reset, while packets passed.

use crate::felix::endpoint_chain;
use crate::kernel::Backend::{Legacy, Native, NftWhole};
use crate::programs::Change;
use crate::scenario::Op;
use crate::script::{allow, charged, deny, insert, late, packet, pass, play_in, scene, world};
use crate::session::Session;
use crate::source::Source;
use crate::world::{Edit, TierEnd};
use accountant_core::Direction::Ingress;

/// A moment of zeros hides what a chain counted that had nothing before: later it seems to be of the new rules alone.
#[test]
fn a_dip_hides_no_rewrite() {
    let line = "p5: p0: Pass | [p5:a p3:] Drop";
    let mut session = Session::new(Legacy, world(&[line, line]));
    session.source = Source::new(true);
    play_in(session, |s| {
        s.read(&[], false)?;
        s.send(&packet(1, &[None, allow(5)], 1327));
        s.read(&[], false)?;
        s.send(&packet(0, &[None, allow(5)], 1428));
        s.edit(Edit::Remove { layout: 0, tier: 0, at: 1 });
        s.op(&Op::Dip(2))?;
        s.finish()
    });
}

/// A reading finds a packet between the NFLOG rule and the drop at the end of a tier, and then a policy comes in.
#[test]
fn a_packet_between_log_and_drop_is_charged_once() {
    scene(Legacy, &["p0: DropLogged"], |s| {
        let drop = s.before(&endpoint_chain(0, Ingress), 7);
        s.read_once(&[late(packet(0, &[None], 691), drop, 0)])?;
        s.edit(insert(0, 1, 1));
        s.finish()
    });
}

/// A reading finds a packet behind a policy's jump; then one comes in before it, and the rule before that one stays.
#[test]
fn a_packet_in_the_middle_of_a_rewritten_tier_is_charged_once() {
    scene(Legacy, &["p1: p3: Drop"], |s| {
        let end = s.before(&endpoint_chain(0, Ingress), 8);
        let flow = [late(packet(0, &[None], 73), end, 0)];
        s.read_once(&flow)?;
        s.read_once(&flow)?;
        s.edit(insert(0, 1, 2));
        s.finish()
    });
}

/// What the last policy of a Pass tier denied is hidden by what those before it passed, and the endpoint goes.
#[test]
fn a_deny_behind_a_pass_goes_to_the_endpoint_that_is_gone() {
    let line = "[p5:ap p0:] p3:dp Pass | p0: Drop";
    scene(NftWhole, &[line, line], |s| {
        s.send(&packet(0, &[pass(5), None], 801));
        s.send(&packet(0, &[deny(3)], 380));
        s.edit(Edit::Gone { slot: 0 });
        let flow = [late(packet(1, &[pass(5), None], 701), 9, 0)];
        s.read(&flow, true)?;
        s.finish()
    });
}

/// Counters were reset, and a chain's were past their old values again when they were read next.
#[test]
fn a_reset_that_is_caught_up_with_passes_nothing() {
    let line = "[p2:dp p5:ad] Pass";
    scene(Legacy, &[line, line], |s| {
        for _ in 0..3 {
            s.send(&packet(0, &[deny(2)], 264));
            s.send(&packet(1, &[allow(5)], 375));
            s.read_once(&[])?;
        }
        s.op(&Op::Wipe(None))?;
        (0..3).for_each(|_| s.send(&packet(0, &[None], 1266)));
        s.finish()
    });
}

/// Programs told who denied while the tier's end changed: that is charged once, and nobody else with the next packet.
#[test]
fn what_was_told_while_a_tier_changed_is_charged_once() {
    for backend in [NftWhole, Native] {
        let line = "p1:ap [p2:dp p6:dp] Drop | p0: Drop";
        let session = scene(backend, &[line], |s| {
            s.op(&Op::Programs(Change::Attach))?;
            s.read(&[], false)?;
            s.read(&[], false)?;
            s.edit(Edit::TierEnd { tier: 0, end: TierEnd::Pass });
            s.read_once(&[])?;
            s.send(&packet(0, &[deny(6)], 253));
            s.read_once(&[])?;
            s.send(&packet(0, &[deny(6)], 253));
            s.read(&[], false)?;
            s.settle()?;
            s.edit(Edit::Remove { layout: 0, tier: 0, at: 0 });
            s.send(&packet(0, &[deny(2)], 194));
            s.finish()
        });
        assert_eq!(charged(&session.agent.charged, 0, deny(6)), 2, "{}", session.story.join("\n"));
    }
}

/// One chain was wiped, and while that waits to be believed there is a moment of zeros: what comes back after it was there.
#[test]
fn a_moment_of_zeros_after_a_fall_is_no_reset() {
    let mut world = world(&["[p0:a p1:a] Drop"]);
    world.apply(insert(0, 0, 2));
    let mut session = Session::new(Legacy, world);
    session.source = Source::new(true);
    play_in(session, |s| {
        s.read(&[], false)?;
        s.send(&packet(0, &[allow(1)], 743));
        s.settle()?;
        s.op(&Op::Wipe(Some(0)))?;
        s.op(&Op::Dip(1))?;
        s.read_once(&[])?;
        s.read_once(&[])?;
        s.finish()
    });
}

/// Counters are lost in rewrites that nobody saw: what programs told of them is charged once there is rest, and only that.
#[test]
fn what_a_rewrite_lost_is_charged_by_what_was_told() {
    let session = scene(Legacy, &["p0:ad p1:a Drop"], |s| {
        s.op(&Op::Programs(Change::Attach))?;
        s.settle()?;
        s.settle()?;
        for _ in 0..5 {
            s.send(&packet(0, &[deny(0)], 101));
            s.send(&packet(0, &[allow(1)], 103));
        }
        s.edit(insert(0, 0, 2));
        // No list is good for this one: that it came is told, and not who decided.
        s.send(&packet(0, &[allow(1)], 105));
        s.edit(insert(0, 0, 3));
        s.settle()?;
        s.send(&packet(0, &[allow(1)], 107));
        s.settle()?;
        s.settle()
    });
    let book = &session.agent.charged;
    assert_eq!(charged(book, 0, deny(0)), 5, "{}", session.story.join("\n"));
    assert_eq!(charged(book, 0, allow(1)), 6, "{}", session.story.join("\n"));
}

/// A packet is counted by the reading at which all had rested, and told after it: that it is told later is no loss.
#[test]
fn what_is_told_after_all_had_rested_is_charged_once() {
    let session = scene(Legacy, &[""], |s| {
        s.op(&Op::Programs(Change::Attach))?;
        s.settle()?;
        s.settle()?;
        s.send(&packet(0, &[], 101));
        s.read_once(&[])?;
        s.read_once(&[])?;
        s.read(&[late(packet(0, &[], 103), 0, 0)], false)?;
        s.op(&Op::Lose { noticed: true })?;
        s.settle()?;
        s.settle()
    });
    let charged: u64 = session.agent.charged.values().map(|amount| amount.packets).sum();
    assert_eq!(charged, 2, "{}", session.story.join("\n"));
}
