//! A machine that runs one kernel, without hardware's help, and does jobs one after the other.
//!
//! Jobs and what they print and how they end are files in a folder that is shared with it; the console is kept in a file for
//! whoever looks into a failure. Ended when dropped.

use super::debian::Kernel;
use super::initramfs::{self, SHARED};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What the first process becomes: it does each job that appears.
const JOBS: &str = "#!/bin/sh
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ip link set lo up
number=0
while :; do
    job=/vm/$number
    if [ -e $job.job ]; then
        sh $job.job >$job.log 2>&1 </dev/null
        echo $? >$job.part
        mv $job.part $job.end
        number=$((number + 1))
    else
        sleep 0.2
    fi
done
";

/// How long a machine may take to come up.
const BOOT: Duration = Duration::from_secs(300);
/// How much longer than the job itself its end is waited for.
const GRACE: Duration = Duration::from_secs(60);
/// How often the folder is looked at.
const PAUSE: Duration = Duration::from_millis(100);

/// A running machine.
pub(super) struct Machine {
    qemu: Child,
    shared: PathBuf,
    jobs: u32,
}

/// How a job ended.
pub(super) struct Ended {
    /// Its exit status; that of `timeout` (124) if it took too long.
    pub(super) status: i32,
    /// What it printed.
    pub(super) log: String,
}

impl Machine {
    /// Boots a kernel on so many processors.
    pub(super) fn boot(kernel: &Kernel, processors: u8) -> Result<Self> {
        let shared = kernel.folder.join("shared");
        let _ = fs::remove_dir_all(&shared);
        fs::create_dir_all(&shared)?;
        fs::write(shared.join("jobs"), JOBS)?;
        let initramfs = kernel.folder.join("initramfs");
        fs::write(&initramfs, initramfs::pack(kernel)?)?;
        let console = File::create(kernel.folder.join("console"))?;
        let share = |path: &Path, tag: &str, more: &str| {
            format!("local,path={},mount_tag={tag},security_model=none,multidevs=remap{more}", path.display())
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "2G", "-nodefaults"])
            .args(["-smp", &processors.to_string()])
            .args(["-display", "none", "-serial", "stdio", "-no-reboot", "-net", "none"])
            .args(["-virtfs", &share(Path::new("/"), "root", ",readonly=on")])
            .args(["-virtfs", &share(&shared, "shared", "")])
            .args(["-append", "console=ttyS0 loglevel=4 panic=-1 oops=panic mitigations=off"])
            .arg("-kernel")
            .arg(kernel.image()?)
            .arg("-initrd")
            .arg(&initramfs)
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console);
        let qemu = qemu.spawn().context("starting qemu-system-x86_64")?;
        let mut machine = Self { qemu, shared, jobs: 0 };
        let release = machine.run("uname -r", BOOT)?.log;
        if release.trim() != kernel.release {
            bail!("{} was to be booted, and this is {release}", kernel.release);
        }
        Ok(machine)
    }

    /// Has the machine's shell do something.
    pub(super) fn run(&mut self, job: &str, limit: Duration) -> Result<Ended> {
        let file = |kind: &str| self.shared.join(format!("{}.{kind}", self.jobs));
        fs::write(file("part"), job)?;
        fs::rename(file("part"), file("job"))?;
        let deadline = Instant::now() + limit + GRACE;
        let status = loop {
            if let Ok(status) = fs::read_to_string(file("end")) {
                break status;
            }
            if let Some(status) = self.qemu.try_wait()? {
                bail!("the machine ended ({status}): {}", self.console());
            }
            if Instant::now() > deadline {
                bail!("the machine does not answer: {}", self.console());
            }
            thread::sleep(PAUSE);
        };
        let log = fs::read(file("log"))?;
        self.jobs += 1;
        let status = status.trim().parse().context("a job's exit status")?;
        Ok(Ended { status, log: String::from_utf8_lossy(&log).into_owned() })
    }

    /// A shell's words that run a program somewhere, for so long at most.
    pub(super) fn bounded(program: &Path, within: &Path, arguments: &[String], limit: Duration) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let within = quoted(&within.display().to_string());
        let mut line =
            format!("cd {within} && CARGO_MANIFEST_DIR={within} timeout -k 10 {}", limit.as_secs());
        for word in [&program.display().to_string()].into_iter().chain(arguments) {
            line += &format!(" {}", quoted(word));
        }
        line
    }

    /// The end of what the kernel said.
    fn console(&self) -> String {
        let file = self.shared.with_file_name("console");
        let text = fs::read(&file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(30).collect();
        let end: Vec<_> = lines.into_iter().rev().collect();
        format!("the end of {} (in the guest, jobs are in {SHARED}):\n{}", file.display(), end.join("\n"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
