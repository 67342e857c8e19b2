//! What is abnormal about the kubelet, what happened to it, and its metrics. Pure.

use std::time::Duration;

use nodewhy_clock::Stamp;
use nodewhy_proto::{EventBody, Evidence, ProcessChange, Role, Severity, Subject, SubjectKind};

use super::{Healthz, KubeletProcess, Reading};
use crate::collector::{Abnormal, Happening, Noticed, Pair};
use crate::metrics::{Family, Sink};
use crate::thresholds::Thresholds;

/// An answer takes this long when the kubelet hangs; a well one takes a millisecond.
const HUNG_SECONDS: f64 = 5.0;
/// A kubelet opens its ping this long after its start at the latest.
const STARTED_SECONDS: f64 = 30.0;
/// So many starts within ten minutes are a crash loop, or somebody at work.
const RESTARTS: usize = 3;

pub(super) fn detect(pair: Pair<'_, Reading>, _thresholds: &Thresholds, noticed: &mut Noticed) {
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

pub(super) static FAMILIES: &[&Family] =
    &[&UP, &STARTS, &UPTIME, &RESIDENT, &THREADS, &HEALTHZ_OK, &HEALTHZ_DURATION, &HEALTHZ_PENDING];

pub(super) fn metrics(reading: &Reading, sink: &mut Sink) {
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
