//! A server's process, which ends when its standard input does: with us, even if we are killed.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a server may take to begin.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A running server.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts a program that ends with its standard input.
    pub(crate) fn start(program: &Path, arguments: &[String], log: &Path) -> Result<(Self, ChildStdout)> {
        let log = std::fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let out = child.stdout.take().context("a pipe for what it prints")?;
        Ok((Self { child }, out))
    }

    /// Starts a program that does not, behind a shell that ends it.
    pub(crate) fn start_behind_shell(program: &Path, arguments: &[String], log: &Path) -> Result<Self> {
        // The shell reads until we are gone; `exec` of the last words would lose the way to kill.
        let script =
            r#"exec 3<&0; "$@" </dev/null 3<&- & pid=$!; cat <&3 >/dev/null; kill -KILL $pid; wait $pid"#;
        let words = ["-c", script, "sh"].map(String::from).into_iter().chain([program.display().to_string()]);
        let words: Vec<_> = words.chain(arguments.iter().cloned()).collect();
        Ok(Self::start(Path::new("/bin/sh"), &words, log)?.0)
    }

    /// Ends it at once and waits until it is gone.
    pub(crate) fn end(mut self) {
        self.end_now();
    }

    fn end_now(&mut self) {
        drop(self.child.stdin.take());
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begin.elapsed() > PATIENCE {
                // It should have ended by itself, and the tests should.
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process that the shell started in the background: the one child of it that is not `cat`.
    pub(crate) fn only_child(&self) -> Option<u32> {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        let is_cat = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "cat")
        };
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid| !is_cat(pid))
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self, log: &Path) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended with {status}: {}", std::fs::read_to_string(log).unwrap_or_default());
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end_now();
    }
}

/// The first line that a server prints; nothing if it does not for too long, or ends.
pub(crate) fn first_line(out: ChildStdout) -> String {
    let (told, line) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(out).read_line(&mut line);
        // Nobody may wait for it any more.
        let _ = told.send(line);
    });
    line.recv_timeout(PATIENCE).unwrap_or_default()
}

/// Ports that nobody listens on now.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    for _ in 0..N {
        held.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    }
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// Asks until the answer is good.
pub(crate) fn wait_until(mut good: impl FnMut() -> bool, process: &mut Process, log: &Path) -> Result<()> {
    let begin = Instant::now();
    while !good() {
        process.check(log)?;
        if begin.elapsed() > PATIENCE {
            bail!("it is not ready after {PATIENCE:?}: {}", std::fs::read_to_string(log).unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
