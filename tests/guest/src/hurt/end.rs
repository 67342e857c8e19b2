//! When it is over: at SIGTERM, at SIGINT, or when the time is up.

use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::AsFd;

/// The end of a harm. The signals stay blocked: they are looked at here alone.
#[derive(Debug)]
pub(super) struct End {
    signals: SignalFd,
    deadline: Instant,
}

impl End {
    pub(super) fn after(seconds: u64) -> anyhow::Result<End> {
        let deadline = Instant::now()
            .checked_add(Duration::from_secs(seconds))
            .with_context(|| format!("--seconds {seconds} is too long"))?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        mask.thread_block().context("block SIGTERM and SIGINT")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("make a signalfd")?;
        Ok(End { signals, deadline })
    }

    /// Waits so long at most, and says whether it is over. It stays over.
    pub(super) fn within(&self, wait: Duration) -> anyhow::Result<bool> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(true);
        }
        let timeout = PollTimeout::try_from(wait.min(left)).unwrap_or(PollTimeout::MAX);
        // The signal is not taken out of the signalfd: asked again, it is still there.
        let came = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], timeout)
            .context("wait for a signal")?;
        Ok(came > 0 || Instant::now() >= self.deadline)
    }

    pub(super) fn here(&self) -> anyhow::Result<bool> {
        self.within(Duration::ZERO)
    }

    pub(super) fn wait(&self) -> anyhow::Result<()> {
        while !self.within(Duration::from_secs(3600))? {}
        Ok(())
    }
}

/// Keeps to a rate: `pace` says how long to wait before the next, where so much is done since the start.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    per_second: u64,
}

impl Pace {
    /// 0: as fast as it can.
    pub(super) fn new(per_second: u64) -> Pace {
        Pace { began: Instant::now(), per_second }
    }

    pub(super) fn wait_after(&self, done: u64) -> Duration {
        let Some(seconds) = done.checked_div(self.per_second) else { return Duration::ZERO };
        let nanos = (done % self.per_second).saturating_mul(1_000_000_000) / self.per_second;
        (Duration::from_secs(seconds) + Duration::from_nanos(nanos)).saturating_sub(self.began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_waits_for_what_was_done_too_early_and_none_waits_never() {
        let pace = Pace::new(10);
        let wait = pace.wait_after(25);
        assert!(wait > Duration::from_secs(2) && wait <= Duration::from_millis(2500), "{wait:?}");
        assert_eq!(pace.wait_after(0), Duration::ZERO);
        assert_eq!(Pace::new(0).wait_after(1_000_000), Duration::ZERO);
    }
}
