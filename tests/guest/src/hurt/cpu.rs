//! Busy processors.

use std::hint::black_box;
use std::thread;

use anyhow::Context;
use clap::Args;

use super::end::End;
use super::say;

/// `cpu`.
#[derive(Debug, Args)]
pub(super) struct Cpu {
    /// How many threads are never idle.
    #[arg(long)]
    threads: u32,
}

impl Cpu {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        for number in 0..self.threads {
            let spin = move || {
                let mut count = u64::from(number);
                loop {
                    count = black_box(count.wrapping_mul(3));
                }
            };
            thread::Builder::new().spawn(spin).context("make a thread")?;
        }
        say("ready")?;
        end.wait()
    }
}
