use std::time::Duration;

use nodewhy_proto::{EventBody, Evidence, ProcessChange, Role, Severity, Subject, SubjectKind};

use super::reading::{Call, Status};
use super::{Change, Reading};
use crate::collector::{Abnormal, Happening, Noticed, Pair};
use crate::host::process::Process;
use crate::thresholds::{Heuristic, Limit, Thresholds};

/// A restart takes less: a socket that is gone or refuses for a moment is no finding.
const RESTART_HOLD: Duration = Duration::from_secs(2);
const CLEAR_AFTER: Duration = Duration::from_secs(2);
/// With a second, independent signal (the process is stopped), an unanswered call needs no longer to be proof.
const STOPPED_HUNG_SECONDS: f64 = 3.0;

pub(super) static HUNG: Heuristic = Heuristic {
    name: "runtime_hung_seconds",
    about: "a CRI call that has not answered for this long is hung",
    value: 10.0,
};
pub(super) static SLOW: Heuristic = Heuristic {
    name: "runtime_slow_seconds",
    about: "a CRI call of which the answer takes this long is slow",
    value: 5.0,
};

/// What is abnormal of the runtime now.
pub(super) fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let reading = pair.now;
    noticed.happenings.extend(reading.changes.iter().map(|change| happened(reading, change)));
    noticed.states.extend(unreachable(reading));
    let hung = hung(reading, thresholds.limit(&HUNG));
    let is_hung = hung.is_some();
    noticed.states.extend(hung);
    if !is_hung {
        noticed.states.extend(slow(reading, thresholds.limit(&SLOW)));
        noticed.states.extend(relist_slow(reading, thresholds.limit(&SLOW)));
        noticed.states.extend(status_slow(reading, thresholds.limit(&SLOW)));
    }
    noticed.states.extend(runtime_not_ready(reading));
    if reading.serves_pods {
        noticed.states.extend(network_not_ready(reading));
    }
}

fn abnormal(
    reading: &Reading,
    finding: &'static str,
    severity: Severity,
    summary: String,
    evidence: Vec<Evidence>,
) -> Abnormal {
    Abnormal {
        finding,
        subject: Subject::new(SubjectKind::Runtime, &reading.endpoint),
        severity,
        summary,
        evidence,
        since: None,
        hold: Duration::ZERO,
        clear_after: CLEAR_AFTER,
    }
}

fn happened(reading: &Reading, change: &Change) -> Happening {
    let told = |process: &Process, what: &str| ProcessChange {
        role: Role::Runtime,
        name: process.name.clone(),
        pid: process.pid,
        detail: format!("it {what} on {}", reading.endpoint),
    };
    let body = match change {
        Change::Started(process) => EventBody::ProcessStarted(told(process, "listens")),
        Change::Exited(process) => EventBody::ProcessExited(told(process, "listened")),
    };
    Happening { key: None, at: None, body }
}

fn unreachable(reading: &Reading) -> Option<Abnormal> {
    let socket = &reading.endpoint;
    let (finding, summary) = match reading.connect.state {
        "missing" => ("runtime_socket_missing", format!("the container runtime's socket {socket} is gone")),
        "refused" => {
            ("runtime_refused", format!("the container runtime is dead: nobody listens on {socket}"))
        }
        _ => return None,
    };
    let words = reading.connect.error.clone().unwrap_or_else(|| reading.connect.state.to_owned());
    let mut evidence = Evidence::new(words, format!("connect to {socket}"));
    evidence.at = reading.connect.since;
    let found = Evidence::new(format!("the socket was found by: {}", reading.found_by), "nodewhy");
    let state = abnormal(reading, finding, Severity::Critical, summary, vec![evidence, found]);
    Some(Abnormal { since: reading.connect.since, hold: RESTART_HOLD, ..state })
}

fn hung(reading: &Reading, limit: Limit) -> Option<Abnormal> {
    // Without a listener there is nobody to hang: that is another finding, and calls end at once there.
    let is_full = reading.connect.state == "backlog_full";
    if !is_full && reading.connect.state != "connected" && reading.connect.state != "missing" {
        return None;
    }
    let stopped = reading.process_state.filter(|state| matches!(state, 'T' | 't' | 'Z'));
    let needed = if stopped.is_some() { STOPPED_HUNG_SECONDS.min(limit.value) } else { limit.value };
    let socket = &reading.endpoint;
    let (text, seconds, since, source) = if is_full {
        let seconds = reading.connect.for_seconds?;
        let text = format!("nobody has accepted connections for {seconds:.1} s: the socket's queue is full");
        (text, seconds, reading.connect.since, format!("connect to {socket}"))
    } else {
        let (name, seconds, call) = reading.oldest_unanswered()?;
        let text = format!("{name} has had no answer for {seconds:.1} s");
        (text, seconds, call.unanswered_since, format!("CRI {name} on {socket}"))
    };
    if seconds < needed {
        return None;
    }
    let mut call = Evidence::new(text, source).with_value(seconds, "seconds").with_threshold(
        needed,
        // Three seconds with a stopped process are ours, whatever the other limit comes from.
        if stopped.is_some() { nodewhy_proto::Origin::Heuristic } else { limit.origin },
    );
    call.at = since;
    let mut evidence = vec![call];
    let mut summary = format!("the container runtime connects and has not answered for {seconds:.0} s");
    if let (Some(state), Some(pid)) = (reading.process_state, reading.pid) {
        let name = reading.process_name.as_deref().unwrap_or("the runtime");
        let text = format!("{name} (pid {pid}) is in state {state}: {}", in_words(state));
        evidence.push(Evidence::new(text, format!("/proc/{pid}/stat")));
        if stopped.is_some() {
            summary =
                format!("{name} (pid {pid}) is {} and has not answered for {seconds:.0} s", in_words(state));
        }
    }
    Some(Abnormal { since, ..abnormal(reading, "runtime_hung", Severity::Critical, summary, evidence) })
}

/// The diagnosis looks for these words (`containerd_hung`).
fn in_words(state: char) -> &'static str {
    match state {
        'T' => "stopped by a signal",
        't' => "stopped by a debugger",
        'Z' => "a zombie, dead and not yet reaped",
        'D' => "waiting in the kernel, not to be interrupted",
        'R' => "running",
        _ => "sleeping",
    }
}

/// Status is answered, and the newest answer took no longer than the limit, and none waits longer now.
fn status_is_fast(status: &Call, limit: Limit) -> bool {
    status.took_seconds.is_some_and(|seconds| seconds < limit.value)
        && status.unanswered_seconds.is_none_or(|seconds| seconds < limit.value)
}

fn slow(reading: &Reading, limit: Limit) -> Option<Abnormal> {
    let seconds = reading.status.took_seconds.filter(|seconds| *seconds >= limit.value)?;
    let socket = &reading.endpoint;
    let mut evidence =
        Evidence::new(format!("Status took {seconds:.1} s"), format!("CRI Status on {socket}"))
            .with_value(seconds, "seconds")
            .with_threshold(limit.value, limit.origin);
    evidence.at = reading.status.at;
    let summary = format!("the container runtime is slow: Status took {seconds:.1} s");
    Some(abnormal(reading, "runtime_slow", Severity::Warning, summary, vec![evidence]))
}

fn relist_slow(reading: &Reading, limit: Limit) -> Option<Abnormal> {
    if !status_is_fast(&reading.status, limit) {
        return None;
    }
    let call = &reading.relist.call;
    let socket = &reading.endpoint;
    let (seconds, words, at) = match (call.unanswered_seconds, call.took_seconds) {
        (Some(running), _) if running >= limit.value => {
            (running, format!("a relist has been running for {running:.1} s"), call.unanswered_since)
        }
        (_, Some(took)) if took >= limit.value => (took, format!("a relist took {took:.1} s"), call.at),
        _ => return None,
    };
    let mut relist =
        Evidence::new(words.clone(), format!("CRI ListPodSandbox and ListContainers on {socket}"))
            .with_value(seconds, "seconds")
            .with_threshold(limit.value, limit.origin);
    relist.at = at;
    let status = reading.status.took_seconds.map(|seconds| {
        Evidence::new(format!("Status took {seconds:.3} s"), format!("CRI Status on {socket}"))
            .with_value(seconds, "seconds")
    });
    let evidence = [relist].into_iter().chain(status).collect();
    let summary = format!("{words} while the runtime answers Status fast");
    let state = abnormal(reading, "relist_slow", Severity::Warning, summary, evidence);
    Some(Abnormal {
        since: call.unanswered_since.filter(|_| call.unanswered_seconds == Some(seconds)),
        ..state
    })
}

/// Single ones that are slow while the runtime itself answers: at most five are named.
fn status_slow(reading: &Reading, limit: Limit) -> Vec<Abnormal> {
    if !status_is_fast(&reading.status, limit) || reading.connect.state != "connected" {
        return Vec::new();
    }
    let one = |status: &Status| {
        let text = match status.is_answered {
            true => format!("{} of {} took {:.1} s", status.call, status.who(), status.seconds),
            false => {
                format!("{} of {} has had no answer for {:.1} s", status.call, status.who(), status.seconds)
            }
        };
        let source = format!("CRI {} on {}", status.call, reading.endpoint);
        let evidence = Evidence::new(text.clone(), source)
            .with_time(status.since)
            .with_value(status.seconds, "seconds")
            .with_threshold(limit.value, limit.origin);
        let summary = format!("{text} while the runtime answers Status fast");
        let state = abnormal(reading, "container_status_slow", Severity::Warning, summary, vec![evidence]);
        let since = Some(status.since).filter(|_| !status.is_answered);
        Abnormal { subject: Subject::new(SubjectKind::Container, &status.id), since, ..state }
    };
    reading.inspection.slower_than(limit.value).take(5).map(one).collect()
}

fn runtime_not_ready(reading: &Reading) -> Option<Abnormal> {
    let condition = reading.condition("RuntimeReady").filter(|condition| !condition.status)?;
    let text = format!("RuntimeReady=false reason:{} message:{}", condition.reason, condition.message);
    let mut evidence = Evidence::new(text, format!("CRI Status on {}", reading.endpoint));
    evidence.at = reading.status.at;
    let summary = format!("the container runtime says that it is not ready: {}", condition.message);
    Some(abnormal(reading, "runtime_not_ready", Severity::Critical, summary, vec![evidence]))
}

fn network_not_ready(reading: &Reading) -> Option<Abnormal> {
    let condition = reading.condition("NetworkReady").filter(|condition| !condition.status)?;
    let source = format!("CRI Status on {}", reading.endpoint);
    let text = format!("NetworkReady=false reason:{} message:{}", condition.reason, condition.message);
    let mut ready = Evidence::new(text, source.clone());
    ready.at = reading.status.at;
    let mut evidence = vec![ready];
    let mut summary = format!("the runtime has no pod network: {}", condition.message);
    if let Some(load) = &reading.last_cni_load_status {
        let mut said = Evidence::new(format!("lastCNILoadStatus: {load}"), source);
        said.at = reading.status.at;
        evidence.push(said);
        summary = format!("{summary} (lastCNILoadStatus: {load})");
    }
    let state = abnormal(reading, "runtime_network_not_ready", Severity::Critical, summary, evidence);
    Some(Abnormal { subject: Subject::new(SubjectKind::Cni, &condition.reason), ..state })
}
