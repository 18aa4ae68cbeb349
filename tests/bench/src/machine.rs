//! The machine that it was measured on, as far as it matters for numbers.

use std::fs::read_to_string;

/// Kernel, processors and memory in one line.
pub(crate) fn describe() -> String {
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let model = field("/proc/cpuinfo", "model name");
    let memory: f64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(f64::NAN);
    let gigabytes = memory / 1024.0 / 1024.0;
    format!("Linux {}, {cpus} x {model}, {gigabytes:.0} GiB of memory", kernel.trim())
}

/// The first value under this name in a file of `name: value` lines.
pub(crate) fn field(file: &str, name: &str) -> String {
    let text = read_to_string(file).unwrap_or_default();
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    let found = pairs.find(|(key, _)| key.trim() == name);
    found.map_or(String::new(), |(_, value)| value.trim().to_string())
}
