//! A scrape without the reading that it may cause: rendering what is published, and compressing it for those who ask.
//!
//! The view is made of accounts like those of real pods: two directions, five policies, both IP versions, and all
//! families that come of them. Requests go through the agent's own routes, in this process.

use crate::Effort;
use crate::cost;
use crate::report::{Measured, Report, Row, Wish};
use crate::samples::{Contender, Summary, take_turns};
use accountant_agent::engine::denied::FlowsView;
use accountant_agent::engine::status::Status;
use accountant_agent::engine::{Handle, Published};
use accountant_agent::export::http::Service;
use accountant_agent::export::prometheus::{Exporter, Format, Selection};
use accountant_core::calico::PolicyKind::KubernetesNetworkPolicy;
use accountant_core::calico::policy::PolicyId;
use accountant_core::calico::shared::PolicyAction;
use accountant_core::id::{Endpoint, EndpointKind, TierName};
use accountant_core::index::{Index, Object, Workload};
use accountant_core::ledger::{AccountKey, Ledger, PolicyRef, Posting, What};
use accountant_core::view::Viewer;
use accountant_core::{Counter, Direction, Interface, IpVersion};
use anyhow::Result;
use axum::body::Body;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{self, Runtime};

/// How many series there are in a scrape, about.
pub(crate) const SERIES: [usize; 3] = [1_000, 10_000, 100_000];

/// Policies of a pod.
const POLICIES: usize = 5;
/// Series of a pod: each policy allows and denies in packets and bytes of both IP versions, and once more in the
/// compatible families; so does the lack of a policy. All that in both directions.
const SERIES_OF_A_POD: usize = 2 * (POLICIES * 2 * 5 + 5);
/// Ten thousand series are wanted within a millisecond.
const WISH: (usize, Wish) = (10_000, Wish::Value(1.0));

/// Measures scrapes of about so many series.
pub(crate) fn measure(series: usize, effort: Effort, report: &mut Report) -> Result<()> {
    let published = published(series / SERIES_OF_A_POD);
    let exporter = Exporter::new(true, 0);
    let text = exporter.render(&published, Format::Prometheus, &Selection::default());
    let count = text.lines().filter(|line| !line.starts_with('#')).count();
    report.section(&format!("scrape/{series}"), &format!("Scrape of {count} series"));
    report.add(Row::new("size of the text", Summary::exact(text.len() as f64 / 1e6), "MB"));

    let rounds = effort.often;
    let service = Service {
        engine: Handle::fixed(published.clone()),
        exporter: Arc::new(Exporter::new(true, 0)),
        max_age: Duration::MAX,
    };
    let runtime = runtime::Builder::new_current_thread().enable_time().build()?;
    let compressed = answer(&runtime, &service, "gzip")?;
    report.add(Row::new("size with gzip", Summary::exact(compressed as f64 / 1e6), "MB"));
    let anew: Contender<'_> = Box::new(|| {
        let exporter = Exporter::new(true, 0);
        cost::of_this_thread(|| Ok(exporter.render(&published, Format::Prometheus, &Selection::default())))
    });
    let again: Contender<'_> = Box::new(|| {
        cost::of_this_thread(|| Ok(exporter.render(&published, Format::Prometheus, &Selection::default())))
    });
    let plain: Contender<'_> = Box::new(|| cost::of_this_thread(|| answer(&runtime, &service, "identity")));
    let gzip: Contender<'_> = Box::new(|| cost::of_this_thread(|| answer(&runtime, &service, "gzip")));
    let [anew, again, plain, gzip] = take_turns([anew, again, plain, gzip], rounds)?;

    let wished = |row: Row| Row { wish: (series == WISH.0).then_some(WISH.1), ..row };
    let again = Measured::milliseconds("rendered, CPU", again.cpu());
    report.add(wished(again.row()));
    report.add(Measured::milliseconds("rendered when accounts came or went, CPU", anew.cpu()).beside(&again));
    report.add(wished(Measured::milliseconds("answered as text, CPU", plain.cpu()).beside(&again)));
    report.add(wished(Measured::milliseconds("answered with gzip, CPU", gzip.cpu()).beside(&again)));
    Ok(())
}

/// Asks for the metrics in this encoding, and says how long the answer is.
fn answer(runtime: &Runtime, service: &Service, encoding: &str) -> Result<usize> {
    let request = Request::get("/metrics").header("accept-encoding", encoding).body(Body::empty())?;
    runtime.block_on(async {
        let routes = TowerToHyperService::new(service.clone().router());
        let body = routes.call(request).await?.into_body().collect().await?;
        Ok(body.to_bytes().len())
    })
}

/// Accounts of so many pods, published a moment ago.
fn published(pods: usize) -> Published {
    let (mut ledger, mut index) = (Ledger::default(), Index::default());
    for number in 0..pods {
        add_pod(number, &mut ledger, &mut index);
    }
    let view = Viewer::default().view(&ledger, &index);
    Published {
        view,
        status: Status::default(),
        denied: FlowsView::default(),
        accepted: None,
        at: Some(Instant::now()),
    }
}

fn add_pod(number: usize, ledger: &mut Ledger, index: &mut Index) {
    let (namespace, pod) = (format!("team-{}", number / 20), format!("backend-7d4b9c{number:04x}-x2x9p"));
    let interface = Interface::from(format!("cali{number:011x}"));
    let workload = Workload {
        namespace: namespace.as_str().into(),
        pod: pod.as_str().into(),
        app: "backend".into(),
        ips: vec![format!("10.65.{}.{}", number / 256, number % 256).into()],
    };
    let key = ("pod".into(), namespace.as_str().into(), pod.into());
    index.apply(key, Object::Workload(interface.clone(), workload));

    let endpoint = Endpoint { kind: EndpointKind::Workload, interface };
    for what in whats(&namespace) {
        for direction in [Direction::Ingress, Direction::Egress] {
            for ip_version in IpVersion::BOTH {
                let (endpoint, what) = (endpoint.clone(), what.clone());
                let key = AccountKey { endpoint, direction, ip_version, what }.into();
                let amount = balance(ledger.version());
                ledger.post(Posting { key, amount });
            }
        }
    }
}

/// Numbers as long as those of a pod that has been there for days, no two alike: equal ones would compress too well.
fn balance(number: u64) -> Counter {
    let packets = 1_000_000 + number.wrapping_mul(2_654_435_761) % 1_000_003;
    Counter::new(packets, packets * 787 + number)
}

/// What each direction of a pod has accounts for.
fn whats(namespace: &str) -> Vec<What> {
    let tier = TierName::default_tier();
    let mut whats = vec![What::NoPolicy { tier: tier.clone() }];
    for number in 0..POLICIES {
        let name = format!("allow-from-frontend-{number}");
        let policy = PolicyRef::Known(PolicyId::new(KubernetesNetworkPolicy, namespace, &name));
        whats.extend([PolicyAction::Allow, PolicyAction::Deny].map(|action| What::Policy {
            tier: tier.clone(),
            policy: policy.clone(),
            action,
        }));
    }
    whats
}
