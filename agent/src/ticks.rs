//! The agent's own punctuality: which ticks of a collector's grid were on time, and by how much the others were late.
//!
//! A tick is served by the first read that ends at or after its due time, if that read began no sooner than
//! [`ON_TIME`] before it: what hung for ten seconds does not serve the tick that it happens to end beside. A tick's
//! delay is the time from its due until that end, so a read that began in time and took 2 s is 2 s late, and a tick
//! that went by unused is late until the next read of its collector. Reads that a source woke are on no grid.
//!
//! Due times stand on the clock of the time since boot, so a step of the wall clock makes nothing late. A suspended
//! machine's clock goes on (CLOCK_BOOTTIME): the ticks that it slept through are late ones. A virtual machine that its
//! hypervisor froze has a clock that stood still: no tick was due, and none is late; the agent sees the freeze only as
//! a step of the wall clock, when somebody sets that right.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nodewhy_clock::Stamp;
use nodewhy_proto::{LateTick, Ticks as Told};

/// A tick whose read ended within this is on time: a quarter of the usual cadence of a second, so that two readings
/// that follow each other are never closer than half a second nor further apart than one and a half.
pub const ON_TIME: Duration = Duration::from_millis(250);
/// So many late ticks are kept by name; the counters count them all.
const NEWEST: usize = 64;

/// Ticks `every` apart, from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grid {
    first: Duration,
    every: Duration,
}

/// One collector's ticks so far. Pure; time is an argument.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ticks {
    /// Ticks that were served.
    total: u64,
    /// Those of them that were late.
    late: u64,
    /// Ticks that had no read of their own.
    missed: u64,
    longest: Option<Duration>,
    newest: VecDeque<Late>,
    /// Went by unused and wait for a read; they end before this time.
    unused: Option<(Grid, Duration)>,
    /// What is due next.
    next: Option<Grid>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Late {
    due: Duration,
    wall: Timestamp,
    delay: Duration,
    is_over: bool,
}

impl Ticks {
    /// From here on a tick is due at `first`, and every `every` after it. What was due by an earlier plan and has not
    /// come by then is no longer due.
    pub fn plan(&mut self, first: Duration, every: Duration) {
        self.next = Some(Grid { first, every });
    }

    /// A read that began then has ended now: serves what was due.
    pub fn ended(&mut self, began: Duration, now: Stamp) {
        // They were due before this read began.
        if let Some((grid, end)) = self.unused.take() {
            self.serve(grid, end, now, true);
        }
        let Some(grid) = self.next else { return };
        let past = now.boot + Duration::from_nanos(1);
        let served = past.min(began + ON_TIME + Duration::from_nanos(1));
        let rest = grid.from(served);
        self.serve(grid, served, now, true);
        // One of them is this read's own.
        self.missed += grid.before(served).saturating_sub(1);
        if rest.first < past {
            self.missed += rest.before(past);
            self.unused = Some((rest, past));
        }
        self.next = Some(grid.from(past));
    }

    /// Ticks that had no read of their own: one was in flight, or this thread was not run.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// As served: a tick that is overdue now counts as late already, whether its read hangs or was never begun.
    pub fn told(&self, now: Stamp) -> Told {
        let mut sofar = self.clone();
        let overdue = now.boot.saturating_sub(ON_TIME);
        if let Some((grid, end)) = self.unused {
            sofar.serve(grid, end.min(overdue), now, false);
        }
        if let Some(grid) = self.next {
            sofar.serve(grid, overdue, now, false);
        }
        Told {
            total: sofar.total,
            late: sofar.late,
            longest_delay_seconds: sofar.longest.map(|delay| delay.as_secs_f64()),
            newest_late: sofar.newest.iter().map(Late::told).collect(),
        }
    }

    /// Counts the ticks of this grid that were due before `end`.
    fn serve(&mut self, grid: Grid, end: Duration, now: Stamp, is_over: bool) {
        let count = grid.before(end);
        if count == 0 {
            return;
        }
        let delay = |due: Duration| now.boot.saturating_sub(due);
        self.total += count;
        self.longest = self.longest.max(Some(delay(grid.first)));
        // Those that are due later are late by less.
        let late = grid.before(end.min(now.boot.saturating_sub(ON_TIME)));
        self.late += late;
        for index in late.saturating_sub(NEWEST as u64)..late {
            let due = grid.tick(index);
            if self.newest.len() == NEWEST {
                self.newest.pop_front();
            }
            let ago = SignedDuration::try_from(delay(due)).unwrap_or(SignedDuration::MAX);
            let wall = now.wall.checked_sub(ago).unwrap_or(Timestamp::MIN);
            self.newest.push_back(Late { due, wall, delay: delay(due), is_over });
        }
    }
}

impl Grid {
    fn tick(self, index: u64) -> Duration {
        self.first + self.every.saturating_mul(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// How many of its ticks are due before `end`.
    fn before(self, end: Duration) -> u64 {
        let Some(behind) = end.checked_sub(self.first).filter(|behind| !behind.is_zero()) else { return 0 };
        u64::try_from(behind.as_nanos().div_ceil(self.every.as_nanos().max(1))).unwrap_or(u64::MAX)
    }

    /// What is left of it from `start` on.
    fn from(self, start: Duration) -> Grid {
        Grid { first: self.tick(self.before(start)), ..self }
    }
}

impl Late {
    fn told(&self) -> LateTick {
        LateTick {
            due: self.wall,
            boot_seconds: self.due.as_secs_f64(),
            delay_seconds: self.delay.as_secs_f64(),
            is_over: self.is_over,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Stamp {
        let wall = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000);
        let boot = Duration::from_millis(millis);
        Stamp { wall: wall + SignedDuration::try_from(boot).unwrap(), boot }
    }

    fn planned() -> Ticks {
        let mut ticks = Ticks::default();
        ticks.plan(at(1000).boot, SECOND);
        ticks
    }

    /// Total, late, and each late one as (due, delay) in milliseconds.
    fn seen(ticks: &Ticks, now: u64) -> (u64, u64, Vec<(u64, u64)>) {
        let told = ticks.told(at(now));
        let millis = |seconds: f64| (seconds * 1000.0).round() as u64;
        let late =
            told.newest_late.iter().map(|tick| (millis(tick.boot_seconds), millis(tick.delay_seconds)));
        (told.total, told.late, late.collect())
    }

    fn read(ticks: &mut Ticks, began: u64, ended: u64) {
        ticks.ended(at(began).boot, at(ended));
    }

    #[test]
    fn a_read_that_ended_in_time_is_on_time() {
        let mut ticks = planned();
        assert_eq!(seen(&ticks, 1200), (0, 0, vec![]), "it may still be in time");
        read(&mut ticks, 1001, 1250);
        read(&mut ticks, 2001, 2251);
        assert_eq!(seen(&ticks, 2300), (2, 1, vec![(2000, 251)]));
        assert_eq!(ticks.told(at(2300)).longest_delay_seconds, Some(0.251));
        let late = &ticks.told(at(2300)).newest_late[0];
        assert_eq!((late.due, late.is_over), (at(2000).wall, true));
        assert_eq!(
            Ticks::default().told(at(9)).longest_delay_seconds,
            None,
            "no tick yet is no delay of zero"
        );
    }

    #[test]
    fn a_hang_is_late_while_it_lasts_and_is_counted_once() {
        let mut ticks = planned();
        // The read of 1000 begins in time and ends at 4010.
        assert_eq!(seen(&ticks, 1251), (1, 1, vec![(1000, 251)]));
        assert!(!ticks.told(at(1251)).newest_late[0].is_over);
        assert_eq!(seen(&ticks, 3300), (3, 3, vec![(1000, 2300), (2000, 1300), (3000, 300)]));
        read(&mut ticks, 1001, 4010);
        assert_eq!(seen(&ticks, 4010), (3, 3, vec![(1000, 3010), (2000, 2010), (3000, 1010)]));
        // What ended beside 4000 had begun long before: that tick waits for a read of its own.
        assert_eq!(ticks.missed(), 3);
        read(&mut ticks, 5001, 5002);
        let all = vec![(1000, 3010), (2000, 3002), (3000, 2002), (4000, 1002)];
        assert_eq!(seen(&ticks, 5002), (5, 4, all));
        assert_eq!(seen(&ticks, 6100).0, 5);
    }

    #[test]
    fn a_woken_read_is_no_tick_and_one_that_spans_a_tick_serves_it() {
        let mut ticks = planned();
        for woken in [1300, 1500, 1800] {
            read(&mut ticks, woken, woken + 1);
        }
        assert_eq!(
            seen(&ticks, 1801),
            (1, 1, vec![(1000, 301)]),
            "the first read served the tick that was due"
        );
        read(&mut ticks, 1990, 2010);
        assert_eq!(seen(&ticks, 2010).0, 2);
        assert_eq!(seen(&ticks, 2990).0, 2, "2000 was served and is not due again");
    }

    #[test]
    fn a_thread_that_was_not_woken_is_seen_before_it_runs() {
        let mut ticks = planned();
        assert_eq!(seen(&ticks, 1900), (1, 1, vec![(1000, 900)]));
        // It ran at last: one read, and no burst, serves the three that were due.
        read(&mut ticks, 3401, 3402);
        assert_eq!(seen(&ticks, 3402), (3, 3, vec![(1000, 2402), (2000, 1402), (3000, 402)]));
        assert_eq!(ticks.missed(), 2);
    }

    #[test]
    fn another_cadence_leaves_nothing_due_that_was_not() {
        let mut ticks = planned();
        read(&mut ticks, 1000, 1001);
        ticks.plan(at(6000).boot, 5 * SECOND);
        assert_eq!(seen(&ticks, 6001), (1, 0, vec![]));
        read(&mut ticks, 6001, 6002);
        assert_eq!(seen(&ticks, 7000), (2, 0, vec![]));
    }

    #[test]
    fn a_machine_that_slept_for_a_day_costs_no_more_than_the_newest() {
        let mut ticks = planned();
        read(&mut ticks, 86_401_000, 86_401_001);
        let (total, late, newest) = seen(&ticks, 86_401_001);
        assert_eq!((total, late, newest.len()), (86_401, 86_400, NEWEST));
        assert_eq!(newest.last(), Some(&(86_400_000, 1001)));
        assert_eq!(ticks.told(at(86_401_001)).longest_delay_seconds, Some(86_400.001));
    }

    proptest! {
        /// However reads fall, every tick is counted once, and no count goes back.
        #[test]
        fn each_tick_is_counted_once(reads in proptest::collection::vec((0u64..3000, 0u64..5000), 1..40)) {
            let mut ticks = planned();
            let (mut now, mut before) = (0, (0, 0));
            for (pause, took) in reads {
                let began = now + pause;
                for look in [began, began + took / 2, began + took] {
                    let told = ticks.told(at(look));
                    prop_assert!(told.total >= before.0 && told.late >= before.1 && told.late <= told.total);
                    before = (told.total, told.late);
                }
                now = began + took;
                read(&mut ticks, began, now);
            }
            // By then each tick was either served or is overdue.
            let told = ticks.told(at(now + 251));
            prop_assert_eq!(told.total, now / 1000);
            prop_assert!(told.newest_late.len() <= NEWEST);
        }
    }
}
