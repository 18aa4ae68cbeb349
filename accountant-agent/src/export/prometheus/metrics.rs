//! The table of all metrics: one row each. The exposition takes names, types and HELP from here, and so does
//! docs/metrics.md.

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the agent lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A counter whose name others have and does not end in `_total`, so in OpenMetrics, where a counter's must, it has no
    /// type.
    OldCounter,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Full name.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// What is counted.
    pub unit: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// When there are no series of it.
    pub absent: &'static str,
    /// Where docs/metrics.md has it.
    pub section: &'static str,
    /// Labels in order.
    pub labels: &'static [&'static str],
}

macro_rules! metrics {
    ($($section:literal :
        $($id:ident $kind:ident $name:literal in $unit:literal [$($label:literal)*] $help:literal $absent:literal)*
    )*) => {
        $($(
            #[doc = $help]
            pub const $id: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                unit: $unit,
                help: $help,
                absent: $absent,
                section: $section,
                labels: &[$($label),*],
            };
        )*)*

        /// All metrics, in the order in which they are exposed.
        pub const ALL: &[Metric] = &[$($($id),*),*];
    };
}

metrics! {
    "policy":
    POLICY_PACKETS Counter "calico_accountant_policy_packets_total" in "packets"
        ["namespace" "pod" "direction" "ip_version" "tier" "policy_kind" "policy_namespace" "policy" "action"]
        "Packets that a policy decided about: allow counts about one a connection, because established connections are not asked again (of UDP each packet until it is answered; with the eBPF dataplane one a flow, answered or not); deny counts every packet."
        "for policies that do not apply to the endpoint, and for actions that none of the policy's rules has"
    POLICY_BYTES Counter "calico_accountant_policy_bytes_total" in "bytes"
        ["namespace" "pod" "direction" "ip_version" "tier" "policy_kind" "policy_namespace" "policy" "action"]
        "Length of the packets that a policy decided about, from the IP header on."
        "where the packets are absent"

    "default_deny":
    DEFAULT_DENY_PACKETS Counter "calico_accountant_default_deny_packets_total" in "packets"
        ["namespace" "pod" "direction" "ip_version" "tier" "reason"]
        "Packets dropped because no policy of a tier, or no profile, decided about them."
        "for tiers whose default action is Pass, and for endpoints without a policy in that direction (they still have the one for profiles)"
    DEFAULT_DENY_BYTES Counter "calico_accountant_default_deny_bytes_total" in "bytes"
        ["namespace" "pod" "direction" "ip_version" "tier" "reason"]
        "Length of the packets dropped because no policy of a tier, or no profile, decided about them."
        "where the packets are absent"

    "profile":
    PROFILE_PACKETS Counter "calico_accountant_profile_packets_total" in "packets"
        ["namespace" "pod" "direction" "ip_version" "profile" "action"]
        "Packets that a profile decided about: allow counts about one a connection (of UDP each packet until it is answered; with the eBPF dataplane one a flow, answered or not), deny every packet."
        "for endpoints without profiles, and for forwarded traffic of host endpoints"
    PROFILE_BYTES Counter "calico_accountant_profile_bytes_total" in "bytes"
        ["namespace" "pod" "direction" "ip_version" "profile" "action"]
        "Length of the packets that a profile decided about, from the IP header on."
        "where the packets are absent"

    "endpoint_chain":
    ENDPOINT_CHAIN_PACKETS Counter "calico_accountant_endpoint_chain_packets_total" in "packets"
        ["namespace" "pod" "direction" "ip_version" "rule" "verdict"]
        "Packets that a rule of the endpoint's own chain decided about, before any policy; established packets between two pods of a node show at the sender only."
        "for rules that Felix did not write: no `packet_rate` without a QoS annotation, no `invalid` where that check is off"
    ENDPOINT_CHAIN_BYTES Counter "calico_accountant_endpoint_chain_bytes_total" in "bytes"
        ["namespace" "pod" "direction" "ip_version" "rule" "verdict"]
        "Length of the packets that a rule of the endpoint's own chain decided about, before any policy."
        "where the packets are absent"

    "endpoint":
    ENDPOINT_PACKETS Counter "calico_accountant_endpoint_packets_total" in "packets"
        ["namespace" "pod" "direction" "ip_version" "state" "verdict"]
        "Packets to (ingress) or from (egress) the endpoint that the programs in the kernel saw: of established and related connections, or new (all others); accepted packets went on beyond its chain, dropped_elsewhere were dropped where filter rules are and not by an endpoint's chain: by a rule that is not Calico's, or by Calico's default for packets to the host. Where programs count at its interface only, the state is any: accepted packets were sent out of the interface, any came in by it, whatever became of them."
        "without programs in the kernel (`accountant check` says why)"
    ENDPOINT_BYTES Counter "calico_accountant_endpoint_bytes_total" in "bytes"
        ["namespace" "pod" "direction" "ip_version" "state" "verdict"]
        "Length of the packets to or from the endpoint that the programs in the kernel saw."
        "where the packets are absent"

    "unattributed":
    UNATTRIBUTED_PACKETS Counter "calico_accountant_unattributed_packets_total" in "packets"
        ["source" "cause"]
        "Packets that were counted and could not be charged to anything, by cause."
        "for sources that are not counted"
    ATTRIBUTION_PACKETS Counter "calico_accountant_attribution_packets_total" in "packets"
        ["source" "result"]
        "Packets by how exactly they were charged: to a policy or another account, to a group of policies because the numbers do not tell which, or not at all."
        "for results that did not occur"

    "compat":
    NO_POLICY_DROP OldCounter "no_policy_drop_counter" in "packets"
        ["pod" "pod_namespace" "app" "ip" "type"]
        "Number of packets dropped to or from a workload because no policies matched them"
        "for host endpoints, for endpoints without a policy in that direction, and with `--compat-metrics=false`"
    POLICY_ACCEPT OldCounter "policy_accept_counter" in "packets"
        ["pod" "pod_namespace" "app" "ip" "type" "policy"]
        "Number of packets accepted by a policy on a workload"
        "for host endpoints, for policies that accept nothing, and with `--compat-metrics=false`"
    POLICY_ACCEPT_DROP OldCounter "policy_accept_drop_counter" in "packets"
        ["pod" "pod_namespace" "app" "ip" "type" "policy"]
        "Number of packets denied by an explicit rule of a policy on a workload"
        "for host endpoints, for policies that deny nothing, and with `--compat-metrics=false`"
    DROPPED_SCRAPE OldCounter "calico_accountant_dropped_scrape" in "scrapes"
        []
        "Number of scrapes from which these metrics were left out because all of them were below MINIMUM_COUNTER"
        "with `--compat-metrics=false`"

    "node":
    ENDPOINTS Gauge "calico_accountant_endpoints" in "endpoints"
        ["kind"]
        "Endpoints of this node that have accounts; one that is gone counts for the grace period."
        "never"
    POLICIES Gauge "calico_accountant_policies" in "policies"
        []
        "Policies that apply to an endpoint of this node; one that is gone counts for the grace period."
        "never"
    POLICY_ENDPOINTS Gauge "calico_accountant_policy_endpoints" in "endpoints"
        ["tier" "policy_kind" "policy_namespace" "policy"]
        "How many endpoints of this node a policy applies to."
        "for policies that apply to none"
    CHAINS Gauge "calico_accountant_chains" in "chains"
        ["source" "ip_version" "table" "owner"]
        "Chains in the packet filter, Calico's and others', looked at once a minute."
        "for tables that are not there, and where there is nothing of iptables or Calico"
    RULES Gauge "calico_accountant_rules" in "rules"
        ["source" "ip_version" "table" "owner"]
        "Rules in the packet filter, those in Calico's chains and others, looked at once a minute."
        "where the chains are absent"
    IP_SETS Gauge "calico_accountant_ip_sets" in "sets"
        ["ip_version"]
        "Calico's IP sets, looked at once a minute; those of nftables are not among them."
        "never"
    IP_SET_ENTRIES Gauge "calico_accountant_ip_set_entries" in "entries"
        ["ip_version" "set"]
        "Entries of an IP set of Calico's, for the 20 fullest of them."
        "without IP sets"
    IP_SET_MAX_ENTRIES Gauge "calico_accountant_ip_set_max_entries" in "entries"
        ["ip_version" "set"]
        "How many entries an IP set can have; when it is full, Felix cannot add more and its policies are wrong."
        "without IP sets"
    RULE_REWRITES Counter "calico_accountant_rule_rewrites_total" in "commits"
        ["source" "writer"]
        "Commits that changed chains of Calico's endpoints and policies, by the program that made them; when two write the same chains, both rise without end."
        "for iptables-legacy, and for programs that changed none"

    "bird":
    BIRD_ANSWERS Gauge "calico_accountant_bird_answers" in "0 or 1"
        ["bird_daemon"]
        "Whether BIRD answered on its control socket at the last look; while not, there is nothing else of it."
        "where there is no socket"
    BIRD_ERRORS Counter "calico_accountant_bird_errors_total" in "looks"
        ["bird_daemon" "reason"]
        "Looks at BIRD that failed, by kind of failure."
        "for reasons that did not occur"
    BIRD_UP Gauge "bird_up" in "0 or 1"
        ["bird_protocol_instance" "bird_daemon"]
        "Whether the protocol is up."
        "where BIRD does not answer"
    BIRD_UPTIME Gauge "bird_uptime_seconds" in "seconds"
        ["bird_protocol_instance" "bird_daemon"]
        "How long the protocol has been up, at least: after 20 hours BIRD tells the date only."
        "while it is not up, and where BIRD has time formats of its own"
    BIRD_STATE_CHANGES Counter "bird_state_changes_total" in "changes"
        ["bird_protocol_instance" "bird_daemon"]
        "How often the state of the protocol (up, start, down) changed since the agent first saw it; a session that went down and came back between two looks counts two."
        "where BIRD does not answer"
    BIRD_HOLD_CURRENT Gauge "bird_hold_timer_current" in "seconds"
        ["bird_protocol_instance" "bird_daemon"]
        "Seconds until the session is given up unless something is heard of the neighbor."
        "for sessions that are not established, and for what is no BGP"
    BIRD_HOLD_INITIAL Gauge "bird_hold_timer_initial" in "seconds"
        ["bird_protocol_instance" "bird_daemon"]
        "What the hold timer begins with."
        "where `bird_hold_timer_current` is"
    BIRD_KEEPALIVE_CURRENT Gauge "bird_keepalive_timer_current" in "seconds"
        ["bird_protocol_instance" "bird_daemon"]
        "Seconds until the neighbor is told that we are alive."
        "where `bird_hold_timer_current` is"
    BIRD_KEEPALIVE_INITIAL Gauge "bird_keepalive_timer_initial" in "seconds"
        ["bird_protocol_instance" "bird_daemon"]
        "What the keepalive timer begins with."
        "where `bird_hold_timer_current` is"
    BIRD_BGP_STATE Gauge "bird_bgp_state" in "always 1"
        ["bird_protocol_instance" "bird_daemon" "bird_bgp_state"]
        "The state of the BGP session; always 1."
        "for what is no BGP"
    BIRD_PREFERENCE Gauge "bird_preference" in "preference"
        ["bird_protocol_instance" "bird_daemon" "bird_channel"]
        "Preference of the routes of the protocol."
        "where BIRD tells none"
    BIRD_ROUTES Gauge "bird_routes" in "routes"
        ["bird_protocol_instance" "bird_daemon" "bird_channel" "bird_route_type"]
        "Routes of the protocol, by what they are."
        "while the protocol is down; `filtered` where BIRD does not keep those"
    BIRD_ROUTE_CHANGES OldCounter "bird_route_changes" in "changes"
        ["bird_protocol_instance" "bird_daemon" "bird_channel" "bird_direction" "bird_action" "bird_outcome"]
        "Changes of routes, by direction and by what became of them; BIRD begins at 0 when the protocol starts."
        "while the protocol is down, and for combinations that cannot be"

    "agent":
    SOURCE_UP Gauge "calico_accountant_source_up" in "0 or 1"
        ["source"]
        "Whether the source has chains of Calico's and could be read at the last try."
        "never"
    SOURCE_LAST_SUCCESS Gauge "calico_accountant_source_last_success_timestamp_seconds" in "seconds since 1970"
        ["source"]
        "When the source was last read."
        "until it was read once"
    SOURCE_POLL_DURATION Gauge "calico_accountant_source_poll_duration_seconds" in "seconds"
        ["source"]
        "How long the last reading of the source took."
        "never"
    SOURCE_CPU Counter "calico_accountant_source_cpu_seconds_total" in "seconds"
        ["source"]
        "Processor time that reading the source has cost, the kernel's part included."
        "never"
    SOURCE_IN_PLACE Gauge "calico_accountant_source_in_place" in "0 or 1"
        ["source"]
        "Whether counters are read where the kernel keeps them; where not, `accountant check` says why."
        "never"
    SOURCE_EXACT Gauge "calico_accountant_source_rewrites_watched" in "0 or 1"
        ["source"]
        "Whether the last counters of rules that are rewritten are told, so that rewrites lose nothing; where not, `accountant check` says why."
        "never"
    SOURCE_READS Counter "calico_accountant_source_reads_total" in "readings"
        ["source"]
        "How often the source was read."
        "never"
    SOURCE_RESETS Counter "calico_accountant_source_resets_total" in "rule counters"
        ["source"]
        "Rule counters that somebody set back; what they counted before stays counted."
        "never"
    SOURCE_DIFFERENCE Gauge "calico_accountant_reconcile_difference_packets" in "packets"
        ["source"]
        "Packets that policy decided about by the dataplane's own counters, less those whose verdict was read; a lasting one was not seen."
        "for sources without counters of a second kind: all but calico-bpf"
    SOURCE_RULE_DIFFERENCE Gauge "calico_accountant_reconcile_difference_rule_hits" in "hits"
        ["source"]
        "By how many hits the dataplane's own counters of rules and the verdicts that were read differ, summed over the rules; a lasting one was not seen."
        "for all but calico-bpf, and where only totals are counted"
    SOURCE_TOTALS_ONLY Gauge "calico_accountant_source_totals_only" in "0 or 1"
        ["source"]
        "Whether only the dataplane's own counters can be read: policies without workloads, workloads without policies; `accountant check` says why."
        "never"
    SOURCE_COUNTED_RULES Gauge "calico_accountant_source_counted_rules" in "rules"
        ["source"]
        "Of how many rules Calico's eBPF dataplane counts hits; it cannot of more than 10 000, and says nothing of the others."
        "for all but calico-bpf"
    SOURCE_CHECKED Counter "calico_accountant_reconcile_checked_total" in "packets"
        ["source" "result"]
        "Packets that rules and programs in the kernel both should have charged, compared when a workload's traffic has rested for a second: `agreed`; `rules_only` where the programs could not tell who decided or did not see it; `programs_only` where the rules' counters lack it, less what was repaired."
        "without programs in the kernel, and until traffic has rested"
    SOURCE_REPAIRED Counter "calico_accountant_reconcile_repaired_packets_total" in "packets"
        ["source"]
        "Packets whose count the rules have lost in a rewrite that was missed, and that were charged by what the programs in the kernel saw, once their workload's traffic had rested for a second."
        "without programs in the kernel, and until traffic has rested"
    SOURCE_ERRORS Counter "calico_accountant_source_errors_total" in "readings"
        ["source" "reason"]
        "Readings of the source that failed, by kind of failure."
        "for reasons that did not occur"
    SOURCE_EVENTS Counter "calico_accountant_source_events_total" in "events"
        ["source" "event"]
        "Things that happened to the source and are worth knowing: the lock not had in time, a rewrite seen too late, lost notifications, interrupted dumps."
        "for events that did not occur"
    KERNEL_PROGRAMS Gauge "calico_accountant_kernel_programs_attached" in "0 or 1"
        []
        "Whether programs in the kernel see which policy decides on each packet; where not, `accountant check` says why."
        "never"
    KERNEL_ATTACHED_AGAIN Counter "calico_accountant_kernel_programs_attached_again_total" in "programs"
        []
        "Programs that somebody else detached from the packet filter and the agent attached again, looked at once a second at most; what they did not see is counted by the rules alone."
        "without programs in the kernel"
    KERNEL_INTERFACES Gauge "calico_accountant_kernel_interfaces_counted" in "interfaces"
        []
        "Endpoints' interfaces at which programs count all traffic, where there are none that see which policy decides; those that went lately are among them."
        "where programs see which policy decides, and without any"
    KERNEL_PACKETS Counter "calico_accountant_kernel_packets_total" in "packets"
        ["result"]
        "Packets that the programs in the kernel saw, once for each endpoint's chain: of established connections; others by their path through the rules, or (rules being rewritten, too many of them) by verdict alone; lost ones were neither seen to go on nor dropped."
        "without programs in the kernel"
    BPF_RUN_COUNT OldCounter "calico_accountant_bpf_program_run_count" in "runs"
        ["program"]
        "How often a program in the packets' path ran (`before` and `after` the filter rules, `dropped`; with `raw_` or `mangle_` in front, around the rules of that table; `received` and `sent` at endpoints' interfaces), as the kernel's statistics of programs have it."
        "until the kernel keeps statistics (`kernel.bpf_stats_enabled`, or `--kernel-program-statistics`), and without programs"
    BPF_RUN_SECONDS OldCounter "calico_accountant_bpf_program_run_seconds" in "seconds"
        ["program"]
        "How long these runs took, the kernel's two looks at the clock for each included."
        "where the runs are absent"
    BPF_EVENTS_LOST Counter "calico_accountant_bpf_events_lost_total" in "events"
        ["kind"]
        "What programs in the kernel had to tell and found no room for: packets of denied flows that are in none of those told (`denied_flow`), the same of accepted ones (`accepted_flow`), and denied flows that were not told as they happened to whoever follows them (`denied_event`)."
        "without programs in the kernel"
    DATASTORE_IN_SYNC Gauge "calico_accountant_datastore_in_sync" in "0 or 1"
        ["kind"]
        "Whether all names were looked up and are followed."
        "without a datastore"
    DATASTORE_LAST_EVENT Gauge "calico_accountant_datastore_last_event_timestamp_seconds" in "seconds since 1970"
        ["kind"]
        "When the datastore last changed a name."
        "without a datastore, and until it told the first name"
    DATASTORE_OBJECTS Gauge "calico_accountant_datastore_objects" in "objects"
        ["kind"]
        "Objects that names are taken from."
        "without a datastore, and for kinds of which there are none"
    DATASTORE_ERRORS Counter "calico_accountant_datastore_errors_total" in "errors"
        ["kind" "reason"]
        "What went wrong with the datastore, by reason: connections, lists and watches that failed, and objects that cannot be used."
        "without a datastore, and for reasons that did not occur"
    WEB_CONFIG_VALID Gauge "calico_accountant_web_config_valid" in "0 or 1"
        []
        "Whether the web configuration could be used when it, or a certificate that it names, last changed; while not, the one before is in force."
        "without `--web.config.file`"
    BUILD_INFO Gauge "calico_accountant_build_info" in "always 1"
        ["version"]
        "The version of the agent; always 1."
        "never"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_types_agree() {
        for metric in ALL {
            let total = metric.name.ends_with("_total");
            assert_eq!(total, metric.kind == Kind::Counter, "{}", metric.name);
            assert!(!metric.help.is_empty());
        }
    }
}
