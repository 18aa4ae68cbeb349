//! The agent in a namespace of the lab: started, asked, ended.

use crate::error::{Error, Result};
use crate::netns::Namespace;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Where the agent listens, in its own namespace.
pub const ADDRESS: &str = "127.0.0.1:9009";

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Variables that would reach the agent from whoever runs the lab: those of Calico's configuration and its own. `HOME` may
/// have a kubeconfig.
const NOT_INHERITED: [&str; 14] = [
    "ACCOUNTANT_",
    "CALICO_",
    "DATASTORE_TYPE",
    "ETCD_",
    "FELIX_",
    "HOME",
    "HOSTNAME",
    "K8S_",
    "KUBE",
    "METRICS_SERVER_PORT",
    "MINIMUM_COUNTER",
    "NODE",
    "USE_POD_CIDR",
    "XTABLES_LOCKFILE",
];

static STARTED: AtomicU32 = AtomicU32::new(0);

/// What the agent answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The value of `Content-Type`.
    pub content_type: String,
    /// The body.
    pub body: String,
}

/// A running agent; ended when dropped.
#[derive(Debug)]
pub struct Agent {
    namespace: Namespace,
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts `accountant run` and waits until it is ready.
    pub fn start(namespace: &Namespace, program: &Path, arguments: &[&str]) -> Result<Self> {
        Self::spawn(namespace, program, arguments)?.ready()
    }

    /// The same with nothing but these variables.
    pub fn start_by_environment(
        namespace: &Namespace,
        program: &Path,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        // As below: nothing outlives it.
        let alone = [("ACCOUNTANT_KERNEL_PINS", ""), ("ACCOUNTANT_STATE_DIR", "")];
        let mut command = command(namespace, program)?;
        command.arg("run").envs(alone).envs(environment.iter().copied());
        Self::of(namespace, program, command)?.ready()
    }

    fn ready(mut self) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        while !self.get("/readyz").is_ok_and(|answer| answer.status == 200) {
            if Instant::now() > deadline || self.has_ended() {
                return Err(Error::Agent { doing: "get ready", log: self.log() });
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(self)
    }

    /// Starts `accountant run` without waiting.
    pub fn spawn(namespace: &Namespace, program: &Path, arguments: &[&str]) -> Result<Self> {
        // Nothing outlives an agent that a test has not asked to: its namespace does not either.
        let lacks = |flag: &str| arguments.iter().all(|argument| !argument.starts_with(flag));
        let (pins, state) = (lacks("--kernel-pins"), lacks("--state-dir"));
        let mut command = command(namespace, program)?;
        command
            .args(["run", "--listen-address", ADDRESS])
            .args(pins.then_some("--kernel-pins="))
            .args(state.then_some("--state-dir="))
            .args(arguments);
        Self::of(namespace, program, command)
    }

    fn of(namespace: &Namespace, program: &Path, mut command: Command) -> Result<Self> {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("{}-{number}.log", namespace.name()));
        let file = File::create(&log).map_err(Error::file("create", &log))?;
        let child =
            command.stdout(Stdio::null()).stderr(file).spawn().map_err(Error::file("start", program))?;
        Ok(Self { namespace: namespace.clone(), child, log })
    }

    /// Runs another of its commands to the end.
    pub fn run(namespace: &Namespace, program: &Path, arguments: &[&str]) -> Result<Output> {
        let output = command(namespace, program)?.args(arguments).output();
        output.map_err(Error::file("start", program))
    }

    /// Starts another of its commands, whose output can be read while it runs.
    pub fn begin(namespace: &Namespace, program: &Path, arguments: &[&str]) -> Result<Child> {
        let mut command = command(namespace, program)?;
        let child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        child.map_err(Error::file("start", program))
    }

    /// What it wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether its process is over.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Asks for a path.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.get_with(path, &[])
    }

    /// Asks for a path, with these headers.
    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let url = format!("http://{ADDRESS}{path}");
        let ask = || {
            let config =
                ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
            let agent = ureq::Agent::new_with_config(config.build());
            let request =
                headers.iter().fold(agent.get(&url), |request, (name, value)| request.header(*name, *value));
            let mut answer = request.call()?;
            let content_type = answer.headers().get("content-type").and_then(|value| value.to_str().ok());
            let content_type = content_type.unwrap_or_default().to_string();
            let body = answer.body_mut().with_config().limit(u64::MAX).read_to_string()?;
            Ok(Answer { status: answer.status().as_u16(), content_type, body })
        };
        self.namespace
            .enter(ask)?
            .map_err(|error: ureq::Error| Error::io("ask for", &url)(std::io::Error::other(error)))
    }

    /// All accounts, as JSON.
    pub fn accounts(&self) -> Result<Value> {
        let answer = self.get("/accounts")?;
        let accounts = serde_json::from_str(&answer.body);
        accounts.map_err(|_| Error::Agent { doing: "tell its accounts", log: self.log() })
    }

    /// The accounts once they stand still. What the kernel still has in its queues when a sender is done, and what was read
    /// while it passed, is in none of the answers before.
    pub fn settled(&self) -> Result<Value> {
        let mut last = self.accounts()?;
        for _ in 0..100 {
            let now = self.accounts()?;
            if now["accounts"] == last["accounts"] {
                return Ok(now);
            }
            last = now;
        }
        Err(Error::Agent { doing: "come to rest", log: self.log() })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- log of the agent\n{}", self.log());
        }
        let _ = fs::remove_file(&self.log);
    }
}

fn command(namespace: &Namespace, program: &Path) -> Result<Command> {
    let mut command = namespace.command(&program.display().to_string())?;
    for (name, _) in std::env::vars_os() {
        if NOT_INHERITED.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    Ok(command)
}
