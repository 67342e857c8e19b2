//! The logs of the node's own programs: kubelet, runtime, PID 1, kube-proxy, network plugin, etcd, API server. From
//! systemd's journal (its files, read as they are written) and from log files.
//!
//! A line that matters is an event with its own time: on a node that starves, journald takes lines half a minute late,
//! so a line is dated by its own word where it has one, else by its sender's, else by the journal's; `time_by` says
//! which. Nothing is kept on disk: at the start the last ten minutes are read, and those lines are marked
//! `before_start`; their keys are the same each time, so that a reader drops what it has. A line alone is never a
//! finding.

mod format;
mod pattern;
mod places;
mod secret;
mod told;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nodewhy_clock::Stamp;
use serde::Serialize;

pub use self::told::Newest;

use self::pattern::Programs;
use self::places::LogPlace;
use self::told::{Events, Raw};
use crate::collector::{Collector, Happening, Noticed, Pair};
use crate::host::journal::Journal;
use crate::host::journal::file::Entry;
use crate::host::tail::{FileWatch, Tail};
use crate::host::{Host, ReadError, kmsg};
use crate::metrics::{Family, Sink};
use crate::thresholds::Thresholds;

/// The logs, as they are written; at least every second.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "logs",
    every: Duration::from_secs(1),
    deadline: Duration::from_secs(5),
    remembers: true,
    open,
    read,
    wake,
    summary,
    families: &[&EVENTS, &LINES, &DROPPED, &SKIPPED, &WAITING, &LATE],
    metrics,
    limits: &[],
    detect,
    pages: &[],
    asks: &[],
};

static EVENTS: Family = Family::counter(
    "nodewhy_log_events_total",
    "Lines of the node's own logs that matter, since the agent began to read, by pattern.",
)
.by(&["pattern"]);
static LINES: Family =
    Family::counter("nodewhy_log_lines_total", "Lines read, by where from: the journal, or files.")
        .by(&["from"]);
static DROPPED: Family = Family::counter(
    "nodewhy_log_dropped_total",
    "Lines that matter and that no event stands for, because they came in a storm.",
);
static SKIPPED: Family = Family::counter(
    "nodewhy_log_skipped_bytes_total",
    "Bytes of log files that were passed over, because more was written than is read.",
);
static WAITING: Family = Family::gauge(
    "nodewhy_log_journal_waiting_entries",
    "Entries of the journal that are written and were not read yet.",
);
static LATE: Family = Family::gauge(
    "nodewhy_log_journal_late_seconds",
    "How late the newest entry of the journal was read, by the journal's own time.",
);

/// What is read of the time before the agent.
const BEFORE_START: Duration = Duration::from_secs(600);
/// Entries a read; a thousand a second is a lot, and more follow in the next read.
const ENTRIES_A_READ: usize = 2000;
/// Bytes a read of one file, and what may wait of it before it is passed over.
const FILE_BYTES_A_READ: u64 = 256 * 1024;
const FILE_BYTES_BEHIND: u64 = 1024 * 1024;
/// Of a file that was there before the agent, so much of its end is read.
const FILE_BYTES_BEFORE: u64 = 64 * 1024;
/// A read that follows the one before sooner waits: a log that is written all the time wakes us ten times a second.
const PACE: Duration = Duration::from_millis(100);
/// New log files are looked for, and a journal that was not there, so often.
const LOOK_EVERY: Duration = Duration::from_secs(10);

const FIELDS: &[&str] =
    &["MESSAGE", "_SYSTEMD_UNIT", "UNIT", "_PID", "_TRANSPORT", "_SOURCE_REALTIME_TIMESTAMP"];

/// Kept between reads.
#[derive(Debug)]
pub struct Source {
    watch: Option<FileWatch>,
    journal: Result<Journal, String>,
    /// Why the newest read of it failed.
    journal_error: Option<String>,
    files: Vec<(LogPlace, Tail)>,
    files_error: Option<String>,
    /// The units of the kubelet's and the runtime's processes, where their names are not the usual ones.
    units: BTreeMap<String, Programs>,
    events: Events,
    /// Since boot.
    started: Duration,
    looked: Option<Duration>,
    newest_read: Duration,
    boot_id: Option<String>,
    journal_lines: u64,
    file_lines: u64,
    /// Of files that are followed no more.
    skipped_before: u64,
    late: Option<Duration>,
}

/// One reading: what is followed, and what it said so far.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// The folder of the journal that is followed; `None`: there is none, see `journal_error`.
    pub journal: Option<String>,
    /// Why no journal is read, or why it can't be read on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal_error: Option<String>,
    /// The files that are followed, each with whose it is.
    pub files: BTreeMap<String, String>,
    /// Why containers' log files are not looked for, or one can't be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files_error: Option<String>,
    /// Entries of the journal that were read.
    pub journal_lines_total: u64,
    /// Entries that are written and were not read yet; `None` without a journal.
    pub journal_waiting: Option<u64>,
    /// How late the newest entry was read, in seconds; `None`: none was read yet.
    pub journal_late_seconds: Option<f64>,
    /// Objects of the journal's files that were damaged and were passed over.
    pub journal_damaged_total: Option<u64>,
    /// How often journald began a new file.
    pub journal_rotations_total: Option<u64>,
    /// Lines of files that were read.
    pub file_lines_total: u64,
    /// Bytes of files that were passed over.
    pub file_skipped_bytes_total: u64,
    /// Lines that matter and that no event stands for.
    pub dropped_total: u64,
    /// Lines that matter, by pattern.
    pub patterns: BTreeMap<&'static str, u64>,
    /// The newest events, newest last.
    pub newest: VecDeque<Newest>,
    /// What is to be told since the reading before.
    #[serde(skip)]
    pub happened: Vec<Happening>,
}

fn open(host: &Host) -> Result<Source, ReadError> {
    let started = host.clock().since_boot();
    let boot_id = host.read("/proc/sys/kernel/random/boot_id").ok().map(|text| text.trim().replace('-', ""));
    Ok(Source {
        watch: host.watch_files().ok(),
        journal: Err(String::new()),
        journal_error: None,
        files: Vec::new(),
        files_error: None,
        units: BTreeMap::new(),
        events: Events::default(),
        started,
        looked: None,
        newest_read: Duration::ZERO,
        boot_id,
        journal_lines: 0,
        file_lines: 0,
        skipped_before: 0,
        late: None,
    })
}

fn wake(source: &Source) -> Option<BorrowedFd<'_>> {
    source.watch.as_ref().map(AsFd::as_fd)
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let now = host.clock().since_boot();
    if now.saturating_sub(source.newest_read) < PACE {
        kmsg::pause(PACE);
    }
    if let Some(watch) = &source.watch {
        watch.drain();
    }
    if source.looked.is_none_or(|looked| now.saturating_sub(looked) >= LOOK_EVERY) {
        source.looked = Some(now);
        look(source, host);
    }
    read_journal(source, host);
    read_files(source, host);
    let now = host.clock().since_boot();
    source.events.passed(now);
    source.newest_read = now;
    if let (Err(error), true) = (&source.journal, source.files.is_empty()) {
        return Err(ReadError::absent(format!(
            "{error}; and no log file of a program that is known is here"
        )));
    }
    Ok(reading(source))
}

/// Looks for a journal, for new files, and for the units of kubelet and runtime.
fn look(source: &mut Source, host: &Host) {
    for (process, programs) in
        [(host.kubelet_process(), Programs::KUBELET), (host.runtime_process(), Programs::RUNTIME)]
    {
        let cgroups = process.and_then(|process| host.process_cgroups(process.pid).ok().flatten());
        let units = cgroups.iter().flatten().filter_map(|path| places::unit_of_cgroup(path));
        for unit in units.filter(|unit| places::programs_of_unit(unit).is_none()) {
            let known = source.units.get(unit).map_or(programs, |known| known.and(programs));
            source.units.insert(unit.to_owned(), known);
        }
    }
    if source.journal.is_err() {
        let since =
            host.clock().now().checked_sub(SignedDuration::try_from(BEFORE_START).unwrap_or_default());
        let since = since.map_or(0, |since| u64::try_from(since.as_microsecond()).unwrap_or(0));
        source.journal = host.open_journal(since, FIELDS).map_err(|error| error.to_string());
    }
    let (places, error) = places::files(host);
    source.files_error =
        error.filter(|error| !matches!(error, ReadError::NotFound { .. })).map(|error| error.to_string());
    // What is there at the first look is old: its end is read. What comes later is read whole.
    let first = source.newest_read.is_zero();
    source.files.retain(|(known, tail)| {
        let stays = places.iter().any(|place| place.path == known.path);
        if !stays {
            source.skipped_before += tail.skipped_bytes;
        }
        stays
    });
    for place in places {
        if source.files.iter().all(|(known, _)| known.path != place.path) {
            let tail = host.tail(&place.path, if first { FILE_BYTES_BEFORE } else { u64::MAX });
            source.files.push((place, tail));
        }
    }
    if let Some(watch) = &source.watch {
        if let Ok(journal) = &source.journal {
            watch.add(journal.folder());
        }
        for (place, _) in &source.files {
            watch.add(&place.path);
        }
    }
}

fn read_journal(source: &mut Source, host: &Host) {
    let Ok(journal) = &mut source.journal else { return };
    let read = match journal.read(host, ENTRIES_A_READ) {
        Ok(read) => read,
        Err(error) => {
            // Between two files, or damaged: the next file will be read. It is kept, since it knows what was read.
            source.journal_error = Some(error.to_string());
            return;
        }
    };
    source.journal_error = None;
    let (stamp, monotonic) = (host.clock().stamp(), kmsg::monotonic());
    source.journal_lines += read.entries.len() as u64;
    for entry in &read.entries {
        // Another boot's times can't be put on this boot's clock.
        if source.boot_id.as_ref().is_some_and(|boot| *boot != entry.boot()) {
            continue;
        }
        let age = monotonic.saturating_sub(Duration::from_micros(entry.monotonic_usec));
        source.late = Some(age);
        if let Some(raw) = raw_of(entry, &source.units, stamp, age) {
            source.events.line(&raw, source.started);
        }
    }
}

/// An entry of a program that is read, as a line.
fn raw_of<'a>(
    entry: &'a Entry,
    units: &BTreeMap<String, Programs>,
    now: Stamp,
    age: Duration,
) -> Option<Raw<'a>> {
    let text = entry.get("MESSAGE")?;
    // The kernel's own lines are the collector oom's.
    if entry.get("_TRANSPORT") == Some("kernel") {
        return None;
    }
    let own = entry.get("_SYSTEMD_UNIT");
    let (unit, programs) = if entry.get("_PID") == Some("1") {
        ("systemd", Programs::SYSTEMD)
    } else {
        let unit = own?;
        (unit, places::programs_of_unit(unit).or_else(|| units.get(unit).copied())?)
    };
    let wall =
        i64::try_from(entry.realtime_usec).ok().and_then(|usec| Timestamp::from_microsecond(usec).ok())?;
    let mut taken = Stamp { wall, boot: now.boot.saturating_sub(age) };
    let mut by = "journal";
    let sent = entry.get("_SOURCE_REALTIME_TIMESTAMP").and_then(|usec| usec.parse::<u64>().ok());
    if let Some(late) = sent.and_then(|sent| entry.realtime_usec.checked_sub(sent)).map(Duration::from_micros)
        && late < Duration::from_secs(3600)
        && let Some(wall) =
            SignedDuration::try_from(late).ok().and_then(|late| taken.wall.checked_sub(late).ok())
    {
        taken = told::earlier(taken, wall);
        by = "sender";
    }
    let key = format!("journal/{}-{:08x}", entry.monotonic_usec, checksum(text));
    let of_unit = entry.get("UNIT").filter(|_| programs == Programs::SYSTEMD);
    Some(Raw { key, unit, of_unit, programs, text, taken, by })
}

fn checksum(text: &str) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(text.as_bytes());
    crc.sum()
}

fn read_files(source: &mut Source, host: &Host) {
    let now = host.clock().stamp();
    for (place, tail) in &mut source.files {
        let lines = match tail.read(FILE_BYTES_A_READ, FILE_BYTES_BEHIND) {
            Ok(lines) => lines,
            Err(error) => {
                source.files_error = Some(error.to_string());
                continue;
            }
        };
        source.file_lines += lines.len() as u64;
        for line in lines {
            let (at, text) =
                if place.of_container { format::container_line(&line.text) } else { (None, line.text) };
            let (taken, by) = match at {
                Some(at) if at <= now.wall => (told::earlier(now, at), "runtime"),
                _ => (now, "read"),
            };
            // A file that is cut and written anew has other lines at the same places.
            let key = format!("log/{:x}-{}-{:08x}", line.inode, line.offset, checksum(&text));
            let (unit, programs) = (place.unit.as_str(), place.programs);
            let raw = Raw { key, unit, of_unit: None, programs, text: &text, taken, by };
            source.events.line(&raw, source.started);
        }
    }
}

fn reading(source: &mut Source) -> Reading {
    let journal = source.journal.as_ref();
    let files = source.files.iter().map(|(place, _)| (place.path.display().to_string(), place.unit.clone()));
    let skipped: u64 = source.files.iter().map(|(_, tail)| tail.skipped_bytes).sum();
    Reading {
        journal: journal.ok().map(|journal| journal.folder().display().to_string()),
        journal_error: journal.err().cloned().or_else(|| source.journal_error.clone()),
        files: files.collect(),
        files_error: source.files_error.clone(),
        journal_lines_total: source.journal_lines,
        journal_waiting: journal.ok().map(Journal::waiting),
        journal_late_seconds: source.late.map(|late| late.as_secs_f64()),
        journal_damaged_total: journal.ok().map(Journal::damaged_total),
        journal_rotations_total: journal.ok().map(|journal| journal.rotations_total),
        file_lines_total: source.file_lines,
        file_skipped_bytes_total: source.skipped_before + skipped,
        dropped_total: source.events.dropped_total(),
        patterns: source.events.patterns.clone(),
        newest: source.events.newest.clone(),
        happened: std::mem::take(&mut source.events.happened),
    }
}

fn summary(reading: &Reading) -> String {
    let journal = match (&reading.journal, &reading.journal_error) {
        (Some(_), _) => "the journal".to_owned(),
        (None, Some(error)) => format!("no journal ({error})"),
        (None, None) => "no journal".to_owned(),
    };
    let events: u64 = reading.patterns.values().sum();
    let behind = match reading.journal_waiting {
        None | Some(0) => String::new(),
        Some(waiting) => format!(", {waiting} entries wait"),
    };
    format!("{journal} and {} files, {events} lines that matter{behind}", reading.files.len())
}

#[expect(clippy::cast_precision_loss, reason = "no counter of lines reaches 2^53")]
fn metrics(reading: &Reading, sink: &mut Sink) {
    for (pattern, count) in &reading.patterns {
        sink.put(&EVENTS, &[pattern], *count as f64);
    }
    if reading.journal.is_some() {
        sink.put(&LINES, &["journal"], reading.journal_lines_total as f64);
    }
    sink.put(&LINES, &["files"], reading.file_lines_total as f64);
    sink.put(&DROPPED, &[], reading.dropped_total as f64);
    sink.put(&SKIPPED, &[], reading.file_skipped_bytes_total as f64);
    sink.put_some(&WAITING, &[], reading.journal_waiting.map(|waiting| waiting as f64));
    sink.put_some(&LATE, &[], reading.journal_late_seconds);
}

fn detect(pair: Pair<'_, Reading>, _: &Thresholds, noticed: &mut Noticed) {
    noticed.happenings.extend(pair.now.happened.iter().cloned());
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done(places::pod_of_folder(&text));
    for line in text.lines() {
        let (_, inner) = format::container_line(line);
        done(format::parse(line));
        for programs in
            [Programs::KUBELET, Programs::RUNTIME, Programs::ONE_PROCESS, Programs::ETCD, Programs::CNI]
        {
            done(pattern::find(&inner, programs));
        }
    }
}

#[cfg(test)]
mod tests;
