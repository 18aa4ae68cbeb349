//! The table of all metrics: one row each. The exposition takes names, types and HELP from here, and so does
//! docs/metrics.md.

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the agent lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A counter of calico-accountant's. Its name does not end in `_total`, so in OpenMetrics, where a counter's must, it
    /// has no type.
    OldCounter,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Full name.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
    /// Labels in order.
    pub labels: &'static [&'static str],
}

macro_rules! metrics {
    ($($id:ident $kind:ident $name:literal [$($label:literal)*] $help:literal)*) => {
        $(
            #[doc = $help]
            pub const $id: Metric =
                Metric { name: $name, kind: Kind::$kind, help: $help, labels: &[$($label),*] };
        )*

        /// All metrics, in the order in which they are exposed.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    POLICY_PACKETS Counter "calico_accountant_policy_packets_total"
        ["namespace" "pod" "direction" "ip_version" "tier" "policy_kind" "policy_namespace" "policy" "action"]
        "Packets that a policy decided about: allow counts about one a connection, because established connections are not asked again; deny counts every packet."
    POLICY_BYTES Counter "calico_accountant_policy_bytes_total"
        ["namespace" "pod" "direction" "ip_version" "tier" "policy_kind" "policy_namespace" "policy" "action"]
        "Length of the packets that a policy decided about, from the IP header on."
    DEFAULT_DENY_PACKETS Counter "calico_accountant_default_deny_packets_total"
        ["namespace" "pod" "direction" "ip_version" "tier" "reason"]
        "Packets dropped because no policy of a tier, or no profile, decided about them."
    DEFAULT_DENY_BYTES Counter "calico_accountant_default_deny_bytes_total"
        ["namespace" "pod" "direction" "ip_version" "tier" "reason"]
        "Length of the packets dropped because no policy of a tier, or no profile, decided about them."
    PROFILE_PACKETS Counter "calico_accountant_profile_packets_total"
        ["namespace" "pod" "direction" "ip_version" "profile" "action"]
        "Packets that a profile decided about: allow counts about one a connection, deny every packet."
    PROFILE_BYTES Counter "calico_accountant_profile_bytes_total"
        ["namespace" "pod" "direction" "ip_version" "profile" "action"]
        "Length of the packets that a profile decided about, from the IP header on."
    ENDPOINT_CHAIN_PACKETS Counter "calico_accountant_endpoint_chain_packets_total"
        ["namespace" "pod" "direction" "ip_version" "rule" "verdict"]
        "Packets that a rule of the endpoint's own chain decided about, before any policy; established packets between two pods of a node show at the sender only."
    ENDPOINT_CHAIN_BYTES Counter "calico_accountant_endpoint_chain_bytes_total"
        ["namespace" "pod" "direction" "ip_version" "rule" "verdict"]
        "Length of the packets that a rule of the endpoint's own chain decided about, before any policy."
    UNATTRIBUTED_PACKETS Counter "calico_accountant_unattributed_packets_total"
        ["source" "cause"]
        "Packets that were counted and could not be charged to anything, by cause."
    ATTRIBUTION_PACKETS Counter "calico_accountant_attribution_packets_total"
        ["source" "result"]
        "Packets by how exactly they were charged: to a policy or another account, to a group of policies because the numbers do not tell which, or not at all."

    NO_POLICY_DROP OldCounter "no_policy_drop_counter"
        ["pod" "pod_namespace" "app" "ip" "type"]
        "Number of packets dropped to or from a workload because no policies matched them"
    POLICY_ACCEPT OldCounter "policy_accept_counter"
        ["pod" "pod_namespace" "app" "ip" "type" "policy"]
        "Number of packets accepted by a policy on a workload"
    POLICY_ACCEPT_DROP OldCounter "policy_accept_drop_counter"
        ["pod" "pod_namespace" "app" "ip" "type" "policy"]
        "Number of packets denied by an explicit rule of a policy on a workload"
    DROPPED_SCRAPE OldCounter "calico_accountant_dropped_scrape"
        []
        "Number of scrapes from which these metrics were left out because all of them were below MINIMUM_COUNTER"

    SOURCE_UP Gauge "calico_accountant_source_up"
        ["source"]
        "Whether the source has chains of Calico's and could be read at the last try."
    SOURCE_LAST_SUCCESS Gauge "calico_accountant_source_last_success_timestamp_seconds"
        ["source"]
        "When the source was last read."
    SOURCE_POLL_DURATION Gauge "calico_accountant_source_poll_duration_seconds"
        ["source"]
        "How long the last reading of the source took."
    SOURCE_READS Counter "calico_accountant_source_reads_total"
        ["source"]
        "How often the source was read."
    SOURCE_RESETS Counter "calico_accountant_source_resets_total"
        ["source"]
        "Rule counters that somebody set back; what they counted before stays counted."
    SOURCE_ERRORS Counter "calico_accountant_source_errors_total"
        ["source" "reason"]
        "Readings of the source that failed, by kind of failure."
    SOURCE_EVENTS Counter "calico_accountant_source_events_total"
        ["source" "event"]
        "Things that happened to the source and are worth knowing: the lock not had in time, a rewrite seen too late, lost notifications, interrupted dumps."
    DATASTORE_IN_SYNC Gauge "calico_accountant_datastore_in_sync"
        ["kind"]
        "Whether all names were looked up and are followed."
    DATASTORE_LAST_EVENT Gauge "calico_accountant_datastore_last_event_timestamp_seconds"
        ["kind"]
        "When the datastore last changed a name."
    DATASTORE_OBJECTS Gauge "calico_accountant_datastore_objects"
        ["kind"]
        "Objects that names are taken from."
    BUILD_INFO Gauge "calico_accountant_build_info"
        ["version"]
        "The version of the agent; always 1."
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
