//! The arithmetic of verdicts.

use super::*;
use crate::IpVersion;
use crate::Table;
use crate::calico::policy::{PolicyId, PolicyKind};
use crate::id::EndpointKind;
use crate::index::Object;
use crate::snapshot::Source;

const PASSES: RuleId = RuleId(1);
const ALLOWS: RuleId = RuleId(2);
const END: RuleId = RuleId(3);

fn way() -> Way {
    (Endpoint { kind: EndpointKind::Workload, interface: "cali1".into() }, Direction::Ingress)
}

fn policy(name: &str) -> PolicyId {
    PolicyId::new(PolicyKind::GlobalNetworkPolicy, "", name)
}

fn program() -> PolicyProgram {
    let meaning = |decision| Meaning { direction: Direction::Ingress, decision };
    let rule = |tier: &str, name, action| {
        meaning(Decision::Policy { tier: tier.into(), policy: policy(name), action })
    };
    let end = Decision::EndOfTier { tier: "default".into(), action: PolicyAction::Deny };
    PolicyProgram {
        meanings: BTreeMap::from([
            (PASSES, rule("security", "passes", PolicyAction::Pass)),
            (ALLOWS, rule("default", "allows", PolicyAction::Allow)),
            (END, meaning(end)),
        ]),
        tiers: vec!["security".into(), "default".into()],
    }
}

fn accountant() -> Accountant {
    let (source, ip_version) = (Source::CalicoBpf, IpVersion::V4);
    Accountant::new(TableId { source, native: false, ip_version, table: Table::Filter })
}

fn reading(counted: &[(Outcome, &[RuleId], u64)]) -> Reading {
    let counted = counted.iter().map(|&(outcome, path, packets)| {
        ((way(), Verdict { outcome, path: path.into() }), Counter::new(packets, 10 * packets))
    });
    let programs = BTreeMap::from([(way(), Some(Arc::new(program())))]);
    Reading { counted: counted.collect(), programs }
}

/// Postings as text, and packets.
fn posted(charged: &Charged) -> Vec<(String, u64)> {
    let text = |posting: &Posting| {
        let name = match &posting.key {
            Key::Account(key) => match &key.what {
                What::Policy { policy: PolicyRef::Known(policy), action, .. } => {
                    format!("{} {}", policy.name, action.as_str())
                }
                What::NoPolicy { tier } => format!("no policy of {tier}"),
                other => format!("{other:?}"),
            },
            Key::Unattributed(_, cause) => cause.as_str().into(),
            Key::Total(total) => panic!("{total:?} is no verdict's"),
        };
        (name, posting.amount.packets)
    };
    charged.postings.iter().map(text).collect()
}

fn check(counted: &[(Outcome, &[RuleId], u64)], want: &[(&str, u64)]) {
    let charged = accountant().apply(&reading(counted), &Index::default());
    let want: Vec<_> = want.iter().map(|(name, packets)| (name.to_string(), *packets)).collect();
    assert_eq!(posted(&charged), want, "{counted:?}");
}

#[test]
fn every_rule_on_the_path_is_charged() {
    check(&[(Outcome::Allowed, &[PASSES, ALLOWS], 3)], &[("passes pass", 3), ("allows allow", 3)]);
    check(&[(Outcome::AllowedThenDropped, &[ALLOWS], 1)], &[("allows allow", 1)]);
    check(&[(Outcome::Denied, &[PASSES, END], 2)], &[("passes pass", 2), ("no policy of default", 2)]);
    check(&[(Outcome::DroppedWithoutPolicy, &[], 4)], &[("Verdict(WithoutPolicy)", 4)]);
}

#[test]
fn what_has_no_number_is_told_by_its_place() {
    let none = RuleId::NONE;
    check(&[(Outcome::Denied, &[none], 2)], &[("no policy of security", 2)]);
    check(&[(Outcome::Denied, &[PASSES, none], 2)], &[("passes pass", 2), ("no policy of default", 2)]);
    check(&[(Outcome::Denied, &[none, none, none], 2)], &[("NoProfile", 2)]);
    check(&[(Outcome::Denied, &[], 2)], &[("not_recorded", 2)]);
}

/// Calico has room for 32 numbers of a packet: what comes after is not noted, and it is the last that decides.
#[test]
fn who_decided_behind_a_full_list_is_not_known() {
    let mut path = vec![PASSES; 31];
    path.push(ALLOWS);
    let mut want = vec![("passes pass", 1); 31];
    want.push(("allows allow", 1));
    check(&[(Outcome::Allowed, &path, 1)], &want);
    path[31] = PASSES;
    want[31] = ("passes pass", 1);
    want.push(("not_recorded", 1));
    check(&[(Outcome::Allowed, &path, 1)], &want);
    check(&[(Outcome::Denied, &path, 1)], &want);
    path[31] = RuleId::NONE;
    check(&[(Outcome::Allowed, &path, 1)], &[&want[..31], &want[32..]].concat());
}

/// A number that has had another meaning does not make a policy allow what was denied.
#[test]
fn what_contradicts_the_outcome_is_nobodys() {
    check(&[(Outcome::Denied, &[PASSES, ALLOWS], 2)], &[("passes pass", 2), ("unknown_rule", 2)]);
    check(&[(Outcome::Allowed, &[END], 2)], &[("unknown_rule", 2)]);
}

#[test]
fn interfaces_of_the_host_without_policy_decide_nothing() {
    let host = (Endpoint { kind: EndpointKind::Host, interface: "lo".into() }, Direction::Ingress);
    let verdict = |outcome| (host.clone(), Verdict { outcome, path: [].into() });
    let counted = [Outcome::Allowed, Outcome::Denied].map(|o| (verdict(o), Counter::new(3, 30)));
    let mut reading = Reading { counted: counted.into(), ..Reading::default() };
    let charged = accountant().apply(&reading, &Index::default());
    assert_eq!(posted(&charged), [("not_recorded".to_string(), 3)]);
    // With policy it does, and does not say by which rule.
    reading.programs.insert(host.clone(), Some(Arc::new(program())));
    assert_eq!(posted(&accountant().apply(&reading, &Index::default())).len(), 2);
}

#[test]
fn only_what_is_new_is_charged_and_what_was_gone_begins_anew() {
    let mut accountant = accountant();
    let index = Index::default();
    let mut read = |packets: &[u64]| {
        let counted: Vec<_> =
            packets.iter().map(|&packets| (Outcome::Allowed, &[ALLOWS][..], packets)).collect();
        let charged = accountant.apply(&reading(&counted), &index);
        posted(&charged).iter().map(|(_, packets)| packets).sum::<u64>()
    };
    assert_eq!([read(&[3]), read(&[3]), read(&[5]), read(&[]), read(&[4])], [3, 0, 2, 0, 4]);
}

#[test]
fn a_rule_without_a_name_is_waited_for_and_then_nobodys() {
    let index = Index::default();
    let mut accountant = accountant();
    let mut counted = reading(&[(Outcome::Denied, &[RuleId(99)], 3)]);
    for _ in 0..PATIENCE {
        let charged = accountant.apply(&counted, &index);
        assert!(charged.unsettled && charged.postings.is_empty());
    }
    let charged = accountant.apply(&counted, &index);
    assert_eq!(posted(&charged), [("unknown_rule".to_string(), 3)]);
    assert_eq!(accountant.unexplained().collect::<Vec<_>>(), [RuleId(99)]);
    // It gets a name: what comes from now on is charged to it.
    let mut renamed = program();
    let meaning = renamed.meanings[&END].clone();
    renamed.meanings.insert(RuleId(99), meaning);
    counted.programs.insert(way(), Some(Arc::new(renamed)));
    counted.counted.values_mut().for_each(|count| *count += Counter::new(1, 1));
    let charged = accountant.apply(&counted, &index);
    assert_eq!(posted(&charged), [("no policy of default".to_string(), 1)]);
    assert_eq!(accountant.unexplained().count(), 0);
}

#[test]
fn names_of_the_datastore_explain_what_no_listing_does() {
    let mut index = Index::default();
    let id = RuleId::of("API0|gnp/allow-all");
    let mut accountant = accountant();
    let mut reading = reading(&[(Outcome::Allowed, &[id], 3)]);
    reading.programs.insert(way(), None);
    assert!(accountant.apply(&reading, &index).unsettled);
    let key = ("GlobalNetworkPolicy".into(), "".into(), "allow-all".into());
    index.apply(key, Object::Policy(policy("allow-all"), TierName::default_tier()));
    assert_eq!(posted(&accountant.apply(&reading, &index)), [("allow-all allow".to_string(), 3)]);
}

#[test]
fn accounts_are_those_that_the_programs_can_post_to() {
    let mut accountant = accountant();
    accountant.apply(&reading(&[]), &Index::default());
    assert_eq!(accountant.accounts().len(), 4);
    assert_eq!(accountant.endpoints().count(), 1);
    accountant.apply(&Reading::default(), &Index::default());
    assert_eq!((accountant.accounts().len(), accountant.endpoints().count()), (0, 0));
}
