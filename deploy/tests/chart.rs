//! The chart: helm takes it over a matrix of values, wrong values are told, what is generated from it is what is in the tree, and a
//! real API server takes all of it, RBAC included.
//!
//! helm and kustomize are built with Go, as the API server is. Without Go each test is listed as ignored; with
//! `ACCOUNTANT_REQUIRE_SERVERS` set, as in CI, that is a failure.

use accountant_deploy::manifests::{CHART, PLAIN, objects, plain, template};
use accountant_deploy::{read, root};
use accountant_rigs::{ApiServer, output};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What tests run with.
#[derive(Clone)]
struct Tools {
    platform: PathBuf,
    server: PathBuf,
}

fn tools() -> Result<Tools, String> {
    let platform = accountant_rigs::platform().expect("helm").map_err(|unavailable| unavailable.0)?;
    let server = accountant_rigs::binary().expect("the API server").map_err(|unavailable| unavailable.0)?;
    Ok(Tools { platform, server })
}

type Test = fn(&Tools);

const TESTS: [(&str, Test); 5] = [
    ("helm_finds_nothing_wrong", helm_finds_nothing_wrong),
    ("wrong_values_are_told", wrong_values_are_told),
    ("what_is_generated_is_in_the_tree", what_is_generated_is_in_the_tree),
    ("alerts_can_be_left_out_and_linked", alerts_can_be_left_out_and_linked),
    ("an_api_server_takes_everything", an_api_server_takes_everything),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tools = if arguments.list { Err("not needed to list tests".into()) } else { tools() };
    if let (Err(reason), false) = (&tools, arguments.list) {
        eprintln!("NOT RUN: the tests of the Helm chart: it {reason}");
        if std::env::var_os("ACCOUNTANT_REQUIRE_SERVERS").is_some() {
            return ExitCode::FAILURE;
        }
    }
    let trials = TESTS.map(|(name, test)| {
        let tools = tools.clone().ok();
        let missing = tools.is_none();
        let run = move || -> Result<(), Failed> {
            test(&tools.expect("ignored without"));
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(missing)
    });
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

/// Values that people choose. Each is one row of `--set` arguments.
const MATRIX: [&str; 12] = [
    "",
    "datastore.type=etcdv3,datastore.etcd.endpoints=https://a:2379,datastore.etcd.certificatesSecret=calico-etcd-secrets",
    "datastore.type=manifests,datastore.manifests.configMap=names,capabilities={NET_ADMIN}",
    "datastore.type=none,service.enabled=false,scrapeAnnotations=false",
    "podMonitor.enabled=true,serviceMonitor.enabled=true,felixMonitor.enabled=true,podMonitor.labels.release=p",
    "prometheusRule.enabled=true,dashboards.enabled=true",
    "hostPolicy.enabled=true,hostPolicy.allow={10.0.0.0/8,fd00::/8}",
    "image.digest=sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa,port=9100,listenAddress=fd00::1",
    "serviceAccount.create=false,serviceAccount.name=own,rbac.create=false,priorityClassName=,extraArgs={--max-age,2s}",
    "web.configSecret=accountant-web,web.scrape.scheme=https,podMonitor.enabled=true,serviceMonitor.enabled=true",
    "bpfPins=,calicoRun=/run/calico",
    "keepPrograms=true",
];

fn set(row: &str) -> Vec<&str> {
    if row.is_empty() { Vec::new() } else { vec!["--set", row] }
}

fn helm_finds_nothing_wrong(tools: &Tools) {
    let chart = root().join(CHART).display().to_string();
    let helm = tools.platform.join("helm");
    for row in MATRIX {
        let values = set(row);
        let arguments = [&["lint", "--strict", "--kube-version", "1.34.0", &chart], values.as_slice()];
        output(&helm, &arguments.concat()).unwrap();
        let text = template(&tools.platform, &values).unwrap();
        // Only with the datastore kubernetes is there a token, and a role.
        let kubernetes = !row.contains("datastore.type");
        assert!(text.contains(&format!("automountServiceAccountToken: {kubernetes}\n")), "{row}");
        // In etcd a node may have another name than in Kubernetes.
        assert_eq!(text.contains("name: NODENAME\n"), !row.contains("etcdv3"), "{row}");
        let role = kubernetes && !row.contains("rbac.create=false");
        assert_eq!(text.contains("kind: ClusterRole\n"), role, "{row}");
        for never in ["privileged: true", "allowPrivilegeEscalation: true", "hostPID", "SYS_ADMIN"] {
            assert!(!text.contains(never), "{never} with {row}");
        }
    }
    let text = template(&tools.platform, &set(MATRIX[7])).unwrap();
    assert!(text.contains("value: \"[fd00::1]:9100\"") && text.contains("host: \"fd00::1\""), "{text}");
    // Probes have neither certificate nor password; Prometheus is told what to use.
    let text = template(&tools.platform, &set(MATRIX[9])).unwrap();
    assert!(
        text.contains("value: /etc/accountant/web/web.yml") && text.contains("secretName: accountant-web")
    );
    assert!(text.matches("tcpSocket:").count() == 2 && !text.contains("httpGet:"), "{text}");
    assert!(
        text.matches("    scheme: https\n").count() == 2 && text.contains("prometheus.io/scheme: https\n")
    );
    // What reads Calico's maps cannot write them.
    let text = template(&tools.platform, &[]).unwrap();
    assert!(text.contains("mountPath: /sys/fs/bpf\n          readOnly: true\n"), "{text}");
    assert!(!template(&tools.platform, &set(MATRIX[10])).unwrap().contains("/sys/fs/bpf"));
    // What outlives the agent has a folder of its own.
    assert!(!text.contains("kernel-pins"), "{text}");
    let text = template(&tools.platform, &set(MATRIX[11])).unwrap();
    assert!(text.contains("mountPath: /sys/fs/bpf\n          readOnly: true\n"), "{text}");
    assert!(text.contains("mountPath: /sys/fs/bpf/packet-accountant\n"), "{text}");
    assert!(
        text.contains("path: /sys/fs/bpf/packet-accountant\n          type: DirectoryOrCreate\n"),
        "{text}"
    );
}

/// Values of the wrong type, of the wrong name, and that do not fit together; each with a word of the answer.
const WRONG: [(&str, &str); 12] = [
    ("port=many", "port"),
    ("port=70000", "port"),
    ("image.pullPolicy=Sometimes", "pullPolicy"),
    ("datastore.type=consul", "datastore"),
    ("datastore.type=etcdv3", "datastore.etcd.endpoints"),
    ("datastore.type=etcdv3,datastore.etcd.endpoints=a:2379", "endpoints"),
    ("capabilities={SYS_ADMIN}", "capabilities"),
    ("prometheusRules.enabled=true", "prometheusRules"),
    ("web.configFile=web.yml", "web"),
    ("web.scrape.scheme=ftp", "scheme"),
    ("bpfPins=bpf", "bpfPins"),
    ("keepPrograms=true,bpfPins=", "bpfPins"),
];

fn wrong_values_are_told(tools: &Tools) {
    for (row, word) in WRONG {
        let error = format!("{:#}", template(&tools.platform, &set(row)).unwrap_err());
        assert!(error.contains(word), "{row}: {error}");
    }
}

fn what_is_generated_is_in_the_tree(tools: &Tools) {
    let files = objects(&tools.platform).unwrap();
    for (path, text) in files.into_iter().chain([plain(&tools.platform).unwrap()]) {
        assert!(
            read(&path).is_ok_and(|there| there == text),
            "{path} is stale: `cargo xtask deploy` writes it"
        );
    }
}

fn alerts_can_be_left_out_and_linked(tools: &Tools) {
    let row = "prometheusRule.enabled=true,prometheusRule.disabled={CalicoFelixDown},prometheusRule.runbookUrl=https://docs.example/alerts";
    let text = template(&tools.platform, &["--set", row]).unwrap();
    assert!(!text.contains("alert: CalicoFelixDown\n") && text.contains("alert: CalicoFelixMissing\n"));
    assert!(text.contains("runbook_url: https://docs.example/alerts#calicofelixmissing\n"));
    // Templates of alerts are for Prometheus, not for helm.
    assert!(text.contains("{{ $labels.instance }}"));
}

/// A client that has a token and the server's authority: curl, as Debian has it.
fn apply(server: &ApiServer, path: &str, name: &str, file: &Path) {
    let url = format!("{}{path}/{name}?fieldManager=tests&fieldValidation=Strict", server.server());
    let authorization = format!("authorization: Bearer {}", server.token());
    let (ca, body) = (server.ca().display().to_string(), format!("@{}", file.display()));
    let arguments = [
        "--silent",
        "--show-error",
        "--cacert",
        &ca,
        "--header",
        &authorization,
        "--request",
        "PATCH",
        "--header",
        "content-type: application/apply-patch+yaml",
        "--data-binary",
        &body,
        "--write-out",
        "\n%{http_code}",
        &url,
    ];
    let answer = output(Path::new("curl"), &arguments).unwrap();
    let (answer, status) = answer.rsplit_once('\n').unwrap();
    assert!(status == "200" || status == "201", "{path}/{name}: {status}: {answer}");
    assert!(!answer.contains("unknown field"), "{answer}");
}

/// Where objects of a kind are.
fn path_of(version: &str, kind: &str, namespace: Option<&str>) -> String {
    let plural = match kind {
        "NetworkPolicy" => "networkpolicies".into(),
        _ => format!("{}s", kind.to_lowercase()),
    };
    let api = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    match namespace {
        Some(namespace) => format!("{api}/namespaces/{namespace}/{plural}"),
        None => format!("{api}/{plural}"),
    }
}

/// One document's field at the top or in its metadata.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn an_api_server_takes_everything(tools: &Tools) {
    let server = ApiServer::start(&tools.server, &[]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let one = |text: &str| {
        let file = folder.path().join("object.yaml");
        std::fs::write(&file, text).unwrap();
        let (version, kind) = (field(text, "apiVersion").unwrap(), field(text, "kind").unwrap());
        let metadata = text.split_once("metadata:\n").unwrap().1;
        let name = field(metadata, "  name").unwrap();
        let namespace = field(metadata, "  namespace").filter(|_| !kind.starts_with("Cluster"));
        apply(&server, &path_of(version, kind, namespace), name, &file);
        kind.to_string()
    };
    let documents = |text: &str| -> Vec<String> {
        let documents = text.split("\n---\n").filter(|document| document.contains("kind: "));
        documents.map(str::to_string).collect()
    };
    let plain = read(PLAIN).unwrap();
    let kinds: Vec<_> = documents(&plain).iter().map(|text| one(text)).collect();
    let wanted = ["Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Service", "DaemonSet"];
    assert_eq!(kinds.len(), wanted.len());
    assert!(wanted.iter().all(|kind| kinds.iter().any(|k| k == kind)), "{kinds:?}");
    for row in MATRIX {
        let text = template(&tools.platform, &set(row)).unwrap();
        for text in documents(&text) {
            // Kinds of operators are not known to this server.
            let version = field(&text, "apiVersion").unwrap();
            if !version.contains("coreos") && !version.contains("projectcalico") {
                one(&text);
            }
        }
    }
}
