//! Why counters cannot be read in place on this machine: a value, not an error. Sources then read them as everybody does.

use super::btf::BtfError;
use std::io;
use thiserror::Error;

/// The first Linux with all that the programs use (`bpf_map_lookup_percpu_elem`).
pub const NEEDED: (u32, u32) = (5, 19);

/// Why not.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CannotHere {
    /// There was nothing to read so far.
    #[error("there was nothing to read so far")]
    NotYet,
    /// Nobody asked for it.
    #[error("it is turned off")]
    TurnedOff,
    /// Something else was asked for.
    #[error("only traffic at interfaces is to be counted")]
    NotWanted,
    /// The kernel is locked down against reading its memory.
    #[error("the kernel is locked down against reading its memory (lockdown=confidentiality)")]
    Lockdown,
    /// The process may not.
    #[error("the agent lacks {0}")]
    Capability(&'static str),
    /// The kernel lacks what the programs use.
    #[error("Linux {release} is too old: {}.{} is needed", needed.0, needed.1)]
    TooOld {
        /// The running one.
        release: String,
        /// The first that has it: major and minor number.
        needed: (u32, u32),
    },
    /// The kernel does not describe its types, or not in a way that is understood.
    #[error("the kernel's description of its types cannot be read: {file}: {reason}")]
    NoTypes {
        /// Where it would be.
        file: String,
        /// Why not.
        reason: String,
    },
    /// A structure is not, or not like, what is known.
    #[error("this kernel has no {0}")]
    NoField(String),
    /// More processors than are provided for.
    #[error("there are {0} processors, more than are provided for")]
    TooManyProcessors(u32),
    /// More rules than are provided for.
    #[error("there are {0} rules in a table, more than are provided for")]
    TooManyRules(usize),
    /// Another agent has its programs there.
    #[error("another agent has its programs in this network namespace; stop one of the two")]
    AnotherAgent,
    /// Nothing can be kept for the next agent.
    #[error("{folder}: {reason}")]
    NoPins {
        /// Where it would be.
        folder: String,
        /// Why not.
        reason: String,
    },
    /// The kernel refused, for a reason of its own.
    #[error("{operation} failed: {error}")]
    Refused {
        /// What was tried.
        operation: String,
        /// What the kernel said.
        error: String,
    },
}

impl CannotHere {
    pub(crate) fn types(file: &str, reason: impl ToString) -> Self {
        Self::NoTypes { file: file.into(), reason: reason.to_string() }
    }

    /// What a refusal of the kernel comes of, as far as the host tells.
    pub(crate) fn refused(operation: impl Into<String>, error: impl ToString, host: &Host) -> Self {
        if host.confidential {
            Self::Lockdown
        } else if let Some(missing) = host.missing_capability() {
            Self::Capability(missing)
        } else {
            Self::Refused { operation: operation.into(), error: error.to_string() }.explained_by(host)
        }
    }

    /// What a kernel has not, or refuses, it has not yet if it is older than what the programs are for.
    pub(crate) fn explained_by(self, host: &Host) -> Self {
        let too_old = parse(&host.release).is_some_and(|version| version < host.needed);
        match self {
            Self::NoTypes { .. } | Self::NoField(_) | Self::Refused { .. } if too_old => {
                Self::TooOld { release: host.release.clone(), needed: host.needed }
            }
            reason => reason,
        }
    }
}

impl From<(&str, BtfError)> for CannotHere {
    fn from((file, error): (&str, BtfError)) -> Self {
        Self::types(file, error)
    }
}

/// What is known about the machine, to explain a refusal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) release: String,
    /// The first Linux with all that is to be used.
    pub(crate) needed: (u32, u32),
    pub(crate) confidential: bool,
    /// `CapEff` of the process.
    pub(crate) capabilities: u64,
}

/// Numbers of `include/uapi/linux/capability.h`.
const CAP_SYS_ADMIN: u8 = 21;
const CAP_PERFMON: u8 = 38;
const CAP_BPF: u8 = 39;

impl Host {
    /// Looks, for programs that are for this Linux and later.
    pub(crate) fn look(needed: (u32, u32)) -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let status = text("/proc/thread-self/status");
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        Self {
            release: text("/proc/sys/kernel/osrelease").trim().into(),
            needed,
            confidential: text("/sys/kernel/security/lockdown").contains("[confidentiality]"),
            capabilities: capabilities
                .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
                .unwrap_or(0),
        }
    }

    /// Whether the process may look up what others have loaded (`BPF_PROG_GET_FD_BY_ID` asks for `CAP_SYS_ADMIN`).
    pub(crate) fn may_look_up_programs(&self) -> bool {
        self.capabilities >> CAP_SYS_ADMIN & 1 == 1
    }

    fn missing_capability(&self) -> Option<&'static str> {
        let held = |number: u8| self.capabilities >> number & 1 == 1;
        let needed = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")];
        let missing = needed.into_iter().find(|(number, _)| !held(*number))?;
        (!held(CAP_SYS_ADMIN)).then_some(missing.1)
    }
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The number of processors that can ever be there: the kernel's `nr_cpu_ids`, and which of them are possible.
pub(crate) fn possible_cpus() -> io::Result<Vec<u32>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    cpu_list(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text))
}

/// A list like `0-3,8`.
fn cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // More than any kernel has: not a list of processors.
        if last > 1 << 16 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_explained_by_what_the_host_is() {
        let why = |host: &Host| CannotHere::refused("loading a program", "EPERM", host);
        let all = 1 << CAP_BPF | 1 << CAP_PERFMON;
        let host =
            Host { release: "6.18.5-x".into(), needed: NEEDED, confidential: false, capabilities: all };
        assert!(matches!(why(&host), CannotHere::Refused { .. }));
        assert_eq!(why(&Host { confidential: true, ..host.clone() }), CannotHere::Lockdown);
        let lacking = Host { capabilities: 1 << CAP_BPF, ..host.clone() };
        assert_eq!(why(&lacking), CannotHere::Capability("CAP_PERFMON"));
        let root = Host { capabilities: 1 << CAP_SYS_ADMIN, ..host.clone() };
        assert!(matches!(why(&root), CannotHere::Refused { .. }));
        let missing =
            |host: &Host| CannotHere::NoField("bpf_rdonly_cast".into()).explained_by(host).to_string();
        assert_eq!(missing(&host), "this kernel has no bpf_rdonly_cast");
        let old = Host { release: "5.10.0-30-amd64".into(), ..host };
        assert_eq!(why(&old).to_string(), "Linux 5.10.0-30-amd64 is too old: 5.19 is needed");
        let newer = Host { release: "6.1.0-50-amd64".into(), needed: (6, 4), ..old };
        assert_eq!(missing(&newer), "Linux 6.1.0-50-amd64 is too old: 6.4 is needed");
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!(cpu_list("0-1\n"), Some(vec![0, 1]));
        assert_eq!(cpu_list("0"), Some(vec![0]));
        assert_eq!(cpu_list("0-1,4,6-7"), Some(vec![0, 1, 4, 6, 7]));
        assert_eq!((cpu_list(""), cpu_list("a-b"), cpu_list("0-99999999")), (None, None, None));
    }
}
