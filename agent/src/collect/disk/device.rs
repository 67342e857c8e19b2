//! Block devices: what `/sys/block` says of them, and what they did over time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::Stamp;
use serde::Serialize;

use super::diskstats::{self, Counters, Line, Rates};
use crate::host::mounts::DeviceNumber;
use crate::host::{Host, ReadError};

/// Devices beyond this are counted, and not followed.
const MOST: usize = 512;
/// State, suspension, errors: not at every tick.
const SLOW_EVERY: Duration = Duration::from_secs(5);
/// What a device is judged by is at least this long a stretch, and at most twice as long.
const WINDOW: Duration = Duration::from_secs(10);
/// Errors are counted over this.
const ERRORS_WITHIN: Duration = Duration::from_secs(60);

/// What kind of block device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A whole disk: local, virtual or remote.
    Disk,
    /// A part of one.
    Partition,
    /// Device mapper: LVM, encryption, multipath.
    DeviceMapper,
    /// A software RAID.
    Raid,
    /// Memory, a file, an optical or a floppy drive: its waits say nothing of a disk.
    Other,
}

/// A device, now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Device {
    /// The kernel's name: `sda`, `dm-0`.
    pub name: String,
    /// `8:0`.
    pub number: String,
    /// What it is.
    pub kind: Kind,
    /// Device mapper's name, as in `/dev/mapper`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapper_name: Option<String>,
    /// Size.
    pub size_bytes: Option<u64>,
    /// Whether the kernel takes it for a spinning one; virtual disks often say so wrongly.
    pub is_rotational: Option<bool>,
    /// What the driver says: `running`, `offline`, `live`, `dead`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Since when device mapper has it suspended: all I/O waits. Seen every five seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended_since: Option<Timestamp>,
    /// Commands that failed since the device came (SCSI).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_errors: Option<u64>,
    /// Those of the last minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_errors_lately: Option<u64>,
    /// Where file systems of it are mounted.
    pub mount_points: Vec<String>,
    /// Counters since the device came.
    pub counters: Counters,
    /// Since the tick before.
    pub now: Option<Rates>,
    /// Over the last 10 to 20 s.
    pub lately: Option<Rates>,
    /// Since when something has been in flight and nothing has ended. `None`: something ended, or nothing is.
    pub nothing_ended_since: Option<Timestamp>,
    /// For how long, by the clock that no step moves.
    pub nothing_ended_for_seconds: Option<f64>,
    /// Whether the kernel counted the device busy meanwhile. Kernels before commit 86d7331299fd (2022) do that only when
    /// something new begins.
    #[serde(skip)]
    pub was_busy_meanwhile: bool,
    /// For how long it has been suspended.
    #[serde(skip)]
    pub suspended_for: Option<Duration>,
}

impl Device {
    /// `dm-0 (data)`.
    pub(super) fn title(&self) -> String {
        match &self.mapper_name {
            Some(mapper) => format!("{} ({mapper})", self.name),
            None => self.name.clone(),
        }
    }

    /// Whether its waits are a disk's.
    pub(super) fn is_disk(&self) -> bool {
        matches!(self.kind, Kind::Disk | Kind::DeviceMapper | Kind::Raid)
    }
}

/// All devices over time.
#[derive(Debug, Default)]
pub(super) struct Devices {
    known: BTreeMap<DeviceNumber, Track>,
    slow: Option<Stamp>,
}

/// One device over time.
#[derive(Debug)]
struct Track {
    name: String,
    fixed: Fixed,
    state: Option<String>,
    suspended: Option<Stamp>,
    errors: VecDeque<(Stamp, u64)>,
    before: (Stamp, Counters),
    /// The beginnings of two stretches: the older one is at least [`WINDOW`] ago, once there is one.
    window: [(Stamp, Counters); 2],
    /// When something ended last, or nothing was in flight; and the busy time then.
    quiet: (Stamp, u64),
}

/// What does not change as long as the device is there.
#[derive(Clone, Debug, PartialEq)]
struct Fixed {
    kind: Kind,
    mapper_name: Option<String>,
    size_bytes: Option<u64>,
    is_rotational: Option<bool>,
    has_state: bool,
    counts_errors: bool,
}

impl Devices {
    /// The devices after this look at `/proc/diskstats`; and how many were left out.
    pub(super) fn look(
        &mut self,
        lines: &[Line<'_>],
        now: Stamp,
        mounts: &BTreeMap<DeviceNumber, Vec<String>>,
        host: &Host,
    ) -> (Vec<Device>, usize) {
        let is_slow = self.slow.is_none_or(|last| now.boot.saturating_sub(last.boot) >= SLOW_EVERY);
        if is_slow {
            self.slow = Some(now);
        }
        let mut old = std::mem::take(&mut self.known);
        let mut devices = Vec::new();
        for line in lines.iter().take(MOST) {
            // Another device under an old number starts anew.
            let known = old.remove(&line.number).filter(|track| track.name == line.name);
            let known = known.filter(|track| line.counters.completions() >= track.before.1.completions());
            let is_new = known.is_none();
            let mut track = known.unwrap_or_else(|| Track::new(line, now, host));
            if is_slow || is_new {
                track.look_slowly(now, host);
            }
            let mount_points = mounts.get(&line.number).cloned().unwrap_or_default();
            devices.push(track.look(line, now, mount_points));
            self.known.insert(line.number, track);
        }
        (devices, lines.len().saturating_sub(MOST))
    }
}

impl Track {
    fn new(line: &Line<'_>, now: Stamp, host: &Host) -> Track {
        let start = (now, line.counters);
        Track {
            name: line.name.to_owned(),
            fixed: fixed(line.name, host),
            state: None,
            suspended: None,
            errors: VecDeque::new(),
            before: start,
            window: [start; 2],
            quiet: (now, line.counters.busy_milliseconds),
        }
    }

    fn look_slowly(&mut self, now: Stamp, host: &Host) {
        let folder = folder(&self.name);
        let file = |name: &str| format!("{folder}/{name}");
        if self.fixed.has_state {
            self.state = line(host, &file("device/state"));
        }
        if self.fixed.kind == Kind::DeviceMapper {
            // What cannot be read is not known to be suspended.
            let is = line(host, &file("dm/suspended")).is_some_and(|text| text == "1");
            self.suspended = if is { self.suspended.or(Some(now)) } else { None };
        }
        if self.fixed.counts_errors
            && let Some(count) = line(host, &file("device/ioerr_cnt")).and_then(|text| hexadecimal(&text))
        {
            if self.errors.back().is_some_and(|(_, last)| count < *last) {
                self.errors.clear();
            }
            self.errors.push_back((now, count));
            // One that is older stays: growth is counted from it.
            while self.errors.get(1).is_some_and(|(at, _)| now.boot.saturating_sub(at.boot) >= ERRORS_WITHIN)
            {
                self.errors.pop_front();
            }
        }
    }

    fn look(&mut self, line: &Line<'_>, now: Stamp, mount_points: Vec<String>) -> Device {
        let counters = line.counters;
        let since = |then: Stamp| now.boot.saturating_sub(then.boot);
        let (at, before) = self.before;
        if counters.in_flight == 0 || counters.completions() != before.completions() {
            self.quiet = (now, counters.busy_milliseconds);
        }
        let [older, newer] = self.window;
        if since(newer.0) >= WINDOW {
            self.window = [newer, (now, counters)];
        }
        // Before the first rotation both are the same.
        let window = if since(older.0) >= WINDOW { Some(older) } else { None };
        let lately = window.and_then(|(at, before)| diskstats::rates(&before, &counters, since(at)));
        let rates = diskstats::rates(&before, &counters, since(at));
        self.before = (now, counters);
        let (quiet, busy_then) = self.quiet;
        let hung = Some(quiet).filter(|quiet| counters.in_flight > 0 && since(*quiet) > Duration::ZERO);
        Device {
            name: self.name.clone(),
            number: format!("{}:{}", line.number.0, line.number.1),
            kind: self.fixed.kind,
            mapper_name: self.fixed.mapper_name.clone(),
            size_bytes: self.fixed.size_bytes,
            is_rotational: self.fixed.is_rotational,
            state: self.state.clone(),
            suspended_since: self.suspended.map(|since| since.wall),
            io_errors: self.errors.back().map(|(_, count)| *count),
            io_errors_lately: self.errors.front().zip(self.errors.back()).map(|(old, new)| new.1 - old.1),
            mount_points,
            counters,
            now: rates,
            lately,
            nothing_ended_since: hung.map(|since| since.wall),
            nothing_ended_for_seconds: hung.map(|then| since(then).as_secs_f64()),
            was_busy_meanwhile: counters.busy_milliseconds != busy_then,
            suspended_for: self.suspended.map(since),
        }
    }
}

fn fixed(name: &str, host: &Host) -> Fixed {
    let folder = folder(name);
    let file = |file: &str| format!("{folder}/{file}");
    let exists = |path: String| host.exists(path).is_ok_and(|exists| exists);
    let kind = kind(name, exists(folder.clone()));
    let flag = |text: String| match text.as_str() {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    };
    let is_whole = kind != Kind::Partition;
    Fixed {
        kind,
        mapper_name: line(host, &file("dm/name")).filter(|_| kind == Kind::DeviceMapper),
        // In sectors of 512 bytes.
        size_bytes: line(host, &file("size")).and_then(|text| text.parse::<u64>().ok()?.checked_mul(512)),
        is_rotational: line(host, &file("queue/rotational")).and_then(flag),
        has_state: is_whole && exists(file("device/state")),
        counts_errors: is_whole && exists(file("device/ioerr_cnt")),
    }
}

/// A name with a slash (`cciss/c0d0`) is a folder's with an exclamation mark.
fn folder(name: &str) -> String {
    format!("/sys/block/{}", name.replace('/', "!"))
}

/// By its name; what is not in `/sys/block` is a part of what is.
fn kind(name: &str, is_in_sys_block: bool) -> Kind {
    let is = |prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit()))
    };
    if ["loop", "ram", "zram", "sr", "fd", "mtdblock"].into_iter().any(is) {
        Kind::Other
    } else if is("dm-") {
        Kind::DeviceMapper
    } else if !is_in_sys_block {
        Kind::Partition
    } else if is("md") {
        Kind::Raid
    } else {
        Kind::Disk
    }
}

/// A file's only line. A file that is not there, or says something that is no text, says nothing here.
fn line(host: &Host, path: &str) -> Option<String> {
    match host.read(path) {
        Ok(text) => {
            text.strip_suffix('\n').filter(|line| !line.is_empty()).map(|line| line.trim().to_owned())
        }
        Err(ReadError::NotFound { .. }) => None,
        Err(error) => {
            tracing::debug!("{error}");
            None
        }
    }
}

/// `0x1f`.
fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(hexadecimal(&crate::fuzz::text(bytes)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_their_names() {
        for (name, whole, expected) in [
            ("sda", true, Kind::Disk),
            ("sda1", false, Kind::Partition),
            ("nvme0n1", true, Kind::Disk),
            ("nvme0n1p2", false, Kind::Partition),
            ("vda", true, Kind::Disk),
            ("dm-12", true, Kind::DeviceMapper),
            ("md0", true, Kind::Raid),
            ("md0p1", false, Kind::Partition),
            ("loop3", true, Kind::Other),
            ("zram0", true, Kind::Other),
            ("sr0", true, Kind::Other),
            ("nbd0", true, Kind::Disk),
            ("rbd0", true, Kind::Disk),
        ] {
            assert_eq!(kind(name, whole), expected, "{name}");
        }
    }

    #[test]
    fn error_counts_are_hexadecimal() {
        assert_eq!(hexadecimal("0x1f"), Some(31));
        for garbage in ["31", "0x", "x", "", "0xg"] {
            assert_eq!(hexadecimal(garbage), None, "{garbage}");
        }
    }
}
