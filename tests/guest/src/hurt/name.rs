//! Another name, as the kernel's OOM report and every list of processes show it.

use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::Args;
use nix::sys::prctl::set_name;

/// Set where the program has a name to take. Not an argument: the command line is then as the other program's could be.
const COMM: &str = "HURT_COMM";
/// The kernel's TASK_COMM_LEN, without the zero at its end.
const LONGEST_BYTES: usize = 15;

/// `name`. Its comm and argv[0], and those of its children; /proc/PID/exe is still this program's file.
#[derive(Debug, Args)]
pub(super) struct Name {
    /// At most 15 bytes.
    comm: String,
    /// A subcommand with its arguments, after `--`.
    #[arg(last = true, required = true)]
    arguments: Vec<String>,
}

impl Name {
    /// Becomes the program with that name: the same process id. Returns where it can't.
    pub(super) fn run(self, seconds: u64) -> anyhow::Result<()> {
        ensure!(
            (1..=LONGEST_BYTES).contains(&self.comm.len()),
            "{:?}: a process name has 1 to {LONGEST_BYTES} bytes",
            self.comm
        );
        let mut command = Command::new(std::env::current_exe().context("find the own program")?);
        command.arg0(&self.comm).env(COMM, &self.comm);
        // Before the others: what stands behind `--` is the last word.
        if !self.arguments.iter().any(|argument| argument.starts_with("--seconds")) {
            command.args(["--seconds", &seconds.to_string()]);
        }
        Err(command.args(&self.arguments).exec()).with_context(|| format!("become {}", self.comm))
    }
}

/// Takes the name that it was given. By the main thread: its comm is the process's.
pub(super) fn take() -> anyhow::Result<()> {
    let Some(comm) = std::env::var_os(COMM) else { return Ok(()) };
    let Some(comm) = comm.to_str() else { bail!("{COMM} is no UTF-8") };
    set_name(&CString::new(comm)?).with_context(|| format!("take the name {comm}"))
}
