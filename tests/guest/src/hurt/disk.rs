//! Who writes to a disk, and waits for it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use super::children::Children;
use super::end::End;
use super::say;

/// `blocked`. Each process overwrites the first block of a file of its own and calls fdatasync, again and again. Once the
/// device below is suspended, each is in state D within `--every-ms`: in the write where the file system was frozen with
/// it (dmsetup's way), else in fdatasync. Their files have no names any more, so nothing is left behind.
#[derive(Debug, Args)]
pub(super) struct Blocked {
    /// How many processes.
    #[arg(long)]
    count: usize,
    /// A folder on the file system in question.
    #[arg(long)]
    dir: PathBuf,
    /// How long each rests between two writes.
    #[arg(long, default_value_t = 200)]
    every_ms: u64,
    /// Says `ready` when all are started, not when each has written once: for a device that hangs already.
    #[arg(long)]
    ready_first: bool,
}

impl Blocked {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        let mut children = Children::default();
        for number in 0..self.count {
            let file = self.dir.join(format!("hurt-{}-{number}", std::process::id()));
            let file = file.to_str().context("--dir is no UTF-8")?;
            let words = ["child-write", "--file", file, "--every-ms", &self.every_ms.to_string()];
            children
                .start_talking(&words.map(str::to_owned))
                .with_context(|| format!("make the process after {number}"))?;
        }
        if !self.ready_first {
            for line in children.lines().context("hear from a child")? {
                line.context("a child ended before it had written; see above")?;
            }
        }
        say(&format!("ready {}", children.len()))?;
        end.wait()
    }
}

/// A child of it.
#[derive(Debug, Args)]
pub(super) struct Write {
    #[arg(long)]
    file: PathBuf,
    #[arg(long)]
    every_ms: u64,
}

impl Write {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let file = nameless(&self.file)?;
        let block = [b'h'; 4096];
        let mut said = false;
        loop {
            file.write_all_at(&block, 0)
                .and_then(|()| file.sync_data())
                .with_context(|| format!("write and fdatasync {}", self.file.display()))?;
            if !said {
                say("written")?;
                said = true;
            }
            thread::sleep(Duration::from_millis(self.every_ms));
        }
    }
}

fn nameless(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let file = file.with_context(|| format!("make {}", path.display()))?;
    std::fs::remove_file(path).with_context(|| format!("remove the name {}", path.display()))?;
    Ok(file)
}

const RECORD_BYTES: u64 = 2048;
/// As long as a segment of etcd's log; then from the start.
const SEGMENT_BYTES: u64 = 64 << 20;

/// `fsync`. Each second one line of JSON (the first is its `ready`): what ended in that second, and how long the call
/// that has not ended has been waiting. Of no calls there are no times: null.
#[derive(Debug, Args)]
pub(super) struct Fsync {
    /// A folder on the file system in question. Its file has no name: nothing is left behind.
    #[arg(long)]
    dir: PathBuf,
}

#[derive(Debug, Default, Serialize)]
struct Second {
    count: usize,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
    waiting_ms: Option<f64>,
}

#[derive(Debug, Default)]
struct Calls {
    ended: Vec<Duration>,
    began: Option<Instant>,
    failed: Option<std::io::Error>,
}

impl Fsync {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        let path = self.dir.join(format!("hurt-fsync-{}", std::process::id()));
        let file = nameless(&path)?;
        let calls = Arc::new(Mutex::new(Calls::default()));
        let writer = calls.clone();
        // A thread of its own: the lines come while the disk hangs, too.
        thread::Builder::new().spawn(move || append(&file, &writer)).context("make a thread")?;
        while !end.within(Duration::from_secs(1))? {
            let (ended, waiting) = {
                let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(error) = calls.failed.take() {
                    return Err(error).with_context(|| format!("write and fdatasync {}", path.display()));
                }
                (std::mem::take(&mut calls.ended), calls.began.map(|began| began.elapsed()))
            };
            say(&serde_json::to_string(&second(ended, waiting))?)?;
        }
        Ok(())
    }
}

fn append(file: &File, calls: &Mutex<Calls>) {
    let record = [b'e'; RECORD_BYTES as usize];
    let mut at = 0;
    loop {
        let began = Instant::now();
        calls.lock().unwrap_or_else(PoisonError::into_inner).began = Some(began);
        let done = file.write_all_at(&record, at).and_then(|()| file.sync_data());
        let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.began = None;
        if let Err(error) = done {
            calls.failed = Some(error);
            return;
        }
        calls.ended.push(began.elapsed());
        at = (at + RECORD_BYTES) % SEGMENT_BYTES;
    }
}

fn second(mut ended: Vec<Duration>, waiting: Option<Duration>) -> Second {
    ended.sort();
    let millis = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    // The nearest rank: the smallest that so many percent are not above.
    let percentile = |percent: usize| {
        let rank = (ended.len() * percent).div_ceil(100);
        ended.get(rank.checked_sub(1)?).copied().map(millis)
    };
    Second {
        count: ended.len(),
        p50_ms: percentile(50),
        p99_ms: percentile(99),
        max_ms: percentile(100),
        waiting_ms: waiting.map(millis),
    }
}

/// `flock`. Waits for it where another has it.
#[derive(Debug, Args)]
pub(super) struct Lock {
    /// Is made where it is missing. It is left there.
    file: PathBuf,
}

impl Lock {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        let words = || format!("lock {}", self.file.display());
        let open = OpenOptions::new().write(true).create(true).truncate(false).open(&self.file);
        let mut file = open.with_context(words)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(_held) => {
                    say("ready")?;
                    return end.wait();
                }
                Err((back, Errno::EWOULDBLOCK)) => file = back,
                Err((_, error)) => return Err(error).with_context(words),
            }
            if end.within(Duration::from_millis(50))? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_percentiles_are_of_its_calls_and_of_none_there_are_none() {
        let calls: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        let told = serde_json::to_value(second(calls, None)).unwrap();
        let expected = serde_json::json!({
            "count": 200, "p50_ms": 100.0, "p99_ms": 198.0, "max_ms": 200.0, "waiting_ms": null
        });
        assert_eq!(told, expected);
        let told = serde_json::to_value(second(Vec::new(), Some(Duration::from_millis(2500)))).unwrap();
        let expected = serde_json::json!({
            "count": 0, "p50_ms": null, "p99_ms": null, "max_ms": null, "waiting_ms": 2500.0
        });
        assert_eq!(told, expected);
    }
}
