//! Prometheus: the published view as text, ours and calico-accountant's metrics.
//!
//! Labels are rendered once for as long as the set of accounts stays the same; a scrape then copies text and numbers.

mod bird;
#[cfg(test)]
mod docs;
pub mod metrics;
mod node;
mod process;
mod selection;
mod text;

pub use selection::{Selection, Unknown};
pub use text::Format;

use crate::engine::Published;
use crate::engine::aside::{Bird, Latest};
use crate::engine::status::{KernelStatus, SourceStatus, State};
use crate::export::http::web_config::Followed;
use accountant_core::Counter;
use accountant_core::view::{Accounts, CompatAccount, CompatFamily, Family};
use accountant_dataplane::census::Census;
use metrics::Metric;
use node::Reach;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{self, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use text::{Labels, Text, render_labels};

/// Renders scrapes.
#[derive(Debug)]
pub struct Exporter {
    /// Whether calico-accountant's metrics are served.
    compat: bool,
    /// Below this, all of them are left out.
    minimum: u64,
    left_out: AtomicU64,
    rendered: Mutex<Arc<Rendered>>,
    /// The web configuration, to say whether it can be used.
    web: Option<Arc<Followed>>,
    bird: Bird,
    census: Latest<Census>,
}

/// The label texts of a set of accounts.
#[derive(Debug, Default)]
struct Rendered {
    accounts: Arc<Accounts>,
    own: Labels,
    compat: Labels,
    reach: Reach,
}

impl Exporter {
    /// An exporter with or without calico-accountant's metrics.
    pub fn new(compat: bool, minimum: u64) -> Self {
        let (left_out, rendered) = (AtomicU64::new(0), Mutex::default());
        let (bird, census) = (Latest::default(), Latest::default());
        Self { compat, minimum, left_out, rendered, web: None, bird, census }
    }

    /// It tells of BIRD, too.
    pub fn telling_of_bird(mut self, bird: Bird) -> Self {
        self.bird = bird;
        self
    }

    /// It tells of what is in the packet filter, too.
    pub fn telling_of_census(mut self, census: Latest<Census>) -> Self {
        self.census = census;
        self
    }

    /// It tells of the web configuration, too.
    pub fn telling_of_web(mut self, web: Arc<Followed>) -> Self {
        self.web = Some(web);
        self
    }

    /// The exposition of what is published, as far as it is wanted.
    pub fn render(&self, published: &Published, format: Format, selection: &Selection) -> String {
        let rendered = self.rendered(&published.view.accounts);
        let series = 2 * rendered.own.len() + rendered.compat.len();
        let mut text = Text::new(format, selection, 16 * 1024 + 256 * series);
        own_families(&mut text, published, &rendered);
        attribution(&mut text, published);
        if self.compat {
            self.compat_families(&mut text, published, &rendered);
        }
        source_families(&mut text, &published.status.sources);
        kernel_families(&mut text, &published.status.kernel);
        datastore_families(&mut text, published);
        node::accounts(&mut text, &rendered.reach);
        node::census(&mut text, &self.census.get());
        node::rewrites(&mut text, &published.status.sources);
        bird::families(&mut text, &self.bird.get());
        text.family(&metrics::WEB_CONFIG_VALID);
        if let Some(valid) = self.web.as_ref().and_then(|web| web.is_valid()) {
            text.sample(metrics::WEB_CONFIG_VALID.name, "", u64::from(valid));
        }
        text.family(&metrics::BUILD_INFO);
        text.sample(metrics::BUILD_INFO.name, &render_labels([("version", env!("CARGO_PKG_VERSION"))]), 1);
        process::families(&mut text);
        text.finish()
    }

    fn rendered(&self, accounts: &Arc<Accounts>) -> Arc<Rendered> {
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&rendered.accounts, accounts) {
            *rendered = Arc::new(Rendered::new(accounts));
        }
        rendered.clone()
    }

    fn compat_families(&self, text: &mut Text<'_>, published: &Published, rendered: &Rendered) {
        let view = &published.view;
        let counted = || view.accounts.compat.iter().map(|account| view.compat_balance(account).packets);
        let shown = self.minimum == 0 || counted().any(|packets| packets >= self.minimum);
        if !shown {
            self.left_out.fetch_add(1, atomic::Ordering::Relaxed);
        }
        for (family, metric) in [
            (CompatFamily::NoPolicyDrop, &metrics::NO_POLICY_DROP),
            (CompatFamily::PolicyAccept, &metrics::POLICY_ACCEPT),
            (CompatFamily::PolicyAcceptDrop, &metrics::POLICY_ACCEPT_DROP),
        ] {
            text.family(metric);
            let accounts = &view.accounts.compat;
            let range = stretch(accounts, |account| account.family.cmp(&family));
            for (account, labels) in accounts[range.clone()].iter().zip(rendered.compat.of(range)) {
                if shown {
                    text.sample(metric.name, labels, view.compat_balance(account).packets);
                }
            }
        }
        text.family(&metrics::DROPPED_SCRAPE);
        text.sample(metrics::DROPPED_SCRAPE.name, "", self.left_out.load(atomic::Ordering::Relaxed));
    }
}

impl Rendered {
    fn new(accounts: &Arc<Accounts>) -> Self {
        let own = accounts
            .own
            .iter()
            .map(|a| render_labels(a.labels.iter().map(|(name, value)| (*name, &**value))));
        Self {
            own: Labels::new(own),
            compat: Labels::new(accounts.compat.iter().map(compat_labels)),
            reach: Reach::new(accounts),
            accounts: accounts.clone(),
        }
    }
}

fn compat_labels(account: &CompatAccount) -> String {
    let labels = [
        ("pod", &*account.pod),
        ("pod_namespace", &account.pod_namespace),
        ("app", &account.app),
        ("ip", &account.ip),
        ("type", account.chain),
    ];
    render_labels(labels.into_iter().chain(account.policy.as_deref().map(|policy| ("policy", policy))))
}

/// The metrics of a family of accounts: packets and, where there is one, bytes.
fn family_metrics(family: Family) -> (&'static Metric, Option<&'static Metric>) {
    match family {
        Family::Policy => (&metrics::POLICY_PACKETS, Some(&metrics::POLICY_BYTES)),
        Family::DefaultDeny => (&metrics::DEFAULT_DENY_PACKETS, Some(&metrics::DEFAULT_DENY_BYTES)),
        Family::Profile => (&metrics::PROFILE_PACKETS, Some(&metrics::PROFILE_BYTES)),
        Family::EndpointChain => (&metrics::ENDPOINT_CHAIN_PACKETS, Some(&metrics::ENDPOINT_CHAIN_BYTES)),
        Family::Endpoint => (&metrics::ENDPOINT_PACKETS, Some(&metrics::ENDPOINT_BYTES)),
        Family::Unattributed => (&metrics::UNATTRIBUTED_PACKETS, None),
    }
}

/// Where in a sorted list those are that compare as equal.
fn stretch<T>(sorted: &[T], compare: impl Fn(&T) -> Ordering) -> Range<usize> {
    let start = sorted.partition_point(|element| compare(element).is_lt());
    let length = sorted[start..].partition_point(|element| compare(element).is_eq());
    start..start + length
}

fn own_families(text: &mut Text<'_>, published: &Published, rendered: &Rendered) {
    let view = &published.view;
    let accounts = &view.accounts.own;
    let packets = |counter: Counter| counter.packets;
    let bytes = |counter: Counter| counter.bytes;
    for family in Family::ALL {
        let (packet_metric, byte_metric) = family_metrics(family);
        let range = stretch(accounts, |account| account.family.cmp(&family));
        let both =
            [Some((packet_metric, packets as fn(Counter) -> u64)), byte_metric.map(|m| (m, bytes as _))];
        for (metric, part) in both.into_iter().flatten() {
            text.family(metric);
            for (account, labels) in accounts[range.clone()].iter().zip(rendered.own.of(range.clone())) {
                text.sample(metric.name, labels, part(view.balance(account)));
            }
        }
    }
}

fn attribution(text: &mut Text<'_>, published: &Published) {
    let metric = &metrics::ATTRIBUTION_PACKETS;
    text.family(metric);
    for source in &published.status.sources {
        for (result, packets) in &source.attribution {
            let labels = render_labels([("source", source.source.as_str()), ("result", result)]);
            text.sample(metric.name, &labels, *packets);
        }
    }
}

fn source_families(text: &mut Text<'_>, sources: &[SourceStatus]) {
    let mut each = |metric: &Metric, value: &dyn Fn(&SourceStatus) -> Option<f64>| {
        text.family(metric);
        for source in sources {
            if let Some(value) = value(source) {
                text.sample_f64(metric.name, &render_labels([("source", source.source.as_str())]), value);
            }
        }
    };
    each(&metrics::SOURCE_UP, &|source| Some(f64::from(u8::from(source.state == State::Counting))));
    each(&metrics::SOURCE_LAST_SUCCESS, &|source| source.last_success.map(seconds));
    each(&metrics::SOURCE_POLL_DURATION, &|source| Some(source.took.as_secs_f64()));
    each(&metrics::SOURCE_CPU, &|source| Some(source.cpu.as_secs_f64()));
    let flag = |flag: bool| Some(f64::from(u8::from(flag)));
    each(&metrics::SOURCE_IN_PLACE, &|source| flag(source.how.is_in_place()));
    each(&metrics::SOURCE_EXACT, &|source| flag(source.how.keeps_counts_over_rewrites()));
    each(&metrics::SOURCE_READS, &|source| Some(source.reads as f64));
    each(&metrics::SOURCE_DIFFERENCE, &|source| source.difference.map(|packets| packets as f64));
    each(&metrics::SOURCE_RULE_DIFFERENCE, &|source| source.rule_difference.map(|hits| hits as f64));
    each(&metrics::SOURCE_TOTALS_ONLY, &|source| flag(source.how.is_totals_only()));
    each(&metrics::SOURCE_COUNTED_RULES, &|source| source.rules.map(|rules| rules as f64));
    each(&metrics::SOURCE_RESETS, &|source| Some(source.resets as f64));
    each(&metrics::SOURCE_REPAIRED, &|source| source.repaired.map(|packets| packets as f64));
    by_kind(text, &metrics::SOURCE_CHECKED, "result", sources, |source| &source.compared);
    by_kind(text, &metrics::SOURCE_ERRORS, "reason", sources, |source| &source.errors);
    by_kind(text, &metrics::SOURCE_EVENTS, "event", sources, |source| &source.notes);
}

fn by_kind(
    text: &mut Text<'_>,
    metric: &Metric,
    label: &str,
    sources: &[SourceStatus],
    counts: fn(&SourceStatus) -> &BTreeMap<&'static str, u64>,
) {
    text.family(metric);
    for source in sources {
        for (kind, count) in counts(source) {
            text.sample(
                metric.name,
                &render_labels([("source", source.source.as_str()), (label, kind)]),
                *count,
            );
        }
    }
}

fn kernel_families(text: &mut Text<'_>, kernel: &KernelStatus) {
    text.family(&metrics::KERNEL_PROGRAMS);
    text.sample(metrics::KERNEL_PROGRAMS.name, "", u64::from(kernel.is_attached()));
    text.family(&metrics::KERNEL_ATTACHED_AGAIN);
    if let Some(programs) = kernel.attached_again {
        text.sample(metrics::KERNEL_ATTACHED_AGAIN.name, "", programs);
    }
    text.family(&metrics::KERNEL_INTERFACES);
    if let Some(interfaces) = kernel.interfaces {
        text.sample(metrics::KERNEL_INTERFACES.name, "", interfaces as u64);
    }
    text.family(&metrics::KERNEL_PACKETS);
    for (result, packets) in &kernel.packets {
        text.sample(metrics::KERNEL_PACKETS.name, &render_labels([("result", *result)]), *packets);
    }
    text.family(&metrics::BPF_RUN_COUNT);
    for (program, count, _) in &kernel.runs {
        text.sample(metrics::BPF_RUN_COUNT.name, &render_labels([("program", *program)]), *count);
    }
    text.family(&metrics::BPF_RUN_SECONDS);
    for (program, _, time) in &kernel.runs {
        let labels = render_labels([("program", *program)]);
        text.sample_f64(metrics::BPF_RUN_SECONDS.name, &labels, time.as_secs_f64());
    }
    text.family(&metrics::BPF_EVENTS_LOST);
    for (kind, events) in &kernel.lost {
        text.sample(metrics::BPF_EVENTS_LOST.name, &render_labels([("kind", *kind)]), *events);
    }
}

fn datastore_families(text: &mut Text<'_>, published: &Published) {
    let datastore = &published.status.datastore;
    let kind = render_labels([("kind", datastore.name)]);
    text.family(&metrics::DATASTORE_IN_SYNC);
    if datastore.name != "none" {
        text.sample(metrics::DATASTORE_IN_SYNC.name, &kind, u64::from(datastore.in_sync));
    }
    text.family(&metrics::DATASTORE_LAST_EVENT);
    if let Some(time) = datastore.last_event {
        text.sample_f64(metrics::DATASTORE_LAST_EVENT.name, &kind, seconds(time));
    }
    text.family(&metrics::DATASTORE_OBJECTS);
    for (kind, count) in &datastore.objects {
        text.sample(
            metrics::DATASTORE_OBJECTS.name,
            &render_labels([("kind", kind.as_str())]),
            *count as u64,
        );
    }
    text.family(&metrics::DATASTORE_ERRORS);
    for (reason, count) in &datastore.errors {
        let labels = render_labels([("kind", datastore.name), ("reason", reason)]);
        text.sample(metrics::DATASTORE_ERRORS.name, &labels, *count);
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
