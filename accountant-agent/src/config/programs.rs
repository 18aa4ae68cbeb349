//! Programs in the kernel: whether there are any, and where they outlive the agent.

use super::{any, folder};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Programs in the kernel.
#[derive(Clone, Debug, Args)]
pub struct ProgramArgs {
    /// Let programs in the kernel see which policy decides on each packet: if that is possible here (auto: where it is not, programs
    /// at the endpoints' interfaces count how much each endpoint sends and is sent), in any case (on: where it is not, the agent is
    /// not ready), or not (interfaces: only those at the interfaces, which cost the least; off: none, and those that an agent left
    /// are detached).
    #[arg(long = "kernel-programs", env = "ACCOUNTANT_KERNEL_PROGRAMS", value_name = "MODE", value_enum, default_value_t = KernelPrograms::Auto)]
    pub mode: KernelPrograms,
    /// Have the kernel keep statistics of programs, of all that there are on the node, while the agent runs: how often they
    /// run, and how long. Each run costs two looks at the clock more, and it wants CAP_SYS_ADMIN.
    #[arg(long, env = "ACCOUNTANT_KERNEL_PROGRAM_STATISTICS", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    pub kernel_program_statistics: bool,
    /// Have these programs note flows that policies accept as well as those that they deny, for `accountant show --flows` and
    /// /flows: who talks to whom by which policy, in packets that policy decided on and that no other endpoint's policy denied. It
    /// costs a new packet some time, and others none.
    #[arg(long, env = "ACCOUNTANT_ACCEPTED_FLOWS", value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pub accepted_flows: bool,
    /// Where they outlive the agent.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// Where programs in the kernel outlive the agent.
#[derive(Clone, Debug, Args)]
pub struct PinArgs {
    /// Folder in a BPF file system in which the programs in the kernel stay attached, with what they count, while the agent
    /// is restarted; empty to have them go with the agent.
    #[arg(
        long,
        env = "ACCOUNTANT_KERNEL_PINS",
        value_name = "FOLDER",
        default_value = "/sys/fs/bpf/packet-accountant", value_parser = any)]
    pub kernel_pins: PathBuf,
}

impl PinArgs {
    /// The folder, if there is to be one.
    pub fn folder(&self) -> Option<&Path> {
        folder(&self.kernel_pins)
    }
}

/// Whether there are programs in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelPrograms {
    /// If that is possible.
    Auto,
    /// In any case.
    On,
    /// Only those that count traffic at interfaces.
    Interfaces,
    /// Never.
    Off,
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Where they are.
    #[command(flatten)]
    pub pins: PinArgs,
}

#[cfg(test)]
mod tests {
    use crate::config::{Cli, Command};
    use clap::Parser;

    #[test]
    fn an_empty_folder_is_none() {
        let folder = |arguments: &[&str]| {
            let cli = Cli::parse_from([&["accountant", "detach"], arguments].concat());
            let Command::Detach(args) = cli.command else { panic!("{cli:?}") };
            args.pins.folder().map(|folder| folder.display().to_string())
        };
        assert_eq!(folder(&["--kernel-pins", ""]), None);
        assert_eq!(folder(&["--kernel-pins="]), None);
        assert_eq!(folder(&["--kernel-pins=/a"]).as_deref(), Some("/a"));
        assert_eq!(folder(&[]).as_deref(), Some("/sys/fs/bpf/packet-accountant"));
    }
}
