//! The web configuration: TLS, who may ask, headers and a rate, as files of Prometheus' exporter-toolkit have them.
//!
//! Before each connection and each request it is looked whether the file, a certificate or a key changed. One that cannot be
//! used is said once; what was good before stays in force, and without anything good before nothing is served: never is
//! less asked of clients than was configured.

mod clients;
mod error;
mod file;
mod rate;
mod tls;
mod users;

pub use error::Error;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use file::{File, Http};
use rate::Bucket;
use rustls::ServerConfig;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use users::{Answer, Users};

/// Headers that can be set, and their values where not any is possible.
const HEADERS: [(&str, &[&str], &str); 5] = [
    ("Content-Security-Policy", &[], ""),
    ("Strict-Transport-Security", &[], ""),
    ("X-Content-Type-Options", &["nosniff"], "nosniff"),
    ("X-Frame-Options", &["deny", "sameorigin"], "deny or sameorigin"),
    ("X-XSS-Protection", &[], ""),
];

/// A configuration that can be used.
pub struct Web {
    /// What to speak TLS with; without it, plain HTTP is spoken.
    pub tls: Option<Arc<ServerConfig>>,
    http2: bool,
    headers: HeaderMap,
    users: Users,
    rate: Option<Bucket>,
}

impl Web {
    /// Reads a configuration and all that it names.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::check(&read(path)?, path)
    }

    fn check(file: &File, path: &Path) -> Result<Self, Error> {
        let http2 = file.http_server_config.as_ref().and_then(|http| http.http2).unwrap_or(true);
        let tls = match file.tls_server_config.as_ref().filter(|tls| tls.is_wanted()) {
            Some(tls) => Some(tls::config(tls, folder(path), http2)?),
            None => None,
        };
        let rate = match &file.rate_limit {
            Some(rate) => interval(&rate.interval)?.map(|interval| Bucket::new(interval, rate.burst)),
            None => None,
        };
        Ok(Self {
            http2: http2 && tls.is_some(),
            tls,
            headers: headers(file.http_server_config.as_ref())?,
            users: Users::new(file.basic_auth_users.clone().unwrap_or_default())?,
            rate,
        })
    }

    /// Whether a request may be answered; if not, with which status it is refused.
    pub(super) async fn admit(&self, headers: &HeaderMap) -> Result<(), StatusCode> {
        if self.rate.as_ref().is_some_and(|rate| !rate.take(Instant::now())) {
            return Err(StatusCode::TOO_MANY_REQUESTS);
        }
        match self.users.check(headers).await {
            Answer::Welcome => Ok(()),
            Answer::Refused => Err(StatusCode::UNAUTHORIZED),
            Answer::Busy => Err(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    /// Headers that go with each answer.
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// In words.
    pub fn describe(&self) -> String {
        let tls = match (&self.tls, self.http2) {
            (None, _) => "plain HTTP",
            (Some(_), true) => "TLS, HTTP/2",
            (Some(_), false) => "TLS",
        };
        match self.users.len() {
            0 => format!("{tls}, no passwords"),
            users => format!("{tls}, passwords of {users}"),
        }
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

fn read(path: &Path) -> Result<File, Error> {
    let what = "the web configuration (--web.config.file)";
    let text = fs::read_to_string(path).map_err(|error| Error::Read { what, path: path.into(), error })?;
    File::parse(&text).map_err(|error| {
        // Its first line says what and where; then comes the text, which has secrets.
        let message = error.to_string();
        Error::Format(format!("{path:?}: {}", message.lines().next().unwrap_or("no YAML")).into())
    })
}

fn interval(text: &str) -> Result<Option<Duration>, Error> {
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    let wanted = "a number and a unit, like 500ms or 1s";
    let wrong = |_| Error::Value { key: "rate_limit.interval", value: text.into(), wanted };
    humantime::parse_duration(text).map_err(wrong).map(|interval| Some(interval).filter(|i| !i.is_zero()))
}

fn headers(http: Option<&Http>) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (name, value) in http.and_then(|http| http.headers.as_ref()).into_iter().flatten() {
        let known = HEADERS.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name));
        let Some((known, values, wanted)) = known else {
            let wanted = "one of Content-Security-Policy, Strict-Transport-Security, X-Content-Type-Options, \
                          X-Frame-Options and X-XSS-Protection";
            return Err(Error::Value { key: "the name of a header", value: name.clone(), wanted });
        };
        if value.is_empty() {
            continue;
        }
        let fits = values.is_empty() || values.iter().any(|fits| fits.eq_ignore_ascii_case(value));
        let wrong = |wanted| Error::Value { key: known, value: value.clone(), wanted };
        let parsed = HeaderValue::from_str(value).map_err(|_| wrong("printable"))?;
        if !fits {
            return Err(wrong(wanted));
        }
        headers.insert(HeaderName::from_bytes(known.as_bytes()).map_err(|_| wrong("a header"))?, parsed);
    }
    Ok(headers)
}

/// A configuration file that is followed.
pub struct Followed {
    path: Option<PathBuf>,
    state: Mutex<State>,
}

struct State {
    /// What is in force.
    web: Option<Arc<Web>>,
    /// The files as they were when they were last read.
    stamps: Vec<(PathBuf, Option<Stamp>)>,
    /// Whether they could be used then.
    valid: bool,
}

/// What tells versions of a file apart: device, inode, size, and the times of the last changes to its content and its inode.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// Without what is in the file, which has secrets.
impl std::fmt::Debug for Followed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Followed").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Followed {
    /// Follows a file; without one, plain HTTP is spoken with everybody.
    pub fn new(path: Option<PathBuf>) -> Self {
        let followed = Self { path, state: Mutex::new(State { web: None, stamps: Vec::new(), valid: true }) };
        followed.reload(&mut followed.state());
        followed
    }

    /// What is in force now, if there ever was anything good.
    pub fn current(&self) -> Option<Arc<Web>> {
        let mut state = self.state();
        if state.stamps.iter().any(|(path, stamp)| self::stamp(path) != *stamp) {
            self.reload(&mut state);
        }
        state.web.clone()
    }

    /// Whether the file could be used when it was last read; nothing if there is none.
    pub fn is_valid(&self) -> Option<bool> {
        self.path.as_ref().map(|_| self.state().valid)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload(&self, state: &mut State) {
        let empty = PathBuf::new();
        let path = self.path.as_ref().unwrap_or(&empty);
        let mut stamps = vec![];
        if self.path.is_some() {
            // Before they are read: what changes meanwhile is read again.
            stamps.push((path.clone(), stamp(path)));
        }
        let file = if self.path.is_some() { read(path) } else { Ok(File::default()) };
        let web = file.and_then(|file| {
            let named = file.tls_server_config.iter().flat_map(|tls| tls::files(tls, folder(path)));
            stamps.extend(named.map(|path| (path.clone(), stamp(&path))));
            Web::check(&file, path)
        });
        state.stamps = stamps;
        state.valid = web.is_ok();
        match web {
            Ok(web) => {
                if self.path.is_some() {
                    tracing::info!(serving = web.describe(), "web configuration read");
                }
                state.web = Some(Arc::new(web));
            }
            Err(error) => {
                let stays =
                    if state.web.is_some() { "the one before stays in force" } else { "nothing is served" };
                tracing::error!(%error, "web configuration cannot be used: {stays} until it can");
            }
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    let changed = (found.mtime(), found.mtime_nsec());
    Some((found.dev(), found.ino(), found.size(), changed, (found.ctime(), found.ctime_nsec())))
}

#[cfg(test)]
mod tests;
