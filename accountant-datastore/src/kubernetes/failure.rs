//! What goes wrong with a watch: by kind, with what to do. Pure.

use crate::explain;
use kube::runtime::watcher;

/// What a failure asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// To wait: the watch tries again by itself.
    Wait,
    /// A new list: the watch would ask for what is gone again and again.
    List,
    /// Nothing: it is as it should be.
    Nothing,
    /// To look which kinds there are.
    Discover,
    /// A client of the settings as they are now.
    Renew,
}

/// A failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Its kind, for counting.
    pub(super) reason: &'static str,
    /// In words, with what to do.
    pub(super) text: String,
    pub(super) remedy: Remedy,
}

/// What a watcher's error is.
pub(super) fn of_watch(kind: &str, error: &watcher::Error) -> Failure {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) => of(&format!("list {kind}"), error, "list"),
        // The server says so mostly within a watch, and the library lists anew then, but not when it refuses to begin one.
        WatchStartFailed(kube::Error::Api(status)) if status.code == 410 => {
            let failure = of_status(&format!("watch {kind}"), status.code, &status.message, "watch");
            Failure { remedy: Remedy::List, ..failure }
        }
        WatchStartFailed(error) | WatchFailed(error) => of(&format!("watch {kind}"), error, "watch"),
        WatchError(status) => of_status(&format!("watch {kind}"), status.code, &status.message, "watch"),
        NoResourceVersion => of_status(&format!("watch {kind}"), 0, "an object has no version", "watch"),
    }
}

/// What a client's error is. `doing` is what was tried.
pub(super) fn of(doing: &str, error: &kube::Error, otherwise: &'static str) -> Failure {
    if let kube::Error::Api(status) = error {
        return of_status(doing, status.code, &status.message, otherwise);
    }
    let advice = "see KUBECONFIG or K8S_API_ENDPOINT, its certificates, and HTTPS_PROXY; it is tried again";
    Failure {
        reason: "connect",
        text: format!("cannot {doing}: {}", explain(error, advice)),
        remedy: Remedy::Renew,
    }
}

fn of_status(doing: &str, code: u16, message: &str, otherwise: &'static str) -> Failure {
    let (reason, remedy, advice) = match code {
        401 => ("unauthorized", Remedy::Renew, "renew the token or certificate; it is read and tried again"),
        403 => ("forbidden", Remedy::Wait, "allow it in the ClusterRole; it is tried again"),
        404 => ("not_served", Remedy::Discover, "it is looked for again"),
        410 => ("expired", Remedy::Nothing, "all is listed again"),
        429 => ("throttled", Remedy::Wait, "it is tried again"),
        _ => (otherwise, Remedy::Wait, "it is tried again"),
    };
    Failure { reason, text: format!("cannot {doing}: {message} ({code}); {advice}"), remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_ask_for_different_things() {
        for (code, reason, remedy) in [
            (401, "unauthorized", Remedy::Renew),
            (403, "forbidden", Remedy::Wait),
            (404, "not_served", Remedy::Discover),
            (410, "expired", Remedy::Nothing),
            (429, "throttled", Remedy::Wait),
            (500, "list", Remedy::Wait),
        ] {
            let failure = of_status("list pods", code, "no", "list");
            assert_eq!((failure.reason, failure.remedy), (reason, remedy));
            assert!(failure.text.starts_with("cannot list pods: no ("), "{}", failure.text);
        }
    }
}
