//! `/metrics`: what the collectors read, and how they do.

use std::collections::BTreeMap;

use nodewhy_proto::{Problem, Severity, Ticks};

use crate::board::Board;
use crate::metrics::Sink;

/// The text that Prometheus reads.
pub(super) fn text(board: &Board) -> Result<String, Problem> {
    let mut sink = Sink::default();
    sink.gauge_with(
        "nodewhy_agent_info",
        "The agent's version; the value is always 1.",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );
    sink.counter(
        "nodewhy_agent_log_lines_dropped_total",
        "Log lines that were dropped because nobody read the agent's standard error.",
        crate::log::dropped() as f64,
    );
    collectors(board, &mut sink);
    findings(board, &mut sink);
    sink.encode().map_err(|error| {
        Problem::new(500, "Internal Server Error", format!("the metrics cannot be written: {error}"))
    })
}

fn collectors(board: &Board, sink: &mut Sink) {
    for account in board.accounts() {
        let labels = [("collector", account.name)];
        let success = f64::from(u8::from(account.outcome.is_read()));
        sink.gauge_with(
            "nodewhy_collector_success",
            "1 while the collector's newest try was a reading; 0 while it is absent, failed or stuck.",
            &labels,
            success,
        );
        sink.gauge_with(
            "nodewhy_collector_outcome",
            "How the collector's newest try went: the outcome is the label, the value is always 1.",
            &[("collector", account.name), ("outcome", account.outcome.word())],
            1.0,
        );
        sink.counter_with(
            "nodewhy_collector_tries_total",
            "Tries to read that ended.",
            &labels,
            account.tries as f64,
        );
        sink.counter_with(
            "nodewhy_collector_failures_total",
            "Tries to read that failed.",
            &labels,
            account.failures as f64,
        );
        sink.counter_with(
            "nodewhy_collector_missed_ticks_total",
            "Ticks that had no try of their own: one was in flight, or the agent was not run.",
            &labels,
            account.missed as f64,
        );
        if let Some(ticks) = &account.ticks {
            punctuality(ticks, &labels, sink);
        }
        if let Some(took) = account.took {
            sink.gauge_with(
                "nodewhy_collector_duration_seconds",
                "How long the newest finished try took.",
                &labels,
                took.as_secs_f64(),
            );
        }
        if let Some(stuck) = account.stuck {
            sink.gauge_with(
                "nodewhy_collector_stuck_seconds",
                "For how long the read in flight has hung; no series while none does.",
                &labels,
                stuck.as_secs_f64(),
            );
        }
        if let Some(age) = account.age {
            sink.gauge_with(
                "nodewhy_collector_reading_age_seconds",
                "Age of the newest successful reading; it grows while reads hang or fail.",
                &labels,
                age.as_secs_f64(),
            );
        }
        // An old reading is not what is so now: its values are left out until there is a new one.
        if account.outcome.is_read()
            && let Some(reading) = board.reading(account.name)
        {
            reading.metrics(sink);
        }
    }
}

fn punctuality(ticks: &Ticks, labels: &[(&str, &str)], sink: &mut Sink) {
    let help = "Ticks of the collector's cadence: read, or overdue now.";
    sink.counter_with("nodewhy_collector_ticks_total", help, labels, ticks.total as f64);
    let help = "Ticks whose read had not ended within 250 ms of the time that they were due.";
    sink.counter_with("nodewhy_collector_late_ticks_total", help, labels, ticks.late as f64);
    if let Some(longest) = ticks.longest_delay_seconds {
        let help = "The longest time from a tick's due to the end of its read, since the agent's start.";
        sink.gauge_with("nodewhy_collector_tick_delay_max_seconds", help, labels, longest);
    }
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
        sink.gauge_with(
            "nodewhy_finding_active",
            "Subjects on which this finding holds now; no series: on none.",
            &[("finding", finding), ("severity", severity)],
            *count,
        );
    }
}
