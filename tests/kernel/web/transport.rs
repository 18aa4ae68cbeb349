//! TLS, asked by curl and openssl: whose certificate, which version, whom of the clients, and what changes while it runs.

use crate::certificates::Authority;
use crate::site::{CUT, NOT_TRUSTED, Site, TLS_FAILED, tls};
use crate::support::wait_until;
use accountant_lab::agent::ADDRESS;
use std::process::Stdio;

#[test]
fn a_client_knows_the_server_and_http2() {
    let site = Site::in_a_namespace();
    site.configure(&tls(""));
    let agent = site.start(&[]);
    let asked = site.https("/healthz", &[]);
    assert_eq!((asked.status.as_str(), asked.version.as_str()), ("200", "2"), "{asked:?}");
    let asked = site.https("/metrics", &["--http1.1"]);
    assert_eq!((asked.status.as_str(), asked.version.as_str()), ("200", "1.1"));
    assert!(asked.text.contains("\ncalico_accountant_web_config_valid 1\n"), "{}", asked.text);
    assert_eq!(site.curl(&[&format!("https://{ADDRESS}/healthz")]).exit, NOT_TRUSTED, "an unknown authority");
    // Whoever forgot the s is told so.
    let asked = site.http("/healthz", &[]);
    assert_eq!(asked.status, "400");
    assert!(asked.text.contains("ask with https://"), "{}", asked.text);
    site.configure(&(tls("") + "http_server_config:\n  http2: false\n"));
    assert_eq!(site.https("/healthz", &[]).version, "1.1");
    drop(agent);
}

#[test]
fn versions_of_tls() {
    let site = Site::in_a_namespace();
    site.configure(&tls(""));
    let _agent = site.start(&[]);
    let old = ["--tls-max", "1.1", "--tlsv1.0", "--ciphers", "DEFAULT:@SECLEVEL=0"];
    assert_eq!(site.https("/healthz", &old).exit, TLS_FAILED);
    for version in ["1.2", "1.3"] {
        assert_eq!(
            site.https("/healthz", &[&format!("--tlsv{version}"), "--tls-max", version]).status,
            "200"
        );
    }
    let suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    site.configure(&tls(&format!(
        "  max_version: TLS12\n  cipher_suites: [{suite}]\n  curve_preferences: [CurveP384]\n"
    )));
    assert_eq!(site.https("/healthz", &["--tlsv1.3"]).exit, TLS_FAILED);
    let mut client = site.namespace.command("openssl").unwrap();
    let client =
        client.args(["s_client", "-connect", ADDRESS, "-tls1_2"]).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&client.stdout);
    assert!(said.contains("ECDHE-ECDSA-AES256-GCM-SHA384") && said.contains("secp384r1"), "{said}");
}

#[test]
fn certificates_of_clients() {
    let site = Site::in_a_namespace();
    let other = Authority::new(site.folder.path(), "other");
    other.sign("stranger", &["prometheus.monitoring"]);
    site.authority.sign_expired("expired");
    site.authority.sign("nameless", &[]);
    let ask = |name: &str| {
        let (certificate, key) = (site.path(&format!("{name}.crt")), site.path(&format!("{name}.key")));
        site.https("/healthz", &["--cert", &certificate, "--key", &key])
    };
    let verify = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: authority.crt\n";
    site.configure(&tls(verify));
    let _agent = site.start(&[]);
    assert_eq!(ask("client").status, "200");
    for refused in [site.https("/healthz", &[]), ask("stranger"), ask("expired")] {
        assert!(CUT.contains(&refused.exit) && refused.status == "000", "{refused:?}");
    }
    site.configure(&tls(&format!("{verify}  client_allowed_sans: [prometheus.monitoring]\n")));
    assert_eq!(ask("client").status, "200");
    assert!(CUT.contains(&ask("nameless").exit));
    site.configure(&tls("  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: authority.crt\n"));
    assert_eq!(site.https("/healthz", &[]).status, "200");
    assert!(CUT.contains(&ask("stranger").exit));
    site.configure(&tls("  client_auth_type: RequireAnyClientCert\n"));
    assert_eq!(ask("stranger").status, "200");
    assert!(CUT.contains(&site.https("/healthz", &[]).exit));
}

/// Certificate and key are replaced one after the other: meanwhile they do not match, and those before stay in force.
#[test]
fn a_certificate_that_is_replaced_while_it_runs() {
    let site = Site::in_a_namespace();
    site.configure(&tls(""));
    let agent = site.start(&[]);
    assert_eq!(site.https("/healthz", &[]).status, "200");
    let (key, kept) = (site.path("server.key"), std::fs::read(site.path("server.key")).unwrap());
    let other = Authority::new(site.folder.path(), "other");
    other.sign("server", &[]);
    let new = std::fs::read(&key).unwrap();
    std::fs::write(&key, kept).unwrap();
    let asked = site.https("/metrics", &[]);
    assert_eq!(asked.status, "200", "{asked:?}");
    assert!(asked.text.contains("\ncalico_accountant_web_config_valid 0\n"), "{}", asked.text);
    wait_until("it says so", || agent.log().contains("cannot be used together"));
    let log = agent.log();
    assert!(log.contains("server.key") && log.contains("the one before stays in force"), "{log}");
    std::fs::write(&key, new).unwrap();
    assert_eq!(site.https("/healthz", &[]).exit, NOT_TRUSTED, "the new certificate is of another authority");
    let authority = site.path("other.crt");
    assert_eq!(site.https("/healthz", &["--cacert", &authority]).status, "200");
    // One that is over is served as it is: clients see it.
    other.sign_expired("server");
    let asked = site.https("/healthz", &["--cacert", &authority]);
    assert!(asked.exit == NOT_TRUSTED && asked.text.contains("expired"), "{asked:?}");
}
