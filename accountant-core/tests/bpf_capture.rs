//! What a real Felix of Calico 3.32.1 left in its eBPF maps: every number is named, and what they count is what was sent.

use accountant_core::Direction;
use accountant_core::calico::PolicyId;
use accountant_core::calico::PolicyKind;
use accountant_core::calico::bpf::rule_id::Formulas;
use accountant_core::calico::bpf::verdict::v4;
use accountant_core::calico::bpf::{
    CounterLayout, Decision, Meaning, Outcome, PacketState, PolicyProgram, RuleId, StateLayout, Step,
};
use accountant_core::calico::shared::PolicyAction;
use accountant_core::id::{ProfileName, TierName};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

fn capture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/felix/v3.32.1-bpf")
}

fn json(file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(capture().join(file)).unwrap()).unwrap()
}

/// The bytes that bpftool prints as a list of hexadecimal texts.
fn bytes(value: &Value) -> Vec<u8> {
    let byte = |text: &Value| u8::from_str_radix(&text.as_str().unwrap()[2..], 16).unwrap();
    value.as_array().unwrap().iter().map(byte).collect()
}

/// What the listings of all programs say.
fn listed() -> BTreeMap<RuleId, Meaning> {
    let mut meanings: BTreeMap<RuleId, Meaning> = BTreeMap::new();
    for entry in fs::read_dir(capture().join("policy")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let egress = name.contains("_egress_");
        let direction = if egress { Direction::Egress } else { Direction::Ingress };
        let listing = json(&format!("policy/{name}"));
        let steps = listing["policyInfo"].as_array().unwrap().iter().map(|step| {
            let instruction = step["inst"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8);
            let comments = step["comments"].as_array().into_iter().flatten();
            Step {
                instruction: instruction.collect::<Vec<_>>().try_into().unwrap(),
                comments: comments.map(|comment| comment.as_str().unwrap().into()).collect(),
            }
        });
        for (id, meaning) in PolicyProgram::read(direction, &steps.collect::<Vec<_>>()).meanings {
            let before = meanings.insert(id, meaning.clone());
            assert!(before.is_none_or(|before| before == meaning), "{name}: {id} means two things");
        }
    }
    meanings
}

/// Rule counters: number, packets.
fn rule_counters() -> Vec<(RuleId, u64)> {
    let entries = json("map-cali_rule_ctrs2.json");
    let sum = |entry: &Value| {
        let values = entry["formatted"]["values"].as_array().unwrap().iter();
        values.map(|cpu| cpu["value"].as_u64().unwrap()).sum()
    };
    let entries = entries.as_array().unwrap().iter();
    entries
        .map(|entry| (RuleId(u64::from_ne_bytes(bytes(&entry["key"]).try_into().unwrap())), sum(entry)))
        .collect()
}

#[test]
fn every_number_is_named_by_a_listing_and_the_formula_says_the_same() {
    let listed = listed();
    let counted: Vec<_> = rule_counters().into_iter().map(|(id, _)| id).collect();
    assert!(counted.len() >= 30, "the counters were not found");
    for id in &counted {
        assert!(listed.contains_key(id), "{id} is not named");
    }
    // The datastore knows the policies and their tiers; the formula does the rest.
    let policies: BTreeSet<(PolicyId, TierName)> = listed
        .values()
        .filter_map(|meaning| match &meaning.decision {
            Decision::Policy { tier, policy, .. } => Some((policy.clone(), tier.clone())),
            _ => None,
        })
        .collect();
    let profiles = ["kns.frontend", "kns.payments", "kns.ops"].map(ProfileName::from);
    let formulas = Formulas {
        policies: policies.iter().map(|(policy, tier)| (policy, tier)).collect(),
        profiles: profiles.iter().collect(),
    };
    let computed = formulas.explain(&listed.keys().copied().collect::<HashSet<_>>());
    for (id, meaning) in &listed {
        assert_eq!(computed.get(id), Some(meaning), "{id}");
    }
}

/// Who decided, in words, for what can be compared.
fn words(meaning: &Meaning) -> String {
    let direction = meaning.direction;
    match &meaning.decision {
        Decision::Policy { tier, policy, action } => {
            format!(
                "{direction} {tier} {} {}/{} {}",
                policy.kind,
                policy.namespace,
                policy.name,
                action.as_str()
            )
        }
        Decision::Profile { profile, action } => format!("{direction} {profile} {}", action.as_str()),
        Decision::EndOfTier { tier, action } => format!("{direction} end of {tier} {}", action.as_str()),
    }
}

#[test]
fn rule_counters_sum_to_what_was_sent() {
    let listed = listed();
    let mut counted: BTreeMap<String, u64> = BTreeMap::new();
    for (id, packets) in rule_counters() {
        *counted.entry(words(&listed[&id])).or_default() += packets;
    }
    // What tiers only hand on is nobody's account; the host endpoint's policies are not in `expected.json`.
    counted
        .retain(|words, _| !(words.contains("/hep-") || words.contains("end of") && words.ends_with("pass")));
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for account in json("expected.json").as_array().unwrap() {
        let field = |name: &str| account[name].as_str().unwrap_or_default().to_string();
        let words = match field("family").as_str() {
            "policy" => {
                let kind = PolicyKind::parse(&field("policy_kind")).unwrap();
                let [tier, namespace, name, action] =
                    ["tier", "policy_namespace", "policy", "action"].map(field);
                format!("{} {tier} {kind} {namespace}/{name} {action}", field("direction"))
            }
            "profile" => format!("{} {} {}", field("direction"), field("profile"), field("action")),
            _ => format!("{} end of {} deny", field("direction"), field("tier")),
        };
        *expected.entry(words).or_default() += account["packets"].as_u64().unwrap();
    }
    // What the host endpoint's tiers dropped at their end: all drops at eth0 but those of its policies' rules.
    let steps = json("traffic.json");
    let dropped = |step: &Value| step["counters_delta"]["eth0/in/DROP_POLICY"].as_u64().unwrap_or(0);
    let at_eth0: u64 = steps.as_array().unwrap().iter().map(dropped).sum();
    let by_rules = 2 + 2;
    *expected.entry("ingress end of default deny".into()).or_default() += at_eth0 - by_rules;
    assert_eq!(counted, expected);
}

#[test]
fn states_decode_to_the_path_that_was_noted() {
    let listed = listed();
    let layout = StateLayout::of(512).unwrap();
    let map = json("map-cali_state6.json");
    let last = json("traffic.json").as_array().unwrap().last().unwrap()["state_after"].clone();
    let mut looked_at = 0;
    for cpu in map[0]["values"].as_array().unwrap() {
        let state = PacketState::read(layout, &bytes(&cpu["value"])).unwrap();
        let noted = &last[cpu["cpu"].as_u64().unwrap() as usize];
        let ids: Vec<_> = state.path.iter().map(|id| format!("{:#x}", id.0)).collect();
        assert_eq!(noted["ids"], serde_json::json!(ids));
        assert_eq!(noted["src"], v4(state.source).to_string());
        assert_eq!(noted["dst"], v4(state.destination).to_string());
        assert_eq!(noted["flags"], format!("{:#x}", state.flags));
        let numbers = [
            ("pol_rc", i64::from(state.said)),
            ("sport", state.source_port.into()),
            ("dport", state.destination_port.into()),
            ("proto", state.protocol.into()),
        ];
        for (name, value) in numbers {
            assert_eq!(noted[name].as_i64(), Some(value), "{name}");
        }
        looked_at += 1;
        // A verdict and the rule that it is of agree; where policy was not asked there is none.
        let verdict = state.verdict();
        assert_eq!(verdict.is_none(), ids.is_empty());
        if let Some(verdict) = verdict {
            let Decision::Profile { action, .. } = &listed[verdict.path.last().unwrap()].decision else {
                panic!("{verdict:?}")
            };
            assert_eq!((verdict.outcome, *action), (Outcome::Denied, PolicyAction::Deny));
        }
    }
    assert_eq!(looked_at, 2);
}

/// All states that were noted between the steps: their last rule says what was decided.
#[test]
fn paths_end_with_the_rule_that_decided() {
    let listed = listed();
    let mut paths = BTreeSet::new();
    for step in json("traffic.json").as_array().unwrap() {
        for state in step["state_after"].as_array().unwrap() {
            let ids: Vec<_> =
                state["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
            let ids = ids.into_iter().map(|id| RuleId(u64::from_str_radix(&id[2..], 16).unwrap()));
            let path: Vec<_> = ids.map(|id| words(&listed[&id])).collect();
            if let Some((last, before)) = path.split_last() {
                assert!(last.ends_with(if state["pol_rc"] == 2 { "deny" } else { "allow" }), "{path:?}");
                assert!(before.iter().all(|words| words.ends_with("pass")), "{path:?}");
                paths.insert(path);
            }
        }
    }
    assert!(paths.len() >= 9, "{paths:#?}");
    let tier_by_tier = [
        "ingress security GlobalNetworkPolicy /security.pass-rest pass",
        "ingress end of platform pass",
        "ingress end of default deny",
    ];
    assert!(paths.contains(tier_by_tier.map(String::from).as_slice()), "{paths:#?}");
}

#[test]
fn interface_counters_say_what_policy_decided() {
    let layout = CounterLayout::of(216).unwrap();
    let mut sums = [0; 2];
    for entry in json("map-cali_counters6.json").as_array().unwrap() {
        for cpu in entry["values"].as_array().unwrap() {
            let value = bytes(&cpu["value"]);
            for (sum, reason) in sums.iter_mut().zip([CounterLayout::ACCEPTED, CounterLayout::DENIED]) {
                *sum += layout.count(&value, reason).unwrap();
            }
        }
    }
    let steps = json("traffic.json");
    let mut sent = [0; 2];
    for (hook, packets) in
        steps.as_array().unwrap().iter().flat_map(|s| s["counters_delta"].as_object().unwrap())
    {
        for (sum, reason) in sent.iter_mut().zip(["ACC_POLICY", "DROP_POLICY"]) {
            if hook.ends_with(reason) {
                *sum += packets.as_u64().unwrap();
            }
        }
    }
    assert!(sums[1] > 0 && sums == sent, "{sums:?} {sent:?}");
}
