//! Felix at work while packets pass: programs replaced in place, links made anew behind ours, endpoints that come and go. No
//! count falls, and in the end ours are those of the dataplane itself.

use super::*;
use accountant_lab::traffic::Flooding;

/// Allowed at both ends; denied at the second.
const ALLOWED: u16 = 7301;
const DENIED: u16 = 7302;

fn assert_not_below(before: &Counts, now: &Counts) {
    for (line, counter) in before {
        let now = now.get(line).copied().unwrap_or_default();
        assert!(!now.fell_below(*counter), "{line:?} fell from {counter:?} to {now:?}");
    }
}

/// The dataplane, with policies for both ports.
fn deciding(lab: &Lab, version: Version) -> StandIn {
    let stand_in = lab.stand_in(version);
    stand_in.decide(ALLOWED, INGRESS, allow(&[1, 2]));
    stand_in.decide(ALLOWED, EGRESS, allow(&[3]));
    stand_in.decide(DENIED, INGRESS, allow(&[4]));
    stand_in.decide(DENIED, EGRESS, deny(&[5, 6]));
    stand_in
}

/// Packets from pod a to pod b, on both processors and with both IP versions.
fn flood(lab: &Lab) -> [Flooding; 2] {
    let [a, b] = ["a", "b"].map(|pod| lab.node.pod("shop", pod).unwrap());
    let start = |cpu, to: IpAddr| {
        let other = Some((DENIED, 3));
        Flood { other, until: Until::Stopped, cpu: Some(cpu), ..Flood::new(to, ALLOWED) }.start(&a.netns)
    };
    [start(0, b.v4().unwrap()), start(1, b.v6().unwrap())]
}

#[test]
fn nothing_is_lost_while_felix_works() {
    in_lab(|lab| {
        let mut stand_in = deciding(lab, NEWEST);
        let mut source = lab.source();
        read(&mut source);
        let flooding = flood(lab);
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

/// Felix changes how it attaches, deletes queues with all that is on them, and replaces its maps by those of another version,
/// while packets pass: no count falls, and none is of a packet that Calico did not decide on.
#[test]
fn what_is_under_the_programs_changes_under_load() {
    in_lab(|lab| {
        let mut stand_in = deciding(lab, NEWEST);
        let mut source = lab.source();
        read(&mut source);
        let flooding = flood(lab);
        let (mut before, mut decided) = (Counts::new(), BTreeMap::new());
        for round in 0..10 {
            match round % 5 {
                0 => stand_in.attach_to_clsact(&lab.a),
                1 => lab.node.host().run("tc", &["qdisc", "del", "dev", &lab.a, "clsact"]).map(drop).unwrap(),
                2 => stand_in.attach_both(&lab.a),
                3 => stand_in.attach_to_clsact(&lab.b),
                _ => {
                    stand_in.detach_all();
                    add(&mut decided, &stand_in);
                    lab.pins.clear();
                    stand_in = deciding(lab, VERSIONS[round % VERSIONS.len()]);
                }
            }
            let now = counts(&read(&mut source));
            assert_not_below(&before, &now);
            before = now;
        }
        for flooding in flooding {
            flooding.stop().unwrap();
        }
        add(&mut decided, &stand_in);
        let counted = counts(&read(&mut source));
        assert_not_below(&before, &counted);
        for (rule, packets) in hits(&counted) {
            assert!(packets <= decided[&rule], "{rule}: {packets} of {}", decided[&rule]);
        }
        let [ours, all] = [hits(&counted), decided].map(|hits| hits.values().sum::<u64>());
        assert!(ours * 10 > all, "{ours} of {all}");
    });
}

fn add(decided: &mut BTreeMap<u64, u64>, stand_in: &StandIn) {
    stand_in.rules().into_iter().for_each(|(rule, packets)| *decided.entry(rule).or_default() += packets);
}
