//! A node's clock against ours. Pure.

use jiff::{SignedDuration, Timestamp};
use nodewhy_proto::{Event, EventBody, Finding};

/// How far a node's wall clock is ahead of ours, and how far that may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offset {
    ahead: SignedDuration,
    error: SignedDuration,
}

impl Offset {
    /// Measures: the node wrote `theirs` at some instant between our `sent` and `received`.
    pub(crate) fn measure(sent: Timestamp, theirs: Timestamp, received: Timestamp) -> Offset {
        let error = received.duration_since(sent).abs() / 2;
        let middle = sent.checked_add(error).unwrap_or(sent);
        Offset { ahead: theirs.duration_since(middle), error }
    }

    /// Takes a new measurement into account: the sharper of two that agree; the newer of two that do not, for
    /// then a clock was stepped.
    pub(crate) fn refined(self, newer: Offset) -> Offset {
        let apart = (self.ahead - newer.ahead).abs();
        if apart <= self.error + newer.error && self.error <= newer.error { self } else { newer }
    }

    /// What to subtract from the node's times. Nothing, where the measurement agrees with equal clocks: a
    /// correction by noise would move times at each reconnect.
    pub(crate) fn correction(self) -> SignedDuration {
        if self.ahead.abs() <= self.error + SignedDuration::from_millis(1) {
            SignedDuration::ZERO
        } else {
            self.ahead
        }
    }
}

/// A time of the node's clock, by ours. What we have heard of is not later than its hearing: the rest of a small
/// error must not put it outside of a case that ends now.
pub(crate) fn correct(at: &mut Timestamp, by: SignedDuration, now: Timestamp) {
    *at = at.checked_sub(by).unwrap_or(*at).min(now);
}

/// A finding's times, by our clock.
pub(crate) fn correct_finding(finding: &mut Finding, by: SignedDuration, now: Timestamp) {
    correct(&mut finding.began, by, now);
    correct(&mut finding.noticed, by, now);
    let times = finding.evidence.iter_mut().filter_map(|evidence| evidence.at.as_mut());
    for at in finding.ended.iter_mut().chain(times) {
        correct(at, by, now);
    }
}

/// An event's times, by our clock.
pub(crate) fn correct_event(event: &mut Event, by: SignedDuration, now: Timestamp) {
    correct(&mut event.at, by, now);
    if let EventBody::FindingBegan { finding }
    | EventBody::FindingChanged { finding }
    | EventBody::FindingEnded { finding } = &mut event.body
    {
        correct_finding(finding, by, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_795_000_000_000 + millis).unwrap()
    }

    #[test]
    fn equal_clocks_are_not_corrected_by_noise() {
        assert_eq!(Offset::measure(at(0), at(1), at(40)).correction(), SignedDuration::ZERO);
    }

    #[test]
    fn a_clock_that_is_ahead_is_put_back() {
        let offset = Offset::measure(at(0), at(3_600_010), at(20));
        let mut time = at(3_605_000);
        correct(&mut time, offset.correction(), at(6_000));
        assert_eq!(time, at(5_000));
        correct(&mut time, SignedDuration::ZERO, at(4_000));
        assert_eq!(time, at(4_000), "nothing is heard before it is so");
    }

    #[test]
    fn the_sharper_of_two_that_agree_and_the_newer_of_two_that_do_not() {
        let sharp = Offset::measure(at(0), at(5_001), at(2));
        let vague = Offset::measure(at(100), at(5_200), at(900));
        let stepped = Offset::measure(at(2000), at(2001), at(2002));
        assert_eq!(sharp.refined(vague), sharp);
        assert_eq!(vague.refined(sharp), sharp);
        assert_eq!(sharp.refined(stepped), stepped);
    }
}
