//! Asking BIRD: one connection a question, restricted before anything is asked, and over in a short time whatever is at the
//! other end.

use super::decode::{self, DecodeError};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long all of a look may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a reply may be: thousands of sessions.
const LONGEST: usize = 16 << 20;

const RESTRICT: &str = "restrict";
/// What is answered when that is granted.
const RESTRICTED: &str = "0016 ";
const GREETING: &str = "0001 ";

/// Why BIRD could not be asked.
#[derive(Debug, Error)]
pub enum BirdError {
    /// A system call failed.
    #[error("cannot {operation} {path:?}: {error}{}", hint(error))]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which socket.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// A file, or anything else.
    #[error("{0:?} is not a socket: give BIRD's control socket (--bird-socket)")]
    NotASocket(PathBuf),
    /// Nothing, or not enough, came in time.
    #[error(
        "{path:?} did not answer {asked:?} within {PATIENCE:?}: is BIRD hung, or is it another program's socket?"
    )]
    Silent {
        /// Which socket.
        path: PathBuf,
        /// What was said.
        asked: &'static str,
    },
    /// More than can be.
    #[error("the answer of {0:?} is longer than {LONGEST} bytes")]
    TooLong(PathBuf),
    /// It would let us change things.
    #[error("{path:?} answers {answer:?} to `restrict`: it is not asked anything else")]
    NotRestricted {
        /// Which socket.
        path: PathBuf,
        /// What it answered.
        answer: String,
    },
    /// A reply that is none.
    #[error("{path:?}: {error}; please report this with the output of `birdc show protocols all`")]
    Decode {
        /// Which socket.
        path: PathBuf,
        /// What is wrong with it.
        error: DecodeError,
    },
}

impl BirdError {
    /// A word for the kind of failure, for metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => "permission",
            Self::Io { error, .. } if error.kind() == io::ErrorKind::ConnectionRefused => "refused",
            Self::Io { .. } => "io",
            Self::NotASocket(_) => "no_socket",
            Self::Silent { .. } => "silent",
            Self::NotRestricted { .. } => "not_restricted",
            Self::TooLong(_) | Self::Decode { .. } => "decode",
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (the socket is writable for BIRD's user and group only)",
        io::ErrorKind::ConnectionRefused => " (BIRD does not run, and left its socket behind)",
        _ => "",
    }
}

/// What BIRD says of itself and its protocols.
#[derive(Debug)]
pub(super) struct Replies {
    /// To `show status`.
    pub(super) status: String,
    /// To `show protocols all`.
    pub(super) protocols: String,
}

/// Asks whoever listens on a socket.
pub(super) fn ask(path: &Path) -> Result<Replies, BirdError> {
    let found = fs::metadata(path).map_err(io_error("look at", path))?;
    if !found.file_type().is_socket() {
        return Err(BirdError::NotASocket(path.into()));
    }
    let stream = connected(path).map_err(io_error("connect to", path))?;
    let mut talk = Talk { path, stream, rest: Vec::new(), until: Instant::now() + PATIENCE };
    let greeting = talk.reply("its greeting")?;
    if !greeting.starts_with(GREETING) {
        return Err(talk.strange(DecodeError::NotUnderstood(greeting.chars().take(80).collect())));
    }
    let answer = talk.ask(RESTRICT)?;
    if !answer.starts_with(RESTRICTED) {
        return Err(BirdError::NotRestricted {
            path: path.into(),
            answer: answer.trim().chars().take(80).collect(),
        });
    }
    Ok(Replies { status: talk.ask("show status")?, protocols: talk.ask("show protocols all")? })
}

/// Connects without waiting: where nobody takes connections, their queue fills up.
fn connected(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?).map_err(|error| match error {
        Errno::EAGAIN => io::Error::new(io::ErrorKind::TimedOut, "nobody takes connections: is BIRD hung?"),
        error => error.into(),
    })?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BirdError {
    let path = path.into();
    move |error| BirdError::Io { operation, path, error }
}

/// A conversation.
struct Talk<'a> {
    path: &'a Path,
    stream: UnixStream,
    /// What came behind the last reply.
    rest: Vec<u8>,
    until: Instant,
}

impl Talk<'_> {
    fn ask(&mut self, question: &'static str) -> Result<String, BirdError> {
        let left = self.left(question)?;
        let line = format!("{question}\n");
        let asked =
            self.stream.set_write_timeout(Some(left)).and_then(|()| self.stream.write_all(line.as_bytes()));
        asked.map_err(|error| self.failed("write to", question, error))?;
        self.reply(question)
    }

    /// Reads up to the last line of a reply.
    fn reply(&mut self, asked: &'static str) -> Result<String, BirdError> {
        let mut seen = 0;
        let mut piece = vec![0; 16 << 10];
        loop {
            if let Some(end) = end_of_reply(&self.rest, &mut seen) {
                let rest = self.rest.split_off(end);
                let reply = std::mem::replace(&mut self.rest, rest);
                return Ok(String::from_utf8_lossy(&reply).into_owned());
            }
            if self.rest.len() > LONGEST {
                return Err(BirdError::TooLong(self.path.into()));
            }
            let left = self.left(asked)?;
            let read = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut piece));
            match read {
                Ok(0) => return Err(self.strange(DecodeError::CutShort)),
                Ok(length) => self.rest.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("read from", asked, error)),
            }
        }
    }

    fn left(&self, asked: &'static str) -> Result<Duration, BirdError> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(BirdError::Silent { path: self.path.into(), asked }) } else { Ok(left) }
    }

    fn failed(&self, operation: &'static str, asked: &'static str, error: io::Error) -> BirdError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                BirdError::Silent { path: self.path.into(), asked }
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.strange(DecodeError::CutShort),
            _ => BirdError::Io { operation, path: self.path.into(), error },
        }
    }

    fn strange(&self, error: DecodeError) -> BirdError {
        BirdError::Decode { path: self.path.into(), error }
    }
}

/// Where a reply ends, if all of it is there. `seen` is where to look on.
fn end_of_reply(bytes: &[u8], seen: &mut usize) -> Option<usize> {
    while let Some(length) = bytes[*seen..].iter().position(|byte| *byte == b'\n') {
        let line = &bytes[*seen..*seen + length];
        *seen += length + 1;
        if decode::ends(&String::from_utf8_lossy(line)) {
            return Some(*seen);
        }
    }
    None
}
