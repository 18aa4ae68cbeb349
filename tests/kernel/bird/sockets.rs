//! What can be in a socket's place: each is said for what it is, within a time that nobody waits for.

use accountant_dataplane::bird::{Follower, Socket, State};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

/// Someone who greets and then answers each line in turn, and hangs up when the answers are used up.
fn speak(
    path: &Path,
    greeting: &'static str,
    answers: &'static [&'static str],
) -> thread::JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(greeting.as_bytes()).unwrap();
        let mut heard = Vec::new();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        for (answer, line) in answers.iter().zip(lines.map_while(Result::ok)) {
            heard.push(line);
            stream.write_all(answer.as_bytes()).unwrap();
        }
        heard
    })
}

fn look(path: PathBuf) -> (State, Vec<&'static str>) {
    let mut follower = Follower::new(vec![Socket { daemon: String::new(), paths: vec![path] }]);
    let daemon = follower.look().remove(0);
    (daemon.state, daemon.errors.keys().copied().collect())
}

fn failing(path: PathBuf, reason: &'static str, words: &str) {
    let (state, reasons) = look(path);
    assert_eq!(reasons, [reason], "{state:?}");
    let State::Failing(said) = state else { panic!("{state:?}") };
    assert!(said.contains(words), "{said}");
}

const GREETING: &str = "0001 BIRD 2.0.12 ready.\n";
const STATUS: &str =
    "1000-BIRD 2.0.12\n1011-Router ID is 192.0.2.1\n Current server time is 2026-08-20 13:05:44\n0013 up\n";

#[test]
fn what_is_no_bird() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    assert_eq!(look(path("nothing")), (State::Absent, vec![]));

    fs::write(path("file"), "0001 BIRD\n").unwrap();
    failing(path("file"), "no_socket", "is not a socket");

    drop(UnixListener::bind(path("left")).unwrap());
    failing(path("left"), "refused", "left its socket behind");

    let silent = UnixListener::bind(path("silent")).unwrap();
    failing(path("silent"), "silent", "did not answer \"its greeting\" within 2s");
    // Nobody takes connections, and their queue is full.
    let waiting: Vec<_> = std::iter::from_fn(|| connect_now(&path("silent"))).take(10_000).collect();
    failing(path("silent"), "io", "nobody takes connections");
    drop((silent, waiting));

    let http = speak(&path("http"), "HTTP/1.1 400 Bad Request\r\n\r\n9999 \n", &[]);
    failing(path("http"), "decode", "not one of BIRD");
    http.join().unwrap();
}

/// A connection, unless it would have to wait for its place in the queue.
fn connect_now(path: &Path) -> Option<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
    connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).ok().map(|()| fd.into())
}

#[test]
fn nothing_is_asked_of_who_does_not_restrict() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bird.ctl");
    let bird = speak(&path, GREETING, &["0000 \n", "0000 \n", "0000 \n"]);
    failing(path, "not_restricted", "it is not asked anything else");
    assert_eq!(bird.join().unwrap(), ["restrict"]);
}

#[test]
fn replies_that_are_cut_short_or_strange() {
    let restricted = "0016 Access restricted\n";
    let answers: [(&[&str], &str, &str); 4] = [
        (&[restricted, STATUS, "2002-Name\n1002-p BGP --- up 13:00:00\n"], "decode", "ends in its middle"),
        (&[restricted, STATUS, "9001 syntax error\n"], "decode", "9001"),
        (&[restricted, "8003 no\n", "1002-p\n0000 \n"], "decode", "not one of BIRD"),
        (&[restricted], "decode", "ends in its middle"),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (number, (answers, reason, words)) in answers.into_iter().enumerate() {
        let path = folder.path().join(number.to_string());
        let answers: &'static [&'static str] = answers.to_vec().leak();
        let bird = speak(&path, GREETING, answers);
        failing(path, reason, words);
        bird.join().unwrap();
    }
}
