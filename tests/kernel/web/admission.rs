//! Who is answered: passwords, headers, a rate; and web configurations that cannot be used.

use crate::site::{Site, tls};
use crate::support::{run, wait_until};

fn users(password: &str) -> String {
    format!("basic_auth_users:\n  alice: {}\n", bcrypt::hash(password, 4).unwrap())
}

#[test]
fn passwords() {
    let site = Site::in_a_namespace();
    site.configure(&users("right"));
    let _agent = site.start(&[]);
    let status = |name_and_password: &str| site.http("/metrics", &["--user", name_and_password]).status;
    let unasked = site.http("/metrics", &[]);
    assert_eq!(unasked.status, "401");
    assert!(unasked.text.to_lowercase().contains("www-authenticate: basic"), "{}", unasked.text);
    assert!(!unasked.text.contains("calico_accountant"), "{}", unasked.text);
    assert_eq!(
        ["alice:right", "alice:wrong", "bob:right", "alice:right"].map(status),
        ["200", "401", "401", "200"]
    );
    site.configure(&users("new"));
    assert_eq!(["alice:right", "alice:new"].map(status), ["401", "200"]);
}

#[test]
fn headers_and_a_rate() {
    let site = Site::in_a_namespace();
    let headers = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n    Content-Security-Policy: default-src 'self'\n";
    site.configure(&format!("{headers}rate_limit:\n  interval: 1h\n  burst: 2\n"));
    let _agent = site.start(&[]);
    let answers = [(); 3].map(|()| site.http("/healthz", &[]));
    assert_eq!(answers.each_ref().map(|asked| asked.status.as_str()), ["200", "200", "429"]);
    for asked in answers {
        let text = asked.text.to_lowercase();
        assert!(
            text.contains("x-frame-options: deny\r\ncontent-security-policy: default-src 'self'")
                || text.contains("content-security-policy: default-src 'self'\r\nx-frame-options: deny"),
            "{text}"
        );
    }
}

/// The agent counts; it serves when the file can be used, and never with less than it asks for.
#[test]
fn a_configuration_that_cannot_be_used() {
    let site = Site::in_a_namespace();
    let other = crate::certificates::Authority::new(site.folder.path(), "other");
    other.sign("other-server", &[]);
    let mismatch = "tls_server_config:\n  cert_file: server.crt\n  key_file: other-server.key\n";
    let wrong = [
        ("tls_server_config:\n  cert: x\n  certfile: y\n", "certfile"),
        (mismatch, "cannot be used together"),
        ("tls_server_config:\n  cert_file: nowhere.crt\n  key_file: server.key\n", "nowhere.crt"),
        (
            "tls_server_config:\n  cert_file: server.key\n  key_file: server.key\n",
            "has no certificate in PEM",
        ),
        ("tls_server_config:\n  cert_file: server.crt\n", "neither key nor key_file"),
        ("basic_auth_users: {alice: secret}\n", "no bcrypt hash"),
        ("http_server_config: {headers: {Server: x}}\n", "X-Frame-Options"),
        ("http_server_config: {http2: 7}\n", "web.yml"),
        ("rate_limit: {interval: fast}\n", "a number and a unit"),
    ];
    let config = site.path("web.yml");
    for (text, word) in wrong {
        site.configure(text);
        let (said, _, code) = run(&site.namespace, &["check", "--web.config.file", &config]);
        let line = said.lines().find(|line| line.starts_with("web configuration: WRONG")).unwrap_or_default();
        assert!(line.contains(word), "{word}: {said}");
        assert!(!said.contains("secret"), "{said}");
        assert_ne!(code, 0);
    }
    site.configure(mismatch);
    let agent = site.spawn(&[]);
    wait_until("it says so", || agent.log().contains("nothing is served until it can"));
    assert_eq!(site.http("/healthz", &[]).exit, 7, "nobody listens");
    site.configure(&tls(""));
    wait_until("it serves", || site.https("/healthz", &[]).status == "200");
    let (said, ..) = run(&site.namespace, &["check", "--web.config.file", &config]);
    assert!(said.contains("web configuration: TLS, HTTP/2, no passwords\n"), "{said}");
}
