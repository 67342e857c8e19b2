//! Process ids that are taken: by processes that sleep, and by zombies.

use anyhow::Context;
use clap::Args;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::children::Children;
use super::end::End;
use super::say;

/// `fork`. Says `ready NUMBER WHY` (all that were asked for, or the error that the next one got). Root is bound by
/// pids.max and kernel.pid_max, not by RLIMIT_NPROC.
#[derive(Debug, Args)]
pub(super) struct Fork {
    /// It stops at so many.
    #[arg(long)]
    max: usize,
}

impl Fork {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        let mut children = Children::default();
        let mut why = "all that were asked for".to_owned();
        while children.len() < self.max {
            if end.here()? {
                return Ok(());
            }
            if let Err(error) = children.start(&["child-sleep".to_owned()]) {
                why = error.to_string();
                break;
            }
        }
        say(&format!("ready {} {why}", children.len()))?;
        end.wait()
    }
}

/// `zombies`. All of them are zombies when it is ready.
#[derive(Debug, Args)]
pub(super) struct Zombies {
    /// How many.
    #[arg(long)]
    count: usize,
}

impl Zombies {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        let mut children = Children::default();
        for number in 0..self.count {
            if end.here()? {
                return Ok(());
            }
            let child = children
                .start(&["child-end".to_owned()])
                .with_context(|| format!("make the process after {number}"))?;
            let pid = Pid::from_raw(i32::try_from(child.id())?);
            // WNOWAIT: it stays unreaped.
            waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
                .with_context(|| format!("wait for the end of {pid}"))?;
        }
        say(&format!("ready {}", children.len()))?;
        end.wait()
    }
}
