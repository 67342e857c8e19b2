//! Disks and file systems: what `/proc/diskstats` and `/sys/block` say of devices, how full the file systems are by
//! the kubelet's own limits, which of them turned read-only, and which do not answer.
//!
//! Devices are read every second, file systems every five, those of servers every fifteen. A file system is asked by a
//! thread that may hang (see [`crate::host::mounts`]): a dead NFS server costs its own mount.

mod detect;
mod device;
mod diskstats;
mod filesystems;
mod mountinfo;

use std::sync::Arc;
use std::time::Duration;

use nodewhy_clock::Stamp;
use serde::Serialize;
use serde_json::json;

use self::device::{Device, Devices};
use self::diskstats::Counters;
use self::filesystems::{Filesystem, Filesystems, Role};
use crate::collector::{Collector, Page, never_woken};
use crate::host::mounts::Asker;
use crate::host::{Host, Kept, ReadError};
use crate::metrics::growing::Growing;
use crate::metrics::{Family, Sink};
use crate::thresholds::Limit;

/// Disks and file systems, every second.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "disk",
    every: Duration::from_secs(1),
    deadline: Duration::from_secs(2),
    // What was writable before is what a read-only file system is told by.
    remembers: true,
    open,
    read,
    wake: never_woken,
    summary,
    families: &[
        &READS,
        &READ_BYTES,
        &WRITES,
        &WRITTEN_BYTES,
        &READ_SECONDS,
        &WRITE_SECONDS,
        &BUSY_SECONDS,
        &IN_FLIGHT,
        &AWAIT_WORST,
        &BUSY_WORST,
        &NOTHING_ENDED,
        &IO_ERRORS,
        &FS_SIZE,
        &FS_FREE,
        &FS_AVAILABLE,
        &FS_INODES,
        &FS_INODES_FREE,
        &FS_READ_ONLY,
        &FS_EVICTION_BYTES,
        &FS_EVICTION_INODES,
        &FILESYSTEMS,
        &FS_THREADS,
    ],
    metrics,
    limits: detect::LIMITS,
    detect: detect::detect,
    pages: &[Page {
        path: "/api/v1/disks",
        about: "Every block device with its counters, its rates of the last second and of the last 10 to 20 s, its queue \
                and its errors; every file system with its bytes and inodes, by the limits of the kubelet where it has \
                some, whether it turned read-only, and whether it answers.",
        json: |reading| {
            Ok(json!({ "devices": &reading.devices, "filesystems": reading.filesystems.as_slice() }))
        },
    }],
    asks: &[],
};

/// What is kept between reads.
#[derive(Debug)]
pub struct Source {
    diskstats: Kept,
    devices: Devices,
    filesystems: Filesystems,
    sums: [Growing; SUMS.len()],
    errors: Growing,
}

/// One reading.
#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    /// The file system of the kubelet's root folder; `None`: it is not there, or did not answer yet.
    pub nodefs: Option<RoleReading>,
    /// The file system of the runtime's images.
    pub imagefs: Option<RoleReading>,
    /// The busiest disks of the last second, three at most.
    pub busiest: Vec<Busy>,
    /// Requests in flight, of all disks together.
    pub in_flight: u64,
    /// How many file systems there are.
    pub filesystem_count: usize,
    /// Mount points that do not answer, eight at most.
    pub unanswered: Vec<String>,
    /// Mount points that turned read-only, eight at most.
    pub turned_read_only: Vec<String>,
    /// How many file systems did not answer the newest question.
    pub unanswered_count: usize,
    /// Devices and file systems beyond the most that are followed.
    pub left_out: usize,
    /// Why the table of mounts could not be read: of file systems nothing is known then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts_error: Option<String>,
    /// Threads that ask file systems; more than one: some hang.
    pub threads: usize,
    /// What all whole disks have counted, those that are gone included, as [`SUMS`]. `None`: there was none.
    #[serde(skip)]
    pub sums: Option<[u64; SUMS.len()]>,
    /// The same of SCSI disks' errors.
    #[serde(skip)]
    pub errors: Option<u64>,
    /// All devices.
    #[serde(skip)]
    pub devices: Vec<Device>,
    /// All file systems.
    #[serde(skip)]
    pub filesystems: Arc<Vec<Filesystem>>,
}

/// A disk that has something to do.
#[derive(Clone, Debug, Serialize)]
pub struct Busy {
    /// Its name.
    pub device: String,
    /// What a read or write took on average; `None`: none ended.
    pub await_seconds: Option<f64>,
    /// Share of the time in which something was in flight.
    pub busy_ratio: f64,
    /// Requests in flight.
    pub in_flight: u64,
}

/// A file system that the kubelet watches, beside its hard eviction threshold.
#[derive(Clone, Debug, Serialize)]
pub struct RoleReading {
    /// Where it is mounted.
    pub mount_point: String,
    /// All its bytes.
    pub total_bytes: Option<u64>,
    /// Those that are free for everyone: what the kubelet goes by.
    pub available_bytes: Option<u64>,
    /// Free bytes that are kept for root.
    pub reserved_bytes: Option<u64>,
    /// All its inodes.
    pub inodes: Option<u64>,
    /// Those that are free.
    pub inodes_free: Option<u64>,
    /// The kubelet evicts below this many bytes. `None`: it does not, or its limits are not known.
    pub eviction_bytes: Option<f64>,
    /// The kubelet evicts below this many inodes.
    pub eviction_inodes: Option<f64>,
    /// Whether it is read-only.
    pub is_read_only: bool,
    /// Why it has no size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

fn open(host: &Host) -> Result<Source, ReadError> {
    let its = host.clone();
    let asker = Asker::new(host.clock().clone(), move |path| its.filesystem(path));
    open_with(host, asker)
}

fn open_with(host: &Host, asker: Asker) -> Result<Source, ReadError> {
    Ok(Source {
        diskstats: host.keep("/proc/diskstats")?,
        devices: Devices::default(),
        filesystems: Filesystems::new(asker, host),
        sums: Default::default(),
        errors: Growing::default(),
    })
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let now: Stamp = host.clock().stamp();
    let lines = diskstats::parse(source.diskstats.read()?)
        .map_err(|what| ReadError::malformed("/proc/diskstats", what))?;
    let names = lines.iter().map(|line| (line.number, line.name)).collect();
    let look = source.filesystems.look(host, &names, now);
    let mount_points = source.filesystems.mount_points();
    let (devices, left_out) = source.devices.look(&lines, now, &mount_points, host);
    let filesystems = look.filesystems;
    let mut sums = [0; SUMS.len()];
    for ((place, sum), (_, count, _)) in sums.iter_mut().zip(&mut source.sums).zip(&SUMS) {
        *place = sum.take(disks(&devices).map(|it| (it.name.as_str(), count(&it.counters))));
    }
    // One that was there keeps its sum.
    let had_disk = sums != [0; SUMS.len()] || disks(&devices).next().is_some();
    let counted = devices.iter().filter_map(|it| Some((it.name.as_str(), it.io_errors?)));
    let counts_errors = devices.iter().any(|it| it.io_errors.is_some());
    let errors = source.errors.take(counted);
    let limits = host.thresholds();
    let role = |role: Role| {
        let found = filesystems.iter().find(|it| it.roles.contains(&role))?;
        let limit = |of: Option<u64>, eviction: Option<crate::thresholds::Eviction>| -> Option<Limit> {
            Some(eviction?.of(of? as f64))
        };
        let total = found.bytes.map(|bytes| bytes.total_bytes);
        let inodes = found.inodes.map(|inodes| inodes.inodes);
        Some(RoleReading {
            mount_point: found.mount_point.clone(),
            total_bytes: total,
            available_bytes: found.bytes.map(|bytes| bytes.available_bytes),
            reserved_bytes: found.bytes.map(|bytes| bytes.free_bytes.saturating_sub(bytes.available_bytes)),
            inodes,
            inodes_free: found.inodes.map(|inodes| inodes.inodes_free),
            eviction_bytes: limits.as_ref().and_then(|it| limit(total, role.bytes(it))).map(|it| it.value),
            eviction_inodes: limits.as_ref().and_then(|it| limit(inodes, role.inodes(it))).map(|it| it.value),
            is_read_only: found.is_read_only,
            missing: found.missing.clone(),
        })
    };
    let some = |is: &dyn Fn(&Filesystem) -> bool| -> Vec<String> {
        filesystems.iter().filter(|it| is(it)).map(|it| it.mount_point.clone()).take(8).collect()
    };
    let does_not_answer = |it: &Filesystem| it.unanswered_for_seconds.is_some_and(|seconds| seconds >= 1.0);
    Ok(Reading {
        nodefs: role(Role::Nodefs),
        imagefs: role(Role::Imagefs),
        busiest: busiest(&devices),
        in_flight: disks(&devices).map(|it| it.counters.in_flight).fold(0, u64::saturating_add),
        filesystem_count: filesystems.len(),
        unanswered: some(&does_not_answer),
        turned_read_only: some(&|it| it.turned_read_only.is_some()),
        unanswered_count: filesystems.iter().filter(|it| does_not_answer(it)).count(),
        left_out: left_out + look.left_out,
        mounts_error: look.error,
        threads: source.filesystems.threads(),
        sums: had_disk.then_some(sums),
        errors: (counts_errors || errors > 0).then_some(errors),
        devices,
        filesystems,
    })
}

/// Whole disks, without what stands on them: each request counts once.
fn disks(devices: &[Device]) -> impl Iterator<Item = &Device> {
    devices.iter().filter(|it| it.kind == device::Kind::Disk)
}

fn busiest(devices: &[Device]) -> Vec<Busy> {
    let mut busy: Vec<Busy> = devices
        .iter()
        .filter(|device| device.is_disk())
        .filter_map(|device| {
            let now = device.now.filter(|now| now.busy_ratio > 0.0 || device.counters.in_flight > 0)?;
            Some(Busy {
                device: device.title(),
                await_seconds: now.await_seconds,
                busy_ratio: now.busy_ratio,
                in_flight: device.counters.in_flight,
            })
        })
        .collect();
    busy.sort_by(|a, b| b.busy_ratio.total_cmp(&a.busy_ratio).then_with(|| a.device.cmp(&b.device)));
    busy.truncate(3);
    busy
}

fn summary(reading: &Reading) -> String {
    let mut parts = Vec::new();
    for (name, role) in [("nodefs", &reading.nodefs), ("imagefs", &reading.imagefs)] {
        let Some(role) = role else { continue };
        parts.push(match role.available_bytes.zip(role.total_bytes) {
            Some((available, total)) => {
                format!("{name} {:.0} % free", 100.0 * available as f64 / total as f64)
            }
            None => format!("{name} of unknown size"),
        });
    }
    match reading.busiest.first() {
        Some(Busy { device, await_seconds: Some(wait), busy_ratio, .. }) => {
            parts.push(format!("{device} {:.0} % busy, {:.1} ms", busy_ratio * 100.0, wait * 1000.0));
        }
        Some(Busy { device, busy_ratio, .. }) => {
            parts.push(format!("{device} {:.0} % busy", busy_ratio * 100.0))
        }
        None => parts.push("disks idle".to_owned()),
    }
    if reading.unanswered_count > 0 {
        parts.push(format!("{} mounts do not answer", reading.unanswered_count));
    }
    parts.join(", ")
}

static READS: Family = Family::counter("nodewhy_disk_reads_total", "Reads that ended, of all whole disks.");
static READ_BYTES: Family =
    Family::counter("nodewhy_disk_read_bytes_total", "Bytes read, of all whole disks.");
static WRITES: Family =
    Family::counter("nodewhy_disk_writes_total", "Writes that ended, of all whole disks.");
static WRITTEN_BYTES: Family =
    Family::counter("nodewhy_disk_written_bytes_total", "Bytes written, of all whole disks.");
static READ_SECONDS: Family =
    Family::counter("nodewhy_disk_read_seconds_total", "What all reads took together, of all whole disks.");
static WRITE_SECONDS: Family =
    Family::counter("nodewhy_disk_write_seconds_total", "What all writes took together, of all whole disks.");
static BUSY_SECONDS: Family = Family::counter(
    "nodewhy_disk_busy_seconds_total",
    "Time in which something was in flight, summed over all whole disks.",
);
static IN_FLIGHT: Family = Family::gauge("nodewhy_disk_in_flight", "Requests in flight, of all whole disks.");
static AWAIT_WORST: Family = Family::gauge(
    "nodewhy_disk_await_worst_seconds",
    "What a read or a write took on average over the last 10 to 20 s, on the disk where it took longest.",
);
static BUSY_WORST: Family = Family::gauge(
    "nodewhy_disk_busy_worst_ratio",
    "Share of the last 10 to 20 s in which something was in flight, on the busiest disk.",
);
static NOTHING_ENDED: Family = Family::gauge(
    "nodewhy_disk_nothing_ended_worst_seconds",
    "For how long something has been in flight and nothing has ended, on the disk where that is longest.",
);
static IO_ERRORS: Family = Family::counter(
    "nodewhy_disk_errors_total",
    "Commands that failed, of all SCSI disks (ioerr_cnt). Left out where no disk counts them.",
);
const BY_ROLE: &[&str] = &["role"];
static FS_SIZE: Family = Family::gauge(
    "nodewhy_filesystem_size_bytes",
    "Size: role nodefs (the kubelet's root folder), imagefs (the runtime's images), other_worst (of the other local ones \
     that with the smallest share available).",
)
.by(BY_ROLE);
static FS_FREE: Family =
    Family::gauge("nodewhy_filesystem_free_bytes", "Free bytes, with those that are kept for root.")
        .by(BY_ROLE);
static FS_AVAILABLE: Family =
    Family::gauge("nodewhy_filesystem_available_bytes", "Free bytes for everyone: what the kubelet goes by.")
        .by(BY_ROLE);
static FS_INODES: Family = Family::gauge("nodewhy_filesystem_inodes", "Inodes.").by(BY_ROLE);
static FS_INODES_FREE: Family = Family::gauge("nodewhy_filesystem_inodes_free", "Free inodes.").by(BY_ROLE);
static FS_READ_ONLY: Family =
    Family::gauge("nodewhy_filesystem_read_only", "1: the file system is read-only, by intent or not.")
        .by(BY_ROLE);
static FS_EVICTION_BYTES: Family = Family::gauge(
    "nodewhy_filesystem_eviction_distance_bytes",
    "Available bytes above the kubelet's hard eviction threshold; below 0 it evicts.",
)
.by(BY_ROLE);
static FS_EVICTION_INODES: Family = Family::gauge(
    "nodewhy_filesystem_eviction_distance_inodes",
    "Free inodes above the kubelet's hard eviction threshold; below 0 it evicts.",
)
.by(BY_ROLE);
static FILESYSTEMS: Family = Family::gauge(
    "nodewhy_filesystems",
    "File systems by state: answered, unanswered (the question hangs), failed, turned_read_only. One can be in two.",
)
.by(&["state"]);
static FS_THREADS: Family = Family::gauge(
    "nodewhy_filesystem_threads",
    "The agent's threads that ask file systems; more than one: some file system hangs.",
);

/// A family that is a sum over whole disks, the counter, and how many of it are one of the family's unit.
type Sum = (&'static Family, fn(&Counters) -> u64, f64);

static SUMS: [Sum; 7] = [
    (&READS, |it| it.reads, 1.0),
    (&READ_BYTES, |it| it.read_bytes, 1.0),
    (&WRITES, |it| it.writes, 1.0),
    (&WRITTEN_BYTES, |it| it.written_bytes, 1.0),
    (&READ_SECONDS, |it| it.read_milliseconds, 1000.0),
    (&WRITE_SECONDS, |it| it.write_milliseconds, 1000.0),
    (&BUSY_SECONDS, |it| it.busy_milliseconds, 1000.0),
];

fn metrics(reading: &Reading, sink: &mut Sink) {
    for ((family, _, scale), sum) in SUMS.iter().zip(reading.sums.iter().flatten()) {
        sink.put(family, &[], *sum as f64 / scale);
    }
    if disks(&reading.devices).next().is_some() {
        sink.put(&IN_FLIGHT, &[], reading.in_flight as f64);
    }
    let worst = |value: &dyn Fn(&Device) -> Option<f64>| {
        reading.devices.iter().filter(|it| it.is_disk()).filter_map(value).max_by(f64::total_cmp)
    };
    sink.put_some(&AWAIT_WORST, &[], worst(&|it| it.lately?.await_seconds));
    sink.put_some(&BUSY_WORST, &[], worst(&|it| Some(it.lately?.busy_ratio)));
    sink.put_some(&NOTHING_ENDED, &[], worst(&|it| Some(it.nothing_ended_for_seconds.unwrap_or(0.0))));
    sink.put_some(&IO_ERRORS, &[], reading.errors.map(|count| count as f64));
    for (name, role) in [("nodefs", &reading.nodefs), ("imagefs", &reading.imagefs)] {
        let Some(role) = role else { continue };
        put_role(sink, name, role);
    }
    if let Some(other) = other_worst(&reading.filesystems) {
        put_role(sink, "other_worst", &other);
    }
    if reading.mounts_error.is_none() {
        let count =
            |is: fn(&Filesystem) -> bool| reading.filesystems.iter().filter(|it| is(it)).count() as f64;
        let is_failed = |it: &Filesystem| it.bytes.is_none() && it.unanswered_since.is_none();
        sink.put(
            &FILESYSTEMS,
            &["answered"],
            count(|it| it.bytes.is_some() && it.unanswered_since.is_none()),
        );
        sink.put(&FILESYSTEMS, &["unanswered"], reading.unanswered_count as f64);
        sink.put(&FILESYSTEMS, &["failed"], count(is_failed));
        sink.put(&FILESYSTEMS, &["turned_read_only"], count(|it| it.turned_read_only.is_some()));
    }
    sink.put(&FS_THREADS, &[], reading.threads as f64);
}

fn put_role(sink: &mut Sink, name: &str, role: &RoleReading) {
    let role_name = &[name];
    let value = |value: Option<u64>| value.map(|value| value as f64);
    sink.put_some(&FS_SIZE, role_name, value(role.total_bytes));
    let free =
        role.available_bytes.zip(role.reserved_bytes).map(|(available, kept)| (available + kept) as f64);
    sink.put_some(&FS_FREE, role_name, free);
    sink.put_some(&FS_AVAILABLE, role_name, value(role.available_bytes));
    sink.put_some(&FS_INODES, role_name, value(role.inodes));
    sink.put_some(&FS_INODES_FREE, role_name, value(role.inodes_free));
    sink.put(&FS_READ_ONLY, role_name, f64::from(u8::from(role.is_read_only)));
    let distance = |value: Option<u64>, limit: Option<f64>| Some(value? as f64 - limit?);
    sink.put_some(&FS_EVICTION_BYTES, role_name, distance(role.available_bytes, role.eviction_bytes));
    sink.put_some(&FS_EVICTION_INODES, role_name, distance(role.inodes_free, role.eviction_inodes));
}

/// Of the local ones that are written to and have no role, that with the smallest share of bytes available.
fn other_worst(filesystems: &[Filesystem]) -> Option<RoleReading> {
    let share = |it: &&Filesystem| it.bytes.map(|it| it.available_bytes as f64 / it.total_bytes as f64);
    let worst = filesystems
        .iter()
        .filter(|it| it.roles.is_empty() && !it.is_remote && !it.is_read_only && it.bytes.is_some())
        .min_by(|a, b| share(a).partial_cmp(&share(b)).unwrap_or(std::cmp::Ordering::Equal))?;
    Some(RoleReading {
        mount_point: worst.mount_point.clone(),
        total_bytes: worst.bytes.map(|it| it.total_bytes),
        available_bytes: worst.bytes.map(|it| it.available_bytes),
        reserved_bytes: worst.bytes.map(|it| it.free_bytes.saturating_sub(it.available_bytes)),
        inodes: worst.inodes.map(|it| it.inodes),
        inodes_free: worst.inodes.map(|it| it.inodes_free),
        eviction_bytes: None,
        eviction_inodes: None,
        is_read_only: worst.is_read_only,
        missing: None,
    })
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done(diskstats::parse(&text));
    done(mountinfo::file_systems(&text, "/var/lib/kubelet"));
    done(mountinfo::volume(&text));
    filesystems::fuzz(bytes);
    device::fuzz(bytes);
}

#[cfg(test)]
mod tests;
