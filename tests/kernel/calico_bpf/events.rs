//! Felix at work while packets pass: programs replaced in place, links made anew behind ours, endpoints that come and go. No
//! count falls, and in the end ours are those of the dataplane itself.

use super::*;

/// Allowed at both ends; denied at the second.
const ALLOWED: u16 = 7301;
const DENIED: u16 = 7302;

fn assert_not_below(before: &Counts, now: &Counts) {
    for (line, counter) in before {
        let now = now.get(line).copied().unwrap_or_default();
        assert!(!now.fell_below(*counter), "{line:?} fell from {counter:?} to {now:?}");
    }
}

#[test]
fn nothing_is_lost_while_felix_works() {
    in_lab(|lab| {
        let mut stand_in = lab.stand_in(NEWEST);
        let mut source = lab.source();
        read(&mut source);
        stand_in.decide(ALLOWED, INGRESS, allow(&[1, 2]));
        stand_in.decide(ALLOWED, EGRESS, allow(&[3]));
        stand_in.decide(DENIED, INGRESS, allow(&[4]));
        stand_in.decide(DENIED, EGRESS, deny(&[5, 6]));
        let [a, b] = ["a", "b"].map(|pod| lab.node.pod("shop", pod).unwrap());
        let flood = |cpu, to: IpAddr| Flood {
            other: Some((DENIED, 3)),
            until: Until::Stopped,
            cpu: Some(cpu),
            ..Flood::new(to, ALLOWED)
        };
        let flooding = [flood(0, b.v4().unwrap()).start(&a.netns), flood(1, b.v6().unwrap()).start(&a.netns)];
        let mut before = Counts::new();
        for round in 0..24 {
            match round % 4 {
                0 => stand_in.replace(&lab.a, INGRESS),
                1 => stand_in.replace(&lab.b, EGRESS),
                2 => stand_in.attach(&lab.a, INGRESS),
                _ => stand_in.attach_both(&lab.b),
            }
            let now = counts(&read(&mut source));
            assert_not_below(&before, &now);
            before = now;
        }
        for flooding in flooding {
            flooding.stop().unwrap();
        }
        let poll = read(&mut source);
        let counted = counts(&poll);
        assert_not_below(&before, &counted);
        assert_eq!(hits(&counted), stand_in.rules(), "{:?}", poll.happened);
        assert_eq!(poll.difference, Some(0));
        assert!(counted.values().map(|counter| counter.packets).sum::<u64>() > 10_000, "{counted:?}");
    });
}

/// A pod goes, and one of the same name comes: it counts on where that one stopped, unless it was gone for so long that its
/// numbers were told and forgotten.
#[test]
fn pods_come_and_go() {
    let mut lab = Lab::new();
    let host = lab.node.host().clone();
    let (mut stand_in, mut source) = host.enter(|| (lab.stand_in(NEWEST), lab.source())).unwrap();
    stand_in.decide(DENIED, INGRESS, allow(&[4]));
    stand_in.decide(DENIED, EGRESS, deny(&[5]));
    let line = (lab.b.clone(), Direction::Ingress, 4, Outcome::Denied, vec![5]);
    let mut want = 0;
    for readings_between in [0, 1, 3, 0] {
        want += 3;
        let read_twice = || {
            read(&mut source);
            lab.send(DENIED, 3);
            counts(&read(&mut source))
        };
        let counted = host.enter(read_twice).unwrap();
        assert_eq!(counted[&line].packets, want);
        lab.node.remove_pod("shop", "b").unwrap();
        for _ in 0..readings_between {
            host.enter(|| drop(read(&mut source))).unwrap();
        }
        if readings_between > 2 {
            want = 0;
        }
        lab.node.add_pod(&pods()[1]).unwrap();
        host.enter(|| stand_in.attach_both(&lab.b)).unwrap();
    }
}
