use std::time::Duration;

use nodewhy_proto::{Evidence, Severity, Subject, SubjectKind};

use super::Reading;
use crate::collector::{Abnormal, Noticed, Pair};
use crate::thresholds::{Heuristic, Thresholds};

pub(super) const LIMITS: &[&Heuristic] = &[&STUCK, &BUSY, &TASKS];

static STUCK: Heuristic = Heuristic {
    name: "systemd_stuck_seconds",
    about: "systemd has not answered a ping for this long",
    value: 5.0,
};
static BUSY: Heuristic = Heuristic {
    name: "pid1_busy_percent",
    about: "share of one core that PID 1 took over a minute",
    value: 95.0,
};
static TASKS: Heuristic = Heuristic {
    name: "unit_tasks_percent",
    about: "share of the kubelet's or the runtime's own TasksMax that is used",
    value: 90.0,
};

pub(super) fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let reading = pair.now;
    let init = || Subject::new(SubjectKind::Unit, "init.scope");
    let state = |finding, subject, severity, summary: String, evidence| Abnormal {
        finding,
        subject,
        severity,
        summary,
        evidence,
        since: None,
        hold: Duration::ZERO,
        clear_after: Duration::from_secs(10),
    };
    let limit = thresholds.limit(&STUCK);
    if let Some(seconds) = reading.unanswered_seconds.filter(|seconds| *seconds > limit.value) {
        let text = format!("no answer for {seconds:.0} s; PID 1 is in state {}", reading.pid1_state);
        let source = reading
            .socket
            .map(|socket| format!("D-Bus Ping on {socket}"))
            .unwrap_or_else(|| "D-Bus Ping".to_owned());
        let mut evidence = vec![
            Evidence::new(text, source)
                .with_value(seconds, "seconds")
                .with_threshold(limit.value, limit.origin),
        ];
        if let Some(core) = reading.pid1_core_percent {
            evidence.push(
                Evidence::new(
                    format!("PID 1 took {core:.0} % of a core over the last minute"),
                    "/proc/1/stat",
                )
                .with_value(core, "percent"),
            );
        }
        let summary =
            format!("systemd (PID 1) has not answered for {seconds:.0} s: no unit, scope or mount is made");
        let stuck = state("systemd_stuck", init(), Severity::Critical, summary, evidence);
        noticed.states.push(Abnormal { since: reading.unanswered_since, ..stuck });
    }
    let limit = thresholds.limit(&BUSY);
    if let Some(core) = reading.pid1_core_percent.filter(|core| *core > limit.value) {
        let evidence = Evidence::new(format!("{core:.0} % of a core over the last minute"), "/proc/1/stat")
            .with_value(core, "percent")
            .with_threshold(limit.value, limit.origin);
        let summary = format!("PID 1 has taken {core:.0} % of a core for a minute");
        noticed.states.push(state("pid1_busy", init(), Severity::Warning, summary, vec![evidence]));
    }
    let limit = thresholds.limit(&TASKS);
    for tasks in &reading.unit_tasks {
        let Some(most) = tasks.max.filter(|most| *most > 0) else { continue };
        let percent = tasks.current as f64 * 100.0 / most as f64;
        if percent < limit.value {
            continue;
        }
        let text = format!("pids.current {}, pids.max {most}", tasks.current);
        let evidence = Evidence::new(text, format!("cgroup of {}", tasks.unit))
            .with_value(percent, "percent")
            .with_threshold(limit.value, limit.origin);
        let summary = format!(
            "{} has {} of {most} tasks (TasksMax): soon it can start nothing",
            tasks.unit, tasks.current
        );
        let subject = Subject::new(SubjectKind::Unit, &tasks.unit);
        noticed.states.push(state(
            "unit_tasks_exhausted",
            subject,
            Severity::Warning,
            summary,
            vec![evidence],
        ));
    }
    for (name, unit) in reading.known.iter().flat_map(|known| &known.of_note) {
        if unit.active_state.as_deref() != Some("failed") || runs_elsewhere(reading, name) {
            continue;
        }
        let result = unit.result.as_deref().unwrap_or("unknown");
        let restarts = unit.restarts.map(|count| format!(", {count} restarts")).unwrap_or_default();
        let evidence =
            Evidence::new(format!("failed, result {result}{restarts}"), format!("systemd, {name}"));
        let summary = format!("{name} has failed ({result}{restarts}), and systemd does not start it again");
        let subject = Subject::new(SubjectKind::Unit, name);
        noticed.states.push(state("unit_failed", subject, Severity::Warning, summary, vec![evidence]));
    }
    for evidence in noticed.states.iter_mut().flat_map(|state| &mut state.evidence) {
        evidence.at.get_or_insert(pair.at.wall);
    }
}

/// Whether the kubelet or the runtime that this unit would run does so in another one: then this one is a leftover, as of a
/// containerd beside k3s' own.
fn runs_elsewhere(reading: &Reading, unit: &str) -> bool {
    const RUNTIMES: &[&str] =
        &["containerd.service", "crio.service", "snap.microk8s.daemon-containerd.service"];
    let role = if RUNTIMES.contains(&unit) { "runtime" } else { "kubelet" };
    reading.unit_tasks.iter().any(|tasks| tasks.role == role && tasks.unit != unit)
}
