//! The one clock of every nodewhy program: wall time, time since boot, and sleeping.
//!
//! Production uses [`Clock::system`]. A test uses [`Clock::skippable`], which runs as real time does but can be
//! moved ahead (a stretch in which nothing changes need not be waited for) or have its wall clock stepped, as an
//! operator or NTP would. Everything else reads no clock: time is an argument there.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

/// A handle to the time; clones share it.
#[derive(Clone, Debug)]
pub struct Clock {
    shift: Arc<Shift>,
    moved: watch::Receiver<u64>,
}

#[derive(Debug, Default)]
struct Shift {
    /// Added to time since boot and to wall time.
    skipped_nanos: AtomicI64,
    /// Added to wall time alone.
    stepped_nanos: AtomicI64,
}

/// Moves a skippable clock.
#[derive(Debug)]
pub struct Mover {
    shift: Arc<Shift>,
    moved: watch::Sender<u64>,
}

/// One instant on both clocks: the wall clock can be stepped, the other cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Wall time.
    pub wall: Timestamp,
    /// Time since boot, suspended time included.
    pub boot: Duration,
}

impl Clock {
    /// The machine's own clocks.
    pub fn system() -> Clock {
        Clock::skippable().0
    }

    /// The machine's own clocks, and the handle that moves this view of them.
    pub fn skippable() -> (Clock, Mover) {
        let shift = Arc::new(Shift::default());
        let (sender, receiver) = watch::channel(0);
        (Clock { shift: shift.clone(), moved: receiver }, Mover { shift, moved: sender })
    }

    /// Wall time.
    pub fn now(&self) -> Timestamp {
        let shift =
            self.shift.skipped_nanos.load(Ordering::SeqCst) + self.shift.stepped_nanos.load(Ordering::SeqCst);
        let read = clock_gettime(ClockId::CLOCK_REALTIME)
            .ok()
            .and_then(|time| Timestamp::new(time.tv_sec(), i32::try_from(time.tv_nsec()).ok()?).ok());
        // CLOCK_REALTIME cannot fail on Linux; the epoch would show at once that it did.
        let real = read.unwrap_or(Timestamp::UNIX_EPOCH);
        real.checked_add(SignedDuration::from_nanos(shift)).unwrap_or(real)
    }

    /// Time since boot, suspended time included (CLOCK_BOOTTIME). Never goes back, whatever the wall clock does.
    pub fn since_boot(&self) -> Duration {
        let read = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
        let skipped = self.shift.skipped_nanos.load(Ordering::SeqCst);
        read + Duration::from_nanos(u64::try_from(skipped).unwrap_or(0))
    }

    /// Both clocks at once.
    pub fn stamp(&self) -> Stamp {
        Stamp { wall: self.now(), boot: self.since_boot() }
    }

    /// Sleeps until this much time has passed, skipped time included.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.since_boot() + duration).await;
    }

    /// Sleeps until [`Clock::since_boot`] reaches `deadline`.
    pub async fn sleep_until(&self, deadline: Duration) {
        let mut moved = self.moved.clone();
        loop {
            moved.mark_unchanged();
            let Some(left) = deadline.checked_sub(self.since_boot()).filter(|left| !left.is_zero()) else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                change = moved.changed() => if change.is_err() {
                    // Nobody can move this clock any more.
                    tokio::time::sleep(deadline.saturating_sub(self.since_boot())).await;
                },
            }
        }
    }

    /// Runs `work` for `limit` at most, on this clock; `None` when the time was up first.
    pub async fn timeout<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.sleep(limit) => None,
        }
    }
}

impl Mover {
    /// Moves time ahead by `duration`; whoever sleeps on the clock wakes when due.
    pub fn skip(&self, duration: Duration) {
        let nanos = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        self.shift.skipped_nanos.fetch_add(nanos, Ordering::SeqCst);
        self.moved.send_modify(|times| *times += 1);
    }

    /// Steps the wall clock alone, as an operator or NTP would.
    pub fn step_wall(&self, by: SignedDuration) {
        let nanos = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
        self.shift.stepped_nanos.fetch_add(nanos, Ordering::SeqCst);
        self.moved.send_modify(|times| *times += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleeper_wakes_when_time_is_skipped() {
        let (clock, mover) = Clock::skippable();
        let before = clock.stamp();
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(3600)).await }
        });
        tokio::task::yield_now().await;
        mover.skip(Duration::from_secs(3601));
        sleeper.await.unwrap();
        let after = clock.stamp();
        assert!(after.boot - before.boot >= Duration::from_secs(3600));
        assert!(after.wall.duration_since(before.wall) >= SignedDuration::from_secs(3600));
    }

    #[tokio::test]
    async fn a_step_moves_wall_time_alone() {
        let (clock, mover) = Clock::skippable();
        let before = clock.stamp();
        mover.step_wall(SignedDuration::from_secs(-3600));
        let after = clock.stamp();
        assert!(after.wall < before.wall);
        assert!(after.boot >= before.boot && after.boot - before.boot < Duration::from_secs(60));
    }

    #[tokio::test]
    async fn the_system_clock_sleeps_though_nobody_can_move_it() {
        let clock = Clock::system();
        let before = clock.since_boot();
        clock.sleep(Duration::from_millis(20)).await;
        assert!(clock.since_boot() - before >= Duration::from_millis(20));
    }

    #[tokio::test]
    async fn a_timeout_gives_up() {
        let clock = Clock::system();
        assert_eq!(clock.timeout(Duration::from_millis(5), std::future::pending::<()>()).await, None);
        assert_eq!(clock.timeout(Duration::from_secs(60), async { 7 }).await, Some(7));
    }
}
