//! The process' own metrics, `process_*`, from the collector that all Prometheus clients have.
//!
//! That collector tells of processor time in whole seconds, which a nearly idle agent needs hours to fill: the kernel is
//! asked for the same in microseconds.

use super::text::Text;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricType;
use std::sync::OnceLock;

/// Writes the families of the process collector.
pub(super) fn families(text: &mut Text<'_>) {
    static COLLECTOR: OnceLock<ProcessCollector> = OnceLock::new();
    for family in COLLECTOR.get_or_init(ProcessCollector::for_self).collect() {
        let counter = family.get_field_type() == MetricType::COUNTER;
        text.process_family(family.name(), if counter { "counter" } else { "gauge" }, family.help());
        for metric in family.get_metric() {
            let value = match (family.name(), counter) {
                ("process_cpu_seconds_total", _) => cpu_seconds().unwrap_or(metric.get_counter().get_value()),
                (_, true) => metric.get_counter().get_value(),
                (_, false) => metric.get_gauge().get_value(),
            };
            text.sample_f64(family.name(), "", value);
        }
    }
}

/// The processor time of all our threads since the start, in user space and in the kernel, in seconds.
fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

#[cfg(test)]
mod tests {
    use super::super::selection::Selection;
    use super::super::text::Format;
    use super::*;

    #[test]
    fn processor_time_has_parts_of_a_second_and_rises() {
        let before = cpu_seconds().unwrap();
        while cpu_seconds().unwrap() - before < 0.01 {}
        let selection = Selection::default();
        let mut text = Text::new(Format::Prometheus, &selection, 0);
        families(&mut text);
        let text = text.finish();
        let told = text.lines().find_map(|line| line.strip_prefix("process_cpu_seconds_total ")).unwrap();
        let told: f64 = told.parse().unwrap();
        assert!(told > before && told <= cpu_seconds().unwrap(), "{told} since {before}");
    }
}
