//! When a record was written, by the node's clocks.
//!
//! Records carry the scheduler's clock: it starts near zero at boot, stands still while the machine is suspended,
//! and drifts from CLOCK_MONOTONIC by seconds after weeks. So the offset between the two is measured on records
//! that are read as they come, and every record is converted with the smallest: while memory runs out, a reader can be
//! most of a second late. A first record that is read late is told as late as it was read. A line from before a
//! suspension comes out late by the suspended time.

use std::time::Duration;

use jiff::SignedDuration;
use nodewhy_clock::Stamp;

use super::record::Id;

/// A record that seems older than this when it is read at once was read late: the node starves.
const LATE: Duration = Duration::from_secs(1);
/// How fast the scheduler's clock may drift: more than the seconds in weeks that were seen.
const DRIFT: f64 = 20e-6;

/// An instant on all three clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) stamp: Stamp,
    /// CLOCK_MONOTONIC.
    pub(super) monotonic: Duration,
}

/// Which record, and when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Which.
    pub(super) id: Id,
    /// The kernel's stamp, in microseconds: for all that is measured between records.
    pub(super) usec: u64,
    /// The node's clocks.
    pub(super) at: Stamp,
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct KernelClock {
    measured: Option<Measured>,
    /// The stamps are this machine's. Those of a recording are another's: its records come when they are read.
    own: bool,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    /// CLOCK_MONOTONIC minus the kernel's stamp, in seconds.
    offset_seconds: f64,
    at: Duration,
}

impl KernelClock {
    /// Nothing is measured yet. `own`: the stamps are this machine's kernel's.
    pub(super) fn new(own: bool) -> KernelClock {
        KernelClock { measured: None, own }
    }

    /// When the record of this kernel stamp was written. `live`: the log had been read to its end before it came.
    pub(super) fn place(&mut self, usec: u64, now: Now, live: bool) -> Stamp {
        let apart = now.monotonic.as_secs_f64() - Duration::from_micros(usec).as_secs_f64();
        if live {
            let allowed = self.measured.filter(|_| self.own).map(|measured| {
                let passed = now.monotonic.saturating_sub(measured.at);
                measured.offset_seconds + passed.as_secs_f64() * DRIFT
            });
            if allowed.is_none_or(|allowed| apart <= allowed + LATE.as_secs_f64()) {
                // The smallest distance has the least delay of reading in it.
                let offset_seconds = allowed.map_or(apart, |allowed| allowed.min(apart));
                self.measured = Some(Measured { offset_seconds, at: now.monotonic });
            }
        }
        before(now.stamp, apart - self.offset_seconds().unwrap_or(0.0))
    }

    /// When the record was written that came between two looks at the log (CLOCK_MONOTONIC `since`, and now). The
    /// offset that was found fits for as long as it puts the record between the two; else it is moved just as far
    /// as it must be. So a second between looks makes no record a second late.
    pub(super) fn place_between(&mut self, usec: u64, since: Duration, now: Now) -> Stamp {
        let stamp = Duration::from_micros(usec).as_secs_f64();
        let (least, most) = (since.as_secs_f64() - stamp, now.monotonic.as_secs_f64() - stamp);
        let offset_seconds = self.offset_seconds().unwrap_or(0.0).max(least).min(most);
        self.measured = Some(Measured { offset_seconds, at: now.monotonic });
        before(now.stamp, most - offset_seconds)
    }

    /// CLOCK_MONOTONIC minus the kernel's clock, once it was measured.
    pub(super) fn offset_seconds(&self) -> Option<f64> {
        self.measured.map(|measured| measured.offset_seconds)
    }

    /// The kernel's clock now, in microseconds.
    pub(super) fn usec(&self, now: Now) -> u64 {
        let seconds = now.monotonic.as_secs_f64() - self.offset_seconds().unwrap_or(0.0);
        Duration::try_from_secs_f64(seconds)
            .ok()
            .and_then(|now| u64::try_from(now.as_micros()).ok())
            .unwrap_or(0)
    }
}

/// The stamp of so many seconds before this one.
pub(super) fn before(now: Stamp, seconds: f64) -> Stamp {
    let ago = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::ZERO);
    let wall = SignedDuration::try_from(ago).ok().and_then(|ago| now.wall.checked_sub(ago).ok());
    Stamp { wall: wall.unwrap_or(now.wall), boot: now.boot.saturating_sub(ago) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn now(seconds: f64) -> Now {
        let wall = Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_secs_f64(seconds);
        let monotonic = Duration::from_secs_f64(seconds);
        // Suspended for 1000 s since boot.
        Now { stamp: Stamp { wall, boot: monotonic + Duration::from_secs(1000) }, monotonic }
    }

    fn boot(stamp: Stamp) -> f64 {
        stamp.boot.as_secs_f64() - 1000.0
    }

    #[test]
    fn an_old_record_is_converted_and_the_first_live_one_takes_the_time_of_reading() {
        let mut clock = KernelClock::new(true);
        assert!((boot(clock.place(40_000_000, now(100.0), false)) - 40.0).abs() < 1e-6);
        let live = now(100.0);
        assert_eq!(clock.place(97_500_000, live, true), live.stamp);
        assert!((clock.offset_seconds().unwrap() - 2.5).abs() < 1e-6);
        // Older ones (after an overrun) are converted with what was measured.
        let old = clock.place(97_500_000, now(110.0), false);
        assert!((boot(old) - 100.0).abs() < 1e-6);
        assert!((old.wall.duration_since(now(100.0).stamp.wall)).abs() < SignedDuration::from_micros(2));
        assert_eq!(clock.usec(now(110.0)), 107_500_000);
    }

    #[test]
    fn a_record_that_a_starved_node_reads_late_keeps_the_kernels_time() {
        let mut clock = KernelClock::new(true);
        clock.place(100_000_000, now(100.0), true);
        let late = clock.place(150_000_000, now(187.0), true);
        assert!((boot(late) - 150.0).abs() < 0.01, "{}", boot(late));
    }

    // Seen on Linux 6.1.192 (emulated, 1 GiB) as the node's memory ran out: three kills' lines, each with the
    // CLOCK_MONOTONIC of its reading.
    #[test]
    fn kills_keep_the_kernels_order_and_times_though_each_was_read_late() {
        let mut clock = KernelClock::new(true);
        clock.place(110_027_931, now(110.458_753), true);
        let second = clock.place(110_127_878, now(110.146_631), true);
        assert_eq!(clock.offset_seconds().map(|offset| (offset * 1e6).round()), Some(18_753.0));
        let third = clock.place(111_324_770, now(111.538_950), true);
        assert!((boot(second) - 110.146_631).abs() < 1e-6, "{}", boot(second));
        assert!((boot(third) - 111.343_523).abs() < 1e-4, "{}", boot(third));
    }

    #[test]
    fn drift_is_followed_and_is_not_taken_for_lateness() {
        let mut clock = KernelClock::new(true);
        clock.place(100_000_000, now(100.0), true);
        // Two weeks later the scheduler's clock is 5 s behind.
        let live = now(1_209_705.0);
        assert_eq!(clock.place(1_209_700_000_000, live, true), live.stamp);
        assert!((clock.offset_seconds().unwrap() - 5.0).abs() < 1e-6);
    }

    #[test]
    fn between_two_looks_a_record_keeps_the_kernels_time_and_drift_is_followed() {
        let mut clock = KernelClock::new(true);
        let second = Duration::from_secs(1);
        let mut look = |usec: u64, seconds: f64| {
            boot(clock.place_between(usec, Duration::from_secs_f64(seconds) - second, now(seconds)))
        };
        // The clocks agree: read 0.7 s late, and a starved node's 86 s late are told by the kernel's time.
        assert!((look(99_300_000, 100.0) - 99.3).abs() < 1e-6);
        assert!((look(100_900_000, 101.0) - 100.9).abs() < 1e-6);
        // Weeks later the kernel's clock is 5 s behind: never more wrong than the time between two looks.
        for tick in 0..100u32 {
            let true_time = 1_209_704.5 + f64::from(tick);
            let usec = Duration::from_secs_f64(true_time - 5.0).as_micros() as u64;
            assert!((look(usec, 1_209_705.0 + f64::from(tick)) - true_time).abs() <= 1.0);
        }
        assert!((clock.offset_seconds().unwrap() - 5.0).abs() <= 1.0);
        // Late reading of a starved node.
        let late = clock.place_between(1_300_000_000_000, Duration::from_secs(1_300_000), now(1_300_087.0));
        assert!((boot(late) - 1_300_005.0).abs() <= 1.0);
    }

    #[test]
    fn a_recordings_records_come_when_they_are_read() {
        let mut clock = KernelClock::new(false);
        for (seconds, usec) in [(100.0, 3_475_733_824), (101.0, 251_089_285), (102.0, 900_000_000)] {
            assert_eq!(clock.place(usec, now(seconds), true), now(seconds).stamp);
        }
    }

    #[test]
    fn a_stamp_from_the_future_is_now() {
        let mut clock = KernelClock::new(true);
        assert_eq!(clock.place(u64::MAX, now(5.0), false), now(5.0).stamp);
        assert_eq!(clock.usec(now(5.0)), 5_000_000);
    }
}
