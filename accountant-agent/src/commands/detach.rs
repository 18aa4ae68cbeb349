//! `accountant detach`: takes what an agent left in the kernel out of it.

use crate::config::DetachArgs;
use accountant_dataplane::kernel;
use anyhow::Context;
use std::process::ExitCode;

/// Detaches the programs that stayed attached. One that runs keeps its own, and is told of.
pub fn detach(args: &DetachArgs) -> anyhow::Result<ExitCode> {
    let Some(folder) = args.pins.folder() else {
        anyhow::bail!("no folder is given (--kernel-pins): nothing outlives the agent");
    };
    match kernel::detach(folder).context("detaching programs")? {
        true => println!("detached the programs that an agent left in {}", folder.display()),
        false => println!("no agent left programs in {} for this network namespace", folder.display()),
    }
    Ok(ExitCode::SUCCESS)
}
