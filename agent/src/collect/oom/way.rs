//! The ways of reading the kernel log, the best first, and how each is read to its end.
//!
//! A container that is not privileged may not open /dev/kmsg, whatever its capabilities (the device rules of its
//! cgroup). With CAP_SYSLOG it may call syslog(2), which gives the same lines without numbers and wakes nobody.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::log::Log;
use super::snapshot::{self, Follower};
use super::time::Now;
use crate::host::kmsg::{self, KMSG, Kmsg, Next};
use crate::host::syslog::{SYSLOG, Syslog};
use crate::host::{Host, ReadError};

/// Records a read at most; the log stays readable, so the next read follows at once.
const RECORDS_A_READ: usize = 8192;
/// For the first read, so that even one look sees the whole ring (16 MiB of it, at the most that is usual).
const RECORDS_AT_FIRST: usize = 250_000;
/// A read that follows the one before sooner than this waits as long: a storm wakes us 100 times a second, no more.
const PACE: Duration = Duration::from_millis(10);
/// One read waits for the rest of a group this long at most.
const LONGEST_SETTLING: Duration = Duration::from_millis(250);

const NOT_BUILT: &str = "not built into this version";
const RECORDING: &str = "recording";

/// What a reader by syslog(2) should know.
const LIMITS_OF_SYSLOG: &[&str] = &[
    "polled every second: a kill is told up to a second after the kernel's line",
    "no sequence numbers: lines are told apart by time and text, and how many were lost is not known",
    "begins at the newest `dmesg --clear`: a clear is told as a loss of unknown size",
    "each line of a record is one by itself, without SUBSYSTEM and DEVICE",
];

/// A way in use, and why none before it is.
#[derive(Debug)]
pub(super) struct Way {
    kind: Kind,
    not_used: BTreeMap<&'static str, String>,
}

#[derive(Debug)]
enum Kind {
    Kmsg(Followed),
    Syslog(Polled),
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

impl Way {
    /// Opens the first way that there is.
    pub(super) fn open(host: &Host) -> Result<Way, ReadError> {
        let mut not_used: BTreeMap<_, _> =
            ["handed descriptor", "journal"].map(|way| (way, NOT_BUILT.to_owned())).into();
        let refused = match host.open_kmsg() {
            Ok(kmsg) => {
                not_used.insert(SYSLOG, format!("not needed: {KMSG} is better, it has sequence numbers"));
                let followed = Followed { kmsg, caught_up: false, first: true, newest_read: None };
                return Ok(Way { kind: Kind::Kmsg(followed), not_used });
            }
            Err(refused) => refused,
        };
        match host.open_syslog() {
            Ok(syslog) => {
                not_used.insert(KMSG, refused.to_string());
                let follower = Follower::new(syslog.ring_bytes);
                Ok(Way { kind: Kind::Syslog(Polled { syslog, follower, newest_look: None }), not_used })
            }
            // Not this machine's host, or no kernel log at all: the first refusal says it best.
            Err(ReadError::Absent { .. }) => Err(refused),
            Err(other) => Err(ReadError::Other(format!("{refused}; nor by {SYSLOG}: {other}"))),
        }
    }

    /// Which it is.
    pub(super) fn name(&self) -> &'static str {
        match &self.kind {
            Kind::Kmsg(Followed { kmsg, .. }) if kmsg.is_device() => KMSG,
            Kind::Kmsg(_) => RECORDING,
            Kind::Syslog(_) => SYSLOG,
        }
    }

    /// What can't be told this way.
    pub(super) fn limits(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Kmsg(_) => &[],
            Kind::Syslog(_) => LIMITS_OF_SYSLOG,
        }
    }

    /// The others, each with the reason why it is not in use.
    pub(super) fn not_used(&self) -> &BTreeMap<&'static str, String> {
        &self.not_used
    }

    /// Whether records have numbers, so that it is known how many were lost.
    pub(super) fn has_numbers(&self) -> bool {
        matches!(self.kind, Kind::Kmsg(_))
    }

    /// Whether the stamps are those of this machine's kernel.
    pub(super) fn is_own(&self) -> bool {
        self.name() != RECORDING
    }

    /// What becomes readable when the log grows.
    pub(super) fn wake(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Kmsg(followed) => followed.kmsg.wake(),
            Kind::Syslog(_) => None,
        }
    }

    /// Reads on; whether more waits than one read takes.
    pub(super) fn read(&mut self, log: &mut Log, now: impl Fn() -> Now) -> Result<bool, ReadError> {
        match &mut self.kind {
            Kind::Kmsg(followed) => followed.read(log, now),
            Kind::Syslog(Polled { syslog, follower, newest_look }) => {
                poll(follower, newest_look, |bytes| syslog.newest(bytes), log, now)
            }
        }
    }
}

impl Followed {
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
