//! CPU time, as the kernel accounts it: of this thread, of programs that were run, of a process that runs beside.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// CPU seconds of one `call` on this thread, as the mean of `times`; and what the last one returned.
pub(crate) fn own<T>(times: u32, mut call: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<(f64, T)> {
    let before = used(UsageWho::RUSAGE_THREAD)?;
    for _ in 1..times {
        call()?;
    }
    let last = call()?;
    Ok(((used(UsageWho::RUSAGE_THREAD)? - before) / f64::from(times), last))
}

/// CPU seconds of this line of the shell, with all that it starts.
pub(crate) fn shell(line: &str) -> anyhow::Result<f64> {
    let before = used(UsageWho::RUSAGE_CHILDREN)?;
    sh(line)?;
    Ok(used(UsageWho::RUSAGE_CHILDREN)? - before)
}

/// What this line of the shell writes.
pub(crate) fn sh(line: &str) -> anyhow::Result<String> {
    let output =
        Command::new("sh").args(["-ec", line]).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "`{line}` ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// User and system time: their sum is exact, their share is the kernel's guess.
fn used(who: UsageWho) -> anyhow::Result<f64> {
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let usage = getrusage(who)?;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// CPU milliseconds that process `pid` spends on one `call`, as the mean of `times`.
pub(crate) fn cpu_of(
    pid: u32,
    mut call: impl FnMut() -> anyhow::Result<usize>,
    times: u32,
) -> anyhow::Result<f64> {
    let before = cpu_seconds(pid)?;
    for _ in 0..times {
        call()?;
    }
    Ok((cpu_seconds(pid)? - before) * 1e3 / f64::from(times))
}

/// CPU time of all threads that live, in seconds: the first field of each thread's schedstat, in nanoseconds.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let mut nanoseconds = 0u64;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanoseconds += text.split_whitespace().next().context("empty schedstat")?.parse::<u64>()?;
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// This field of the process's status, in MiB.
pub(crate) fn mebibytes(pid: u32, field: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let line = line.with_context(|| format!("no {field}"))?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}

pub(crate) fn entries(folder: impl AsRef<Path>) -> anyhow::Result<f64> {
    Ok(std::fs::read_dir(folder)?.count() as f64)
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn p99(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() * 99 / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// What two ways cost that were tried in turn: the median of each, and of their ratio.
pub(crate) struct Pair {
    pub(crate) ours: f64,
    pub(crate) peer: f64,
    pub(crate) ratio: f64,
}

/// Tries both in turn, so often.
pub(crate) fn in_turn(
    times: usize,
    mut ours: impl FnMut() -> anyhow::Result<f64>,
    mut peer: impl FnMut() -> anyhow::Result<f64>,
) -> anyhow::Result<Pair> {
    let (mut our, mut their, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..times {
        let (one, other) = (ours()?, peer()?);
        our.push(one);
        their.push(other);
        ratios.push(one / other);
    }
    Ok(Pair { ours: median(&mut our), peer: median(&mut their), ratio: median(&mut ratios) })
}

/// A process that is ended with its owner.
pub(crate) struct Ended(pub(crate) Child);

impl Ended {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("bench: process {} could not be ended: {error}", self.0.id());
        }
    }
}
