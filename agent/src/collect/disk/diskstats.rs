//! `/proc/diskstats` (Documentation/admin-guide/iostats.rst), and what two looks at it say.

use std::time::Duration;

use serde::Serialize;

use crate::host::mounts::DeviceNumber;

/// Sectors are of 512 bytes here, whatever the device's are.
const SECTOR_BYTES: u64 = 512;

/// One device's line. Counters since the device came, as the kernel has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Reads that ended.
    pub reads: u64,
    /// Read, in bytes.
    pub read_bytes: u64,
    /// What all reads took together, in milliseconds. Printed as 32 bits: it wraps.
    pub read_milliseconds: u64,
    /// Writes that ended.
    pub writes: u64,
    /// Written, in bytes.
    pub written_bytes: u64,
    /// What all writes took together, in milliseconds.
    pub write_milliseconds: u64,
    /// Reads, writes and others that have begun and not ended.
    pub in_flight: u64,
    /// Time in which anything was in flight, in milliseconds. While nothing
    /// ends it goes on only on newer kernels (commit 86d7331299fd of 2022).
    pub busy_milliseconds: u64,
    /// Time in flight, of all together, in milliseconds.
    pub queue_milliseconds: u64,
    /// Discards that ended, and what they took. `None` before Linux 4.18.
    pub discards: Option<(u64, u64)>,
    /// Flushes that ended, and what they took. `None` before Linux 5.5.
    pub flushes: Option<(u64, u64)>,
}

impl Counters {
    /// Everything that ended.
    pub(super) fn completions(&self) -> u64 {
        let more = [self.discards, self.flushes].into_iter().flatten().map(|(count, _)| count);
        more.fold(self.reads.saturating_add(self.writes), u64::saturating_add)
    }
}

/// A device's line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) number: DeviceNumber,
    pub(super) name: &'a str,
    pub(super) counters: Counters,
}

/// What a device did in a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// How long the stretch was.
    pub for_seconds: f64,
    /// Reads a second.
    pub reads_per_second: f64,
    /// Writes a second.
    pub writes_per_second: f64,
    /// Bytes read a second.
    pub read_bytes_per_second: f64,
    /// Bytes written a second.
    pub written_bytes_per_second: f64,
    /// What a read took. `None`, here and below: none ended.
    pub read_await_seconds: Option<f64>,
    /// What a write took.
    pub write_await_seconds: Option<f64>,
    /// What a read or a write took.
    pub await_seconds: Option<f64>,
    /// What a flush took.
    pub flush_await_seconds: Option<f64>,
    /// Discards a second. `None`: this kernel does not count them.
    pub discards_per_second: Option<f64>,
    /// Flushes a second.
    pub flushes_per_second: Option<f64>,
    /// Share of the time in which anything was in flight, 0 to 1.
    pub busy_ratio: f64,
    /// How many were in flight on average.
    pub queue_length: f64,
}

/// `254 0 vda 5405162 258046 …`: each device's line. A kernel may add fields at a line's end, never before.
pub(super) fn parse(text: &str) -> Result<Vec<Line<'_>>, String> {
    text.split_inclusive('\n')
        .map(|line| {
            let whole = line.strip_suffix('\n').ok_or_else(|| format!("the line `{line}` was cut"))?;
            parse_line(whole)
                .ok_or_else(|| format!("the line `{whole}` is no device with at least 11 counters"))
        })
        .collect()
}

fn parse_line(line: &str) -> Option<Line<'_>> {
    let mut words = line.split_ascii_whitespace();
    let number = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let name = words.next()?;
    let mut fields = [0; 17];
    let mut count = 0;
    for (place, word) in fields.iter_mut().zip(words) {
        // Digits alone: `+7` is no number of the kernel's.
        *place = word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse::<u64>().ok())??;
        count += 1;
    }
    let [
        reads,
        _,
        read_sectors,
        read_milliseconds,
        writes,
        _,
        written_sectors,
        write_milliseconds,
        in_flight,
        busy_milliseconds,
        queue_milliseconds,
        discards,
        _,
        _,
        discard_milliseconds,
        flushes,
        flush_milliseconds,
    ] = fields;
    if ![11, 15, 17].contains(&count) {
        return None;
    }
    let counters = Counters {
        reads,
        read_bytes: read_sectors.checked_mul(SECTOR_BYTES)?,
        read_milliseconds,
        writes,
        written_bytes: written_sectors.checked_mul(SECTOR_BYTES)?,
        write_milliseconds,
        in_flight,
        busy_milliseconds,
        queue_milliseconds,
        discards: (count >= 15).then_some((discards, discard_milliseconds)),
        flushes: (count >= 17).then_some((flushes, flush_milliseconds)),
    };
    Some(Line { number, name, counters })
}

/// What happened between two looks. `None`: a counter went back, so it is another device by now, or no time passed.
pub(super) fn rates(before: &Counters, now: &Counters, passed: Duration) -> Option<Rates> {
    let seconds = passed.as_secs_f64();
    if seconds <= 0.0 {
        return None;
    }
    let grown = |before: u64, now: u64| now.checked_sub(before);
    let (reads, writes) = (grown(before.reads, now.reads)?, grown(before.writes, now.writes)?);
    let read_bytes = grown(before.read_bytes, now.read_bytes)?;
    let written_bytes = grown(before.written_bytes, now.written_bytes)?;
    let read_time = milliseconds(before.read_milliseconds, now.read_milliseconds)?;
    let write_time = milliseconds(before.write_milliseconds, now.write_milliseconds)?;
    let busy = milliseconds(before.busy_milliseconds, now.busy_milliseconds)?;
    let queue = milliseconds(before.queue_milliseconds, now.queue_milliseconds)?;
    let each = |time: f64, count: u64| (count > 0).then(|| time / count as f64);
    let pair = |before: Option<(u64, u64)>, now: Option<(u64, u64)>| {
        let ((count_before, time_before), (count, time)) = (before?, now?);
        Some((grown(count_before, count)?, milliseconds(time_before, time)?))
    };
    let discards = pair(before.discards, now.discards);
    let flushes = pair(before.flushes, now.flushes);
    let a_second = |count: u64| count as f64 / seconds;
    Some(Rates {
        for_seconds: seconds,
        reads_per_second: a_second(reads),
        writes_per_second: a_second(writes),
        read_bytes_per_second: a_second(read_bytes),
        written_bytes_per_second: a_second(written_bytes),
        read_await_seconds: each(read_time, reads),
        write_await_seconds: each(write_time, writes),
        await_seconds: each(read_time + write_time, reads.saturating_add(writes)),
        flush_await_seconds: flushes.and_then(|(count, time)| each(time, count)),
        discards_per_second: discards.map(|(count, _)| a_second(count)),
        flushes_per_second: flushes.map(|(count, _)| a_second(count)),
        // The kernel's clock and ours are not read at one instant.
        busy_ratio: (busy / seconds).min(1.0),
        queue_length: queue / seconds,
    })
}

/// A time that grew, in seconds. The kernel prints it as `unsigned int`: one that went back went round, after 49 days
/// in flight.
fn milliseconds(before: u64, now: u64) -> Option<f64> {
    const ROUND: u64 = 1 << 32;
    let grown = match now.checked_sub(before) {
        Some(grown) => grown,
        None if before < ROUND => (now + ROUND).checked_sub(before)?,
        None => return None,
    };
    Some(grown as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Linux 6.18.44.
    const RECORDED: &str = include_str!("../../../fixtures/disk/linux-6.18.44-diskstats.txt");

    fn vda() -> Counters {
        parse(RECORDED).unwrap().into_iter().find(|line| line.name == "vda").unwrap().counters
    }

    #[test]
    fn the_recorded_devices() {
        let lines = parse(RECORDED).unwrap();
        assert_eq!(lines.len(), 10);
        assert_eq!((lines[0].name, lines[0].number), ("loop0", (7, 0)));
        let vda = vda();
        assert_eq!((vda.reads, vda.writes, vda.in_flight), (5_405_162, 1_211_840, 0));
        assert_eq!(vda.read_bytes, 419_305_738 * 512);
        assert_eq!((vda.discards, vda.flushes), (Some((782_924, 135_975)), Some((219_399, 13_022))));
        assert_eq!(vda.completions(), 5_405_162 + 1_211_840 + 782_924 + 219_399);
    }

    #[test]
    fn older_kernels_have_fewer_fields() {
        // The same line with the fields of Linux 4.17 and of 5.4 (Documentation/admin-guide/iostats.rst).
        let words: Vec<&str> =
            RECORDED.lines().find(|line| line.contains("vda")).unwrap().split_whitespace().collect();
        let first = |count: usize| format!("{}\n", words[..3 + count].join(" "));
        let old = first(11);
        let counters = parse(&old).unwrap()[0].counters;
        assert_eq!(
            (counters.discards, counters.flushes, counters.queue_milliseconds),
            (None, None, 10_049_297)
        );
        let middle = first(15);
        let counters = parse(&middle).unwrap()[0].counters;
        assert_eq!((counters.discards, counters.flushes), (Some((782_924, 135_975)), None));
        for count in [10, 12, 16] {
            assert!(parse(&first(count)).is_err(), "{count} fields were cut");
        }
        let newer = format!("{} 7 8\n", words.join(" "));
        assert_eq!(parse(&newer).unwrap()[0].counters, vda(), "later fields are passed over");
    }

    #[test]
    fn what_two_looks_say() {
        let before = vda();
        let now = Counters {
            reads: before.reads + 10,
            read_bytes: before.read_bytes + 40_960,
            read_milliseconds: before.read_milliseconds + 1500,
            writes: before.writes + 20,
            write_milliseconds: before.write_milliseconds + 1500,
            busy_milliseconds: before.busy_milliseconds + 1900,
            queue_milliseconds: before.queue_milliseconds + 3000,
            ..before
        };
        let rates = rates(&before, &now, Duration::from_secs(2)).unwrap();
        assert_eq!((rates.reads_per_second, rates.writes_per_second), (5.0, 10.0));
        assert_eq!(rates.read_bytes_per_second, 20_480.0);
        assert_eq!((rates.read_await_seconds, rates.write_await_seconds), (Some(0.15), Some(0.075)));
        assert_eq!((rates.await_seconds, rates.flush_await_seconds), (Some(0.1), None));
        assert_eq!((rates.busy_ratio, rates.queue_length), (0.95, 1.5));
        assert_eq!(rates.flushes_per_second, Some(0.0));
    }

    #[test]
    fn nothing_that_ended_is_no_wait_of_zero_and_a_counter_that_went_back_is_no_rate() {
        let before = vda();
        let idle = rates(&before, &before, Duration::from_secs(1)).unwrap();
        assert_eq!((idle.await_seconds, idle.busy_ratio), (None, 0.0));
        let other = Counters { reads: before.reads - 1, ..before };
        assert_eq!(rates(&before, &other, Duration::from_secs(1)), None);
        assert_eq!(rates(&before, &before, Duration::ZERO), None);
        let round = Counters { read_milliseconds: u64::from(u32::MAX), ..before };
        let after = Counters { read_milliseconds: 999, reads: before.reads + 1, ..before };
        let wrapped = rates(&round, &after, Duration::from_secs(1)).unwrap();
        assert_eq!(wrapped.read_await_seconds, Some(1.0));
    }

    proptest! {
        #[test]
        fn a_cut_file_is_an_error_or_lacks_whole_lines(cut in 0..RECORDED.len()) {
            if let Ok(part) = parse(&RECORDED[..cut]) {
                let whole = parse(RECORDED).unwrap();
                prop_assert_eq!(&whole[..part.len()], &part[..]);
            }
        }

        #[test]
        fn a_flipped_byte_gives_lines_or_an_error(at in 0..RECORDED.len(), byte: u8) {
            let mut bytes = RECORDED.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(text) = String::from_utf8(bytes) {
                parse(&text).ok();
            }
        }

        #[test]
        fn rates_are_never_negative(a: [u64; 9], b: [u64; 9]) {
            let counters = |it: [u64; 9]| Counters {
                reads: it[0], read_bytes: it[1], read_milliseconds: it[2], writes: it[3], written_bytes: it[4],
                write_milliseconds: it[5], in_flight: it[6], busy_milliseconds: it[7], queue_milliseconds: it[8],
                discards: None, flushes: None,
            };
            if let Some(rates) = rates(&counters(a), &counters(b), Duration::from_secs(1)) {
                prop_assert!(rates.busy_ratio >= 0.0 && rates.reads_per_second >= 0.0 && rates.queue_length >= 0.0);
                prop_assert!(rates.await_seconds.is_none_or(|wait| wait >= 0.0));
            }
        }
    }
}
