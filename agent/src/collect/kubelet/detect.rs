//! What is abnormal about the kubelet, what happened to it, and its metrics. Pure.

use std::time::Duration;

use nodewhy_clock::Stamp;
use nodewhy_proto::{EventBody, Evidence, ProcessChange, Role, Severity, Subject, SubjectKind};

use super::{Api, Healthz, KubeletProcess, Reading, metrics};
use crate::collector::{Abnormal, Happening, Noticed, Pair};
use crate::metrics::{Family, Sink};
use crate::thresholds::{Heuristic, Limit, Thresholds};

/// An answer takes this long when the kubelet hangs; a well one takes a millisecond.
const HUNG_SECONDS: f64 = 5.0;
/// A kubelet opens its ping this long after its start at the latest.
const STARTED_SECONDS: f64 = 30.0;
/// So many starts within ten minutes are a crash loop, or somebody at work.
const RESTARTS: usize = 3;

pub(super) static PLEG: Heuristic = Heuristic {
    name: "kubelet_pleg_seconds",
    about: "a relist of the kubelet that began longer ago is stuck; the kubelet itself gives up Ready at 180 s",
    value: 60.0,
};
pub(super) static CERTIFICATE: Heuristic = Heuristic {
    name: "kubelet_certificate_seconds",
    about: "a client certificate of the kubelet that is good for less is about to expire",
    value: 3600.0,
};
/// pkg/kubelet/kubelet.go: relistThreshold of the generic PLEG.
const PLEG_UNHEALTHY_SECONDS: f64 = 180.0;

pub(super) fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let reading = pair.now;
    noticed.happenings.extend(reading.changes.iter().map(|change| {
        let word = if change.began { "started" } else { "exited" };
        let body = ProcessChange {
            role: Role::Kubelet,
            name: change.process.name.clone(),
            pid: change.process.pid,
            detail: change.detail.clone(),
        };
        Happening {
            key: Some(format!("kubelet/{word}/{}/{}", change.process.pid, change.process.start_ticks)),
            at: Some(change.at),
            body: if change.began { EventBody::ProcessStarted(body) } else { EventBody::ProcessExited(body) },
        }
    }));
    noticed.states.extend(absent(reading, pair.at));
    noticed.states.extend(reading.process.as_ref().and_then(|process| stopped(process, pair.at)));
    noticed.states.extend(restarting(reading, pair.at));
    noticed.states.extend(healthz(reading, pair.at));
    noticed.states.extend(pleg(&reading.api, thresholds.limit(&PLEG)));
    noticed.states.extend(sync_loop(&reading.api));
    noticed.states.extend(certificate(&reading.api, thresholds.limit(&CERTIFICATE)));
    noticed.states.extend(evicting(&reading.api));
}

fn abnormal(finding: &'static str, severity: Severity, seconds: (u64, u64), summary: String) -> Abnormal {
    Abnormal {
        finding,
        subject: Subject::new(SubjectKind::Kubelet, ""),
        severity,
        summary,
        evidence: Vec::new(),
        since: None,
        hold: Duration::from_secs(seconds.0),
        clear_after: Duration::from_secs(seconds.1),
    }
}

fn absent(reading: &Reading, at: Stamp) -> Option<Abnormal> {
    if reading.process.is_some() || reading.process_unseen.is_some() {
        return None;
    }
    let mut state = abnormal(
        "kubelet_absent",
        Severity::Critical,
        (2, 5),
        format!("no kubelet runs on this node, though {}", reading.expected_because),
    );
    if let Some(exit) = &reading.exit {
        let how = if exit.by_pidfd { "by its pidfd" } else { "it was gone when looked for" };
        state.summary = format!("the kubelet ({}[{}]) has ended and none runs", exit.name, exit.pid);
        state.since = Some(exit.at);
        state.evidence.push(
            Evidence::new(format!("{}[{}] ended, {how}", exit.name, exit.pid), format!("/proc/{}", exit.pid))
                .with_time(exit.at),
        );
    }
    state.evidence.push(Evidence::new("no process is a kubelet", "/proc").with_time(at.wall));
    Some(state)
}

fn stopped(process: &KubeletProcess, at: Stamp) -> Option<Abnormal> {
    let why = match process.state {
        'T' => "by a signal (SIGSTOP)",
        't' => "by a debugger",
        _ => return None,
    };
    let mut state = abnormal(
        "kubelet_stopped",
        Severity::Critical,
        (2, 2),
        format!("the kubelet ({}[{}]) is stopped {why}", process.name, process.pid),
    );
    state.evidence.push(
        Evidence::new(format!("state {}", process.state), format!("/proc/{}/stat", process.pid))
            .with_time(at.wall),
    );
    Some(state)
}

fn restarting(reading: &Reading, at: Stamp) -> Option<Abnormal> {
    let count = reading.starts_within_10_min.len();
    if count < RESTARTS {
        return None;
    }
    let mut state = abnormal(
        "kubelet_restarting",
        Severity::Warning,
        (0, 600),
        format!("the kubelet was started {count} times within 10 minutes"),
    );
    // Dozens of starts are told by their number; the newest few by their time.
    state.evidence.push(
        Evidence::new(format!("{count} starts within 10 minutes"), "/proc")
            .with_time(at.wall)
            .with_value(count as f64, "starts"),
    );
    state.evidence.extend(
        reading
            .starts_within_10_min
            .iter()
            .rev()
            .take(3)
            .rev()
            .map(|start| Evidence::new("a kubelet began", "/proc/PID/stat").with_time(*start)),
    );
    Some(state)
}

fn healthz(reading: &Reading, at: Stamp) -> Option<Abnormal> {
    // Without a kubelet's process whoever answers there, or does not, is somebody else.
    if reading.process.is_none() && reading.process_unseen.is_none() {
        return None;
    }
    let source = "GET /healthz of the kubelet (port 10248)";
    let mut state = match &reading.healthz {
        Healthz::Never | Healthz::Ok { .. } | Healthz::Failed { .. } => return None,
        Healthz::Status { code, body, .. } => {
            let mut state = failing("the kubelet's ping answers other than 200");
            let text = format!("status {code}: {}", body.trim());
            state.evidence.push(Evidence::new(text, source).with_value(f64::from(*code), "status"));
            state
        }
        Healthz::NotHttp { what } => {
            let mut state = failing("what answers at the kubelet's ping speaks no HTTP");
            state.evidence.push(Evidence::new(what, source));
            state
        }
        Healthz::Refused => {
            let answered = reading.healthz_answered?;
            let process = reading.process.as_ref().filter(|it| it.uptime_seconds > STARTED_SECONDS)?;
            let mut state = abnormal(
                "kubelet_healthz_refused",
                Severity::Warning,
                (5, 5),
                "the kubelet runs, and refuses its ping that it answered before".to_owned(),
            );
            state.evidence.push(Evidence::new("connection refused", source));
            state.evidence.push(Evidence::new("it answered last", source).with_time(answered));
            let text =
                format!("{}[{}] has run for {:.0} s", process.name, process.pid, process.uptime_seconds);
            state.evidence.push(Evidence::new(text, format!("/proc/{}/stat", process.pid)));
            state
        }
        Healthz::Pending { since, age_seconds, connected } => {
            if *age_seconds < HUNG_SECONDS {
                return None;
            }
            let mut state = abnormal(
                "kubelet_healthz_hung",
                Severity::Critical,
                (5, 5),
                "the kubelet does not answer its ping".to_owned(),
            );
            state.since = Some(*since);
            let how = if *connected { "connected" } else { "not even connected" };
            let text = format!("{how}, no answer for {age_seconds:.0} s");
            state.evidence.push(Evidence::new(text, source).with_value(*age_seconds, "seconds"));
            state
        }
    };
    for evidence in &mut state.evidence {
        evidence.at.get_or_insert(at.wall);
    }
    Some(state)
}

fn failing(summary: &str) -> Abnormal {
    abnormal("kubelet_healthz_failing", Severity::Critical, (5, 5), summary.to_owned())
}

const METRICS: &str = "GET /metrics of the kubelet (port 10250)";

fn pleg(api: &Api, limit: Limit) -> Option<Abnormal> {
    let metrics = api.metrics.as_ref().filter(|metrics| metrics.pleg_is_suspect())?;
    let age = metrics.pleg_age_seconds.filter(|age| *age > limit.value)?;
    let severity = if age > PLEG_UNHEALTHY_SECONDS { Severity::Critical } else { Severity::Warning };
    let summary =
        format!("the kubelet's PLEG listed the containers last {age:.0} s ago: its relist is stuck");
    let mut state = abnormal("pleg_unhealthy", severity, (0, 20), summary);
    state.since = api.pleg_last_seen();
    let mut seen = Evidence::new(format!("kubelet_pleg_last_seen_seconds was {age:.0} s ago"), METRICS)
        .with_value(age, "seconds")
        .with_threshold(limit.value, limit.origin);
    seen.at = api.pleg_last_seen();
    state.evidence.push(seen);
    if let Some(interval) = metrics.interval.as_ref().filter(|interval| interval.relists.is_some()) {
        let text = format!("no relist ended within the last {:.0} s", interval.seconds);
        state.evidence.push(Evidence::new(text, METRICS));
    }
    Some(state)
}

fn sync_loop(api: &Api) -> Option<Abnormal> {
    let failing = api.failing_checks.as_ref()?;
    failing.iter().find(|name| *name == "syncloop")?;
    let summary = "the kubelet's sync loop stands still: it starts and ends no pods".to_owned();
    let mut state = abnormal("kubelet_syncloop_stuck", Severity::Critical, (5, 20), summary);
    let text = format!("these checks fail: {}", failing.join(", "));
    state.evidence.push(Evidence::new(text, "GET /healthz?verbose of the kubelet (port 10250)"));
    Some(state)
}

fn certificate(api: &Api, limit: Limit) -> Option<Abnormal> {
    let metrics = api.metrics.as_ref()?;
    let ttl = metrics.certificate_ttl_seconds.filter(|ttl| *ttl < limit.value)?;
    let (severity, summary) = if ttl < 0.0 {
        (Severity::Critical, "the kubelet's client certificate has expired".to_owned())
    } else {
        (Severity::Warning, format!("the kubelet's client certificate expires in {:.0} minutes", ttl / 60.0))
    };
    let mut state = abnormal("kubelet_certificate_expiring", severity, (0, 20), summary);
    let text = format!("kubelet_certificate_manager_client_ttl_seconds is {ttl:.0}");
    state.evidence.push(
        Evidence::new(text, METRICS).with_value(ttl, "seconds").with_threshold(limit.value, limit.origin),
    );
    if let Some(errors) = metrics.certificate_renew_errors.filter(|errors| *errors > 0.0) {
        let text = format!("{errors:.0} renewals failed since the kubelet began");
        state.evidence.push(Evidence::new(text, METRICS).with_value(errors, "errors"));
    }
    Some(state)
}

fn evicting(api: &Api) -> Option<Abnormal> {
    let interval = api.metrics.as_ref()?.interval.as_ref()?;
    let count: f64 = interval.evictions.values().sum();
    if count <= 0.0 {
        return None;
    }
    let signals: Vec<&str> = interval.evictions.keys().map(String::as_str).collect();
    let summary = format!("the kubelet evicts pods for want of {}", signals.join(", "));
    let mut state = abnormal("kubelet_evicting", Severity::Info, (0, 60), summary);
    for (signal, more) in &interval.evictions {
        let text = format!("{more:.0} evictions by {signal} within {:.0} s", interval.seconds);
        state.evidence.push(Evidence::new(text, METRICS).with_value(*more, "evictions"));
    }
    Some(state)
}

/// The kubelet in one line.
pub(super) fn summary(reading: &Reading) -> String {
    let Some(process) = &reading.process else {
        let unseen = reading.process_unseen.as_deref().unwrap_or("expected here, and not running");
        return unseen.to_owned();
    };
    let ping = match &reading.healthz {
        Healthz::Never => "not pinged yet".to_owned(),
        Healthz::Ok { took_seconds } => format!("answers its ping in {:.0} ms", took_seconds * 1e3),
        Healthz::Status { code, .. } => format!("answers its ping with {code}"),
        Healthz::NotHttp { .. } => "answers its ping with no HTTP".to_owned(),
        Healthz::Refused => "refuses its ping".to_owned(),
        Healthz::Pending { age_seconds, .. } => format!("has not answered its ping for {age_seconds:.1} s"),
        Healthz::Failed { error } => format!("could not be pinged: {error}"),
    };
    format!("{} (pid {}) {ping}", process.name, process.pid)
}

static UP: Family = Family::gauge("nodewhy_kubelet_up", "Whether a kubelet's process runs.");
static STARTS: Family = Family::counter(
    "nodewhy_kubelet_starts_total",
    "Kubelet processes that were seen since the agent began to look.",
);
static UPTIME: Family = Family::gauge("nodewhy_kubelet_uptime_seconds", "How long the kubelet has run.");
static RESIDENT: Family =
    Family::gauge("nodewhy_kubelet_resident_memory_bytes", "The kubelet's resident memory.");
static THREADS: Family = Family::gauge("nodewhy_kubelet_threads", "The kubelet's threads.");
static HEALTHZ_OK: Family =
    Family::gauge("nodewhy_kubelet_healthz_ok", "Whether the kubelet's ping says 200. It knows of no fault.");
static HEALTHZ_DURATION: Family =
    Family::gauge("nodewhy_kubelet_healthz_duration_seconds", "How long the newest answer took.");
static HEALTHZ_PENDING: Family =
    Family::gauge("nodewhy_kubelet_healthz_pending_seconds", "Age of the oldest unanswered ping.");

pub(super) static FAMILIES: &[&Family] = &[
    &UP,
    &STARTS,
    &UPTIME,
    &RESIDENT,
    &THREADS,
    &HEALTHZ_OK,
    &HEALTHZ_DURATION,
    &HEALTHZ_PENDING,
    &metrics::API_UP,
    &metrics::PLEG_AGE,
    &metrics::RELIST_P99,
    &metrics::RELISTS,
    &metrics::OPERATIONS,
    &metrics::OPERATION_ERRORS,
    &metrics::OPERATION_SECONDS,
    &metrics::EVICTIONS,
    &metrics::CERTIFICATE_TTL,
    &metrics::RENEW_ERRORS,
    &metrics::REQUESTS,
    &metrics::RUNNING_PODS,
    &metrics::RUNNING_CONTAINERS,
];

pub(super) fn metrics(reading: &Reading, sink: &mut Sink) {
    metrics::of_api(&reading.api, sink);
    if reading.process_unseen.is_none() {
        let up = f64::from(u8::from(reading.process.is_some()));
        sink.put(&UP, &[], up);
    }
    sink.put(&STARTS, &[], reading.starts_total as f64);
    if let Some(process) = &reading.process {
        sink.put(&UPTIME, &[], process.uptime_seconds);
        sink.put_some(&RESIDENT, &[], process.rss_bytes.map(|bytes| bytes as f64));
        sink.put_some(&THREADS, &[], process.threads.map(f64::from));
    }
    let (ok, took, pending) = match &reading.healthz {
        // Nothing was learned: nothing is said.
        Healthz::Never | Healthz::Failed { .. } => (None, None, None),
        Healthz::Ok { took_seconds } => (Some(1.0), Some(*took_seconds), Some(0.0)),
        Healthz::Status { took_seconds, .. } => (Some(0.0), Some(*took_seconds), Some(0.0)),
        Healthz::NotHttp { .. } | Healthz::Refused => (Some(0.0), None, Some(0.0)),
        Healthz::Pending { age_seconds, .. } => {
            ((*age_seconds >= HUNG_SECONDS).then_some(0.0), None, Some(*age_seconds))
        }
    };
    sink.put_some(&HEALTHZ_OK, &[], ok);
    sink.put_some(&HEALTHZ_DURATION, &[], took);
    sink.put_some(&HEALTHZ_PENDING, &[], pending);
}
