//! `/metrics`: what the collectors read, and how they do.

use std::collections::BTreeMap;

use nodewhy_proto::{Severity, Ticks};

use crate::board::{AGENT, Board};
use crate::host::own;
use crate::metrics::{Family, Sink};

static INFO: Family =
    Family::gauge("nodewhy_agent_info", "The agent's version; the value is always 1.").by(&["version"]);
static LOG_LINES_DROPPED: Family = Family::counter(
    "nodewhy_agent_log_lines_dropped_total",
    "Log lines that were dropped because nobody read the agent's standard error.",
);
// The names that Prometheus' own clients use for the process that they are in.
static CPU: Family =
    Family::counter("process_cpu_seconds_total", "CPU time of the agent, its own and the kernel's for it.");
static RESIDENT: Family = Family::gauge("process_resident_memory_bytes", "The agent's resident memory.");
static THREADS: Family = Family::gauge("process_threads", "The agent's threads.");
static OPEN_FDS: Family = Family::gauge("process_open_fds", "The agent's open descriptors.");
static MAX_FDS: Family =
    Family::gauge("process_max_fds", "Descriptors that the agent may open (soft RLIMIT_NOFILE).");

static SUCCESS: Family = Family::gauge(
    "nodewhy_collector_success",
    "1 while the collector's newest try was a reading; 0 while it is absent, failed or stuck.",
)
.by(&["collector"]);
static OUTCOME: Family = Family::gauge(
    "nodewhy_collector_outcome",
    "How the collector's newest try went: the outcome is the label, the value is always 1.",
)
.by(&["collector", "outcome"]);
static TRIES: Family =
    Family::counter("nodewhy_collector_tries_total", "Tries to read that ended.").by(&["collector"]);
static FAILURES: Family =
    Family::counter("nodewhy_collector_failures_total", "Tries to read that failed.").by(&["collector"]);
static MISSED_TICKS: Family = Family::counter(
    "nodewhy_collector_missed_ticks_total",
    "Ticks that had no try of their own: one was in flight, or the agent was not run.",
)
.by(&["collector"]);
static DURATION: Family =
    Family::gauge("nodewhy_collector_duration_seconds", "How long the newest finished try took.")
        .by(&["collector"]);
static STUCK: Family = Family::gauge(
    "nodewhy_collector_stuck_seconds",
    "For how long the read in flight has hung; no series while none does.",
)
.by(&["collector"]);
static READING_AGE: Family = Family::gauge(
    "nodewhy_collector_reading_age_seconds",
    "Age of the newest successful reading; it grows while reads hang or fail.",
)
.by(&["collector"]);
static TICKS: Family = Family::counter(
    "nodewhy_collector_ticks_total",
    "Ticks of the collector's cadence: read, or overdue now.",
)
.by(&["collector"]);
static LATE_TICKS: Family = Family::counter(
    "nodewhy_collector_late_ticks_total",
    "Ticks whose read had not ended within 250 ms of the time that they were due.",
)
.by(&["collector"]);
static TICK_DELAY_MAX: Family = Family::gauge(
    "nodewhy_collector_tick_delay_max_seconds",
    "The longest time from a tick's due to the end of its read, since the agent's start.",
)
.by(&["collector"]);
static FINDING_ACTIVE: Family =
    Family::gauge("nodewhy_finding_active", "Subjects on which this finding holds now; no series: on none.")
        .by(&["finding", "severity"]);

/// What the agent says of itself and of its collectors.
pub(crate) static FAMILIES: &[&Family] = &[
    &INFO,
    &LOG_LINES_DROPPED,
    &CPU,
    &RESIDENT,
    &THREADS,
    &OPEN_FDS,
    &MAX_FDS,
    &SUCCESS,
    &OUTCOME,
    &TRIES,
    &FAILURES,
    &MISSED_TICKS,
    &DURATION,
    &STUCK,
    &READING_AGE,
    &TICKS,
    &LATE_TICKS,
    &TICK_DELAY_MAX,
    &FINDING_ACTIVE,
];

/// The text that Prometheus reads.
pub(super) fn text(board: &Board) -> String {
    let mut sink = Sink::default();
    sink.written_by(AGENT, FAMILIES);
    sink.put(&INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
    sink.put(&LOG_LINES_DROPPED, &[], crate::log::dropped() as f64);
    process(&mut sink);
    findings(board, &mut sink);
    collectors(board, &mut sink);
    sink.encode()
}

fn process(sink: &mut Sink) {
    let own = own::usage();
    sink.put_some(&CPU, &[], own.cpu_seconds);
    sink.put_some(&RESIDENT, &[], own.resident_bytes.map(|bytes| bytes as f64));
    sink.put_some(&THREADS, &[], own.threads.map(|threads| threads as f64));
    sink.put_some(&OPEN_FDS, &[], own.open_descriptors.map(|open| open as f64));
    sink.put_some(&MAX_FDS, &[], own.most_descriptors.map(|most| most as f64));
}

fn collectors(board: &Board, sink: &mut Sink) {
    let accounts = board.accounts();
    for account in &accounts {
        let labels = [account.name];
        sink.put(&SUCCESS, &labels, f64::from(u8::from(account.outcome.is_read())));
        sink.put(&OUTCOME, &[account.name, account.outcome.word()], 1.0);
        sink.put(&TRIES, &labels, account.tries as f64);
        sink.put(&FAILURES, &labels, account.failures as f64);
        sink.put(&MISSED_TICKS, &labels, account.missed as f64);
        if let Some(ticks) = &account.ticks {
            punctuality(ticks, &labels, sink);
        }
        sink.put_some(&DURATION, &labels, account.took.map(|took| took.as_secs_f64()));
        sink.put_some(&STUCK, &labels, account.stuck.map(|stuck| stuck.as_secs_f64()));
        sink.put_some(&READING_AGE, &labels, account.age.map(|age| age.as_secs_f64()));
    }
    // An old reading is not what is so now: its values are left out until there is a new one.
    for account in accounts.iter().filter(|account| account.outcome.is_read()) {
        if let Some(reading) = board.reading(account.name) {
            reading.metrics(sink);
        }
    }
}

fn punctuality(ticks: &Ticks, labels: &[&str], sink: &mut Sink) {
    sink.put(&TICKS, labels, ticks.total as f64);
    sink.put(&LATE_TICKS, labels, ticks.late as f64);
    sink.put_some(&TICK_DELAY_MAX, labels, ticks.longest_delay_seconds);
}

fn findings(board: &Board, sink: &mut Sink) {
    let mut active: BTreeMap<(String, &str), f64> = BTreeMap::new();
    for finding in board.findings().into_iter().filter(|finding| finding.is_active()) {
        let severity = match finding.severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
            Severity::Unknown => "unknown",
        };
        *active.entry((finding.finding, severity)).or_default() += 1.0;
    }
    for ((finding, severity), count) in &active {
        sink.put(&FINDING_ACTIVE, &[finding, severity], *count);
    }
}
