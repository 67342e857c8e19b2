//! A storm is counted, not repeated: the first line is told at once, alike ones within 10 s are told as one
//! event with their count, and each kind has a budget. All in the lines' own time, so that a restarted agent
//! that reads the same lines makes the same events of them.

use std::collections::BTreeMap;
use std::time::Duration;

/// Lines alike within this time of the first are one event.
const WINDOW: Duration = Duration::from_secs(10);
/// So many windows are open at a time; more kinds of lines than this are dropped and counted.
const WINDOWS: usize = 64;

/// A budget of events: so many at once, so many a second after.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    tokens: f64,
    most: f64,
    per_second: f64,
    newest_usec: u64,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(most: f64, per_second: f64) -> Bucket {
        Bucket { tokens: most, most, per_second, newest_usec: 0 }
    }

    /// Takes one, if there is one.
    pub(crate) fn take(&mut self, usec: u64) -> bool {
        let passed = Duration::from_micros(usec.saturating_sub(self.newest_usec));
        self.newest_usec = self.newest_usec.max(usec);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.per_second).min(self.most);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// A line to be told, and how many alike ones it stands for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told<T> {
    pub(crate) what: T,
    pub(crate) count: u64,
}

/// The open windows and the budgets.
#[derive(Debug)]
pub(crate) struct Storms<T> {
    windows: Vec<Window<T>>,
    budgets: BTreeMap<&'static str, Bucket>,
    /// Lines that no event stands for.
    pub(crate) dropped_total: u64,
}

#[derive(Debug)]
struct Window<T> {
    pattern: &'static str,
    subject: String,
    began_usec: u64,
    /// The newest alike line, and how many it stands for; `None` while the first is alone.
    more: Option<Told<T>>,
}

impl<T> Default for Storms<T> {
    fn default() -> Storms<T> {
        Storms { windows: Vec::new(), budgets: BTreeMap::new(), dropped_total: 0 }
    }
}

impl<T> Storms<T> {
    /// Takes a line of this time. `subject` is what makes two lines of a pattern alike: the same device, the same task.
    pub(crate) fn line(
        &mut self,
        pattern: &'static str,
        subject: &str,
        usec: u64,
        what: T,
        told: &mut Vec<Told<T>>,
    ) {
        self.close(usec, told);
        let alike = |window: &&mut Window<T>| window.pattern == pattern && window.subject == subject;
        if let Some(window) = self.windows.iter_mut().find(alike) {
            let count = window.more.as_ref().map_or(0, |more| more.count);
            window.more = Some(Told { what, count: count + 1 });
            return;
        }
        let budget = self.budgets.entry(pattern).or_insert_with(|| Bucket::new(20.0, 0.5));
        if self.windows.len() == WINDOWS || !budget.take(usec) {
            self.dropped_total += 1;
            return;
        }
        self.windows.push(Window { pattern, subject: subject.to_owned(), began_usec: usec, more: None });
        told.push(Told { what, count: 1 });
    }

    /// Tells what windows counted that are over at this time.
    pub(crate) fn close(&mut self, usec: u64, told: &mut Vec<Told<T>>) {
        let over =
            |window: &mut Window<T>| Duration::from_micros(usec.saturating_sub(window.began_usec)) >= WINDOW;
        told.extend(self.windows.extract_if(.., over).filter_map(|window| window.more));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seqs(told: &[Told<u64>]) -> Vec<(u64, u64)> {
        told.iter().map(|told| (told.what, told.count)).collect()
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_as_one() {
        let (mut storms, mut told) = (Storms::default(), Vec::new());
        for seq in 0..100 {
            storms.line("p", "sda", 1_000_000 + seq, seq, &mut told);
        }
        storms.line("p", "sdb", 1_000_200, 100, &mut told);
        assert_eq!(seqs(&told), [(0, 1), (100, 1)]);
        storms.close(10_999_999, &mut told);
        assert_eq!(told.len(), 2);
        storms.close(11_000_000, &mut told);
        assert_eq!(seqs(&told)[2..], [(99, 99)]);
        // A new window; one line alone has no second event.
        storms.line("p", "sda", 12_000_000, 101, &mut told);
        storms.close(u64::MAX, &mut told);
        assert_eq!(seqs(&told)[3..], [(101, 1)]);
    }

    proptest! {
        #[test]
        fn every_line_is_told_counted_or_dropped(lines in proptest::collection::vec((0u8..100, 0u64..3_000_000), 0..400)) {
            let (mut storms, mut told, mut usec) = (Storms::default(), Vec::new(), 0);
            for (seq, (subject, passed)) in lines.iter().enumerate() {
                usec += passed;
                storms.line("p", &subject.to_string(), usec, seq as u64, &mut told);
                prop_assert!(storms.windows.len() <= WINDOWS);
            }
            storms.close(u64::MAX, &mut told);
            let counted: u64 = told.iter().map(|told| told.count).sum();
            prop_assert_eq!(counted + storms.dropped_total, lines.len() as u64);
        }
    }
}
