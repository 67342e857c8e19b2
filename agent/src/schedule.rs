//! Each collector on its own thread, on its own cadence.
//!
//! A thread a collector is what makes a hung read cost only itself: there is one in flight by construction, and the
//! board sees its age. Threads also go on reading when the API's runtime is busy. A stack that is never used deep
//! costs a few pages.
//!
//! Their priority is the usual one. `nice` orders a thread among those of its own cgroup alone, so in a pod it would
//! help the agent against nobody but itself: what counts there is the pod's CPU request (`cpu.weight`). A real-time
//! policy would count, and a defect of ours would then starve the node; threads in D, the usual high load, take no
//! processor from anybody.

use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nodewhy_clock::Clock;
use nodewhy_proto::Outcome;

use crate::board::Board;
use crate::collector::{Collect, Running, Step};
use crate::host::Host;
use crate::thresholds::Thresholds;
use crate::thresholds::follow::SharedThresholds;

/// A source that is always readable may not turn its collector into a busy loop.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// What is absent is looked for again no sooner: kubelet, runtime and CNI each search the node for it. What they say
/// of a node that has none of them may be this old, and no more.
const ABSENT_EVERY: Duration = Duration::from_secs(5);
/// A collector's code needs little; what hangs in the kernel needs none.
pub(crate) const STACK_BYTES: usize = 512 * 1024;

/// The collectors' threads. Dropped, they stop after the read that they are in.
pub struct Schedule {
    stop: Arc<EventFd>,
}

impl Schedule {
    /// Starts a thread for every collector that is switched on.
    ///
    /// # Errors
    /// The kernel gives no thread or no descriptor.
    pub fn start(
        board: &Arc<Board>,
        host: &Host,
        thresholds: &SharedThresholds,
    ) -> std::io::Result<Schedule> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        for collector in board.enabled() {
            let (board, host, thresholds) = (board.clone(), host.clone(), thresholds.clone());
            let stop = stop.clone();
            // A thread that hangs in the kernel can't be joined: none is.
            std::thread::Builder::new()
                .name(format!("c-{}", collector.name()))
                .stack_size(STACK_BYTES)
                .spawn(move || run(collector, &board, &host, &thresholds, &stop))?;
        }
        Ok(Schedule { stop })
    }
}

impl Drop for Schedule {
    fn drop(&mut self) {
        if let Err(error) = self.stop.write(1) {
            tracing::warn!(%error, "the collectors could not be told to stop; they end with the process");
        }
    }
}

fn run(
    collector: &'static dyn Collect,
    board: &Board,
    host: &Host,
    thresholds: &SharedThresholds,
    stop: &EventFd,
) {
    let mut running = collector.start();
    let clock = board.clock().clone();
    let mut due = clock.since_boot();
    board.plan(collector.name(), due, collector.every());
    loop {
        board.begin(collector.name());
        let limits = thresholds.read().unwrap_or_else(PoisonError::into_inner).clone();
        let step = guarded(running.as_mut(), host, &limits);
        let every = pace(collector.every(), &step.outcome);
        let now = board.finish(collector.name(), step);
        let next = next_due(due, now, every);
        board.plan(collector.name(), next, every);
        if !wait(running.wake(), stop.as_fd(), next.saturating_sub(clock.since_boot()), &clock) {
            return;
        }
        // A read that was woken early leaves the cadence as it is.
        due = if clock.since_boot() >= next { next } else { next.saturating_sub(every) };
    }
}

/// Time to the next read after one that went so.
fn pace(every: Duration, outcome: &Outcome) -> Duration {
    match outcome {
        Outcome::Absent { .. } => every.max(ABSENT_EVERY),
        _ => every,
    }
}

/// The next tick after `now`, on the grid that `due` stands on: ticks that went by unused are not made up for, so
/// that what hung for long is followed by no burst.
fn next_due(due: Duration, now: Duration, every: Duration) -> Duration {
    let behind = now.saturating_sub(due);
    let ticks = behind.as_nanos() / every.as_nanos().max(1);
    let missed = u32::try_from(ticks).unwrap_or(u32::MAX);
    due + every.saturating_mul(missed.saturating_add(1))
}

/// A panic is a defect; it may cost one collector one reading, never the black box.
fn guarded(running: &mut dyn Running, host: &Host, thresholds: &Thresholds) -> Step {
    match catch_unwind(AssertUnwindSafe(|| running.step(host, thresholds))) {
        Ok(step) => step,
        Err(panic) => {
            running.close();
            let text = panic_text(panic.as_ref());
            let error = format!("a defect in nodewhy: the collector panicked: {text}. Please report it");
            Step { outcome: Outcome::Failed { error }, reading: None, noticed: None }
        }
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

/// Waits for the next tick, or for the source to wake; false: stop. A quiet second costs one wake-up of the thread.
fn wait(wake: Option<BorrowedFd<'_>>, stop: BorrowedFd<'_>, pause: Duration, clock: &Clock) -> bool {
    let began = clock.since_boot();
    let mut fds = vec![PollFd::new(stop, PollFlags::POLLIN)];
    fds.extend(wake.map(|wake| PollFd::new(wake, PollFlags::POLLIN | PollFlags::POLLPRI)));
    // EINTR only makes this tick early.
    if poll(&mut fds, timeout(pause)).is_ok() && is_ready(fds.first()) {
        return false;
    }
    // Whatever woke at once waits for the shortest pause.
    let left = pause.min(SHORTEST_PAUSE).saturating_sub(clock.since_boot().saturating_sub(began));
    let mut stopped = [PollFd::new(stop, PollFlags::POLLIN)];
    left.is_zero() || poll(&mut stopped, timeout(left)).is_err() || !is_ready(stopped.first())
}

fn is_ready(fd: Option<&PollFd<'_>>) -> bool {
    fd.and_then(PollFd::any).unwrap_or(false)
}

fn timeout(pause: Duration) -> PollTimeout {
    // Rounded up: a pause of 0.4 ms may not become a busy loop.
    PollTimeout::try_from(pause + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn ticks_stay_on_their_grid_and_missed_ones_are_not_made_up_for() {
        let at = Duration::from_millis;
        assert_eq!(next_due(at(1000), at(1010), SECOND), at(2000));
        assert_eq!(next_due(at(1000), at(1999), SECOND), at(2000));
        assert_eq!(next_due(at(1000), at(2000), SECOND), at(3000));
        assert_eq!(next_due(at(1000), at(5400), SECOND), at(6000));
        assert_eq!(next_due(at(1000), at(900), SECOND), at(2000));
    }

    #[test]
    fn what_is_absent_is_looked_for_seldom_and_what_failed_is_not() {
        let absent = Outcome::Absent { why: "none here".to_owned() };
        assert_eq!(pace(SECOND, &absent), ABSENT_EVERY);
        assert_eq!(pace(60 * SECOND, &absent), 60 * SECOND);
        assert_eq!(pace(SECOND, &Outcome::Read), SECOND);
        assert_eq!(pace(SECOND, &Outcome::Failed { error: "EIO".to_owned() }), SECOND);
    }

    #[test]
    fn waiting_ends_at_the_tick_at_a_wake_and_at_a_stop() {
        let event = || EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
        let (wake, stop) = (event(), event());
        let clock = nodewhy_clock::Clock::system();
        let before = clock.since_boot();
        assert!(wait(Some(wake.as_fd()), stop.as_fd(), Duration::from_millis(30), &clock));
        assert!(clock.since_boot() - before >= Duration::from_millis(30));
        wake.write(1).unwrap();
        let before = clock.since_boot();
        assert!(wait(Some(wake.as_fd()), stop.as_fd(), Duration::from_secs(60), &clock));
        assert!(clock.since_boot() - before < Duration::from_secs(30));
        stop.write(1).unwrap();
        assert!(!wait(Some(wake.as_fd()), stop.as_fd(), Duration::from_secs(60), &clock));
    }
}
