//! What no Felix should show: each has a reason, and all the rest is counted.

use super::*;
use accountant_abi::stand_in::FAILED;
use accountant_dataplane::source::How;

/// The policy program could not be called, or hit more rules than there is room for: no rule is made up for it.
#[test]
fn verdicts_that_are_not_whole_are_told_apart() {
    const UNASKED: u16 = 7401;
    const LONG: u16 = 7402;
    in_lab(|lab| {
        for version in VERSIONS {
            let stand_in = lab.stand_in(version);
            let mut source = lab.source();
            read(&mut source);
            stand_in.decide(UNASKED, INGRESS, Case { said: FAILED, ..Case::default() });
            stand_in.decide(LONG, INGRESS, Case { hits: 40, ..allow(&[1, 2, 3, 4]) });
            stand_in.decide(LONG, EGRESS, skip());
            lab.send(UNASKED, 3);
            lab.send(LONG, 2);
            let mut want = Counts::new();
            expect(&mut want, &lab.a, Direction::Egress, Outcome::PolicyFailed, &[], 3);
            let mut path = [0; 32];
            path[..4].copy_from_slice(&[1, 2, 3, 4]);
            expect(&mut want, &lab.a, Direction::Egress, Outcome::Allowed, &path, 2);
            assert_eq!(counts(&read(&mut source)), want, "{version:?}");
            drop((stand_in, source));
            lab.pins.clear();
        }
    });
}

/// A folder of listings that may not be read, one that is none, and listings that are half written.
#[test]
fn listings_that_cannot_be_read_have_a_reason() {
    in_lab(|lab| {
        let stand_in = lab.stand_in(NEWEST);
        let mut source = lab.source();
        let folder = lab.pins.listings();
        read(&mut source);
        let mut want = Counts::new();
        let mut why = || {
            want = sum(std::mem::take(&mut want), play(lab, &stand_in, 1));
            let poll = read(&mut source);
            assert_eq!(counts(&poll), want);
            match poll.how {
                How::Beside(Ok(text)) => text.to_string(),
                how => panic!("{how:?}"),
            }
        };
        assert!(!why().contains("listing"), "an empty folder is as it should be");
        let listing = folder.join(format!("{}_egress_v4.json", lab.a));
        std::fs::write(&listing, "{\"ifacename\": \"x\", \"policyInfo\": [{\"inst\"").unwrap();
        assert!(why().contains("_egress_v4.json"), "half a listing");
        std::fs::write(&listing, "{\"ifacename\": \"x\", \"policyInfo\": []}").unwrap();
        assert!(!why().contains("listing"), "it is whole now");
        std::fs::remove_file(&listing).unwrap();
        std::fs::create_dir(&listing).unwrap();
        assert!(why().contains("_egress_v4.json"), "a folder is no listing");
        std::fs::remove_dir(&listing).unwrap();
        std::fs::remove_dir(&folder).unwrap();
        std::fs::write(&folder, "").unwrap();
        assert!(why().contains("reading the listings in"));
    });
}

/// Calico has room for the hits of ten thousand rules; that it runs out is told before it does.
#[test]
fn many_rules_are_told_in_time() {
    in_lab(|lab| {
        let stand_in = lab.stand_in(NEWEST);
        let mut source = lab.source();
        let text = |poll: &Poll| format!("{:?}", poll.how);
        (0..7_999).for_each(|rule| stand_in.note(rule));
        let poll = read(&mut source);
        assert_eq!(poll.rules, Some(7_999));
        assert!(!text(&poll).contains("hits of"), "{}", text(&poll));
        stand_in.note(7_999);
        let poll = read(&mut source);
        assert_eq!(poll.rules, Some(8_000));
        assert!(text(&poll).contains("hits of 8000 rules and cannot of more than 10000"), "{}", text(&poll));
    });
}
