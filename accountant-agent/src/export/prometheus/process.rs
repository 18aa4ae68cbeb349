//! The process' own metrics, `process_*`, from the collector that all Prometheus clients have.

use super::text::Text;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricType;
use std::sync::OnceLock;

/// Writes the families of the process collector.
pub(super) fn families(text: &mut Text) {
    static COLLECTOR: OnceLock<ProcessCollector> = OnceLock::new();
    for family in COLLECTOR.get_or_init(ProcessCollector::for_self).collect() {
        let counter = family.get_field_type() == MetricType::COUNTER;
        text.head(family.name(), if counter { "counter" } else { "gauge" }, family.help());
        for metric in family.get_metric() {
            let value =
                if counter { metric.get_counter().get_value() } else { metric.get_gauge().get_value() };
            text.sample_f64(family.name(), "", value);
        }
    }
}
