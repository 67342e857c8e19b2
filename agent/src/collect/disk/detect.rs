//! What is abnormal of disks and file systems.

use std::time::Duration;

use nodewhy_proto::{Evidence, Severity, Subject, SubjectKind};

use super::Reading;
use super::device::Device;
use super::filesystems::{Filesystem, Role};
use crate::collector::{Abnormal, Noticed, Pair};
use crate::thresholds::{Eviction, Heuristic, Limit, Thresholds};

static AWAIT: Heuristic = Heuristic {
    name: "disk_await_milliseconds",
    about: "what a read or write may take on average over 10 s on a busy disk, before the disk is slow",
    value: 100.0,
};
static BUSY: Heuristic = Heuristic {
    name: "disk_busy_percent",
    about: "share of 10 s in which a disk has something in flight, above which it is busy: only then can it be slow",
    value: 60.0,
};
static HUNG: Heuristic = Heuristic {
    name: "disk_hung_seconds",
    about: "for how long something may be in flight on a disk without anything that ends, before the disk hangs",
    value: 10.0,
};
static STUCK: Heuristic = Heuristic {
    name: "mount_stuck_seconds",
    about: "for how long a file system may leave a question of its size unanswered, before its mount is stuck",
    value: 5.0,
};
static ERRORS: Heuristic = Heuristic {
    name: "disk_errors_count",
    about: "commands that may fail on a SCSI disk in a minute; some fail on healthy ones (a question that it does not \
            know)",
    value: 4.0,
};
static OTHER_FULL: Heuristic = Heuristic {
    name: "filesystem_other_available_percent",
    about: "share of a file system, neither nodefs nor imagefs, below which it is told as full (bytes or inodes)",
    value: 1.0,
};

/// All of them.
pub(super) static LIMITS: &[&Heuristic] = &[&AWAIT, &BUSY, &HUNG, &STUCK, &ERRORS, &OTHER_FULL];

pub(super) fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let at = pair.at.wall;
    let mut states = Vec::new();
    for filesystem in pair.now.filesystems.iter() {
        states.extend(full(filesystem, thresholds));
        states.extend(without_inodes(filesystem, thresholds));
        states.extend(read_only(filesystem));
        states.extend(with_errors(filesystem));
        states.extend(stuck(filesystem, thresholds));
    }
    for device in pair.now.devices.iter().filter(|device| device.is_disk()) {
        states.extend(slow(device, thresholds));
        states.extend(hung(device, thresholds));
        states.extend(failing(device, thresholds));
    }
    for state in &mut states {
        for evidence in &mut state.evidence {
            evidence.at.get_or_insert(at);
        }
    }
    noticed.states.extend(states);
}

/// An abnormal state of a file system or a device, without hold.
fn state(finding: &'static str, subject: Subject, summary: String, evidence: Vec<Evidence>) -> Abnormal {
    Abnormal {
        finding,
        subject,
        severity: Severity::Warning,
        summary,
        evidence,
        since: None,
        hold: Duration::ZERO,
        clear_after: Duration::from_secs(10),
    }
}

fn subject(filesystem: &Filesystem) -> Subject {
    Subject::new(SubjectKind::Filesystem, &filesystem.mount_point)
}

/// `the nodefs /`, `/data`.
fn title(filesystem: &Filesystem) -> String {
    let roles: Vec<&str> = filesystem.roles.iter().map(|role| role.name()).collect();
    let path = &filesystem.mount_point;
    if roles.is_empty() { path.clone() } else { format!("{path} ({})", roles.join(" and ")) }
}

/// Each role's limit below which this much is left; else, for a file system without a role, our own.
fn short_of(
    filesystem: &Filesystem,
    left: u64,
    capacity: u64,
    thresholds: &Thresholds,
    eviction: fn(Role, &Thresholds) -> Option<Eviction>,
) -> Vec<(Option<Role>, Limit)> {
    let of_roles = filesystem
        .roles
        .iter()
        .filter_map(|role| Some((Some(*role), eviction(*role, thresholds)?.of(capacity as f64))));
    let mut limits: Vec<(Option<Role>, Limit)> = of_roles.collect();
    // One that nobody can write to is as full as it was made.
    if limits.is_empty() && !filesystem.is_read_only {
        let percent = thresholds.limit(&OTHER_FULL);
        limits.push((None, Limit { value: capacity as f64 * percent.value / 100.0, origin: percent.origin }));
    }
    limits.retain(|(_, limit)| (left as f64) < limit.value);
    limits
}

fn full(filesystem: &Filesystem, thresholds: &Thresholds) -> Option<Abnormal> {
    let bytes = filesystem.bytes?;
    let limits = short_of(filesystem, bytes.available_bytes, bytes.total_bytes, thresholds, Role::bytes);
    let (is_watched, mut evidence) = told(&limits, bytes.available_bytes, "bytes", "available", mib)?;
    let reserved = bytes.free_bytes.saturating_sub(bytes.available_bytes);
    if reserved > 0 {
        let text = format!("{} more are free for root alone", mib(reserved as f64));
        evidence.push(Evidence::new(text, "statfs").with_value(reserved as f64, "bytes"));
    }
    let left =
        format!("{} of {} available", mib(bytes.available_bytes as f64), mib(bytes.total_bytes as f64));
    let follows = if is_watched { ": the kubelet evicts pods" } else { "" };
    let summary = format!("{} has {left}{follows}", title(filesystem));
    let mut full = state("filesystem_full", subject(filesystem), summary, evidence);
    full.severity = if is_watched { Severity::Warning } else { Severity::Info };
    Some(full)
}

fn without_inodes(filesystem: &Filesystem, thresholds: &Thresholds) -> Option<Abnormal> {
    let inodes = filesystem.inodes?;
    let limits = short_of(filesystem, inodes.inodes_free, inodes.inodes, thresholds, Role::inodes);
    let (is_watched, evidence) =
        told(&limits, inodes.inodes_free, "inodes", "free", |it| format!("{it:.0} inodes"))?;
    let follows = if is_watched { ": the kubelet evicts pods" } else { "" };
    let summary =
        format!("{} has {} of {} inodes free{follows}", title(filesystem), inodes.inodes_free, inodes.inodes);
    let mut full = state("filesystem_inodes_full", subject(filesystem), summary, evidence);
    full.severity = if is_watched { Severity::Warning } else { Severity::Info };
    Some(full)
}

/// The evidence for each limit; and whether one of them is the kubelet's. `None`: there is enough.
fn told(
    limits: &[(Option<Role>, Limit)],
    left: u64,
    unit: &str,
    word: &str,
    say: impl Fn(f64) -> String,
) -> Option<(bool, Vec<Evidence>)> {
    let signal = |role: &Option<Role>| {
        let of = role.map_or("file system", Role::name);
        let signal = if unit == "inodes" { "inodesFree" } else { "available" };
        if role.is_some() { format!("{of}.{signal}") } else { format!("{word} {unit}") }
    };
    let evidence: Vec<Evidence> = limits
        .iter()
        .map(|(role, limit)| {
            let text = format!("{} {}, below {}", signal(role), say(left as f64), say(limit.value));
            Evidence::new(text, "statfs")
                .with_value(left as f64, unit)
                .with_threshold(limit.value, limit.origin)
        })
        .collect();
    (!evidence.is_empty()).then(|| (limits.iter().any(|(role, _)| role.is_some()), evidence))
}

fn mib(bytes: f64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    if bytes < 1024.0 * MIB {
        format!("{:.1} MiB", bytes / MIB)
    } else {
        format!("{:.1} GiB", bytes / 1024.0 / MIB)
    }
}

fn read_only(filesystem: &Filesystem) -> Option<Abnormal> {
    let why = filesystem.turned_read_only.as_ref()?;
    let mut evidence = vec![Evidence::new(format!("{}: {why}", filesystem.mount_point), "/proc/1/mountinfo")];
    evidence.extend(errors(filesystem));
    let summary = format!("{} ({}) is read-only: {why}", title(filesystem), filesystem.source);
    let mut state = state("filesystem_readonly", subject(filesystem), summary, evidence);
    if !filesystem.roles.is_empty() {
        // Neither kubelet nor runtime can make anything any more.
        state.severity = Severity::Critical;
    }
    // What ended the writing has a time of its own, where ext4 noted it.
    state.since = filesystem.errors.as_ref().filter(|errors| errors.is_of_this_boot).and_then(|it| it.last);
    Some(state)
}

fn with_errors(filesystem: &Filesystem) -> Option<Abnormal> {
    let errors_of_it = filesystem.errors.as_ref().filter(|errors| errors.is_of_this_boot)?;
    let summary = format!(
        "{} ({}) had {} errors, the newest since the boot: fsck is needed",
        title(filesystem),
        filesystem.source,
        errors_of_it.count
    );
    let mut state =
        state("filesystem_errors", subject(filesystem), summary, errors(filesystem).into_iter().collect());
    state.since = errors_of_it.last;
    Some(state)
}

fn errors(filesystem: &Filesystem) -> Option<Evidence> {
    let errors = filesystem.errors.as_ref()?;
    let function = errors.last_function.as_deref().unwrap_or("a function that it does not name");
    let text = format!("ext4 noted {} errors, the newest in {function}", errors.count);
    let mut evidence = Evidence::new(text, "/sys/fs/ext4").with_value(errors.count as f64, "errors");
    evidence.at = errors.last;
    Some(evidence)
}

fn stuck(filesystem: &Filesystem, thresholds: &Thresholds) -> Option<Abnormal> {
    let whose = filesystem.pod.as_ref().map(|pod| format!(", mounted by pod {pod}")).unwrap_or_default();
    let what = format!("{} ({} from {}{whose})", title(filesystem), filesystem.kind, filesystem.source);
    if filesystem.is_stale {
        let text = filesystem.missing.clone().unwrap_or_else(|| "ESTALE".to_owned());
        let summary = format!("{what} is stale: its server no longer knows it, or its program has ended");
        return Some(state("mount_stuck", subject(filesystem), summary, vec![Evidence::new(text, "statfs")]));
    }
    let (seconds, limit) = (filesystem.unanswered_for_seconds?, thresholds.limit(&STUCK));
    if seconds < limit.value {
        return None;
    }
    let text = format!("statfs of {} has been unanswered for {seconds:.0} s", filesystem.mount_point);
    let evidence = Evidence::new(text, "statfs")
        .with_value(seconds, "seconds")
        .with_threshold(limit.value, limit.origin);
    let mut state =
        state("mount_stuck", subject(filesystem), format!("{what} does not answer"), vec![evidence]);
    state.since = filesystem.unanswered_since;
    state.clear_after = Duration::ZERO;
    Some(state)
}

/// ` under /, /var`.
fn under(device: &Device) -> String {
    match device.mount_points.as_slice() {
        [] => String::new(),
        points => {
            let shown: Vec<&str> = points.iter().take(3).map(String::as_str).collect();
            format!(" under {}", shown.join(", "))
        }
    }
}

fn device_subject(device: &Device) -> Subject {
    Subject::new(SubjectKind::Device, &device.name)
}

fn slow(device: &Device, thresholds: &Thresholds) -> Option<Abnormal> {
    let lately = device.lately?;
    let (wait, busy) = (lately.await_seconds? * 1000.0, lately.busy_ratio * 100.0);
    let (most_wait, most_busy) = (thresholds.limit(&AWAIT), thresholds.limit(&BUSY));
    if wait <= most_wait.value || busy <= most_busy.value {
        return None;
    }
    let part = |name: &str, wait: Option<f64>| {
        wait.map(|wait| Evidence::new(format!("a {name} took {:.0} ms", wait * 1000.0), "/proc/diskstats"))
    };
    let text = format!("a read or write took {wait:.0} ms over {:.0} s", lately.for_seconds);
    let mut evidence = vec![
        Evidence::new(text, "/proc/diskstats")
            .with_value(wait, "milliseconds")
            .with_threshold(most_wait.value, most_wait.origin),
        Evidence::new(format!("busy for {busy:.0} % of the time"), "/proc/diskstats")
            .with_value(busy, "percent")
            .with_threshold(most_busy.value, most_busy.origin),
    ];
    evidence.extend(part("read", lately.read_await_seconds));
    evidence.extend(part("write", lately.write_await_seconds));
    evidence.extend(part("flush", lately.flush_await_seconds));
    // A flat number of them is a cloud's throttle.
    let text = format!(
        "{:.0} reads and {:.0} writes a second, {} a second, {:.1} in flight",
        lately.reads_per_second,
        lately.writes_per_second,
        mib(lately.read_bytes_per_second + lately.written_bytes_per_second),
        lately.queue_length
    );
    evidence.push(Evidence::new(text, "/proc/diskstats"));
    let summary = format!("{}{}: a read or write takes {wait:.0} ms", device.title(), under(device));
    Some(state("disk_slow", device_subject(device), summary, evidence))
}

fn hung(device: &Device, thresholds: &Thresholds) -> Option<Abnormal> {
    let limit = thresholds.limit(&HUNG);
    let what = format!("{}{}", device.title(), under(device));
    if let Some(suspended) = device.suspended_for.filter(|it| it.as_secs_f64() >= limit.value) {
        let seconds = suspended.as_secs_f64();
        let text = format!("device mapper has had it suspended for {seconds:.0} s");
        let path = format!("/sys/block/{}/dm/suspended", device.name);
        let evidence = Evidence::new(text, path)
            .with_value(seconds, "seconds")
            .with_threshold(limit.value, limit.origin);
        let summary = format!("{what} is suspended: all its I/O waits");
        let mut state = state("disk_hung", device_subject(device), summary, vec![evidence]);
        state.since = device.suspended_since;
        return Some(state);
    }
    let seconds = device.nothing_ended_for_seconds?;
    // A count that was lost (a bug of some drivers) stays in flight for ever, on a device that is not busy.
    if seconds < limit.value || !device.was_busy_meanwhile {
        return None;
    }
    let in_flight = device.counters.in_flight;
    let text = format!("{in_flight} in flight, and nothing has ended for {seconds:.0} s");
    let evidence = Evidence::new(text, "/proc/diskstats")
        .with_value(seconds, "seconds")
        .with_threshold(limit.value, limit.origin);
    let summary = format!("{what} answers nothing: {in_flight} requests wait");
    let mut state = state("disk_hung", device_subject(device), summary, vec![evidence]);
    state.since = device.nothing_ended_since;
    state.clear_after = Duration::from_secs(2);
    Some(state)
}

fn failing(device: &Device, thresholds: &Thresholds) -> Option<Abnormal> {
    let (failed, limit) = (device.io_errors_lately?, thresholds.limit(&ERRORS));
    if failed as f64 <= limit.value {
        return None;
    }
    let text = format!("{failed} commands failed within a minute");
    let path = format!("/sys/block/{}/device/ioerr_cnt", device.name);
    let evidence = Evidence::new(text, path)
        .with_value(failed as f64, "errors")
        .with_threshold(limit.value, limit.origin);
    let state_of_it =
        device.state.as_ref().map(|state| format!(", the driver says {state}")).unwrap_or_default();
    let summary =
        format!("{}{}: {failed} commands failed within a minute{state_of_it}", device.title(), under(device));
    Some(state("disk_errors", device_subject(device), summary, vec![evidence]))
}
