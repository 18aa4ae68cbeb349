//! Scenes in which the core once broke a law, each as small as it gets.

use crate::felix::{endpoint_chain, item_chain, policy_chain};
use crate::kernel::Backend::{Legacy, Native, NftWhole};
use crate::scenario::Op;
use crate::script::{
    allow, charged, deny, edit, found, insert, join, late, packet, packet_from, pass, scene,
};
use crate::world::{Edit, TierEnd};
use accountant_core::Direction::Ingress;

/// A: and readings that waited are counted over all times, until they run out of patience with it.
#[test]
fn doubt_of_the_first_sight_does_not_stay() {
    found(Legacy, &["p0: Drop"], |s| {
        for size in 100..107 {
            s.send(&packet(0, &[None], size));
            s.read(&[], false)?;
        }
        s.finish()
    });
}

/// B: packets that no policy of a Pass tier decided keep the balance of rows and columns from being drawn.
#[test]
fn a_history_that_adds_up_is_believed_in_pass_tiers() {
    let line = "[p0:p p1:p] p2:a PassLogged";
    scene(Legacy, &[line, line], |s| {
        s.send(&packet(0, &[pass(0)], 785));
        s.send(&packet(1, &[pass(1)], 860));
        s.restart();
        s.finish()
    });
}

/// C: a shared chain is read after the endpoints; what came between is settled there and not with them.
#[test]
fn what_comes_between_endpoints_and_shared_chains_is_not_lost() {
    scene(NftWhole, &["[p0:a p1:a] Drop"], |s| {
        s.send(&packet(0, &[allow(0)], 501));
        s.read_once(&[])?;
        let between = s.before(&item_chain(0, &[0, 1], Ingress), 0);
        s.read_once(&[late(packet(0, &[allow(0)], 61), between, 0)])?;
        s.finish()
    });
}

/// C, as an invention: the column that is ahead pushes a packet to another member.
#[test]
fn what_comes_between_is_not_charged_to_others() {
    let line = "[p0:d p1:d] Drop";
    scene(NftWhole, &[line, line], |s| {
        s.send(&packet(0, &[deny(0)], 500));
        s.read_once(&[])?;
        let between = s.before(&item_chain(0, &[0, 1], Ingress), 0);
        s.read_once(&[late(packet(0, &[deny(0)], 61), between, 0)])?;
        s.read_once(&[])?;
        s.read_once(&[late(packet(1, &[deny(1)], 700), between, 0)])?;
        s.finish()
    });
}

/// D: two readings running can each find a packet on its way, and not the same.
#[test]
fn a_packet_on_its_way_twice_is_no_deny() {
    let line = "p0:ad Drop";
    scene(NftWhole, &[line, line], |s| {
        // Counted by the jump before that is read, and by "Return if policy accepted" after.
        let on_its_way = late(packet(0, &[allow(0)], 300), s.before(&endpoint_chain(0, Ingress), 4) - 4, 2);
        s.read_once(std::slice::from_ref(&on_its_way))?;
        let between = s.before(&policy_chain(0, 0, Ingress), 0);
        s.read_once(&[on_its_way, late(packet(1, &[deny(0)], 300), between, 0)])?;
        s.finish()
    });
}

/// F: in a Pass tier the doubt about a policy is charged again as the doubt about the tier.
#[test]
fn a_doubt_is_charged_once() {
    scene(Legacy, &["p1: p0: Pass"], |s| {
        s.send(&packet(0, &[None], 1210));
        s.edit(insert(0, 1, 2));
        s.finish()
    });
}

/// G: terms of rules that are gone stay, and their accounts with them, until the chain changes again.
#[test]
fn accounts_of_rules_that_are_gone_go() {
    scene(NftWhole, &["p0: Drop"], |s| {
        s.edit(edit(0, 1, "p"));
        s.edit(insert(0, 0, 1));
        s.send(&packet(0, &[None], 1224));
        s.edit(join(0, 0, 2));
        s.finish()
    });
}

/// H: a rule that stays counts for the old chain and the new one, its counterparts only for one of them.
#[test]
fn a_tier_that_becomes_a_drop_tier_doubles_nothing() {
    scene(Native, &["p0: Pass"], |s| {
        s.send(&packet(0, &[None], 710));
        s.edit(Edit::TierEnd { tier: 0, end: TierEnd::Drop });
        s.finish()
    });
}

/// I: a counter that vanished is taken for zero: what went on from the tier was denied, then.
#[test]
fn what_a_lost_counter_counted_was_not_denied() {
    scene(Legacy, &["p5: Drop"], |s| {
        s.edit(edit(0, 5, "d"));
        s.send(&packet(0, &[None], 1094));
        s.edit(Edit::TierEnd { tier: 0, end: TierEnd::Pass });
        s.finish()
    });
}

/// J: a chain that came and went calls a group that nobody knows yet: the group is charged as if it were a policy.
#[test]
fn a_group_that_came_and_went_has_members() {
    let line = "p3: Drop";
    scene(NftWhole, &[line, line], |s| {
        s.edit(edit(0, 1, "a"));
        s.edit(edit(0, 2, "a"));
        s.edit(join(0, 0, 1));
        s.edit(join(0, 0, 2));
        s.send(&packet_from(0, &[allow(1)], 524));
        s.send(&packet_from(1, &[allow(2)], 1000));
        s.edit(join(0, 0, 4));
        s.finish()
    });
}

/// K: what others run out of patience with makes an equation loose that rests, and loose ones lose their rest.
#[test]
fn patience_with_others_loses_nothing() {
    let line = "p6:a [p2: p3:d] Drop";
    scene(Legacy, &[line, line], |s| {
        let denied = [late(packet(1, &[deny(3)], 1101), 0, 0)];
        let accepted = [late(packet(0, &[allow(6)], 208), 0, 0)];
        s.read(&denied, true)?;
        s.read(&accepted, true)?;
        s.read_once(&accepted)?;
        s.send(&packet(0, &[deny(3)], 343));
        s.finish()
    });
}

/// M: what one endpoint's chain lost still is in the shared chains, and is charged to another endpoint.
#[test]
fn what_one_endpoint_lost_is_not_charged_to_another() {
    let lines = ["p0:p Drop | [p1: p2:p] p3: Pass", "p1: Drop | [p1: p2:p] Pass"];
    scene(Legacy, &lines, |s| {
        s.send(&packet(0, &[pass(0), pass(2)], 278));
        s.edit(Edit::TierEnd { tier: 0, end: TierEnd::Pass });
        s.send(&packet(1, &[], 1349));
        s.finish()
    });
}

/// N: a policy denied, was edited, and passes now: what it denied since the last reading is charged as passed.
#[test]
fn what_an_edited_policy_denied_was_not_passed() {
    scene(Legacy, &["p7:d p2:p Drop"], |s| {
        s.send(&packet(0, &[deny(7)], 976));
        s.edit(edit(0, 7, "p"));
        s.read_once(&[late(packet(0, &[pass(2)], 1000), 0, 0)])?;
        s.read_once(&[late(packet(0, &[pass(2)], 1000), 0, 0)])?;
        s.finish()
    });
}

/// N, where nothing was lost: the last counters are there, and the packet is not charged.
#[test]
fn what_an_edited_policy_denied_is_charged() {
    scene(Native, &["p7:d p2:a Drop"], |s| {
        s.send(&packet(0, &[deny(7)], 976));
        s.edit(edit(0, 7, "p"));
        s.finish()
    });
}

/// O: an outcome with amounts from before is a term of a new equation, which contradicts the old one.
#[test]
fn a_new_equation_knows_nothing_of_before() {
    scene(NftWhole, &["[p6:adp p0:] Pass"], |s| {
        s.send(&packet(0, &[deny(6)], 849));
        s.edit(insert(0, 1, 1));
        s.send(&packet(0, &[None], 448));
        s.finish()
    });
}

/// Q: chains that were deleted are read with what policies could do at the last reading, not at the time.
#[test]
fn what_a_policy_could_do_meanwhile_counts() {
    let line = "[p2: p0:a] Drop";
    scene(NftWhole, &[line, line, "p0:a Drop"], |s| {
        s.edit(edit(0, 2, "ap"));
        s.send(&packet(1, &[allow(2)], 1273));
        s.edit(Edit::Gone { slot: 1 });
        s.edit(Edit::Add { slot: 1, ingress: 1, egress: None, profiles: 0 });
        s.finish()
    });
}

/// Q, the other way round: a new endpoint is read with what policies can do by now.
#[test]
fn what_a_policy_could_do_before_counts() {
    let line = "[p4:a p0:a] Drop";
    scene(NftWhole, &[line], |s| {
        s.edit(Edit::Add { slot: 1, ingress: 0, egress: None, profiles: 0 });
        s.send(&packet(1, &[allow(4)], 291));
        s.edit(edit(0, 4, "d"));
        s.finish()
    });
}

/// R: two rewrites between two readings: the rules are all new, but not equally new.
#[test]
fn rules_of_two_rewrites_are_not_of_one_age() {
    let line = "[p0:d p7:p] Drop | p1: Drop";
    scene(Legacy, &[line, line], |s| {
        s.send(&packet(1, &[deny(0)], 1448));
        s.edit(join(0, 0, 2));
        for _ in 0..3 {
            s.send(&packet(0, &[pass(7), None], 831));
        }
        s.edit(insert(0, 1, 3));
        // Too late for the jump's counter, not for that of the next tier's start.
        let passed = late(packet(0, &[pass(7), None], 700), s.before(&endpoint_chain(0, Ingress), 6), 0);
        s.read_once(&[passed.clone(), passed])?;
        s.finish()
    });
}

/// S: the equation of a rule that is gone bounds what its policy did under another rule.
#[test]
fn an_old_equation_knows_nothing_of_after() {
    scene(NftWhole, &["p7:d p0: Pass"], |s| {
        s.send(&packet(0, &[None], 1192));
        s.edit(Edit::Remove { layout: 0, tier: 0, at: 1 });
        s.send(&packet(0, &[deny(7)], 1442));
        s.edit(Edit::Gone { slot: 0 });
        s.finish()
    });
}

/// V: at first sight the only member that can accept now is charged with all that its group ever accepted.
#[test]
fn at_first_sight_policies_may_have_been_others() {
    scene(Legacy, &["[p0:a p5:a] Drop"], |s| {
        s.send(&packet(0, &[allow(0)], 1408));
        s.edit(edit(0, 0, "d"));
        s.restart();
        s.finish()
    });
}

/// W: at first sight a shared chain can hold less than its endpoints know of, and bounds nothing from above.
#[test]
fn at_first_sight_shared_chains_may_have_lost_counts() {
    let line = "[p0:a p5:a] Drop";
    scene(Legacy, &[line, line], |s| {
        s.send(&packet(0, &[allow(0)], 1408));
        s.send(&packet(1, &[allow(5)], 1500));
        s.edit(edit(0, 0, ""));
        s.edit(edit(0, 0, "a"));
        s.edit(Edit::Gone { slot: 1 });
        s.restart();
        s.finish()
    });
}

/// X: a fall in a shared chain of nftables waits for a reading that nobody asks for.
#[test]
fn a_fall_in_a_shared_chain_is_confirmed() {
    scene(NftWhole, &["p2: [p5:ap p1:] Drop"], |s| {
        s.send(&packet(0, &[allow(5)], 1019));
        s.read(&[], false)?;
        s.op(&Op::Wipe(None))?;
        s.settle()
    });
}

/// A: on a node with a history, the first denies that an agent sees happen are doubted as if they were of it.
#[test]
fn what_happens_after_the_first_sight_is_no_history() {
    let line = "p0:ad Drop";
    let session = found(Legacy, &[line, line], |s| {
        s.send(&packet(1, &[deny(0)], 500));
        s.edit(Edit::Gone { slot: 1 });
        s.restart();
        s.settle()?;
        s.send(&packet(0, &[deny(0)], 700));
        s.finish()
    });
    assert_eq!(charged(&session.agent.charged, 0, deny(0)), 1, "{}", session.story.join("\n"));
}

/// P: patience runs out in a Pass tier: the rest of a group is charged, and later the rest of the tier, which is the same.
#[test]
fn what_patience_charged_is_not_charged_again() {
    let line = "[p0:d p1:d] p2:a Pass";
    scene(Legacy, &[line, line], |s| {
        for (slot, policy) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            s.send(&packet(slot, &[deny(policy)], 100));
        }
        // Too late for the first counter of the tier, not for the last one.
        let flow = late(packet(0, &[None], 700), s.before(&endpoint_chain(0, Ingress), 8), 0);
        for _ in 0..8 {
            s.read_once(std::slice::from_ref(&flow))?;
        }
        s.finish()
    });
}

/// Y: shared chains that lost rules in a gap are believed, where without a gap they are not.
#[test]
fn a_gap_that_was_noticed_is_no_better_than_one_that_was_not() {
    let line = "[p0:a p1:a] Drop";
    scene(NftWhole, &[line, line], |s| {
        s.send(&packet(0, &[allow(0)], 300));
        s.send(&packet(1, &[allow(1)], 500));
        s.edit(edit(0, 0, ""));
        s.edit(edit(0, 0, "a"));
        s.edit(Edit::Gone { slot: 1 });
        s.op(&Op::Lose { noticed: true })?;
        s.finish()
    });
}

/// D: a packet on its way at the last reading before counters are reset is believed, because nothing tells of it after.
#[test]
fn a_packet_on_its_way_before_a_reset_is_no_deny() {
    scene(NftWhole, &["[p1:ad p0:] Drop"], |s| {
        let on_its_way = late(packet(0, &[allow(1)], 987), s.before(&endpoint_chain(0, Ingress), 4) - 4, 2);
        for _ in 0..3 {
            s.read_once(std::slice::from_ref(&on_its_way))?;
        }
        s.op(&Op::Wipe(None))?;
        s.finish()
    });
}

/// An endpoint is gone with a deny unsettled, and another one's packet is on its way during the next reading.
#[test]
fn what_one_settles_late_is_not_unexplained_for_others() {
    let line = "p2:d p7:d Drop";
    scene(NftWhole, &[line, line], |s| {
        s.send(&packet(0, &[deny(2)], 733));
        s.edit(Edit::Gone { slot: 0 });
        s.read_once(&[late(packet(1, &[deny(7)], 1412), -16, 4)])?;
        s.finish()
    });
}
