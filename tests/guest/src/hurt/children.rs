//! Children: this program again, with a hidden subcommand. They end with their parent.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// Set in a child: its parent's process id.
const PARENT: &str = "HURT_PARENT";
/// So long killed children are waited for. One in an uninterruptible sleep would hold up the end for ever.
const REAPED_WITHIN: Duration = Duration::from_secs(2);

/// In a child: SIGKILL when the parent's thread that made it is gone. Else nothing.
pub(super) fn end_with_the_parent() -> anyhow::Result<()> {
    let Some(parent) = std::env::var_os(PARENT) else { return Ok(()) };
    set_pdeathsig(Signal::SIGKILL).context("ask for SIGKILL at the parent's death")?;
    // It may have died before that was asked.
    if parent.to_str() != Some(&nix::unistd::getppid().to_string()) {
        bail!("the parent {} is gone", parent.display());
    }
    Ok(())
}

/// What a child is: for ever.
pub(super) fn sleep() -> anyhow::Result<()> {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// All that one process made. Dropped, they are killed and reaped.
#[derive(Debug, Default)]
pub(super) struct Children(Vec<Child>);

impl Children {
    /// One more, which nobody talks to: it holds no pipe of ours open. By the main thread only, whose death is the
    /// process's.
    pub(super) fn start(&mut self, arguments: &[String]) -> io::Result<&mut Child> {
        self.add(arguments, Stdio::null, Stdio::null)
    }

    /// One more, which waits for a line or an end on its input, and says a line.
    pub(super) fn start_talking(&mut self, arguments: &[String]) -> io::Result<()> {
        self.add(arguments, Stdio::piped, Stdio::piped).map(|_| ())
    }

    fn add(
        &mut self,
        arguments: &[String],
        stdin: fn() -> Stdio,
        stdout: fn() -> Stdio,
    ) -> io::Result<&mut Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).env(PARENT, std::process::id().to_string());
        command.stdin(stdin()).stdout(stdout());
        if let Some(name) = std::env::args_os().next() {
            command.arg0(name);
        }
        self.0.push(command.spawn()?);
        self.0.last_mut().ok_or_else(|| io::Error::other("the child was not kept"))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Lets all go on that wait for it.
    pub(super) fn go(&mut self) {
        self.0.iter_mut().for_each(|child| drop(child.stdin.take()));
    }

    /// The line that each says, in the order of their start. Waits for it: `None` of one that ended without it.
    pub(super) fn lines(&mut self) -> io::Result<Vec<Option<String>>> {
        let mut lines = Vec::new();
        for child in &mut self.0 {
            let Some(stdout) = child.stdout.take() else {
                lines.push(None);
                continue;
            };
            let mut line = String::new();
            let length = BufReader::new(stdout).read_line(&mut line)?;
            lines.push((length > 0).then(|| line.trim().to_owned()));
        }
        Ok(lines)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            if let Err(error) = child.kill() {
                eprintln!("hurt: kill the child {}: {error}", child.id());
            }
        }
        let began = Instant::now();
        for child in &mut self.0 {
            while matches!(child.try_wait(), Ok(None)) && began.elapsed() < REAPED_WITHIN {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
