//! Rates between two readings of a cgroup, and the share of throttled periods.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use super::group::Group;
use super::parse::Cpu;

/// A kubelet's share is taken of at least so long.
pub(super) const WINDOW: Duration = Duration::from_secs(30);
/// And no sample is kept for longer.
const KEPT: Duration = Duration::from_secs(60);

/// What a cgroup did between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lately {
    /// Time between them.
    pub for_seconds: f64,
    /// Processors used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Periods in which its quota was used up, of those in which it wanted to run. Absent without a quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_percent: Option<f64>,
    /// Time in which it was held up by its quota, over all processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_seconds: Option<f64>,
}

pub(super) fn lately(before: &Group, now: &Group, passed: Duration) -> Option<Lately> {
    if passed < Duration::from_secs(1) {
        return None;
    }
    let (before, now) = (before.cpu?, now.cpu?);
    let used = now.usage_seconds? - before.usage_seconds?;
    let share = share(&before, &now);
    Some(Lately {
        for_seconds: passed.as_secs_f64(),
        // A counter that fell back is another cgroup's of the same name.
        cpus: (used >= 0.0).then(|| used / passed.as_secs_f64()),
        throttled_percent: share.map(|share| share.percent),
        throttled_seconds: share.map(|share| share.throttled_seconds),
    })
}

/// Throttling over a time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Periods in which the quota was used up, of `periods`.
    pub percent: f64,
    /// Periods in which a task wanted to run.
    pub periods: u64,
    /// Those in which the quota was used up.
    pub throttled_periods: u64,
    /// Time in which it was, over all processors.
    pub throttled_seconds: f64,
}

/// `None`: no period passed, so there is no share; or a counter is missing or fell back.
fn share(before: &Cpu, now: &Cpu) -> Option<Share> {
    let periods = now.periods?.checked_sub(before.periods?).filter(|periods| *periods > 0)?;
    let throttled_periods = now.throttled_periods?.checked_sub(before.throttled_periods?)?;
    let throttled_seconds = now.throttled_seconds? - before.throttled_seconds?;
    (throttled_seconds >= 0.0).then(|| Share {
        percent: throttled_periods as f64 * 100.0 / periods as f64,
        periods,
        throttled_periods,
        throttled_seconds,
    })
}

/// The counters of the last minute.
#[derive(Debug, Default)]
pub(super) struct Samples(VecDeque<(Duration, Cpu)>);

impl Samples {
    /// Takes a sample in, and gives the share since the newest one that is [`WINDOW`] old, with that time.
    pub(super) fn take(&mut self, at: Duration, cpu: Cpu) -> Option<(Duration, Share)> {
        self.0.retain(|(taken, _)| at.saturating_sub(*taken) <= KEPT);
        self.0.push_back((at, cpu));
        let old = |taken: Duration| at.saturating_sub(taken) >= WINDOW;
        let (taken, before) = self.0.iter().rev().find(|(taken, _)| old(*taken))?;
        Some((at.saturating_sub(*taken), share(before, &cpu)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(periods: u64, throttled: u64) -> Cpu {
        Cpu {
            usage_seconds: Some(periods as f64 / 100.0),
            periods: Some(periods),
            throttled_periods: Some(throttled),
            throttled_seconds: Some(throttled as f64 / 10.0),
        }
    }

    #[test]
    fn a_share_needs_half_a_minute_and_a_period() {
        let mut samples = Samples::default();
        let at = Duration::from_secs;
        for second in 0..6 {
            assert_eq!(samples.take(at(second * 5), cpu(100 + second * 50, second * 40)), None, "{second}");
        }
        let (passed, share) = samples.take(at(30), cpu(400, 240)).unwrap();
        assert_eq!((passed, share.percent, share.periods), (at(30), 80.0, 300));
        // 35 s later nothing more ran: no period, no share, and no 0 %.
        samples.take(at(60), cpu(400, 240));
        assert_eq!(samples.take(at(90), cpu(400, 240)), None);
        assert!(samples.0.len() < 15);
    }

    #[test]
    fn counters_that_fell_back_or_are_missing_have_no_share() {
        assert_eq!(share(&cpu(100, 10), &cpu(50, 5)), None);
        assert_eq!(share(&Cpu::default(), &cpu(50, 5)), None);
        assert_eq!(share(&cpu(10, 10), &cpu(50, 5)), None);
    }
}
