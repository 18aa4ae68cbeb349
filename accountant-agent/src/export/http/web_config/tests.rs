//! Web configurations as people have them, and as they should not be.

use super::*;

fn load(text: &str) -> Result<Web, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.yml");
    fs::write(&path, text).unwrap();
    Web::load(&path)
}

fn error(text: &str) -> String {
    load(text).err().unwrap_or_else(|| panic!("{text} is no error")).to_string()
}

#[test]
fn nothing_asked_for_is_plain_http() {
    for text in [
        "",
        "# nothing\n",
        "tls_server_config:\n",
        "tls_server_config: {min_version: TLS13}\n",
        "basic_auth_users:\n",
    ] {
        let web = load(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(web.describe(), "plain HTTP, no passwords", "{text}");
    }
}

#[test]
fn what_cannot_be_is_said() {
    for (text, said) in [
        ("tls_server_config: {client_auth_type: RequireAndVerifyClientCert}", "neither cert nor cert_file"),
        ("tls_server_config: {cert: x, cert_file: y}", "cert and cert_file are both given"),
        ("tls: {}", "exporter-toolkit"),
        ("a: [", "exporter-toolkit"),
        ("- a", "exporter-toolkit"),
        ("http_server_config: {headers: {X-Frame-Options: never}}", "deny or sameorigin"),
        ("rate_limit: {interval: 1, burst: 1}", "rate_limit.interval is \"1\""),
        ("rate_limit: {interval: 1s, burst: -1}", "exporter-toolkit"),
    ] {
        let error = error(text);
        assert!(error.contains(said), "{text}: {error}");
    }
}

#[test]
fn a_file_that_is_not_there_is_said_by_name() {
    let error = Web::load(Path::new("/nowhere/web.yml")).err().unwrap().to_string();
    assert!(error.contains("/nowhere/web.yml") && error.contains("--web.config.file"), "{error}");
}
