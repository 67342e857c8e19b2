//! A storm is counted, not repeated: the first line is told at once, alike ones within 10 s are told as one
//! event with their count, and each kind has a budget. All in the kernel's own time, so that a restarted agent
//! that reads the same lines makes the same events of them.

use std::collections::BTreeMap;
use std::time::Duration;

use nodewhy_proto::KernelMessage;

use super::time::Mark;

/// Lines alike within this time of the first are one event.
const WINDOW: Duration = Duration::from_secs(10);
/// So many windows are open at a time; more kinds of lines than this are dropped and counted.
const WINDOWS: usize = 64;

/// A budget of events: so many at once, so many a second after.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    tokens: f64,
    most: f64,
    per_second: f64,
    newest_usec: u64,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(most: f64, per_second: f64) -> Bucket {
        Bucket { tokens: most, most, per_second, newest_usec: 0 }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, usec: u64) -> bool {
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

/// A message to be told, with the time of its line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Told {
    pub(super) mark: Mark,
    pub(super) message: KernelMessage,
}

/// The open windows and the budgets.
#[derive(Debug, Default)]
pub(super) struct Storms {
    windows: Vec<Window>,
    budgets: BTreeMap<&'static str, Bucket>,
    /// Lines that no event stands for.
    pub(super) dropped_total: u64,
}

#[derive(Debug)]
struct Window {
    pattern: &'static str,
    subject: String,
    began_usec: u64,
    /// The newest alike line, and how many it stands for; `None` while the first is alone.
    more: Option<Told>,
}

impl Storms {
    /// Takes a line. `subject` is what makes two lines of a pattern alike: the same device, the same task.
    pub(super) fn line(
        &mut self,
        pattern: &'static str,
        subject: &str,
        mark: Mark,
        message: KernelMessage,
        told: &mut Vec<Told>,
    ) {
        self.close(mark.usec, told);
        let alike = |window: &&mut Window| window.pattern == pattern && window.subject == subject;
        if let Some(window) = self.windows.iter_mut().find(alike) {
            let count = window.more.as_ref().map_or(0, |more| more.message.count);
            window.more = Some(Told { mark, message: KernelMessage { count: count + 1, ..message } });
            return;
        }
        let budget = self.budgets.entry(pattern).or_insert_with(|| Bucket::new(20.0, 0.5));
        if self.windows.len() == WINDOWS || !budget.take(mark.usec) {
            self.dropped_total += 1;
            return;
        }
        self.windows.push(Window { pattern, subject: subject.to_owned(), began_usec: mark.usec, more: None });
        told.push(Told { mark, message });
    }

    /// Tells what windows counted that are over at this time of the kernel's.
    pub(super) fn close(&mut self, usec: u64, told: &mut Vec<Told>) {
        let over =
            |window: &mut Window| Duration::from_micros(usec.saturating_sub(window.began_usec)) >= WINDOW;
        told.extend(self.windows.extract_if(.., over).filter_map(|window| window.more));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodewhy_clock::Stamp;
    use proptest::prelude::*;

    fn message(seq: u64) -> KernelMessage {
        let line = String::new();
        KernelMessage { pattern: "p".into(), fields: BTreeMap::new(), line, kmsg_seq: Some(seq), count: 1 }
    }

    fn mark(seq: u64, usec: u64) -> Mark {
        let at = Stamp { wall: jiff::Timestamp::UNIX_EPOCH, boot: Duration::from_micros(usec) };
        Mark { id: super::super::record::Id::Seq(seq), usec, at }
    }

    fn seqs(told: &[Told]) -> Vec<(u64, u64)> {
        told.iter().map(|told| (told.message.kmsg_seq.unwrap(), told.message.count)).collect()
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_as_one() {
        let (mut storms, mut told) = (Storms::default(), Vec::new());
        for seq in 0..100 {
            storms.line("p", "sda", mark(seq, 1_000_000 + seq), message(seq), &mut told);
        }
        storms.line("p", "sdb", mark(100, 1_000_200), message(100), &mut told);
        assert_eq!(seqs(&told), [(0, 1), (100, 1)]);
        storms.close(10_999_999, &mut told);
        assert_eq!(told.len(), 2);
        storms.close(11_000_000, &mut told);
        assert_eq!(seqs(&told)[2..], [(99, 99)]);
        // A new window; one line alone has no second event.
        storms.line("p", "sda", mark(101, 12_000_000), message(101), &mut told);
        storms.close(u64::MAX, &mut told);
        assert_eq!(seqs(&told)[3..], [(101, 1)]);
    }

    proptest! {
        #[test]
        fn every_line_is_told_counted_or_dropped(lines in proptest::collection::vec((0u8..100, 0u64..3_000_000), 0..400)) {
            let (mut storms, mut told, mut usec) = (Storms::default(), Vec::new(), 0);
            for (seq, (subject, passed)) in lines.iter().enumerate() {
                usec += passed;
                storms.line("p", &subject.to_string(), mark(seq as u64, usec), message(seq as u64), &mut told);
                prop_assert!(storms.windows.len() <= WINDOWS);
            }
            storms.close(u64::MAX, &mut told);
            let counted: u64 = told.iter().map(|told| told.message.count).sum();
            prop_assert_eq!(counted + storms.dropped_total, lines.len() as u64);
        }
    }
}
