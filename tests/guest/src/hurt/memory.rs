//! Anonymous memory that is really taken.

use std::hint::black_box;

use anyhow::Context;
use clap::Args;

use super::end::{End, Pace};
use super::say;

pub(super) const PAGE_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 1 << 20;

/// `memory`.
#[derive(Debug, Args)]
pub(super) struct Memory {
    /// How much.
    #[arg(long)]
    mib: usize,
    /// How fast it grows. As fast as it can without it.
    #[arg(long, default_value_t = 0)]
    rate_mib_per_second: u64,
    /// Writes to each page again and again, so that none is cold.
    #[arg(long)]
    keep_touching: bool,
    /// Says `ready` before the first page, not after the last: for memory that is never all there.
    #[arg(long)]
    ready_first: bool,
}

impl Memory {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        if self.ready_first {
            say("ready")?;
        }
        let pace = Pace::new(self.rate_mib_per_second);
        let mut held = Held::default();
        for done in 1..=self.mib {
            held.grow()?;
            if end.within(pace.wait_after(u64::try_from(done)?))? {
                return Ok(());
            }
        }
        if !self.ready_first {
            say("ready")?;
        }
        if !self.keep_touching || self.mib == 0 {
            return end.wait();
        }
        loop {
            for chunk in &mut held.chunks {
                touch(chunk);
                if end.here()? {
                    return Ok(());
                }
            }
        }
    }
}

/// Memory whose pages were all written, each with other noise: neither zram nor KSM makes it smaller.
#[derive(Debug, Default)]
pub(super) struct Held {
    chunks: Vec<Vec<u8>>,
    noise: Noise,
}

impl Held {
    /// One MiB more.
    pub(super) fn grow(&mut self) -> anyhow::Result<()> {
        let mut chunk = Vec::new();
        chunk
            .try_reserve_exact(CHUNK_BYTES)
            .with_context(|| format!("take more than {} MiB", self.chunks.len()))?;
        while chunk.len() < CHUNK_BYTES {
            chunk.extend_from_slice(self.noise.page());
        }
        self.chunks.push(black_box(chunk));
        Ok(())
    }
}

fn touch(chunk: &mut [u8]) {
    for page in chunk.chunks_exact_mut(PAGE_BYTES) {
        if let Some(byte) = page.last_mut() {
            *byte = byte.wrapping_add(1);
        }
    }
    black_box(chunk);
}

/// Pages of noise, no two alike. One page's noise is made once; a number at its head makes the difference, which
/// costs little where the processor is emulated.
#[derive(Debug)]
pub(super) struct Noise {
    page: [u8; PAGE_BYTES],
    number: u64,
}

impl Default for Noise {
    fn default() -> Noise {
        let mut page = [0; PAGE_BYTES];
        let mut random = Random::new(0);
        for word in page.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        Noise { page, number: 0 }
    }
}

impl Noise {
    pub(super) fn page(&mut self) -> &[u8; PAGE_BYTES] {
        self.number += 1;
        if let Some(head) = self.page.first_chunk_mut() {
            *head = self.number.to_le_bytes();
        }
        &self.page
    }
}

/// xorshift64: noise enough for what is only to be irregular.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    /// Another series for each number and process.
    pub(super) fn new(number: u64) -> Random {
        let seed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(std::process::id());
        Random(seed.max(1))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pages_are_alike_and_none_is_regular() {
        let mut held = Held::default();
        held.grow().unwrap();
        held.grow().unwrap();
        let pages: std::collections::HashSet<&[u8]> =
            held.chunks.iter().flat_map(|chunk| chunk.chunks(PAGE_BYTES)).collect();
        assert_eq!(pages.len(), 2 * CHUNK_BYTES / PAGE_BYTES);
        let page = held.chunks[1].last_chunk::<PAGE_BYTES>().unwrap();
        let words: std::collections::HashSet<&[u8]> = page.chunks(4).collect();
        assert!(words.len() > 1000, "{} different words of 1024", words.len());
    }
}
