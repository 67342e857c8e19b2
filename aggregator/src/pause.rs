//! Pauses between tries: they double, are bounded, and have jitter so that a fleet does not try in step.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::Timings;

/// The pauses of one follower.
pub(crate) struct Pauses {
    builder: ExponentialBuilder,
    next: ExponentialBackoff,
    max: Duration,
}

impl Pauses {
    pub(crate) fn new(timings: &Timings) -> Pauses {
        let builder = ExponentialBuilder::new()
            .with_min_delay(timings.backoff_min)
            .with_max_delay(timings.backoff_max)
            .with_jitter()
            .without_max_times();
        Pauses { builder, next: builder.build(), max: timings.backoff_max }
    }

    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        // backon adds the jitter on top of its bound.
        self.next.next().map_or(self.max, |pause| pause.min(self.max))
    }

    /// All is well again: the next failure starts from the shortest pause.
    pub(crate) fn reset(&mut self) {
        self.next = self.builder.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_bound_and_start_over() {
        let timings = Timings::default();
        let mut pauses = Pauses::new(&timings);
        let first = pauses.next();
        assert!(first >= timings.backoff_min && first <= timings.backoff_min * 2, "{first:?}");
        for _ in 0..50 {
            assert!(pauses.next() <= timings.backoff_max);
        }
        assert_eq!(pauses.next(), timings.backoff_max);
        pauses.reset();
        assert!(pauses.next() <= timings.backoff_min * 2);
    }
}
