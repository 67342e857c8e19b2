//! Follows a log of which only snapshots can be had: the newest lines that fit into a buffer, without numbers.
//!
//! Pure; how a snapshot is taken is an argument. What was read last is looked for in the next snapshot, and what comes
//! after it is new. A small snapshot is enough as long as that is in it, and costs the least; else a larger one is
//! taken, up to the whole log. If the end is not even there, it was overwritten or cleared: a loss of unknown size.

use std::collections::VecDeque;

/// The first look. What comes in a quiet second fits.
const FIRST_LOOK_BYTES: usize = 8 * 1024;
/// No kernel's log is larger: `log_buf_len` stays far below.
const LARGEST_BYTES: usize = 64 * 1024 * 1024;
/// So much of what was read last is looked for; it is more where that is all of one stamp.
const TAIL_BYTES: usize = 1024;
const LONGEST_TAIL_BYTES: usize = 64 * 1024;
/// So many lines are remembered to know one that came before.
const ALIKE: usize = 256;

/// Where the log was read up to.
#[derive(Clone, Debug)]
pub(super) struct Follower {
    /// Size of the look that takes the whole log.
    whole_bytes: usize,
    /// The newest lines that were read; `None` before the first look. Empty when the log was.
    tail: Option<Vec<u8>>,
}

/// What is new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct New {
    /// Whole lines.
    pub(super) lines: Vec<u8>,
    /// Lines before them may be missing, nobody knows how many.
    pub(super) lost: bool,
}

impl Follower {
    /// `ring_bytes`: what the kernel keeps, without the lines' prefixes.
    pub(super) fn new(ring_bytes: usize) -> Follower {
        // Twice for the prefixes, and twice so that it is seen that all was there.
        Follower {
            whole_bytes: ring_bytes.saturating_mul(4).clamp(FIRST_LOOK_BYTES, LARGEST_BYTES),
            tail: None,
        }
    }

    /// The lines since the look before. `newest` gives the newest lines that fit into so many bytes.
    pub(super) fn look<E>(&mut self, newest: impl Fn(usize) -> Result<Vec<u8>, E>) -> Result<New, E> {
        let mut size = if self.tail.is_none() { self.whole_bytes } else { FIRST_LOOK_BYTES };
        loop {
            let mut snapshot = newest(size)?;
            // With so much room left, no line was left out.
            let is_whole = snapshot.len() <= size / 2 || size >= LARGEST_BYTES;
            let found = match &self.tail {
                None => is_whole.then_some((0, false)),
                Some(tail) => find(tail, &snapshot, is_whole),
            };
            if let Some((end, lost)) = found {
                if end < snapshot.len() || lost {
                    let keep = tail_start(&snapshot);
                    self.tail = Some(snapshot.get(keep..).unwrap_or_default().to_vec());
                } else {
                    self.tail.get_or_insert_default();
                }
                return Ok(New { lines: snapshot.split_off(end), lost });
            }
            size = size.saturating_mul(4).min(LARGEST_BYTES);
        }
    }
}

/// Where what was read ends in the snapshot, and whether something may be missing there; `None`: a larger snapshot
/// must tell.
fn find(tail: &[u8], snapshot: &[u8], is_whole: bool) -> Option<(usize, bool)> {
    if tail.is_empty() {
        return is_whole.then_some((0, false));
    }
    let is_end = |end: &usize| {
        let before = snapshot.get(..*end).and_then(|read| read.strip_suffix(tail));
        before.is_some_and(|before| before.is_empty() || before.ends_with(b"\n"))
    };
    if has_two_stamps(tail) {
        // It is there once at most: stamps do not go back.
        if let Some(end) = line_ends(snapshot).rev().find(is_end) {
            return Some((end, false));
        }
    } else if is_whole {
        let mut ends = line_ends(snapshot).filter(is_end);
        // It is all that the log had. If it is there, then at the start, and lines like it that follow are new.
        let (first, last) = (ends.next(), ends.next_back());
        match (first, last) {
            (Some(first), None) => return Some((first, false)),
            (Some(first), Some(_)) if tail.len() < LONGEST_TAIL_BYTES => return Some((first, true)),
            // A kernel whose clock stands still: nothing is told twice.
            (_, Some(last)) => return Some((last, true)),
            (None, None) => {}
        }
    }
    if !is_whole {
        return None;
    }
    // The log may begin within what was read.
    let within = |end: &usize| {
        snapshot.get(..*end).is_some_and(|read| tail.ends_with(read) && starts_line(tail, *end))
    };
    let end = line_ends(snapshot).take_while(|end| *end < tail.len()).filter(within).last().unwrap_or(0);
    // Lines of one stamp could be others that are alike.
    Some((end, !snapshot.get(..end).is_some_and(has_two_stamps)))
}

/// Whether the last so many bytes begin with a line's start.
fn starts_line(text: &[u8], last: usize) -> bool {
    text.len().checked_sub(last + 1).and_then(|before| text.get(before)) == Some(&b'\n')
}

/// The places after each line end.
fn line_ends(text: &[u8]) -> impl DoubleEndedIterator<Item = usize> {
    text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1)
}

/// Where the tail of this text begins: so that it has two stamps, if there are two.
fn tail_start(text: &[u8]) -> usize {
    let last = text.split_inclusive(|byte| *byte == b'\n').next_back().map(stamp);
    let (mut start, mut two) = (text.len(), false);
    for line in text.split_inclusive(|byte| *byte == b'\n').rev() {
        let length = text.len() - start;
        if (length >= TAIL_BYTES && two) || length >= LONGEST_TAIL_BYTES {
            break;
        }
        start -= line.len();
        two |= Some(stamp(line)) != last;
    }
    start
}

fn has_two_stamps(tail: &[u8]) -> bool {
    let mut stamps = tail.split_inclusive(|byte| *byte == b'\n').map(stamp);
    let first = stamps.next();
    stamps.any(|stamp| Some(stamp) != first)
}

/// `[   12.345678` of a line.
fn stamp(line: &[u8]) -> &[u8] {
    let end = line.iter().position(|byte| *byte == b']').unwrap_or(line.len());
    let start = line.iter().position(|byte| *byte == b'[').unwrap_or(0);
    line.get(start..end).unwrap_or(line)
}

/// Tells lines of one stamp and text apart by their order.
#[derive(Debug, Default)]
pub(super) struct Alike {
    newest: VecDeque<(u64, u32, u32)>,
}

impl Alike {
    /// How many of this stamp and text came before.
    pub(super) fn nth(&mut self, usec: u64, text_crc: u32) -> u32 {
        // Stamps of several processors can be a little out of order: a few lines are looked back.
        let same = |(at, crc, _): &&mut (u64, u32, u32)| *at == usec && *crc == text_crc;
        if let Some((_, _, count)) = self.newest.iter_mut().rev().find(same) {
            *count = count.saturating_add(1);
            return *count;
        }
        self.newest.push_back((usec, text_crc, 0));
        if self.newest.len() > ALIKE {
            self.newest.pop_front();
        }
        0
    }
}

/// The lines of a text, each without its line end. A process's name may hold a line end, and its kill's line is then
/// cut in two: the two are one again. The kernel gives both the same prefix.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let mut rest = text.split_inclusive(|byte| *byte == b'\n').peekable();
    std::iter::from_fn(move || {
        let line = rest.next()?;
        let mut line = line.strip_suffix(b"\n").unwrap_or(line).to_vec();
        while ends_in_a_name(&line) {
            let prefix = line.get(..prefix_bytes(&line)).unwrap_or_default().to_vec();
            let Some(more) = rest.next_if(|next| next.starts_with(&prefix)) else {
                break;
            };
            line.push(b'\n');
            line.extend(more.strip_suffix(b"\n").unwrap_or(more).iter().skip(prefix.len()));
        }
        Some(line)
    })
}

/// `<3>[ 3475.738110] ` or with the caller after it.
fn prefix_bytes(line: &[u8]) -> usize {
    line.windows(2).position(|pair| pair == b"] ").map_or(line.len(), |at| at + 2)
}

/// Whether a line of a kill breaks off within the name of a process.
fn ends_in_a_name(line: &[u8]) -> bool {
    let text = line.get(prefix_bytes(line)..).unwrap_or_default();
    let holds = |what: &[u8]| text.windows(what.len()).any(|part| part == what);
    // A name has 15 bytes: what is longer is no name that was broken off.
    let begun = |what: &[u8]| text.windows(what.len()).rposition(|part| part == what);
    let short = |what: &[u8]| begun(what).is_some_and(|at| text.len() - at - what.len() <= 15);
    (holds(b"Killed process ") && short(b" (") && !holds(b") "))
        || (text.starts_with(b"oom-kill:") && short(b",task=") && !holds(b",pid="))
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    use crate::fuzz::done;
    lines(bytes).for_each(done);
    done((tail_start(bytes), has_two_stamps(bytes)));
    let (tail, snapshot) = bytes.split_at(bytes.len() / 3);
    for is_whole in [true, false] {
        done(find(tail, snapshot, is_whole));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    /// The kernel's ring as syslog(2) shows it: the newest whole lines.
    fn newest(lines: &[String], capacity: usize, bytes: usize) -> Result<Vec<u8>, Infallible> {
        let (mut room, mut first) = (capacity.min(bytes), lines.len());
        while first > 0 && lines[first - 1].len() <= room {
            first -= 1;
            room -= lines[first].len();
        }
        Ok(lines[first..].concat().into_bytes())
    }

    fn look(follower: &mut Follower, lines: &[String], capacity: usize) -> (String, bool) {
        let Ok(new) = follower.look(|bytes| newest(lines, capacity, bytes));
        (String::from_utf8(new.lines).unwrap(), new.lost)
    }

    fn line(usec: u64, text: &str) -> String {
        format!("<6>[{:5}.{:06}] {text}\n", usec / 1_000_000, usec % 1_000_000)
    }

    const RING: usize = 128 * 1024;

    #[test]
    fn only_what_is_new_is_given_and_alike_lines_are_counted() {
        let mut lines = vec![line(1, "a"), line(2, "b")];
        let mut follower = Follower::new(RING);
        assert_eq!(look(&mut follower, &lines, RING), (lines.concat(), false));
        assert_eq!(look(&mut follower, &lines, RING), (String::new(), false));
        for text in ["b", "b", "c"] {
            lines.push(line(2, text));
            assert_eq!(look(&mut follower, &lines, RING), (line(2, text), false));
        }
        let mut alike = Alike::default();
        assert_eq!([alike.nth(2, 7), alike.nth(3, 7), alike.nth(2, 7), alike.nth(2, 8)], [0, 0, 1, 0]);
    }

    #[test]
    fn a_small_look_is_enough_and_a_larger_one_is_taken_when_much_came() {
        let mut lines: Vec<String> = (0..1000).map(|at| line(at, &"x".repeat(80))).collect();
        let mut follower = Follower::new(RING);
        look(&mut follower, &lines, RING);
        let looks = std::cell::RefCell::new(Vec::new());
        let mut next = |lines: &[String]| {
            let Ok(new) = follower.look(|bytes| {
                looks.borrow_mut().push(bytes);
                newest(lines, RING, bytes)
            });
            (new.lines.len(), new.lost, looks.take())
        };
        assert_eq!(next(&lines), (0, false, vec![8192]));
        lines.push(line(1000, "one"));
        assert_eq!(next(&lines), (lines[1000].len(), false, vec![8192]));
        lines.extend((1001..1201).map(|at| line(at, &"y".repeat(80))));
        assert_eq!(next(&lines), (200 * lines[0].len(), false, vec![8192, 32_768]));
    }

    #[test]
    fn what_was_overwritten_or_cleared_is_a_loss() {
        let mut lines: Vec<String> = (0..100).map(|at| line(at, "a line")).collect();
        let mut follower = Follower::new(RING);
        look(&mut follower, &lines, RING);
        lines.extend((100..400).map(|at| line(at, "a line")));
        let (new, lost) = look(&mut follower, &lines, 1000);
        assert!(lost && lines.concat().ends_with(&new) && new.len() > 900);
        // dmesg --clear: told once; what comes then is new and nothing is missing.
        assert_eq!(look(&mut follower, &[], RING), (String::new(), true));
        assert_eq!(look(&mut follower, &[], RING), (String::new(), false));
        let one = [line(500, "after")];
        assert_eq!(look(&mut follower, &one, RING), (one.concat(), false));
        assert_eq!(look(&mut follower, &one, RING), (String::new(), false));
    }

    #[test]
    fn a_log_that_begins_within_what_was_read_has_lost_nothing() {
        let mut lines: Vec<String> = (0..20).map(|at| line(at, "a line")).collect();
        let mut follower = Follower::new(RING);
        look(&mut follower, &lines, RING);
        lines.extend([line(20, "new"), line(21, "new")]);
        let capacity = lines[17..].concat().len();
        assert_eq!(look(&mut follower, &lines, capacity), (lines[20..].concat(), false));
        // One line alone could be another that is like it.
        lines.extend([line(22, "newer")]);
        let capacity = lines[21..].concat().len();
        assert_eq!(look(&mut follower, &lines, capacity), (lines[22..].concat(), true));
    }

    #[test]
    fn a_clock_that_stands_still_repeats_nothing() {
        let mut lines: Vec<String> = (0..4000).map(|_| line(0, "the same line of a stuck clock")).collect();
        let mut follower = Follower::new(1024 * 1024);
        look(&mut follower, &lines, usize::MAX);
        let (again, _) = look(&mut follower, &lines, usize::MAX);
        assert_eq!(again, "");
        lines.push(line(0, "another"));
        assert_eq!(look(&mut follower, &lines, usize::MAX).0, line(0, "another"));
    }

    #[test]
    fn a_name_with_a_line_end_hides_no_kill() {
        // The kill's line of fixtures/kmsg/linux-6.1.192/oom-memcg-v2.txt, with line ends in the name.
        let killed = "Memory cgroup out of memory: Killed process 584 (t\na\nil) total-vm:51608kB, UID:0";
        let cut = killed.split('\n').map(|text| line(5, text)).collect::<String>();
        let whole: Vec<Vec<u8>> = lines(cut.as_bytes()).collect();
        assert_eq!(whole, [line(5, killed).trim_end().as_bytes()]);
        // Not across records, and no line is taken that the name has no room for.
        let texts = ["Killed process 584 (tail", "x"].map(|text| line(5, text));
        assert_eq!(lines(format!("{}{}", texts[0], line(6, "x")).as_bytes()).count(), 2);
        let long = line(5, "Killed process 584 (sixteen bytes now");
        assert_eq!(lines(format!("{long}{}", texts[1]).as_bytes()).count(), 2);
    }

    fn stream() -> impl Strategy<Value = Vec<String>> {
        // Stamps repeat, texts repeat; no more than eight lines have one stamp.
        let one = (0u8..4, 0u8..3, prop_oneof![4 => 1usize..30, 1 => 200usize..400]);
        proptest::collection::vec(one, 1..600).prop_map(|lines| {
            let (mut usec, mut same) = (0, 0);
            let mut stamped = |(step, text, length): (u8, u8, usize)| {
                let step = if same == 7 { 1 } else { u64::from(step / 3) };
                same = if step == 0 { same + 1 } else { 0 };
                usec += step;
                line(usec, &"abc"[usize::from(text)..][..1].repeat(length))
            };
            lines.into_iter().map(&mut stamped).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn each_line_is_given_once_or_a_loss_is_told(
            lines in stream(),
            cuts in proptest::collection::vec(0usize..150, 1..40),
            capacity in prop_oneof![4096usize..20_000, Just(RING)],
        ) {
            let (mut follower, mut read, mut now) = (Follower::new(RING), 0, 0);
            for cut in cuts {
                let first = now == 0;
                now = (now + cut).min(lines.len());
                let (new, lost) = look(&mut follower, &lines[..now], capacity);
                let given = new.split_inclusive('\n').count();
                // Always the newest, in their order; nothing twice.
                prop_assert_eq!(&new, &lines[now - given..now].concat());
                prop_assert!(now - given >= read);
                if !lost && !first && read > 0 {
                    prop_assert_eq!(now - given, read);
                }
                read = now;
            }
        }

        #[test]
        fn any_bytes_never_panic(
            snapshots in proptest::collection::vec(proptest::collection::vec(proptest::sample::select(&b"\n\n[<>]. 01ax\xff\0"[..]), 0..200), 1..6),
        ) {
            let mut follower = Follower::new(64);
            for snapshot in snapshots {
                let Ok(new) = follower.look(|bytes| Ok::<_, Infallible>(snapshot.get(..bytes).unwrap_or(&snapshot).to_vec()));
                prop_assert!(snapshot.ends_with(&new.lines));
                let kept: usize = super::lines(&new.lines).map(|line| line.len()).sum();
                prop_assert!(kept <= new.lines.len());
            }
        }
    }
}
