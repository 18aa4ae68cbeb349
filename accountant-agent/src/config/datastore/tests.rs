//! Every way to a datastore, and every contradiction.

use super::super::surroundings::fake::Fake;
use super::*;

const CLUSTER: [(&str, &str); 2] =
    [("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("KUBERNETES_SERVICE_PORT", "443")];

const KUBECONFIG: &str = "clusters: [{name: c, cluster: {server: 'https://k'}}]\n\
                          contexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n";

fn chosen(args: &NameArgs, around: &Fake) -> Result<Given<Datastore>, String> {
    let felix = Felix::find(around).map_err(|error| error.to_string())?;
    choose(args, &felix, around).map(|(chosen, _)| chosen).map_err(|error| error.to_string())
}

fn of(variables: &[(&str, &str)]) -> Result<Given<Datastore>, String> {
    chosen(&NameArgs::default(), &Fake::with(variables))
}

#[track_caller]
fn etcd(variables: &[(&str, &str)]) -> etcdv3::Connection {
    match of(variables).unwrap().value {
        Datastore::Etcdv3(connection) => connection,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn kubernetes_of(around: &Fake) -> kubernetes::Connection {
    match chosen(&NameArgs::default(), around).unwrap().value {
        Datastore::Kubernetes(connection) => connection,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(variables: &[(&str, &str)], want: &str) {
    let error = of(variables).unwrap_err();
    assert!(error.contains(want), "{error:?} contains {want:?}");
}

#[test]
fn the_type_is_detected_as_calico_does() {
    assert_eq!(of(&[]).unwrap().value, Datastore::None);
    let token = Fake::with(&CLUSTER).file(SERVICE_ACCOUNT, "t");
    assert_eq!(kubernetes_of(&token).source, Source::InCluster);
    assert_eq!(of(&CLUSTER).unwrap().value, Datastore::None);
    let both = token.and(&[("ETCD_ENDPOINTS", "http://e:2379")]);
    let found = chosen(&NameArgs::default(), &both).unwrap();
    assert_eq!(
        (found.value.name(), found.origin.to_string().as_str()),
        ("etcdv3", "etcdEndpoints are given")
    );
    // Only endpoints tell: with SRV records the type must be given.
    assert_eq!(of(&[("ETCD_DISCOVERY_SRV", "d")]).unwrap().value, Datastore::None);
}

#[test]
fn a_flag_counts_before_the_environment() {
    let args = NameArgs { datastore_type: Some(DatastoreType::None), ..NameArgs::default() };
    let around = Fake::with(&[("DATASTORE_TYPE", "etcdv3"), ("ETCD_ENDPOINTS", "http://e:2379")]);
    let found = chosen(&args, &around).unwrap();
    assert_eq!((found.value, found.origin.to_string()), (Datastore::None, "--datastore-type".into()));
    let found = chosen(&NameArgs::default(), &around.and(&[("CALICO_DATASTORE_TYPE", "none")])).unwrap();
    assert_eq!((found.value, found.origin.to_string()), (Datastore::None, "$CALICO_DATASTORE_TYPE".into()));
}

#[test]
fn felixs_own_settings_count_unless_a_file_is_given() {
    let around = Fake::with(&[("FELIX_ETCDADDR", "e:2379"), ("DATASTORE_TYPE", "kubernetes")]);
    let found = chosen(&NameArgs::default(), &around).unwrap();
    let Datastore::Etcdv3(connection) = found.value else { panic!() };
    assert_eq!(connection.servers, Servers::Endpoints(vec!["http://e:2379".into()]));
    assert_eq!(found.origin.to_string(), "$FELIX_ETCDADDR");
    refused(&[("FELIX_ETCDENDPOINTS", "e")], "$FELIX_ETCDENDPOINTS is \"e\"");
    refused(&[("FELIX_DATASTORETYPE", "consul")], "$FELIX_DATASTORETYPE is \"consul\"");
    let text =
        "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec:\n  k8sAPIEndpoint: https://k\n";
    let args = NameArgs { calico_config: Some("f".into()), ..NameArgs::default() };
    assert_eq!(chosen(&args, &around.file("f", text)).unwrap().value.name(), "kubernetes");
}

#[test]
fn manifests_are_a_folder_and_nothing_else() {
    let args = |kind, folder: Option<&str>| NameArgs {
        datastore_type: kind,
        manifests: folder.map(Into::into),
        ..NameArgs::default()
    };
    let folder = Datastore::Manifests("m".into());
    let around = Fake::default();
    assert_eq!(chosen(&args(None, Some("m")), &around).unwrap().value, folder);
    assert_eq!(chosen(&args(Some(DatastoreType::Manifests), Some("m")), &around).unwrap().value, folder);
    let error = chosen(&args(Some(DatastoreType::Manifests), None), &around).unwrap_err();
    assert!(error.contains("--manifests DIR"), "{error}");
    let error = chosen(&args(Some(DatastoreType::None), Some("m")), &around).unwrap_err();
    assert!(error.contains("together with datastore type none (--datastore-type)"), "{error}");
    let around = Fake::with(&[("DATASTORE_TYPE", "kubernetes")]);
    let error = chosen(&args(None, Some("m")), &around).unwrap_err();
    assert!(error.contains("kubernetes ($DATASTORE_TYPE)"), "{error}");
}

#[test]
fn etcd_is_reached_with_files_or_texts() {
    let connection = etcd(&[
        ("ETCD_ENDPOINTS", "https://a:2379, https://b:2379,"),
        ("ETCD_USERNAME", "u"),
        ("ETCD_PASSWORD", "p"),
        ("ETCD_CA_CERT_FILE", "/ca"),
        ("ETCD_CERT_FILE", "/cert"),
        ("ETCD_KEY_FILE", "/key"),
    ]);
    assert_eq!(
        connection.servers,
        Servers::Endpoints(vec!["https://a:2379".into(), "https://b:2379".into()])
    );
    let (user, password) = connection.user.unwrap();
    assert_eq!((&*user, password.reveal()), ("u", "p"));
    let file = |name: &str| Pem::File(Path::new(name).into());
    assert_eq!(
        (connection.ca, connection.identity),
        (Some(file("/ca")), Some((file("/cert"), file("/key"))))
    );

    let text = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec:\n  datastoreType: etcdv3\n  \
                etcdDiscoverySrv: d\n  etcdCACert: PEM\n";
    let around = Fake::with(&[("ETCD_ENDPOINTS", "http://e:2379")]).file("f", text);
    let args = NameArgs { calico_config: Some("f".into()), ..NameArgs::default() };
    let Datastore::Etcdv3(connection) = chosen(&args, &around).unwrap().value else { panic!() };
    assert_eq!(connection.servers, Servers::Domain("d".into()));
    assert_eq!(connection.ca, Some(Pem::Inline("PEM".into())));
}

#[test]
fn a_name_without_a_password_is_not_used() {
    let e = ("ETCD_ENDPOINTS", "http://e:2379");
    assert_eq!(etcd(&[e, ("ETCD_USERNAME", "u")]).user, None);
    assert_eq!(etcd(&[e, ("ETCD_PASSWORD", "u")]).user, None);
}

#[test]
fn contradictions_are_refused() {
    let e = ("ETCD_ENDPOINTS", "http://e:2379");
    refused(&[("DATASTORE_TYPE", "consul")], "$DATASTORE_TYPE is \"consul\"");
    refused(&[("DATASTORE_TYPE", "etcdv3")], "ETCD_ENDPOINTS or ETCD_DISCOVERY_SRV");
    refused(
        &[("DATASTORE_TYPE", "etcdv3"), ("ETCD_ENDPOINTS", " , ")],
        "ETCD_ENDPOINTS or ETCD_DISCOVERY_SRV",
    );
    refused(&[("DATASTORE_TYPE", "kubernetes")], "KUBECONFIG or K8S_API_ENDPOINT");
    refused(&[("DATASTORE_TYPE", "manifests")], "--manifests DIR");
    refused(&[e, ("ETCD_DISCOVERY_SRV", "d")], "etcdEndpoints and etcdDiscoverySrv are both given");
    refused(&[e, ("ETCD_CERT_FILE", "c")], "etcdCertFile is given without etcdKeyFile");
    refused(&[e, ("ETCD_KEY_FILE", "c")], "etcdKeyFile is given without etcdCertFile");
    refused(&[("ETCD_ENDPOINTS", "e:2379")], "http://HOST:PORT");
    refused(&[("CALICO_ETCD_ENDPOINTS", "ftp://e")], "$CALICO_ETCD_ENDPOINTS");
    let k = ("K8S_API_ENDPOINT", "https://k");
    refused(&[k, ("CALICO_API_GROUP", "v2")], "$CALICO_API_GROUP is \"v2\"");
    refused(&[k, ("K8S_CA_FILE", "c"), ("K8S_INSECURE_SKIP_TLS_VERIFY", "true")], "are both given");
    refused(&[k, ("K8S_CERT_FILE", "c")], "k8sCertFile is given without k8sKeyFile");
    refused(&[("KUBECONFIG", "/nowhere")], "/nowhere");
    let text = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec:\n  etcdEndpoints: https://e\n  \
                etcdCACert: PEM\n  etcdCertFile: f\n";
    let args = NameArgs { calico_config: Some("f".into()), ..NameArgs::default() };
    let error = chosen(&args, &Fake::default().file("f", text)).unwrap_err();
    assert!(error.contains("etcdCACert and etcdCertFile are both given"), "{error}");
    let error = chosen(&args, &Fake::default()).unwrap_err();
    assert!(error.contains("cannot use \"f\""), "{error}");
}

#[test]
fn kubernetes_is_reached_by_files_or_what_is_there() {
    let around = Fake::with(&[("KUBECONFIG", "/b:/none::/a:/b"), ("K8S_CURRENT_CONTEXT", "c")]);
    let around =
        around.file("/a", KUBECONFIG).file("/b", "kind: Config").file("/home/.kube/config", KUBECONFIG);
    let connection = kubernetes_of(&around);
    assert_eq!(connection.source, Source::Files(vec!["/b".into(), "/a".into()]));
    assert_eq!(connection.overrides.context.as_deref(), Some("c"));
    let around = around.and(&[("CALICO_KUBECONFIG", ""), ("HOME", "/home")]);
    assert_eq!(kubernetes_of(&around).source, Source::Files(vec!["/home/.kube/config".into()]));
    let around = around.and(&[
        ("K8S_API_ENDPOINT", "https://k"),
        ("K8S_API_TOKEN", "t"),
        ("CALICO_API_GROUP", "ProjectCalico.org/V3"),
    ]);
    let connection = kubernetes_of(&around);
    assert_eq!((connection.source, connection.api_group), (Source::Overrides, Some(ApiGroup::V3)));
    assert_eq!(connection.overrides.token.unwrap().reveal(), "t");
}

#[test]
fn what_can_never_lead_to_a_server_is_refused() {
    refused(&[("K8S_API_ENDPOINT", "https://u:p@a b")], "$K8S_API_ENDPOINT is \"https://a b\"");
    let refused = |variables: &[(&str, &str)], want: &str| {
        let around = Fake::with(variables).file("/a", KUBECONFIG).file("/b", "users: 7");
        let error = chosen(&NameArgs::default(), &around).unwrap_err();
        assert!(error.contains(want), "{error:?} contains {want:?}");
    };
    refused(&[("KUBECONFIG", "/a:/b")], "cannot use \"/b\": it is no kubeconfig");
    refused(
        &[("KUBECONFIG", "/a"), ("K8S_CURRENT_CONTEXT", "x")],
        "cannot use \"/a\": it has no context \"x\"",
    );
    let text = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec:\n  kubeconfigInline: '{}'\n";
    let args = NameArgs { calico_config: Some("f".into()), ..NameArgs::default() };
    let error = chosen(&args, &Fake::default().file("f", text)).unwrap_err();
    assert!(error.contains("cannot use \"f\": kubeconfigInline: it has no current-context"), "{error}");
}

#[test]
fn it_is_shown_what_was_chosen() {
    let shown = |around: Fake, name: &str| {
        let names =
            NameArgs { endpoint_status: "/e".into(), ..NameArgs::default() }.resolve(&around).unwrap();
        let shown = names.shown();
        let setting = shown.iter().find(|setting| setting.name == name).unwrap();
        format!("{} ({})", setting.value, setting.origin)
    };
    let files = Fake::default().file("/a", KUBECONFIG).file("/h/.kube/config", KUBECONFIG);
    let given = files.clone().and(&[("KUBECONFIG", "/none:/a")]);
    assert_eq!(shown(given, "connection"), "the kubeconfig /a ($KUBECONFIG)");
    assert_eq!(shown(files.and(&[("HOME", "/h")]), "connection"), "the kubeconfig /h/.kube/config (default)");
    let pod = Fake::with(&CLUSTER).file(SERVICE_ACCOUNT, "t");
    assert_eq!(shown(pod.clone(), "connection"), "the service account of this pod (default)");
    assert_eq!(shown(pod, "endpoint status"), "/e (--endpoint-status)");
    let server = Fake::with(&[("K8S_API_ENDPOINT", "https://u:geheim@k")]);
    assert_eq!(shown(server, "connection"), "the server https://k ($K8S_API_ENDPOINT)");
    let etcd = Fake::with(&[("ETCD_ENDPOINTS", "http://u:geheim@a:1,b:2@c,http://d/@")]);
    assert!(chosen(&NameArgs::default(), &etcd).unwrap_err().contains("is \"c\""));
    let etcd = Fake::with(&[("ETCD_ENDPOINTS", "http://u:geheim@a:1,http://d:2/@")]);
    assert_eq!(shown(etcd, "etcdEndpoints"), "http://a:1,http://d:2/@ ($ETCD_ENDPOINTS)");
    let args = NameArgs { manifests: Some("/m".into()), ..NameArgs::default() };
    let shown = args.resolve(&Fake::default()).unwrap().shown();
    assert!(shown.iter().any(|setting| (setting.name, &*setting.value) == ("manifests", "/m")));
}

#[test]
fn an_inline_kubeconfig_counts_alone() {
    let text = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec:\n  kubeconfig: /a\n  \
                kubeconfigInline: TEXT\n  k8sAPIEndpoint: https://k\n";
    let inline = serde_json::to_string(KUBECONFIG).unwrap();
    let text = &text.replace("TEXT", &inline);
    let args = NameArgs { calico_config: Some("f".into()), ..NameArgs::default() };
    let Datastore::Kubernetes(connection) = chosen(&args, &Fake::default().file("f", text)).unwrap().value
    else {
        panic!()
    };
    assert_eq!(connection.source, Source::Inline(KUBECONFIG.into()));
    assert_eq!(connection.overrides, Overrides::default());
}

#[test]
fn secrets_show_nowhere() {
    let around = Fake::with(&[
        ("K8S_API_ENDPOINT", "https://k"),
        ("K8S_API_TOKEN", "geheim"),
        ("ETCD_PASSWORD", "geheim"),
        ("ETCD_ENDPOINTS", "http://u:geheim@e:2379"),
    ]);
    let names = NameArgs::default().resolve(&around).unwrap();
    assert!(!format!("{names:?} {:?}", names.shown()).contains("geheim"));
}
