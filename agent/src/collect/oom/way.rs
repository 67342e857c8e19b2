//! The ways of reading the kernel log, the best first, and how each is read to its end.
//!
//! A container that is not privileged may not open /dev/kmsg, whatever its capabilities (the device rules of its
//! cgroup). A helper that may can hand it a descriptor, which is as good. With CAP_SYSLOG it may call syslog(2), which
//! gives the same lines without numbers and wakes nobody. Last, journald keeps the kernel's lines too.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use jiff::SignedDuration;

use super::log::Log;
use super::snapshot::{self, Follower};
use super::time::{self, Now};
use crate::host::journal::Journal;
use crate::host::kmsg::{self, KMSG, Kmsg, Next};
use crate::host::kmsg_helper::HANDED;
use crate::host::syslog::{SYSLOG, Syslog};
use crate::host::tail::FileWatch;
use crate::host::{Host, ReadError};

/// Records a read at most; the log stays readable, so the next read follows at once.
const RECORDS_A_READ: usize = 8192;
/// For the first read, so that even one look sees the whole ring (16 MiB of it, at the most that is usual).
const RECORDS_AT_FIRST: usize = 250_000;
/// A read that follows the one before sooner than this waits as long: a storm wakes us 100 times a second, no more.
const PACE: Duration = Duration::from_millis(10);
/// One read waits for the rest of a group this long at most.
const LONGEST_SETTLING: Duration = Duration::from_millis(250);

/// Entries of the journal a read.
const ENTRIES_A_READ: usize = 4096;
/// Of the journal so much of the time before is read at first.
const JOURNAL_BEFORE: SignedDuration = SignedDuration::from_hours(1);

const JOURNAL: &str = "journal";
const RECORDING: &str = "recording";

/// What a reader by syslog(2) should know.
const LIMITS_OF_SYSLOG: &[&str] = &[
    "polled every second: a kill is told up to a second after the kernel's line",
    "no sequence numbers: lines are told apart by time and text, and how many were lost is not known",
    "begins at the newest `dmesg --clear`: a clear is told as a loss of unknown size",
    "each line of a record is one by itself, without SUBSYSTEM and DEVICE",
];

/// What a reader by the journal should know.
const LIMITS_OF_JOURNAL: &[&str] = &[
    "a line is told when journald has written it: late on a starved node, never if journald does not run",
    "no sequence numbers: how many lines were lost, by the kernel or by journald's rate limit, is not known",
    "begins an hour before the agent, and not before this boot",
    "each record without SUBSYSTEM and DEVICE",
];
const JOURNAL_FIELDS: &[&str] =
    &["MESSAGE", "_TRANSPORT", "PRIORITY", "SYSLOG_FACILITY", "_SOURCE_MONOTONIC_TIMESTAMP"];

/// A way in use, and why none before it is.
#[derive(Debug)]
pub(super) struct Way {
    kind: Kind,
    not_used: BTreeMap<&'static str, String>,
}

#[derive(Debug)]
enum Kind {
    Kmsg(Followed),
    /// Opened by the helper.
    Handed(Followed),
    Syslog(Polled),
    Journal(Box<Journaled>),
}

/// /dev/kmsg.
#[derive(Debug)]
struct Followed {
    kmsg: Kmsg,
    /// The log was read to its end: what comes now is new.
    caught_up: bool,
    /// Nothing was read yet.
    first: bool,
    /// When the newest read that found records ended, on the clock of the time since boot.
    newest_read: Option<Duration>,
}

/// syslog(2).
#[derive(Debug)]
struct Polled {
    syslog: Syslog,
    follower: Follower,
    /// When the log was last read to its end.
    newest_look: Option<Duration>,
}

/// The journal's kernel transport.
#[derive(Debug)]
struct Journaled {
    journal: Journal,
    watch: Option<FileWatch>,
    /// Entries of another boot are not this kernel's.
    boot_id: Option<String>,
}

impl Way {
    /// Opens the first way that there is.
    pub(super) fn open(host: &Host) -> Result<Way, ReadError> {
        let mut not_used: BTreeMap<&'static str, String> = BTreeMap::new();
        let refused = match host.open_kmsg() {
            Ok(kmsg) => return Ok(Way::of(Kind::Kmsg(Followed::new(kmsg)), not_used)),
            Err(refused) => refused,
        };
        not_used.insert(KMSG, refused.to_string());
        let mut others = Vec::new();
        match host.open_handed_kmsg() {
            Ok(kmsg) => return Ok(Way::of(Kind::Handed(Followed::new(kmsg)), not_used)),
            Err(error) => {
                not_used.insert(HANDED, error.to_string());
                others.push(error);
            }
        }
        match host.open_syslog() {
            Ok(syslog) => {
                let follower = Follower::new(syslog.ring_bytes);
                return Ok(Way::of(Kind::Syslog(Polled { syslog, follower, newest_look: None }), not_used));
            }
            Err(error) => {
                not_used.insert(SYSLOG, error.to_string());
                others.push(error);
            }
        }
        match Journaled::open(host) {
            Ok(journaled) => return Ok(Way::of(Kind::Journal(Box::new(journaled)), not_used)),
            Err(error) => others.push(error),
        }
        // What is not there says nothing; what was refused says what to do.
        let told: Vec<String> = others
            .iter()
            .filter(|error| !matches!(error, ReadError::Absent { .. }))
            .map(ToString::to_string)
            .collect();
        if told.is_empty() {
            return Err(refused);
        }
        Err(ReadError::Other(format!("{refused}; nor another way: {}", told.join("; "))))
    }

    /// A way, with why the ones after it are not in use.
    fn of(kind: Kind, mut not_used: BTreeMap<&'static str, String>) -> Way {
        let mut way = Way { kind, not_used: BTreeMap::new() };
        let used = if way.name() == RECORDING { KMSG } else { way.name() };
        for (after, name) in
            [KMSG, HANDED, SYSLOG, JOURNAL].into_iter().skip_while(|name| *name != used).skip(1).enumerate()
        {
            let why = match (after, used) {
                (_, SYSLOG) => format!("not needed: {SYSLOG} does not wait for journald"),
                _ => format!("not needed: {used} is better, it has sequence numbers"),
            };
            not_used.insert(name, why);
        }
        way.not_used = not_used;
        way
    }

    /// Which it is.
    pub(super) fn name(&self) -> &'static str {
        match &self.kind {
            Kind::Kmsg(Followed { kmsg, .. }) if kmsg.is_device() => KMSG,
            Kind::Kmsg(_) => RECORDING,
            Kind::Handed(_) => HANDED,
            Kind::Syslog(_) => SYSLOG,
            Kind::Journal(_) => JOURNAL,
        }
    }

    /// What can't be told this way.
    pub(super) fn limits(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Kmsg(_) | Kind::Handed(_) => &[],
            Kind::Syslog(_) => LIMITS_OF_SYSLOG,
            Kind::Journal(_) => LIMITS_OF_JOURNAL,
        }
    }

    /// The others, each with the reason why it is not in use.
    pub(super) fn not_used(&self) -> &BTreeMap<&'static str, String> {
        &self.not_used
    }

    /// Whether records have numbers, so that it is known how many were lost.
    pub(super) fn has_numbers(&self) -> bool {
        matches!(self.kind, Kind::Kmsg(_) | Kind::Handed(_))
    }

    /// Whether the stamps are those of this machine's kernel.
    pub(super) fn is_own(&self) -> bool {
        self.name() != RECORDING
    }

    /// What becomes readable when the log grows.
    pub(super) fn wake(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Kmsg(followed) | Kind::Handed(followed) => followed.kmsg.wake(),
            Kind::Syslog(_) => None,
            Kind::Journal(journaled) => journaled.watch.as_ref().map(AsFd::as_fd),
        }
    }

    /// Reads on; whether more waits than one read takes.
    pub(super) fn read(
        &mut self,
        host: &Host,
        log: &mut Log,
        now: impl Fn() -> Now,
    ) -> Result<bool, ReadError> {
        match &mut self.kind {
            Kind::Kmsg(followed) | Kind::Handed(followed) => followed.read(log, now),
            Kind::Journal(journaled) => journaled.read(host, log, now),
            Kind::Syslog(Polled { syslog, follower, newest_look }) => {
                poll(follower, newest_look, |bytes| syslog.newest(bytes), log, now)
            }
        }
    }
}

impl Journaled {
    fn open(host: &Host) -> Result<Journaled, ReadError> {
        let since = host.clock().now().checked_sub(JOURNAL_BEFORE).ok();
        let since = since.and_then(|since| u64::try_from(since.as_microsecond()).ok()).unwrap_or(0);
        let journal = host.open_journal(since, JOURNAL_FIELDS)?;
        let watch = host.watch_files().ok().filter(|watch| watch.add(journal.folder()));
        let boot_id = host.read("/proc/sys/kernel/random/boot_id").ok();
        let boot_id = boot_id.map(|text| text.trim().replace('-', ""));
        Ok(Journaled { journal, watch, boot_id })
    }

    fn read(&mut self, host: &Host, log: &mut Log, now: impl Fn() -> Now) -> Result<bool, ReadError> {
        // journald writes a file that wakes us for every line of everybody: ten times a second is enough.
        kmsg::pause(PACE);
        if let Some(watch) = &self.watch {
            watch.drain();
        }
        let read = self.journal.read(host, ENTRIES_A_READ)?;
        let now = now();
        for entry in &read.entries {
            let is_ours = self.boot_id.as_ref().is_none_or(|boot| *boot == entry.boot());
            if !is_ours || entry.get("_TRANSPORT") != Some("kernel") {
                continue;
            }
            // journald's own stamp is the same clock as ours: by it the line was read then.
            let monotonic = Duration::from_micros(entry.monotonic_usec).min(now.monotonic);
            let age = now.monotonic.saturating_sub(monotonic);
            log.entry(entry, Now { stamp: time::before(now.stamp, age.as_secs_f64()), monotonic });
        }
        log.quiet();
        if !read.behind {
            log.passed(now);
        }
        Ok(read.behind)
    }
}

impl Followed {
    fn new(kmsg: Kmsg) -> Followed {
        Followed { kmsg, caught_up: false, first: true, newest_read: None }
    }

    fn read(&mut self, log: &mut Log, now: impl Fn() -> Now) -> Result<bool, ReadError> {
        let Followed { kmsg, caught_up, first, newest_read } = self;
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
                    // Siblings of a kill may follow within milliseconds: they belong to it.
                    let settles_in = settles_in(log, began, now().monotonic);
                    if settles_in.is_some_and(|quiet| kmsg.wait(quiet)) {
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
        Ok(behind)
    }
}

/// Takes what is new in the log by snapshots of its newest lines.
pub(super) fn poll(
    follower: &mut Follower,
    newest_look: &mut Option<Duration>,
    newest: impl Fn(usize) -> Result<Vec<u8>, ReadError>,
    log: &mut Log,
    now: impl Fn() -> Now,
) -> Result<bool, ReadError> {
    let began = now().monotonic;
    loop {
        // Before the look: what comes while it is taken may be left for the next.
        let looked = now().monotonic;
        let (understood, malformed) = (log.records_total, log.malformed_total);
        let new = follower.look(&newest)?;
        if new.lost {
            log.lost_some();
        }
        for line in snapshot::lines(&new.lines) {
            log.line(&line, now(), *newest_look);
        }
        if log.records_total == understood && log.malformed_total > malformed {
            return Err(ReadError::malformed(
                SYSLOG,
                "no line begins with its priority and time, as `<6>[   12.345678] …`; if the kernel's times are off, \
                 switch them on: write Y to /sys/module/printk/parameters/time",
            ));
        }
        *newest_look = Some(looked);
        let settles_in = settles_in(log, began, now().monotonic);
        // Nothing wakes us: the rest of a group is looked for after the same pause.
        match settles_in {
            Some(quiet) if !new.lines.is_empty() => kmsg::pause(quiet),
            _ => break,
        }
    }
    log.quiet();
    log.passed(now());
    Ok(false)
}

/// How long an open kill still waits for its siblings; `None`: it waits no more.
fn settles_in(log: &Log, began: Duration, now: Duration) -> Option<Duration> {
    let left = LONGEST_SETTLING.saturating_sub(now.saturating_sub(began));
    log.settles_in().map(|quiet| quiet.min(left)).filter(|quiet| !quiet.is_zero())
}
