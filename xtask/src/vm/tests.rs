//! Which tests are run on a kernel, and what the agent has to be able to do there for each.

use serde_json::Value;
use std::collections::BTreeMap;

/// What `accountant check` said, by the rules that there were.
pub(super) type Choices = BTreeMap<String, Value>;

/// The test that asks `accountant check`.
pub(super) const CHOICES: &str = "choices";

/// The name of that dataplane's source.
pub(super) const CALICO_BPF: &str = "calico-bpf";
/// The first Linux with tcx.
const TCX: (u32, u32) = (6, 6);

/// Tests of one binary.
pub(super) struct Test {
    /// As the table has it.
    pub(super) name: &'static str,
    /// Test target of cargo's.
    pub(super) binary: &'static str,
    /// Which of its tests; none for all.
    filters: &'static [&'static str],
    needs: Needs,
}

/// What the agent has to say of itself.
enum Needs {
    Nothing,
    /// Of counters of these rules: a field that says so.
    Reading(&'static str, &'static str),
    /// Programs at the packet filter.
    Programs,
    /// Verdicts of Calico's eBPF dataplane are read.
    CalicoBpf,
    /// The same where programs are attached by tcx.
    Tcx,
}

const fn test(
    name: &'static str,
    binary: &'static str,
    filters: &'static [&'static str],
    needs: Needs,
) -> Test {
    Test { name, binary, filters, needs }
}

/// All of them. The first tells what the others go by.
pub(super) const TESTS: [Test; 13] = [
    test("choices", CHOICES, &[], Needs::Nothing),
    test("live", "live", &[], Needs::Nothing),
    test(
        "at interfaces",
        "at_interfaces",
        &[
            "native_nftables",
            "a_pod_that_goes_takes_nothing_with_it",
            "what_cannot_be_counted_has_no_account",
        ],
        Needs::Nothing,
    ),
    test("in_place, legacy", "in_place", &["legacy_small", "legacy_usual"], in_place("legacy")),
    test("in_place, iptables-nft", "in_place", &["iptables_nft"], in_place("iptables-nft")),
    test("in_place, nft", "in_place", &["native_nftables"], in_place("nft")),
    test(
        "rewrites, legacy",
        "final_counters",
        &["nothing_is_lost", "writers_that_do_not_wait_are_seen_or_counted_as_missed"],
        watched("legacy"),
    ),
    test(
        "rewrites, nft",
        "final_counters",
        &["nothing_is_lost_in_nftables", "lost_news_cost_nothing"],
        watched("iptables-nft"),
    ),
    test(
        "rewrites, unwatched",
        "final_counters",
        &[
            "without_the_watch_it_costs_what_passes_while_rules_are_written",
            "without_sight_of_the_kernel_lost_news_cost_what_they_carried",
        ],
        Needs::Nothing,
    ),
    test("verdicts", "verdicts", &[], Needs::Programs),
    test("calico_bpf_agent", "calico_bpf_agent", &[], Needs::CalicoBpf),
    test(
        "calico_bpf",
        "calico_bpf",
        &[
            "every_verdict_is_counted_in_every_layout",
            "xdp_does_not_take_verdicts_away",
            "maps_are_followed_and_counts_outlive_them",
            "pins_that_are_something_else_are_refused",
            "events::pods_come_and_go",
        ],
        Needs::CalicoBpf,
    ),
    test(
        "calico_bpf, tcx",
        "calico_bpf",
        &["the_order_is_kept", "both_ways_of_attaching_are_followed", "drops_of_others_are_nobodys"],
        Needs::Tcx,
    ),
];

const fn in_place(rules: &'static str) -> Needs {
    Needs::Reading(rules, "in_place")
}

const fn watched(rules: &'static str) -> Needs {
    Needs::Reading(rules, "rewrites_watched")
}

/// What to tell cargo, to build them: as `test` does, so that dependencies are not built twice.
pub(super) fn cargo_arguments() -> Vec<String> {
    let mut arguments = vec!["--workspace".to_string()];
    for test in &TESTS {
        let argument = format!("--test={}", test.binary);
        if !arguments.contains(&argument) {
            arguments.push(argument);
        }
    }
    arguments
}

impl Test {
    /// Whether it is asked for by name; the first always is.
    pub(super) fn is_among(&self, only: &[String]) -> bool {
        self.binary == CHOICES || only.iter().any(|name| self.name.starts_with(name.as_str()))
    }

    /// Arguments of the test binary. One test after the other: there are two processors.
    pub(super) fn arguments(&self) -> Vec<String> {
        let fixed = ["--test-threads=1", "--nocapture", "--exact"];
        fixed
            .iter()
            .take(if self.filters.is_empty() { 2 } else { 3 })
            .chain(self.filters)
            .map(ToString::to_string)
            .collect()
    }

    /// Why the agent cannot do on a kernel what this is a test of.
    pub(super) fn cannot_run(&self, choices: &Choices) -> Option<String> {
        match self.needs {
            Needs::Nothing => None,
            Needs::Reading(rules, field) => {
                let source = counting(choices.get(rules));
                (source[field] != true).then(|| text(&source["reading"]))
            }
            Needs::Programs => {
                let programs = choices.get("legacy").map_or(&Value::Null, |said| &said["kernel_programs"]);
                (programs["attached"] != true).then(|| text(&programs["reason"]))
            }
            Needs::CalicoBpf => {
                let said = choices.get(CALICO_BPF).unwrap_or(&Value::Null);
                (of_calico_bpf_source(said)["state"] != "counting").then(|| of_calico_bpf(said))
            }
            Needs::Tcx => {
                let release = choices.get(CALICO_BPF).map(|said| text(&said["kernel"])).unwrap_or_default();
                (version(&release) < TCX).then(|| "the kernel has no tcx; Calico is on clsact there".into())
            }
        }
    }
}

/// What tests have to know that the agent cannot do on a kernel (`tests/kernel/support`).
pub(super) fn lacks(choices: &Choices) -> String {
    let programs = choices.get("legacy").map_or(&Value::Null, |said| &said["kernel_programs"]["attached"]);
    let in_place = &counting(choices.get("nft"))["in_place"];
    let lacks = [("programs", programs), ("in_place", in_place)].into_iter().filter(|(_, has)| **has != true);
    lacks.map(|(name, _)| name).collect::<Vec<_>>().join(",")
}

/// What is said of the source that counts.
pub(super) fn counting(said: Option<&Value>) -> &Value {
    find(said, |source| source["state"] == "counting")
}

/// How Calico's eBPF dataplane is read, or why not.
pub(super) fn of_calico_bpf(said: &Value) -> String {
    let source = of_calico_bpf_source(said);
    text(if source["reading"].is_string() { &source["reading"] } else { &source["reason"] })
}

fn of_calico_bpf_source(said: &Value) -> &Value {
    find(Some(said), |source| source["name"] == CALICO_BPF)
}

fn find(said: Option<&Value>, fits: impl Fn(&Value) -> bool) -> &Value {
    let sources = said.and_then(|said| said["sources"].as_array()).map(Vec::as_slice).unwrap_or_default();
    sources.iter().find(|source| fits(source)).unwrap_or(&Value::Null)
}

/// A text, where there should be one.
pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or("check said nothing of it").into()
}

/// Major and minor number of a release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
