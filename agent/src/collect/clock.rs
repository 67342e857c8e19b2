//! The node's clocks: what the kernel knows of the wall clock (adjtimex(2)), who keeps it right, the clock source, and
//! the real-time clock, which goes on while a machine is frozen.
//!
//! Steps of the wall clock are told by the agent itself (`ClockStepped`); the API server's time is compared by the
//! collector of the network.

use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::Stamp;
use nodewhy_proto::{Evidence, Severity, Subject};
use serde::Serialize;

use crate::collector::{Abnormal, Collector, Noticed, Pair, never_woken};
use crate::host::adjtimex::{ADJTIMEX, KernelClock};
use crate::host::process::Process;
use crate::host::{Host, ReadError};
use crate::metrics::{Family, Sink};
use crate::thresholds::{Heuristic, Thresholds};

/// The node's clocks, every ten seconds.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "clock",
    every: Duration::from_secs(10),
    deadline: Duration::from_secs(5),
    // How the real-time clock went before is what a freeze is told by.
    remembers: true,
    open,
    read,
    wake: never_woken,
    summary,
    families: &[
        &SYNCHRONISED,
        &OFFSET,
        &FREQUENCY,
        &MAX_ERROR,
        &ESTIMATED_ERROR,
        &TAI,
        &RTC_AHEAD,
        &FROZEN,
        &UPTIME,
    ],
    metrics,
    limits: &[&UNSYNCHRONISED_FOR, &FROZEN_FOR],
    detect,
    pages: &[],
    asks: &[],
};

/// A search of /proc for the time daemon: not at every tick.
const DAEMON_EVERY: Duration = Duration::from_secs(300);
/// A freeze is told for so long after it was seen: the Lease and the certificates are behind until the clock is right.
const FREEZE_IS_TOLD_FOR: Duration = Duration::from_secs(300);
const RTC: &str = "/sys/class/rtc/rtc0/since_epoch";

/// Who keeps a clock right, by the names of processes (comm is cut at 15 bytes).
const DAEMONS: &[&str] = &["chronyd", "systemd-timesyn", "ntpd", "ntpd-rs", "ntpd-rs-daemon", "openntpd"];
/// They follow a hardware clock, and leave the kernel's mark as it is.
const HARDWARE_DAEMONS: &[&str] = &["phc2sys", "ptp4l", "vmtoolsd", "VBoxService"];

static UNSYNCHRONISED_FOR: Heuristic = Heuristic {
    name: "clock_unsynchronised_seconds",
    about: "for how long the kernel's clock may be unsynchronised on a node with a time daemon",
    value: 600.0,
};
static FROZEN_FOR: Heuristic = Heuristic {
    name: "machine_frozen_seconds",
    about: "by how much the real-time clock must go ahead of all others for the machine to have been frozen",
    value: 5.0,
};

/// What is kept between reads.
#[derive(Debug, Default)]
pub struct Source {
    daemon: Option<(Process, bool)>,
    /// The last search, and why it found nothing.
    searched: Option<(Stamp, Option<String>)>,
    /// Once it was seen it is expected.
    had_daemon: bool,
    unsynchronised: Option<Stamp>,
    rtc: Option<(Stamp, i64)>,
    freeze: Option<Freeze>,
}

/// One reading.
#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    /// What the kernel knows; `None`: it could not be asked.
    pub kernel: Option<Kernel>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_missing: Option<String>,
    /// This boot.
    pub boot_id: Option<String>,
    /// Time since boot, suspended time included.
    pub uptime_seconds: f64,
    /// Where the kernel takes time from: `tsc`, `kvm-clock`, `hpet`.
    pub clocksource: Option<String>,
    /// Where it could.
    pub clocksources: Vec<String>,
    /// The process that keeps the clock right.
    pub time_daemon: Option<String>,
    /// Why none is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_daemon_missing: Option<String>,
    /// By how much the real-time clock is ahead of the wall clock; it tells whole seconds. `None`: there is none, as in
    /// many virtual machines. It may be kept in local time: then whole hours are no fault.
    pub rtc_ahead_seconds: Option<i64>,
    /// The newest freeze of the machine that this agent saw.
    pub freeze: Option<Freeze>,
    /// Since when the kernel's clock has been unsynchronised, as this agent saw it.
    pub unsynchronised_since: Option<Timestamp>,
    /// For how long.
    #[serde(skip)]
    unsynchronised_for: Option<Duration>,
    /// Whether a daemon is, or was, here that clears the kernel's mark.
    #[serde(skip)]
    is_synchronisation_expected: bool,
    /// How long ago the freeze was seen.
    #[serde(skip)]
    freeze_age: Option<Duration>,
}

/// What adjtimex(2) says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kernel {
    /// Whether somebody has set it right lately.
    pub is_synchronised: bool,
    /// `ok`, what is done about a leap second, or `unsynchronised`.
    pub state: &'static str,
    /// What is still to be slewed.
    pub offset_seconds: f64,
    /// Correction of the frequency.
    pub frequency_ppm: f64,
    /// Largest error; stops at 16 s.
    pub max_error_seconds: f64,
    /// Estimated error.
    pub estimated_error_seconds: f64,
    /// TAI less UTC. `None`: nobody told the kernel.
    pub tai_offset_seconds: Option<i32>,
}

/// All of the machine's clocks stood still, but for the real-time clock, which the hypervisor keeps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Freeze {
    /// For how long.
    pub for_seconds: f64,
    /// When it was seen, by the wall clock, which is behind since.
    pub seen: Timestamp,
    /// When the machine was last seen to go.
    pub since: Timestamp,
    #[serde(skip)]
    seen_boot: Duration,
}

fn open(_: &Host) -> Result<Source, ReadError> {
    Ok(Source::default())
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let now = host.clock().stamp();
    let line =
        |path: &str| host.read(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let (kernel, kernel_missing) = match host.kernel_clock() {
        Ok(clock) => (Some(clock), None),
        Err(error) => (None, Some(error.to_string())),
    };
    source.follow_synchronisation(kernel.as_ref(), now);
    source.find_daemon(host, now);
    let rtc = line(RTC).and_then(|text| text.parse::<i64>().ok());
    source.follow_rtc(rtc, now);
    if kernel.is_none() && rtc.is_none() && line("/proc/sys/kernel/random/boot_id").is_none() {
        // Not one clock of this host's can be read.
        return Err(ReadError::absent(kernel_missing.unwrap_or_default()));
    }
    let sources = "/sys/devices/system/clocksource/clocksource0";
    let clocksources = line(&format!("{sources}/available_clocksource")).unwrap_or_default();
    let daemon = source.daemon.as_ref();
    Ok(Reading {
        kernel: kernel.as_ref().map(Kernel::of),
        kernel_missing,
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        uptime_seconds: now.boot.as_secs_f64(),
        clocksource: line(&format!("{sources}/current_clocksource")),
        clocksources: clocksources.split_whitespace().map(str::to_owned).collect(),
        time_daemon: daemon.map(|(process, _)| process.name.clone()),
        time_daemon_missing: match (daemon, &source.searched) {
            (None, Some((_, why))) => why.clone(),
            _ => None,
        },
        rtc_ahead_seconds: rtc.map(|rtc| rtc - now.wall.as_second()),
        freeze: source.freeze,
        unsynchronised_since: source.unsynchronised.map(|since| since.wall),
        unsynchronised_for: source.unsynchronised.map(|since| now.boot.saturating_sub(since.boot)),
        is_synchronisation_expected: source.had_daemon && daemon.is_none_or(|(_, clears)| *clears),
        freeze_age: source.freeze.map(|freeze| now.boot.saturating_sub(freeze.seen_boot)),
    })
}

impl Kernel {
    fn of(clock: &KernelClock) -> Kernel {
        let seconds = |microseconds: i64| microseconds as f64 / 1e6;
        Kernel {
            is_synchronised: !clock.is_unsynchronised(),
            state: clock.state_name(),
            offset_seconds: clock.offset_nanoseconds as f64 / 1e9,
            frequency_ppm: clock.frequency_scaled_ppm as f64 / 65536.0,
            max_error_seconds: seconds(clock.max_error_microseconds),
            estimated_error_seconds: seconds(clock.estimated_error_microseconds),
            tai_offset_seconds: Some(clock.tai_offset_seconds).filter(|offset| *offset != 0),
        }
    }
}

impl Source {
    fn follow_synchronisation(&mut self, clock: Option<&KernelClock>, now: Stamp) {
        match clock.map(KernelClock::is_left_alone) {
            Some(true) => {
                self.unsynchronised.get_or_insert(now);
            }
            // What cannot be asked is not known to be well, nor to go on.
            Some(false) | None => self.unsynchronised = None,
        }
    }

    /// One that is known is looked at; another is searched for seldom.
    fn find_daemon(&mut self, host: &Host, now: Stamp) {
        if let Some((known, _)) = &self.daemon {
            match host.process(known.pid) {
                Ok(Some(process)) if process.start_ticks == known.start_ticks && process.is_alive() => return,
                Ok(_) => {
                    self.daemon = None;
                    self.searched = None;
                }
                // It cannot be told; what was known stays.
                Err(_) => return,
            }
        }
        let is_due = |(last, _): &(Stamp, Option<String>)| now.boot.saturating_sub(last.boot) >= DAEMON_EVERY;
        if !self.searched.as_ref().is_none_or(is_due) {
            return;
        }
        let mut found = None;
        let why = match host.pids() {
            Err(error) => Some(error.to_string()),
            Ok(pids) => {
                let clears = |name: &str| {
                    if DAEMONS.contains(&name) {
                        Some(true)
                    } else {
                        HARDWARE_DAEMONS.contains(&name).then_some(false)
                    }
                };
                let is_daemon = |name: &str| clears(name).is_some();
                let processes =
                    pids.into_iter().filter_map(|pid| host.process_if(pid, is_daemon).ok().flatten());
                let mut daemons: Vec<(Process, bool)> = processes
                    .filter_map(|process| clears(&process.name).map(|clears| (process, clears)))
                    .collect();
                // Beside a daemon of the hardware's the kernel's mark means nothing.
                daemons.sort_by_key(|(process, clears)| (*clears, process.pid));
                found = daemons.into_iter().next();
                match (&found, host.blind_to_processes()) {
                    (None, Some(blind)) => Some(blind),
                    (None, None) => Some("no process of a time daemon is here".to_owned()),
                    (Some(_), _) => None,
                }
            }
        };
        self.had_daemon |= found.is_some();
        self.daemon = found;
        self.searched = Some((now, why));
    }

    /// The real-time clock went further than the time since boot, and the wall clock did not: the machine stood still.
    /// Who sets the real-time clock sets it to the wall clock, or to local time: then they are whole quarters of an
    /// hour apart.
    fn follow_rtc(&mut self, rtc: Option<i64>, now: Stamp) {
        let Some(rtc) = rtc else {
            self.rtc = None;
            return;
        };
        let Some((before, rtc_before)) = self.rtc.replace((now, rtc)) else { return };
        let boot_went = now.boot.saturating_sub(before.boot).as_secs_f64();
        let wall_went = now.wall.duration_since(before.wall).as_secs_f64();
        let rtc_went = (rtc - rtc_before) as f64;
        let ahead = rtc as f64 - now.wall.as_second() as f64;
        let was_set = (ahead - (ahead / 900.0).round() * 900.0).abs() <= 2.0;
        let stood_still = rtc_went - boot_went;
        let was_stepped = (wall_went - boot_went).abs() > 1.0;
        // Both tell whole seconds: two are within their error.
        if stood_still > 2.0 && !was_stepped && !was_set {
            self.freeze = Some(Freeze {
                for_seconds: stood_still,
                seen: now.wall,
                since: before.wall,
                seen_boot: now.boot,
            });
        }
    }
}

fn summary(reading: &Reading) -> String {
    let state = match &reading.kernel {
        Some(kernel) if kernel.is_synchronised => {
            format!("synchronised, within {:.0} ms", kernel.max_error_seconds * 1000.0)
        }
        Some(_) => "not synchronised".to_owned(),
        None => "whether it is synchronised is unknown".to_owned(),
    };
    let daemon = reading.time_daemon.as_ref().map(|name| format!(" by {name}")).unwrap_or_default();
    let clocksource =
        reading.clocksource.as_ref().map(|name| format!(", clock source {name}")).unwrap_or_default();
    format!("{state}{daemon}{clocksource}")
}

static SYNCHRONISED: Family = Family::gauge(
    "nodewhy_clock_synchronised",
    "1: somebody has set the kernel's clock right lately. 0: nobody has (STA_UNSYNC).",
);
static OFFSET: Family = Family::gauge("nodewhy_clock_offset_seconds", "What the kernel is still to slew.");
static FREQUENCY: Family = Family::gauge(
    "nodewhy_clock_frequency_ppm",
    "Correction of the clock's frequency, in parts per million.",
);
static MAX_ERROR: Family = Family::gauge(
    "nodewhy_clock_max_error_seconds",
    "Largest error by the kernel's reckoning; it stops at 16 s.",
);
static ESTIMATED_ERROR: Family =
    Family::gauge("nodewhy_clock_estimated_error_seconds", "Estimated error by the kernel's reckoning.");
static TAI: Family =
    Family::gauge("nodewhy_clock_tai_offset_seconds", "TAI less UTC. Left out where nobody told the kernel.");
static RTC_AHEAD: Family = Family::gauge(
    "nodewhy_clock_rtc_ahead_seconds",
    "By how much the real-time clock is ahead of the wall clock, in whole seconds.",
);
static FROZEN: Family = Family::gauge(
    "nodewhy_machine_frozen_seconds",
    "For how long the machine stood still in the newest freeze that this agent saw. Left out: none.",
);
static UPTIME: Family = Family::gauge("nodewhy_uptime_seconds", "Time since boot, suspended time included.");

fn metrics(reading: &Reading, sink: &mut Sink) {
    if let Some(kernel) = &reading.kernel {
        sink.put(&SYNCHRONISED, &[], f64::from(u8::from(kernel.is_synchronised)));
        sink.put(&OFFSET, &[], kernel.offset_seconds);
        sink.put(&FREQUENCY, &[], kernel.frequency_ppm);
        sink.put(&MAX_ERROR, &[], kernel.max_error_seconds);
        sink.put(&ESTIMATED_ERROR, &[], kernel.estimated_error_seconds);
        sink.put_some(&TAI, &[], kernel.tai_offset_seconds.map(f64::from));
    }
    sink.put_some(&RTC_AHEAD, &[], reading.rtc_ahead_seconds.map(|ahead| ahead as f64));
    sink.put_some(&FROZEN, &[], reading.freeze.map(|freeze| freeze.for_seconds));
    sink.put(&UPTIME, &[], reading.uptime_seconds);
}

fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    noticed.states.extend(unsynchronised(&pair, thresholds));
    noticed.states.extend(frozen(&pair, thresholds));
}

fn unsynchronised(pair: &Pair<'_, Reading>, thresholds: &Thresholds) -> Option<Abnormal> {
    let (passed, limit) = (pair.now.unsynchronised_for?, thresholds.limit(&UNSYNCHRONISED_FOR));
    // Where nobody keeps the clock, or a daemon that never clears the mark does, the mark means nothing.
    if !pair.now.is_synchronisation_expected || passed.as_secs_f64() < limit.value {
        return None;
    }
    let seconds = passed.as_secs_f64();
    let text = format!("STA_UNSYNC for {seconds:.0} s");
    let mut evidence = vec![
        Evidence::new(text, ADJTIMEX)
            .with_time(pair.at.wall)
            .with_value(seconds, "seconds")
            .with_threshold(limit.value, limit.origin),
    ];
    let who = match &pair.now.time_daemon {
        Some(name) => format!("{name} runs"),
        None => "the time daemon has ended".to_owned(),
    };
    evidence.push(Evidence::new(&who, "/proc").with_time(pair.at.wall));
    if let Some(kernel) = &pair.now.kernel {
        let text = format!("largest error {:.3} s", kernel.max_error_seconds);
        evidence.push(
            Evidence::new(text, ADJTIMEX)
                .with_time(pair.at.wall)
                .with_value(kernel.max_error_seconds, "seconds"),
        );
    }
    Some(Abnormal {
        finding: "clock_unsynchronised",
        subject: Subject::node(),
        severity: Severity::Info,
        summary: format!("nobody has set the clock right for {:.0} min; {who}", seconds / 60.0),
        evidence,
        since: pair.now.unsynchronised_since,
        hold: Duration::ZERO,
        clear_after: Duration::ZERO,
    })
}

fn frozen(pair: &Pair<'_, Reading>, thresholds: &Thresholds) -> Option<Abnormal> {
    let (freeze, limit) = (pair.now.freeze?, thresholds.limit(&FROZEN_FOR));
    if freeze.for_seconds <= limit.value || pair.now.freeze_age? > FREEZE_IS_TOLD_FOR {
        return None;
    }
    let text = format!(
        "the real-time clock went {:.0} s further than the time since boot and the wall clock",
        freeze.for_seconds
    );
    let evidence = Evidence::new(text, RTC)
        .with_time(freeze.seen)
        .with_value(freeze.for_seconds, "seconds")
        .with_threshold(limit.value, limit.origin);
    Some(Abnormal {
        finding: "machine_was_frozen",
        subject: Subject::node(),
        severity: Severity::Warning,
        summary: format!(
            "the machine stood still for {:.0} s (its hypervisor paused it): its clock is behind by as much until it is \
             set right",
            freeze.for_seconds
        ),
        evidence: vec![evidence],
        since: Some(freeze.since),
        hold: Duration::ZERO,
        clear_after: Duration::ZERO,
    })
}

#[cfg(test)]
mod tests;
