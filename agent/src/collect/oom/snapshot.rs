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
#[derive(Debug)]
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
        Follower { whole_bytes: ring_bytes.saturating_mul(4).min(LARGEST_BYTES), tail: None }
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
    let end = if has_two_stamps(tail) {
        // It is there once at most: stamps do not go back.
        line_ends(snapshot).rev().find(is_end)
    } else if !is_whole {
        return None;
    } else if tail.len() < LONGEST_TAIL_BYTES {
        // All that the log had: if it is there, then at the start, and lines like it that follow are new.
        line_ends(snapshot).find(is_end)
    } else {
        line_ends(snapshot).rev().find(is_end)
    };
    if let Some(end) = end {
        return Some((end, false));
    }
    if !is_whole {
        return None;
    }
    // The log may begin within what was read. Where that fits in more than one way, lines like it are in doubt.
    let mut fitting = line_ends(snapshot).take_while(|end| *end < tail.len()).filter(|end| {
        snapshot.get(..*end).is_some_and(|read| tail.ends_with(read) && starts_line(tail, *end))
    });
    let Some(first) = fitting.next() else {
        return Some((0, true));
    };
    let last = fitting.last();
    Some((last.unwrap_or(first), last.is_some()))
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
