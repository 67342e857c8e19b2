//! The kernel log: OOM kills, each joined from its many lines, and the kernel's other words that matter.
//!
//! /dev/kmsg has each record with a sequence number. With the boot id it is the record's identity, so an agent
//! that was restarted reads the ring from its start, fills the gap, and repeats nothing. The log wakes the
//! collector: a kill is an event some 25 ms after the kernel's line (the time that `memory.oom.group` has to follow).
//! Where /dev/kmsg may not be opened there are three other ways: see `way.rs`.
//! Source: Documentation/ABI/testing/dev-kmsg, mm/oom_kill.c.

mod cgroups;
mod crash;
mod line;
mod log;
mod pattern;
mod record;
mod report;
mod snapshot;
mod time;
mod way;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use nodewhy_proto::{Evidence, OomScope, Role, Severity, Subject, SubjectKind};
use serde::{Serialize, Serializer};

pub use self::log::{Happened, KernelRecord, KillCount, Run, TimedKill};

pub use self::record::Id;

use self::log::{Log, RUN};
use self::time::{KernelClock, Now};
use self::way::Way;
use crate::collector::{Abnormal, Collector, Happening, Noticed, Pair};
use crate::host::kmsg::{self, KMSG};
use crate::host::{Host, ReadError};
use crate::metrics::{Family, Sink};
use crate::thresholds::Thresholds;
use crate::whose::role_name;

/// The kernel log.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "oom",
    every: Duration::from_secs(1),
    deadline: Duration::from_secs(5),
    remembers: false,
    open,
    read,
    wake,
    summary,
    families: &[&RECORDS, &LOST, &LOSSES_OF_UNKNOWN_SIZE, &MALFORMED, &DROPPED, &KILLS, &MESSAGES],
    metrics,
    limits: &[],
    detect,
    pages: &[],
    asks: &[],
};

/// Kept between reads.
#[derive(Debug)]
pub struct Source {
    way: Way,
    log: Log,
}

/// One reading: the log as followed so far.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// Which way is in use: `/dev/kmsg`, `handed descriptor`, `syslog(2)`, `journal`, or `recording` for a file or a pipe
    /// in the place of /dev/kmsg.
    pub way: &'static str,
    /// What can't be told this way.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub limits: &'static [&'static str],
    /// The ways that are not in use, and why.
    pub other_ways: BTreeMap<&'static str, String>,
    /// The oldest record that was read: the ring began here when it was opened. Above 0, older ones are gone.
    /// `None` without numbers (syslog(2), journal).
    pub first_seq: Option<u64>,
    /// The newest record that was read; `None` without numbers.
    pub newest_seq: Option<u64>,
    /// Whether more records wait than one read takes.
    pub behind: bool,
    /// Records read; lines, from syslog(2).
    pub records_total: u64,
    /// Records overwritten before they were read, by their sequence numbers: exact. `None` without numbers: nobody
    /// knows.
    pub lost_total: Option<u64>,
    /// How often that happened (EPIPE); `None` without numbers.
    pub overruns_total: Option<u64>,
    /// How often the end of what was read before was not there any more (syslog(2)): overwritten, or cleared by
    /// `dmesg --clear`. How many lines were lost is not known; after a clear perhaps none.
    pub losses_of_unknown_size_total: u64,
    /// Records that are not in the kernel's form.
    pub malformed_total: u64,
    /// Lines that matter and that no event stands for: they came in a storm.
    pub dropped_total: u64,
    /// OOM reports of which no kill came, or lines were lost.
    pub unfinished_reports_total: u64,
    /// CLOCK_MONOTONIC minus the kernel log's clock, in seconds; `None` until a record was read as it came.
    pub clock_offset_seconds: Option<f64>,
    /// Lines that matter, by pattern.
    pub messages: BTreeMap<&'static str, u64>,
    /// OOM kills, by scope and role.
    pub kills: Vec<KillCount>,
    /// The newest kills, newest last.
    pub newest_kills: Vec<Shared<TimedKill>>,
    /// Killed system processes (kubelet, runtime, network plugin), each name's newest.
    pub system_kills: Vec<Shared<Run>>,
    /// The newest kill for want of the whole node's memory.
    pub node_kills: Option<Shared<Run>>,
    /// The newest records, newest last.
    pub recent: VecDeque<Shared<KernelRecord>>,
    /// What is to be told since the reading before.
    #[serde(skip)]
    pub happened: Vec<Happened>,
}

/// Shared, so that a reading a second copies no text. Serialized as what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared<T>(pub Arc<T>);

impl<T: Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

fn open(host: &Host) -> Result<Source, ReadError> {
    let way = Way::open(host)?;
    let mut log = Log::new(procfs::page_size(), KernelClock::new(way.is_own()));
    crash::look(host, &mut log);
    Ok(Source { way, log })
}

fn wake(source: &Source) -> Option<BorrowedFd<'_>> {
    source.way.wake()
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let now = || Now { stamp: host.clock().stamp(), monotonic: kmsg::monotonic() };
    let Source { way, log } = source;
    // Before the log is read: who was killed since is not to be asked any more.
    log.cgroups.look(host, host.clock().since_boot());
    let behind = way.read(host, log, now)?;
    let numbered = |total: u64| way.has_numbers().then_some(total);
    Ok(Reading {
        way: way.name(),
        limits: way.limits(),
        other_ways: way.not_used().clone(),
        lost_total: numbered(log.lost_total),
        overruns_total: numbered(log.overruns_total),
        behind,
        ..reading(log)
    })
}

/// What the log has, as if read from /dev/kmsg to its end.
fn reading(log: &mut Log) -> Reading {
    Reading {
        way: KMSG,
        limits: &[],
        other_ways: BTreeMap::new(),
        first_seq: log.first_seq,
        newest_seq: log.newest_seq,
        behind: false,
        records_total: log.records_total,
        lost_total: Some(log.lost_total),
        overruns_total: Some(log.overruns_total),
        losses_of_unknown_size_total: log.losses_of_unknown_size_total,
        malformed_total: log.malformed_total,
        dropped_total: log.dropped_total(),
        unfinished_reports_total: log.unfinished_total(),
        clock_offset_seconds: log.clock.offset_seconds(),
        messages: log.messages.clone(),
        kills: log.kills.clone(),
        newest_kills: log.newest_kills.iter().cloned().map(Shared).collect(),
        system_kills: log.system_kills.iter().cloned().map(Shared).collect(),
        node_kills: log.node_kills.clone().map(Shared),
        recent: log.recent.iter().cloned().map(Shared).collect(),
        happened: std::mem::take(&mut log.happened),
    }
}

fn summary(reading: &Reading) -> String {
    let kills: u64 = reading.kills.iter().map(|kill| kill.count).sum();
    let killed = match kills {
        0 => "no OOM kill".to_owned(),
        1 => "1 OOM kill".to_owned(),
        more => format!("{more} OOM kills"),
    };
    let lost = match reading.lost_total {
        None | Some(0) => String::new(),
        Some(lost) => format!(", {lost} records lost"),
    };
    let unknown = match reading.losses_of_unknown_size_total {
        0 => String::new(),
        losses => format!(", lines lost {losses} times, how many is not known"),
    };
    format!("{} followed, {killed} in it{lost}{unknown}", reading.way)
}

static RECORDS: Family = Family::counter("nodewhy_kmsg_records_total", "Records read from the kernel log.");
static LOST: Family = Family::counter(
    "nodewhy_kmsg_lost_total",
    "Records of the kernel log that were overwritten before they could be read.",
);
static LOSSES_OF_UNKNOWN_SIZE: Family = Family::counter(
    "nodewhy_kmsg_losses_of_unknown_size_total",
    "How often lines of the kernel log may have been lost and nobody knows how many: read by syslog(2), overwritten or cleared in between.",
);
static MALFORMED: Family = Family::counter(
    "nodewhy_kmsg_malformed_total",
    "Records of the kernel log that could not be understood.",
);
static DROPPED: Family = Family::counter(
    "nodewhy_kmsg_dropped_total",
    "Kernel lines that matter and that no event stands for, because they came in a storm.",
);
static KILLS: Family = Family::counter(
    "nodewhy_oom_kills_total",
    "OOM kills since the kernel log's oldest record, by whose memory ran out and what was killed.",
)
.by(&["scope", "role"]);
static MESSAGES: Family = Family::counter(
    "nodewhy_kernel_messages_total",
    "Kernel lines that matter since the kernel log's oldest record, by pattern.",
)
.by(&["pattern"]);

#[expect(clippy::cast_precision_loss, reason = "no counter of lines reaches 2^53")]
fn metrics(reading: &Reading, sink: &mut Sink) {
    sink.put(&RECORDS, &[], reading.records_total as f64);
    // Unknown is no zero: by syslog(2) there is none.
    sink.put_some(&LOST, &[], reading.lost_total.map(|lost| lost as f64));
    sink.put(&LOSSES_OF_UNKNOWN_SIZE, &[], reading.losses_of_unknown_size_total as f64);
    sink.put(&MALFORMED, &[], reading.malformed_total as f64);
    sink.put(&DROPPED, &[], reading.dropped_total as f64);
    for KillCount { scope, role, count } in &reading.kills {
        sink.put(&KILLS, &[scope_name(*scope), role_name(*role)], *count as f64);
    }
    for (pattern, count) in &reading.messages {
        sink.put(&MESSAGES, &[pattern], *count as f64);
    }
}

fn scope_name(scope: OomScope) -> &'static str {
    match scope {
        OomScope::Global => "global",
        OomScope::Memcg => "memcg",
        OomScope::Unknown => "unknown",
    }
}

fn detect(pair: Pair<'_, Reading>, _: &Thresholds, noticed: &mut Noticed) {
    noticed.happenings.extend(pair.now.happened.iter().map(|happened| Happening {
        key: Some(happened.id.key()),
        at: Some(happened.at),
        body: happened.body.clone(),
    }));
    let fresh = |run: &&Run| pair.at.boot.saturating_sub(run.newest_boot) <= RUN;
    for run in pair.now.system_kills.iter().map(|run| &*run.0).filter(fresh) {
        let kill = &run.newest.kill;
        let kind = match kill.role {
            Role::Kubelet => SubjectKind::Kubelet,
            Role::Runtime => SubjectKind::Runtime,
            _ => SubjectKind::Cni,
        };
        let subject = Subject::new(kind, kill.name.clone());
        let summary = format!("the kernel killed {} for want of memory{}", kill.name, times(run.count));
        noticed.states.push(abnormal("system_process_oom_killed", subject, summary, run));
    }
    if let Some(run) = pair.now.node_kills.as_ref().map(|run| &*run.0).filter(fresh) {
        let summary = format!(
            "the node ran out of memory: the kernel killed {}[{}]{}",
            run.newest.kill.name,
            run.newest.kill.pid,
            times(run.count)
        );
        noticed.states.push(abnormal("node_out_of_memory", Subject::node(), summary, run));
    }
}

fn times(count: u64) -> String {
    if count > 1 { format!(" ({count} kills)") } else { String::new() }
}

fn abnormal(finding: &'static str, subject: Subject, summary: String, run: &Run) -> Abnormal {
    Abnormal {
        finding,
        subject,
        severity: Severity::Critical,
        summary,
        evidence: evidence(run),
        since: Some(run.since),
        hold: Duration::ZERO,
        clear_after: Duration::ZERO,
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory stay far below 2^53")]
fn evidence(run: &Run) -> Vec<Evidence> {
    let kill = &run.newest.kill;
    let source = run.newest.id.source();
    let mut text = format!("killed {}[{}]", kill.name, kill.pid);
    if let Some(cgroup) = &kill.victim_cgroup {
        text += &format!(" in {cgroup}");
    }
    text += &match (kill.scope, &kill.limit_cgroup) {
        (OomScope::Global, _) => ", for want of the node's memory".to_owned(),
        (_, Some(limit)) => format!(", at the memory limit of {limit}"),
        (_, None) => ", whose memory ran out is not in the log".to_owned(),
    };
    let mut killed = Evidence::new(text, source.clone()).with_time(run.newest.at);
    if let Some(rss_bytes) = kill.rss_bytes {
        killed.text += &format!("; it used {}", mebibytes(rss_bytes));
        killed = killed.with_value(rss_bytes as f64, "bytes");
    }
    let mut evidence = vec![killed];
    // The culprit can be in no kill line: protected by its score, it stands only in the table.
    if let Some(biggest) = kill.biggest.first() {
        let text = format!(
            "the biggest process then was {}[{}] with {} (oom_score_adj {})",
            biggest.name,
            biggest.pid,
            mebibytes(biggest.rss_bytes),
            biggest.oom_score_adj
        );
        let seen = Evidence::new(text, source).with_time(run.newest.at);
        evidence.push(seen.with_value(biggest.rss_bytes as f64, "bytes"));
    }
    evidence
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory stay far below 2^53")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1024.0 / 1024.0)
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    snapshot::fuzz(bytes);
    crash::fuzz(bytes);
    let now = Now { stamp: crate::fuzz::now(), monotonic: Duration::from_secs(900) };
    // As /dev/kmsg gives it, a record a read; and as syslog(2) does, in lines.
    let mut log = Log::new(4096, KernelClock::new(true));
    for record in bytes.split_inclusive(|byte| *byte == b'\n') {
        log.record(record, now, true);
    }
    log.lost_some();
    let mut log = Log::new(4096, KernelClock::new(true));
    for line in snapshot::lines(bytes) {
        log.line(&line, now, Some(Duration::from_secs(1)));
    }
    log.lost_some();
}

#[cfg(test)]
mod tests;
