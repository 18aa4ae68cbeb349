//! Following daemons: looking again and again, and what changed from one look to the next.
//!
//! A session can go down and come back between two looks: its state is the same then, and since when it is in it is not.
//! Invariant: counts of changes only grow as long as BIRD has a protocol of that name.

use super::decode::{self, Protocol};
use super::moment::{Moment, Since};
use super::socket::{self, BirdError, Replies};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Where Calico's daemons and those of distributions listen; of each pair, the first that is there is asked.
const USUAL: [(&str, &[&str]); 2] = [
    ("", &["/var/run/calico/bird.ctl", "/run/bird/bird.ctl", "/run/bird.ctl"]),
    ("bird6", &["/var/run/calico/bird6.ctl", "/run/bird/bird6.ctl", "/run/bird6.ctl"]),
];

/// A control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// What tells the daemon's series from those of others; empty for the only or first one.
    pub daemon: String,
    /// Where it is, in order of preference.
    pub paths: Vec<PathBuf>,
}

impl Socket {
    /// The usual ones.
    pub fn usual() -> Vec<Self> {
        let socket = |(daemon, paths): (&str, &[&str])| Self {
            daemon: daemon.into(),
            paths: paths.iter().map(PathBuf::from).collect(),
        };
        USUAL.map(socket).into()
    }

    /// Reads `[NAME=]PATH`. Without a name, it is that of the file, and none for `bird.ctl`.
    pub fn parse(text: &str) -> Self {
        let (daemon, path) = match text.split_once('=') {
            Some((name, path)) => (name.to_string(), PathBuf::from(path)),
            None => {
                let path = PathBuf::from(text);
                let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                (stem.filter(|stem| stem != "bird").unwrap_or_default(), path)
            }
        };
        Self { daemon, paths: vec![path] }
    }

    /// The first that is there.
    fn present(&self) -> Option<&PathBuf> {
        // What cannot be looked at is there, and asking says what is wrong.
        self.paths.iter().find(|path| path.try_exists().unwrap_or(true))
    }
}

/// What a look at a daemon gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Daemon {
    /// The socket's [`Socket::daemon`].
    pub name: String,
    /// How it went.
    pub state: State,
    /// Its protocols; none unless it answered.
    pub protocols: Vec<Followed>,
    /// Looks that failed, by reason.
    pub errors: BTreeMap<&'static str, u64>,
}

/// How a look went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// There is no socket.
    #[default]
    Absent,
    /// It answered.
    Answering(PathBuf),
    /// There is a socket, and here is what is wrong.
    Failing(String),
}

/// A protocol, and what earlier looks tell of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Followed {
    /// As it is now.
    pub protocol: Protocol,
    /// How long it has been in its state at least, where BIRD tells.
    pub age: Option<Duration>,
    /// How often its state changed since the first look.
    pub changes: u64,
}

/// What is remembered of a protocol.
#[derive(Clone, Debug)]
struct Memory {
    state: String,
    since: Option<Since>,
    changes: u64,
}

/// Follows all daemons.
#[derive(Debug)]
pub struct Follower {
    sockets: Vec<Socket>,
    daemons: Vec<Daemon>,
    memories: Vec<BTreeMap<String, Memory>>,
}

impl Follower {
    /// Follows these.
    pub fn new(sockets: Vec<Socket>) -> Self {
        let daemons =
            sockets.iter().map(|socket| Daemon { name: socket.daemon.clone(), ..Daemon::default() });
        Self { daemons: daemons.collect(), memories: vec![BTreeMap::new(); sockets.len()], sockets }
    }

    /// Looks at all of them. It takes a few seconds at most, whatever is at the other end.
    pub fn look(&mut self) -> Vec<Daemon> {
        for ((socket, daemon), memory) in self.sockets.iter().zip(&mut self.daemons).zip(&mut self.memories) {
            daemon.protocols.clear();
            let Some(path) = socket.present() else {
                daemon.state = State::Absent;
                continue;
            };
            match socket::ask(path).and_then(|replies| followed(&replies, path, memory)) {
                Ok(protocols) => {
                    daemon.protocols = protocols;
                    daemon.state = State::Answering(path.clone());
                }
                Err(error) => {
                    *daemon.errors.entry(error.reason()).or_default() += 1;
                    daemon.state = State::Failing(error.to_string());
                }
            }
        }
        self.daemons.clone()
    }
}

fn followed(
    replies: &Replies,
    path: &std::path::Path,
    memory: &mut BTreeMap<String, Memory>,
) -> Result<Vec<Followed>, BirdError> {
    let protocols = decode::protocols(&replies.protocols)
        .map_err(|error| BirdError::Decode { path: path.into(), error })?;
    let now = time_now(&replies.status);
    let mut old = std::mem::take(memory);
    let follow = |protocol: Protocol| {
        let since = now.and_then(|now| Since::parse(&protocol.since, now));
        let before = old.remove(&protocol.name);
        let next = remember(before, &protocol.state, since);
        let age = next.since.zip(now).map(|(since, now)| since.age(now));
        let changes = next.changes;
        memory.insert(protocol.name.clone(), next);
        Followed { protocol, age, changes }
    };
    Ok(protocols.into_iter().map(follow).collect())
}

/// What `show status` says that the time is.
fn time_now(status: &str) -> Option<Moment> {
    status.lines().find_map(|line| Moment::parse(line.split_once("Current server time is ")?.1))
}

fn remember(before: Option<Memory>, state: &str, since: Option<Since>) -> Memory {
    let Some(before) = before else { return Memory { state: state.into(), since, changes: 0 } };
    if before.state != state {
        return Memory { state: state.into(), since, changes: before.changes + 1 };
    }
    match before.since.zip(since).map(|(old, new)| old.agreed(new)) {
        // It went and came back.
        Some(None) => Memory { since, changes: before.changes + 2, ..before },
        Some(Some(agreed)) => Memory { since: Some(agreed), ..before },
        None => Memory { since: since.or(before.since), ..before },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at one protocol: state and since, at these times; changes and age after the last.
    fn after(looks: &[(&str, &str, &str)]) -> (u64, Option<u64>) {
        let mut memory = BTreeMap::new();
        let mut last = (0, None);
        for (state, since, now) in looks {
            let replies = Replies {
                status: format!(
                    "1000-BIRD\n1011-Router ID is 1.1.1.1\n Current server time is {now}\n0013 \n"
                ),
                protocols: format!("2002-name\n1002-p BGP master {state} {since} Established\n0000 \n"),
            };
            let seen = followed(&replies, "x".as_ref(), &mut memory).unwrap();
            last = (seen[0].changes, seen[0].age.map(|age| age.as_secs()));
        }
        last
    }

    #[test]
    fn changes_between_looks_are_seen() {
        let day = "2026-08-20";
        let at = |time: &str| format!("{day} {time}");
        let (noon, later) = (at("12:00:00"), at("13:00:00"));
        for (second, changes, age) in [
            (("up", "11:00:00"), 0, 7200),
            (("up", "11:00:01"), 0, 7199),
            (("start", "12:30:00"), 1, 1800),
            (("up", "12:30:00"), 2, 1800),
            (("up", day), 0, 7200),
        ] {
            let looks = [("up", "11:00:00", noon.as_str()), (second.0, second.1, later.as_str())];
            assert_eq!(after(&looks), (changes, Some(age)), "{second:?}");
        }
        assert_eq!(after(&[("up", "11:00:00", "some time")]), (0, None));
        // What is known to the second stays known when BIRD tells the date only.
        let looks = [("up", "11:00:00", noon.as_str()), ("up", day, "2026-08-21 12:00:00")];
        assert_eq!(after(&looks), (0, Some(25 * 3600)));
    }

    #[test]
    fn names_of_daemons() {
        for (text, daemon, path) in [
            ("/run/bird/bird.ctl", "", "/run/bird/bird.ctl"),
            ("/run/bird/bird6.ctl", "bird6", "/run/bird/bird6.ctl"),
            ("host=/run/bird/bird.ctl", "host", "/run/bird/bird.ctl"),
            ("=/x/y.ctl", "", "/x/y.ctl"),
        ] {
            let socket = Socket { daemon: daemon.into(), paths: vec![path.into()] };
            assert_eq!(Socket::parse(text), socket, "{text}");
        }
    }
}
