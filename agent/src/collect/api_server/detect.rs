//! What is abnormal.

use std::time::Duration;

use jiff::Timestamp;
use nodewhy_proto::{Evidence, Severity, Subject, SubjectKind};

use super::Reading;
use crate::collector::{Abnormal, Noticed, Pair};
use crate::thresholds::{Heuristic, Thresholds};

pub(super) static LIMITS: &[&Heuristic] = &[&SLOW, &SKEW, &STALE];

static SLOW: Heuristic = Heuristic {
    name: "api_server_slow_seconds",
    about: "time for a dial of the API server above which it is slow; the kubelet gives a heartbeat up after 10 s",
    value: 5.0,
};
static SKEW: Heuristic = Heuristic {
    name: "clock_skew_seconds",
    about: "difference of the node's clock and the API server's above which the clock is skewed",
    value: 30.0,
};
static STALE: Heuristic = Heuristic {
    name: "stale_api_connection_seconds",
    about: "time without an acknowledgement above which an established connection is stale, if a new one is made at once",
    value: 15.0,
};

/// From here on the node is about to be called Unknown: the shortest grace period (Kubernetes up to 1.31).
const CRITICAL_AFTER_SECONDS: f64 = 40.0;
const NONE: Duration = Duration::ZERO;

pub(super) fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let (now, at) = (pair.now, pair.at.wall);
    let states = [
        unreachable(now),
        slow(now, thresholds),
        unhealthy(now),
        skewed(now, thresholds),
        expired(now, at),
        stale(now, thresholds),
    ];
    noticed.states.extend(states.into_iter().flatten());
    for state in &mut noticed.states {
        for evidence in &mut state.evidence {
            evidence.at.get_or_insert(now.dial.ended.wall);
        }
    }
}

/// One API server a node, whatever its address: no name.
fn api_server() -> Subject {
    Subject::new(SubjectKind::ApiServer, "")
}

fn source(now: &Reading) -> String {
    match now.dial.address {
        Some(address) => format!("a dial of {} ({address})", now.dial.target),
        None => format!("a dial of {}", now.dial.target),
    }
}

fn unreachable(now: &Reading) -> Option<Abnormal> {
    // One alone may be a restart.
    let error = now.dial.error.as_ref().filter(|_| now.failed_in_row >= 2)?;
    let failing = now.failing_seconds?;
    let mut evidence = vec![
        Evidence::new(format!("{}: {}", error.why.word(), error.error), source(now)),
        Evidence::new(format!("{} dials failed in a row", now.failed_in_row), source(now))
            .with_value(failing, "seconds"),
    ];
    evidence.extend(now.dial.tried.iter().map(|tried| Evidence::new(tried.as_str(), source(now))));
    if !now.from_hosts_network {
        let text = "dialled from a network namespace that is not known to be the node's: what stops the agent's pod \
                    (a NetworkPolicy) looks the same";
        evidence.push(Evidence::new(text, source(now)));
    }
    Some(Abnormal {
        finding: "api_server_unreachable",
        subject: api_server(),
        severity: if failing >= CRITICAL_AFTER_SECONDS { Severity::Critical } else { Severity::Warning },
        summary: format!("the API server {} is not reached from this node: {}", now.dial.target, error.error),
        evidence,
        since: now.failing_since,
        hold: NONE,
        clear_after: NONE,
    })
}

fn slow(now: &Reading, thresholds: &Thresholds) -> Option<Abnormal> {
    let limit = thresholds.limit(&SLOW);
    let took = now.dial.total_seconds;
    if now.dial.answer.is_none() || took <= limit.value {
        return None;
    }
    let step = |name: &str, seconds: Option<f64>| seconds.map(|seconds| format!("{name} {seconds:.2} s"));
    let steps: Vec<String> = [
        step("name", now.dial.resolve_seconds),
        step("TCP", now.dial.connect_seconds),
        step("TLS", now.dial.tls_seconds),
        step("answer", now.dial.answer_seconds),
    ]
    .into_iter()
    .flatten()
    .collect();
    Some(Abnormal {
        finding: "api_server_slow",
        subject: api_server(),
        severity: Severity::Warning,
        summary: format!("the API server answers after {took:.1} s"),
        evidence: vec![
            Evidence::new(format!("{took:.2} s, above {} s: {}", limit.value, steps.join(", ")), source(now))
                .with_value(took, "seconds")
                .with_threshold(limit.value, limit.origin),
        ],
        since: None,
        hold: NONE,
        clear_after: Duration::from_secs(10),
    })
}

fn unhealthy(now: &Reading) -> Option<Abnormal> {
    let answer = now.dial.answer.as_ref().filter(|answer| answer.status >= 500)?;
    let failed: Vec<&str> = answer.body.lines().filter(|line| line.starts_with("[-]")).take(8).collect();
    let mut evidence = vec![Evidence::new(format!("/livez says {}", answer.status), source(now))];
    evidence.extend(failed.into_iter().map(|line| Evidence::new(line, source(now))));
    Some(Abnormal {
        finding: "api_server_unhealthy",
        subject: api_server(),
        severity: Severity::Warning,
        summary: format!("the API server says of itself that it is not well: {}", answer.status),
        evidence,
        since: None,
        hold: NONE,
        clear_after: Duration::from_secs(10),
    })
}

fn skewed(now: &Reading, thresholds: &Thresholds) -> Option<Abnormal> {
    let limit = thresholds.limit(&SKEW);
    let (offset, error) = now.clock_offset_seconds.zip(now.clock_offset_error_seconds)?;
    if offset.abs() - error <= limit.value {
        return None;
    }
    let way = if offset > 0.0 { "ahead of" } else { "behind" };
    let apart = offset.abs();
    Some(Abnormal {
        finding: "clock_skewed",
        subject: Subject::node(),
        severity: Severity::Warning,
        summary: format!(
            "the node's clock is {apart:.0} s {way} the API server's: which one is wrong needs a third"
        ),
        evidence: vec![
            Evidence::new(
                format!("{apart:.1} s (± {error:.1} s) {way} the header Date, above {} s", limit.value),
                source(now),
            )
            .with_value(offset, "seconds")
            .with_threshold(limit.value, limit.origin),
        ],
        since: None,
        hold: NONE,
        clear_after: NONE,
    })
}

fn expired(now: &Reading, at: Timestamp) -> Option<Abnormal> {
    let until = now.dial.certificate.as_ref()?.not_after?;
    // The server's own clock, where it tells it: ours may be the one that is wrong.
    let date = now.dial.answer.as_ref().and_then(|answer| answer.date);
    if date.unwrap_or(at) <= until {
        return None;
    }
    Some(Abnormal {
        finding: "api_certificate_expired",
        subject: api_server(),
        severity: Severity::Critical,
        summary: format!("the certificate that the API server shows expired at {until}"),
        evidence: vec![Evidence::new(format!("notAfter {until}"), source(now))],
        since: Some(until),
        hold: NONE,
        clear_after: NONE,
    })
}

fn stale(now: &Reading, thresholds: &Thresholds) -> Option<Abnormal> {
    let limit = thresholds.limit(&STALE);
    // Only beside a new connection that is made at once: else the network is cut, not one connection.
    now.dial.answer.as_ref()?;
    let connections = now.connections.as_ref()?;
    let worst = connections
        .listed
        .iter()
        .filter(|it| it.of_kubelet != Some(false) && it.state == "ESTABLISHED")
        .filter(|it| it.unacknowledged_bytes > 0 && it.retransmits > 0 && it.waited_seconds > limit.value)
        .max_by(|one, other| one.waited_seconds.total_cmp(&other.waited_seconds))?;
    let waited = worst.waited_seconds;
    let whose = if worst.of_kubelet == Some(true) { "the kubelet's" } else { "a" };
    let mut evidence = vec![
        Evidence::new(
            format!(
                "{} to {}: {} bytes unacknowledged for {waited:.0} s at least, {} timeouts in a row",
                worst.local, worst.remote, worst.unacknowledged_bytes, worst.retransmits
            ),
            connections.source,
        )
        .with_value(waited, "seconds")
        .with_threshold(limit.value, limit.origin),
        Evidence::new(
            format!("a new connection was answered in {:.2} s", now.dial.total_seconds),
            source(now),
        ),
    ];
    if worst.of_kubelet.is_none() {
        evidence.push(Evidence::new(
            "whose connection it is cannot be told: the kubelet's descriptors and cgroup cannot be read",
            connections.source,
        ));
    }
    let since = worst.waited_seconds;
    let since = jiff::SignedDuration::try_from_secs_f64(since).ok();
    Some(Abnormal {
        finding: "stale_api_connection",
        subject: Subject::new(SubjectKind::Kubelet, ""),
        severity: Severity::Warning,
        summary: format!("{whose} connection to the API server is dead, and a new one works"),
        evidence,
        since: since.and_then(|since| now.dial.ended.wall.checked_sub(since).ok()),
        hold: NONE,
        clear_after: NONE,
    })
}
