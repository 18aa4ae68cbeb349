//! The proxy before the API server, as kubectl and client-go have it: the kubeconfig's `proxy-url`; else what the environment
//! tells, but for servers on this host and those that `NO_PROXY` names. (The library asks `NO_PROXY` about the proxy's own
//! address, so it is not asked.)
//!
//! In go settings and the server's address; out comes what a connection to it is made by.

use super::connection::Proxies;
use http::Uri;
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use kube::client::ConfigExt;
use kube::config::Config;
use std::net::IpAddr;
use tokio::net::TcpStream;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt};

/// Makes connections, with or without a proxy.
pub(super) type Wire = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// Whether a proxy can be reached at this address.
pub fn is_proxy(address: &str) -> bool {
    let any = Uri::from_static("https://server");
    let proxy = Matcher::builder().all(address.to_string()).build().intercept(&any);
    proxy.is_some_and(|proxy| is_http(&proxy) || is_socks(&proxy))
}

/// The proxy before a server. `own` is that of the kubeconfig.
pub(super) fn choose(own: Option<&str>, proxies: &Proxies, server: &Uri) -> Option<Intercept> {
    if let Some(own) = own.filter(|own| !own.is_empty()) {
        return Matcher::builder().all(own.to_string()).build().intercept(server);
    }
    let host = server.host()?.trim_matches(['[', ']']);
    if host == "localhost" || host.parse::<IpAddr>().is_ok_and(|host| host.is_loopback()) {
        return None;
    }
    let Proxies { http, https, except } = proxies;
    let [http, https] =
        [http, https].map(|proxy| proxy.as_ref().map_or("", |proxy| proxy.reveal()).to_string());
    Matcher::builder().http(http).https(https).no(except.to_string()).build().intercept(server)
}

/// Connections through a proxy. One that speaks TLS is trusted as the API server is.
pub(super) fn through(
    proxy: Option<&Intercept>,
    tcp: HttpConnector,
    config: &Config,
) -> Result<Wire, kube::Error> {
    let Some(proxy) = proxy else {
        return Ok(Wire::new(tcp.map_response(MaybeHttpsStream::Http).map_err(BoxError::from)));
    };
    let address = proxy.uri().clone();
    tracing::info!(proxy = %address, server = %config.cluster_url, "the API server is reached through a proxy");
    if is_socks(proxy) {
        let mut socks = SocksV5::new(address, tcp);
        if let Some((user, password)) = proxy.raw_auth() {
            socks = socks.with_auth(user.into(), password.into());
        }
        return Ok(Wire::new(socks.map_response(MaybeHttpsStream::Http).map_err(BoxError::from)));
    }
    let tls = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    let mut tunnel = Tunnel::new(address, tls.enable_http1().wrap_connector(tcp));
    if let Some(user) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(user.clone());
    }
    Ok(Wire::new(tunnel.map_err(BoxError::from)))
}

fn is_http(proxy: &Intercept) -> bool {
    matches!(proxy.uri().scheme_str(), Some("http" | "https"))
}

fn is_socks(proxy: &Intercept) -> bool {
    matches!(proxy.uri().scheme_str(), Some("socks5" | "socks5h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(own: Option<&str>, except: &str, server: &str, want: Option<&str>) {
        let proxies = Proxies {
            http: Some("plain:1".into()),
            https: Some("http://u:p@tls:2".into()),
            except: except.into(),
        };
        let found = choose(own, &proxies, &server.parse().unwrap());
        assert_eq!(found.map(|proxy| proxy.uri().to_string()).as_deref(), want, "{server} except {except}");
    }

    #[test]
    fn a_proxy_is_chosen_as_kubectl_does() {
        let tls = Some("http://tls:2/");
        check(None, "", "https://k:6443", tls);
        check(None, "", "http://k:8080", Some("http://plain:1/"));
        check(None, "other,.example.com,10.0.0.0/8", "https://k:6443", tls);
        check(None, "other, k", "https://k:6443", None);
        check(None, ".example.com", "https://k.example.com", None);
        check(None, "10.96.0.0/12", "https://10.96.0.1:443", None);
        check(None, "10.96.0.0/12", "https://10.1.0.1:443", tls);
        check(None, "tls", "https://k", tls);
        check(None, "*", "https://k", None);
        for here in ["https://localhost:6443", "https://127.0.0.1:6443", "https://[::1]:6443"] {
            check(None, "", here, None);
            check(Some("socks5://own:3"), "", here, Some("socks5://own:3/"));
        }
        check(Some("own:3"), "k", "https://k", Some("http://own:3/"));
        check(Some(""), "k", "https://k", None);
        assert!(choose(None, &Proxies::default(), &Uri::from_static("https://k")).is_none());
    }

    #[test]
    fn addresses_of_proxies_are_told_from_others() {
        for good in [
            "proxy",
            "proxy:3128",
            "http://u:p@proxy:3128",
            "https://proxy",
            "socks5://[::1]:1080",
            "socks5h://p:1",
        ] {
            assert!(is_proxy(good), "{good}");
        }
        for bad in ["", "ftp://proxy", "socks4://proxy:1", "http://", "a b", "/proxy"] {
            assert!(!is_proxy(bad), "{bad}");
        }
    }
}
