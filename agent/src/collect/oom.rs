//! The kernel log: OOM kills, each joined from its many lines, and the kernel's other words that matter.
//!
//! /dev/kmsg has each record with a sequence number. With the boot id it is the record's identity, so an agent
//! that was restarted reads the ring from its start, fills the gap, and repeats nothing. The log wakes the
//! collector: a kill is an event some 25 ms after the kernel's line (the time that `memory.oom.group` has to follow).
//! Source: Documentation/ABI/testing/dev-kmsg, mm/oom_kill.c.

mod line;
mod log;
mod pattern;
mod record;
mod report;
mod storm;
mod time;
mod victim;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use nodewhy_proto::{Evidence, OomScope, Role, Severity, Subject, SubjectKind};
use serde::{Serialize, Serializer};

pub use self::log::{Happened, KernelRecord, KillCount, Run, TimedKill};

use self::log::{Log, RUN};
use self::time::{KernelClock, Now};
use self::victim::role_name;
use crate::collector::{Abnormal, Collector, Happening, Noticed, Pair};
use crate::host::kmsg::{self, KMSG, Kmsg, Next};
use crate::host::{Host, ReadError};
use crate::metrics::Sink;
use crate::thresholds::Thresholds;

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
    metrics,
    detect,
};

/// Records a read at most; the log stays readable, so the next read follows at once.
const RECORDS_A_READ: usize = 8192;
/// For the first read, so that even one look sees the whole ring (16 MiB of it, at the most that is usual).
const RECORDS_AT_FIRST: usize = 250_000;
/// A read that follows the one before sooner than this waits as long: a storm wakes us 100 times a second, no more.
const PACE: Duration = Duration::from_millis(10);
/// One read waits for the rest of a group this long at most.
const LONGEST_SETTLING: Duration = Duration::from_millis(250);

/// Where records come from.
#[derive(Debug)]
enum Way {
    /// /dev/kmsg.
    Kmsg(Kmsg),
}

/// Kept between reads.
#[derive(Debug)]
pub struct Source {
    way: Way,
    log: Log,
    /// The log was read to its end: what comes now is new.
    caught_up: bool,
    /// Nothing was read yet.
    first: bool,
    /// When the newest read that found records ended, on the clock of the time since boot.
    newest_read: Option<Duration>,
}

/// One reading: the log as followed so far.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// Which way is in use: `/dev/kmsg`, or `recording` for a file or a pipe in its place.
    pub way: &'static str,
    /// The ways that are not in use, and why.
    pub other_ways: BTreeMap<&'static str, &'static str>,
    /// The oldest record that was read: the ring began here when it was opened. Above 0, older ones are gone.
    pub first_seq: Option<u64>,
    /// The newest record that was read.
    pub newest_seq: Option<u64>,
    /// Whether more records wait than one read takes.
    pub behind: bool,
    /// Records read.
    pub records_total: u64,
    /// Records overwritten before they were read, by their sequence numbers: exact.
    pub lost_total: u64,
    /// How often that happened (EPIPE).
    pub overruns_total: u64,
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
    let kmsg = host.open_kmsg()?;
    let log = Log::new(procfs::page_size(), KernelClock::new(kmsg.is_device()));
    Ok(Source { way: Way::Kmsg(kmsg), log, caught_up: false, first: true, newest_read: None })
}

fn wake(source: &Source) -> Option<BorrowedFd<'_>> {
    match &source.way {
        Way::Kmsg(kmsg) => kmsg.wake(),
    }
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let now = || Now { stamp: host.clock().stamp(), monotonic: kmsg::monotonic() };
    let Source { way: Way::Kmsg(kmsg), log, caught_up, first, newest_read } = source;
    let began = now().monotonic;
    if newest_read.is_some_and(|newest| began.saturating_sub(newest) < PACE) {
        kmsg::pause(PACE);
    }
    let most = if std::mem::take(first) { RECORDS_AT_FIRST } else { RECORDS_A_READ };
    let before = log.records_total;
    let mut taken = 0;
    let behind = loop {
        if taken == most {
            *caught_up = false;
            break true;
        }
        taken += 1;
        match kmsg.next_record()? {
            Next::Record(raw) => log.record(raw, now(), *caught_up),
            Next::Overwritten => {
                log.overwritten();
                *caught_up = false;
            }
            // Counted as lost by the next record's number.
            Next::TooLong => {}
            Next::Nothing => {
                *caught_up = true;
                let left = LONGEST_SETTLING.saturating_sub(now().monotonic.saturating_sub(began));
                // Siblings of a kill may follow within milliseconds: they belong to it.
                let settles_in = log.settles_in().map(|quiet| quiet.min(left));
                if settles_in.is_some_and(|quiet| !quiet.is_zero() && kmsg.wait(quiet)) {
                    continue;
                }
                log.quiet();
                log.passed(now());
                break false;
            }
        }
    };
    // A kill is told though more records wait: what follows of its group is known as such in the next read.
    if behind {
        log.quiet();
    }
    *newest_read = (log.records_total > before).then(|| now().monotonic);
    Ok(reading(log, kmsg.is_device(), behind))
}

fn reading(log: &mut Log, device: bool, behind: bool) -> Reading {
    let not_tried = "not built into this version: the kernel log is read through /dev/kmsg alone";
    Reading {
        way: if device { KMSG } else { "recording" },
        other_ways: ["handed descriptor", "syslog(2)", "journal"].map(|way| (way, not_tried)).into(),
        first_seq: log.first_seq,
        newest_seq: log.newest_seq,
        behind,
        records_total: log.records_total,
        lost_total: log.lost_total,
        overruns_total: log.overruns_total,
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
        0 => String::new(),
        lost => format!(", {lost} records lost"),
    };
    format!("{} followed, {killed} in it{lost}", reading.way)
}

#[expect(clippy::cast_precision_loss, reason = "no counter of lines reaches 2^53")]
fn metrics(reading: &Reading, sink: &mut Sink) {
    let mut counter = |name, help, value: u64| sink.counter(name, help, value as f64);
    counter("nodewhy_kmsg_records_total", "Records read from the kernel log.", reading.records_total);
    counter(
        "nodewhy_kmsg_lost_total",
        "Records of the kernel log that were overwritten before they could be read.",
        reading.lost_total,
    );
    counter(
        "nodewhy_kmsg_malformed_total",
        "Records of the kernel log that could not be understood.",
        reading.malformed_total,
    );
    counter(
        "nodewhy_kmsg_dropped_total",
        "Kernel lines that matter and that no event stands for, because they came in a storm.",
        reading.dropped_total,
    );
    for KillCount { scope, role, count } in &reading.kills {
        let labels = [("scope", scope_name(*scope)), ("role", role_name(*role))];
        let help =
            "OOM kills since the kernel log's oldest record, by whose memory ran out and what was killed.";
        sink.counter_with("nodewhy_oom_kills_total", help, &labels, *count as f64);
    }
    for (pattern, count) in &reading.messages {
        let help = "Kernel lines that matter since the kernel log's oldest record, by pattern.";
        sink.counter_with("nodewhy_kernel_messages_total", help, &[("pattern", pattern)], *count as f64);
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
        key: Some(format!("kmsg/{}", happened.seq)),
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
    let source = kill.kmsg_seq.map_or(KMSG.to_owned(), |seq| format!("{KMSG} {seq}"));
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

#[cfg(test)]
mod tests;
