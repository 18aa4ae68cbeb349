//! What can be said of kubeconfigs before anything is connected: whether they lead to a server. Pure.
//!
//! Files that they name (certificates, tokens) are not looked at: those may come to be right later.

use super::proxy::is_proxy;
use kube::config::{Cluster, Kubeconfig, KubeconfigError};

/// Why kubeconfigs lead to no server.
#[derive(Debug, thiserror::Error)]
pub enum WrongKubeconfig {
    /// One is none.
    #[error("it is no kubeconfig: {0}")]
    Parse(String),
    /// Two of them do not go together.
    #[error("it does not fit to the one before: {0}")]
    Merge(KubeconfigError),
    /// Nothing says which context counts.
    #[error("it has no current-context: set one, or K8S_CURRENT_CONTEXT")]
    NoContext,
    /// The context is not there.
    #[error("it has no context {wanted:?}, only {known:?}: see current-context and K8S_CURRENT_CONTEXT")]
    Context {
        /// The context that is to be.
        wanted: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// The cluster of the context is not there, or has no address.
    #[error("its cluster {0:?} has no server that is an address")]
    Server(String),
    /// The cluster has a proxy that is none.
    #[error(
        "its cluster {0:?} has a proxy-url that is none: write http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT"
    )]
    Proxy(String),
}

/// Kubeconfigs, merged as kubectl does: what is first counts.
#[derive(Debug, Default)]
pub struct Kubeconfigs(Kubeconfig);

impl Kubeconfigs {
    /// These and one more.
    pub fn and(self, text: &str) -> Result<Self, WrongKubeconfig> {
        let one = Kubeconfig::from_yaml(text).map_err(|error| WrongKubeconfig::Parse(first_line(&error)))?;
        self.0.merge(one).map(Self).map_err(WrongKubeconfig::Merge)
    }

    /// Whether there is a server in this context, or else in the current one.
    pub fn check(&self, context: Option<&str>) -> Result<(), WrongKubeconfig> {
        let Kubeconfig { current_context, contexts, clusters, .. } = &self.0;
        let wanted = context.or(current_context.as_deref()).ok_or(WrongKubeconfig::NoContext)?;
        let found = contexts.iter().find(|context| context.name == wanted);
        let Some(context) = found.and_then(|context| context.context.as_ref()) else {
            let known = contexts.iter().map(|context| context.name.clone()).collect();
            return Err(WrongKubeconfig::Context { wanted: wanted.into(), known });
        };
        let found = clusters.iter().find(|cluster| cluster.name == context.cluster);
        let cluster = found.and_then(|cluster| cluster.cluster.as_ref());
        let server = cluster.and_then(|cluster| cluster.server.as_deref());
        if !server.is_some_and(|server| server.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some())) {
            return Err(WrongKubeconfig::Server(context.cluster.clone()));
        }
        match cluster.and_then(|cluster| cluster.proxy_url.as_deref()) {
            Some(proxy) if !proxy.is_empty() && !is_proxy(proxy) => {
                Err(WrongKubeconfig::Proxy(context.cluster.clone()))
            }
            _ => Ok(()),
        }
    }
}

/// The cluster of a context, or else of the current one.
pub(super) fn cluster<'a>(config: &'a Kubeconfig, context: Option<&str>) -> Option<&'a Cluster> {
    let wanted = context.or(config.current_context.as_deref())?;
    let context = config.contexts.iter().find(|context| context.name == wanted)?.context.as_ref()?;
    config.clusters.iter().find(|cluster| cluster.name == context.cluster)?.cluster.as_ref()
}

/// What is wrong, without the lines of the text that are shown behind it: they may hold secrets.
fn first_line(error: &KubeconfigError) -> String {
    error.to_string().lines().next().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "clusters: [{name: c, cluster: {server: 'https://one:6443'}}, {name: none, cluster: {}}]\n\
                        contexts: [{name: a, context: {cluster: c}}, {name: b, context: {cluster: none}}]\n\
                        current-context: a\n";

    fn check(texts: &[&str], context: Option<&str>) -> Result<(), String> {
        let all = texts.iter().try_fold(Kubeconfigs::default(), |all, text| all.and(text));
        all.and_then(|all| all.check(context)).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(texts: &[&str], context: Option<&str>, want: &str) {
        let error = check(texts, context).unwrap_err();
        assert!(error.contains(want) && !error.contains("geheim"), "{error:?} contains {want:?}");
    }

    #[test]
    fn kubeconfigs_lead_to_a_server() {
        assert_eq!(check(&[GOOD], None), Ok(()));
        assert_eq!(check(&["users: [{name: u, user: {token: t}}]\n", GOOD], Some("a")), Ok(()));
        refused(&[], None, "no current-context");
        refused(&[""], None, "no current-context");
        refused(&["users: [{name: u, user: {token: geheim}}]\nclusters: 7\n", GOOD], None, "no kubeconfig: ");
        refused(&["users: [{name: u, user: {token: geheim}"], None, "no kubeconfig: ");
        refused(&["kind: Config\n", "kind: Other\n"], None, "does not fit");
        refused(&[GOOD], Some("x"), "no context \"x\", only [\"a\", \"b\"]");
        refused(&[GOOD], Some("b"), "its cluster \"none\"");
        refused(&[&GOOD.replace("https://one:6443", "https://a b")], None, "its cluster \"c\"");
        let proxied = |proxy: &str| GOOD.replace("6443'", &format!("6443', proxy-url: '{proxy}'"));
        assert_eq!(check(&[&proxied("socks5://p:1080")], None), Ok(()));
        assert_eq!(check(&[&proxied("")], None), Ok(()));
        refused(&[&proxied("ftp://geheim@p")], None, "its cluster \"c\" has a proxy-url that is none");
    }
}
