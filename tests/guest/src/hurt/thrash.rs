//! File pages that are read, evicted and read again.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, ensure};
use clap::Args;

use super::end::End;
use super::memory::{Held, Noise, PAGE_BYTES, Random};
use super::say;

/// `thrash`. The kernel calls a wait for a page a stall of memory where the page was active when it was evicted: so the
/// file is to be larger than the memory that `--anon-mib` leaves, but not many times as large.
#[derive(Debug, Args)]
pub(super) struct Thrash {
    /// Is made where it is missing or shorter. It is left there.
    #[arg(long)]
    file: PathBuf,
    /// How much of it is read.
    #[arg(long)]
    mib: u64,
    /// Anonymous memory that is held beside it.
    #[arg(long, default_value_t = 0)]
    anon_mib: u64,
    /// How many read at once.
    #[arg(long, default_value_t = 4)]
    threads: u64,
}

impl Thrash {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        ensure!(self.mib > 0 && self.threads > 0, "--mib and --threads are at least 1");
        if !long_enough(&self.file, self.mib) && !write(&self.file, self.mib, end)? {
            return Ok(());
        }
        let mut held = Held::default();
        for _ in 0..self.anon_mib {
            held.grow()?;
            if end.here()? {
                return Ok(());
            }
        }
        let pages = self.mib * ((1 << 20) / PAGE_BYTES as u64);
        for number in 0..self.threads {
            let path = self.file.clone();
            let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            thread::Builder::new()
                .spawn(move || read(&file, &path, pages, number))
                .context("make a thread")?;
        }
        say("ready")?;
        // The threads end with the process.
        end.wait()
    }
}

fn long_enough(path: &Path, mib: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.len() >> 20 >= mib)
}

/// False: the end came first.
fn write(path: &Path, mib: u64, end: &End) -> anyhow::Result<bool> {
    let words = || format!("write {} ({mib} MiB)", path.display());
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).open(path).with_context(words)?;
    let mut noise = Noise::default();
    for _ in 0..mib {
        for _ in 0..(1 << 20) / PAGE_BYTES {
            file.write_all(noise.page()).with_context(words)?;
        }
        if end.here()? {
            return Ok(false);
        }
    }
    // Dirty pages would be written, not just dropped.
    file.sync_all().with_context(words)?;
    Ok(true)
}

fn read(file: &File, path: &Path, pages: u64, number: u64) {
    let (mut random, mut buffer) = (Random::new(number), [0; PAGE_BYTES]);
    loop {
        let page = random.next() % pages;
        if let Err(error) = file.read_exact_at(&mut buffer, page * PAGE_BYTES as u64) {
            eprintln!("hurt: read page {page} of {}: {error}", path.display());
            return;
        }
    }
}
