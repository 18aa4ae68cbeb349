//! Network namespaces of the lab's own: made with a name nobody else has, entered by threads, removed on drop.
//!
//! Invariant: every name begins with `acct-PID-COUNTER-`, so tests that run at the same time never meet, and nothing
//! outside these namespaces is ever changed. A process that is killed leaves its namespaces behind;
//! [`remove_abandoned`] finds them by the process id in their names.

use crate::error::{Error, Result};
use crate::tool;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

const PREFIX: &str = "acct-";
/// Where `ip netns` keeps the names.
const FOLDER: &str = "/run/netns";

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A network namespace. It lives as long as this value and its clones, which are all the same namespace.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Owned>);

/// The name of a namespace that we made, and so have to remove.
#[derive(Debug)]
struct Owned {
    name: String,
}

impl Namespace {
    /// A new, empty namespace with its loopback up. `label` is for people: it ends the name.
    pub fn new(label: &str) -> Result<Self> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{label}", process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Self(Arc::new(Owned { name }));
        ip(&["-n", namespace.name(), "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The file that stands for the namespace, for `setns` or `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(self.name())
    }

    /// The lock file of iptables-legacy for this namespace: one of its own, so that tests do not wait for each other
    /// or for the machine. Give it to the tools as `XTABLES_LOCKFILE`.
    pub fn lock_file(&self) -> PathBuf {
        lock_file(self.name())
    }

    /// Does `work` on a fresh thread inside the namespace and returns its result. Sockets that `work` opens stay in
    /// the namespace wherever they go afterwards.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| join(&self.path()).map(|()| work()));
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Like [`Self::enter`], but does not wait: for listeners and floods.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let path = self.path();
        thread::spawn(move || join(&path).map(|()| work()))
    }

    /// A command that will run inside the namespace.
    pub fn command(&self, tool: &str) -> Result<Command> {
        let mut command = Command::new(tool::find("ip")?);
        command.args(["netns", "exec", self.name()]).arg(tool::find(tool)?);
        command.env("XTABLES_LOCKFILE", self.lock_file());
        Ok(command)
    }

    /// Runs a tool inside the namespace and returns what it printed.
    pub fn run(&self, tool: &str, arguments: &[&str]) -> Result<String> {
        tool::run(self.command(tool)?.args(arguments))
    }

    /// Runs a tool inside the namespace with `input` as its standard input and returns what it printed.
    pub fn feed(&self, tool: &str, arguments: &[&str], input: &str) -> Result<String> {
        tool::feed(self.command(tool)?.args(arguments), input)
    }

    /// Runs many `ip` commands, one a line, in one process.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut command = Command::new(tool::find("ip")?);
        tool::feed(command.args(["-n", self.name(), "-batch", "-"]), lines).map(drop)
    }

    /// Sets kernel parameters of the namespace: `("net/ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in settings {
                let path = Path::new("/proc/sys").join(key);
                fs::write(&path, value).map_err(Error::file("write", &path))?;
            }
            Ok(())
        })?
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // There is nobody to tell; what is left is found by `remove_abandoned`.
        let _ = ip(&["netns", "del", &self.name]);
        let _ = fs::remove_file(lock_file(&self.name));
    }
}

/// Removes the namespaces of lab processes that are no longer alive, and returns their names. What still runs in there, an
/// agent that nobody can end any more, is ended.
pub fn remove_abandoned() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let Ok(names) = fs::read_dir(FOLDER) else { return Ok(removed) };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            for pid in ip(&["netns", "pids", &name])?.lines().filter_map(|line| line.trim().parse().ok()) {
                // It may have ended by itself.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            ip(&["netns", "del", &name])?;
            let _ = fs::remove_file(lock_file(&name));
            removed.push(name);
        }
    }
    Ok(removed)
}

fn lock_file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{name}.xtables.lock"))
}

fn ip(arguments: &[&str]) -> Result<String> {
    tool::run(Command::new(tool::find("ip")?).args(arguments))
}

/// Moves the calling thread, which must be ours to move, into a namespace.
fn join(namespace: &Path) -> Result<()> {
    let file = File::open(namespace).map_err(Error::file("open", namespace))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .map_err(std::io::Error::from)
        .map_err(Error::file("enter the network namespace", namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces() -> String {
        fs::read_to_string("/proc/thread-self/net/dev").unwrap()
    }

    #[test]
    fn a_thread_inside_sees_only_its_own_interfaces() {
        let outside = interfaces();
        let namespace = Namespace::new("inside").unwrap();
        namespace.ip_batch("link add only-here type veth peer name other-end").unwrap();
        let inside = namespace.enter(interfaces).unwrap();
        assert!(inside.contains("only-here") && inside.contains("lo:"));
        assert!(!interfaces().contains("only-here"));
        assert_eq!(outside.lines().count(), interfaces().lines().count());
    }

    #[test]
    fn it_is_gone_after_a_panic_inside() {
        let namespace = Namespace::new("panics").unwrap();
        let path = namespace.path();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let namespace = namespace;
            namespace.enter(|| panic!("on purpose")).unwrap()
        }));
        assert!(panicked.is_err());
        assert!(!path.exists());
    }

    #[test]
    fn what_dead_processes_left_is_removed() {
        // No process has this number: the kernel's limit is 4 194 304.
        let (theirs, ours) = ("acct-4999999-0-abandoned", Namespace::new("alive").unwrap());
        ip(&["netns", "add", theirs]).unwrap();
        let inside = ["netns", "exec", theirs, "sleep", "1000"];
        let mut sleeper = Command::new(tool::find("ip").unwrap()).args(inside).spawn().unwrap();
        let in_there = || ip(&["netns", "pids", theirs]).unwrap().trim() == sleeper.id().to_string();
        while !in_there() {
            thread::yield_now();
        }
        assert!(remove_abandoned().unwrap().contains(&theirs.to_string()));
        assert!(!Path::new(FOLDER).join(theirs).exists() && ours.path().exists());
        // Ended by the signal: it would not have returned before.
        assert!(!sleeper.wait().unwrap().success());
    }

    #[test]
    fn a_refusal_says_what_was_refused() {
        let namespace = Namespace::new("refuses").unwrap();
        let error =
            namespace.feed("nft", &["-f", "-"], "add rule ip nowhere x accept\n").unwrap_err().to_string();
        assert!(error.contains("ip netns exec acct-"), "{error}");
        assert!(error.contains("nft -f -` failed with exit status: 1"), "{error}");
    }
}
