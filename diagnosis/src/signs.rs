//! What checks share: which finding matters for this loss of Ready, how sure signals make one, when silence proves
//! something.

use std::time::Duration;

use jiff::Timestamp;
use nodewhy_proto::{ConditionStatus, Event, EventBody, Evidence, FactBody, Finding, ProcessChange, Role};

use crate::explain::CLOCK_GRAIN;
use crate::{Answer, Link, NodeCase, Unready};

/// A state that ended this long before Ready was lost may still have cost it: the kubelet reports each 10 s, the
/// controller looks each 5 s after a grace period of 50 s.
const STILL_COUNTS: Duration = Duration::from_secs(60);

/// A state and the event that made it are dated by different clocks and polls.
const BESIDE: Duration = Duration::from_secs(15);

/// Findings that say that the CRI does not answer at all.
pub(crate) const RUNTIME_GONE: [&str; 2] = ["runtime_refused", "runtime_socket_missing"];

/// What the kubelet writes when the CRI does not answer.
pub(crate) const RUNTIME_DOWN: &[&str] =
    &["container runtime is down", "container runtime status check may not have completed yet"];

/// What the kubelet writes when a call of its own never comes back.
pub(crate) const RUNTIME_SILENT: &[&str] = &[
    "container runtime is down",
    "PLEG is not healthy: pleg was last seen active",
    "container runtime status check may not have completed yet",
];

/// What the kubelet writes when the CRI has no network configuration loaded; older kubelets' words too.
pub(crate) const NETWORK_NOT_READY: &[&str] =
    &["network not ready", "cni plugin not initialized", "cni config uninitialized"];

/// A kubelet that sends no heartbeat any more, from the fault on. The grace period (50 s; 40 s up to Kubernetes 1.31)
/// counts from the last heartbeat, up to 10 s before the fault, and the controller looks each 5 s. Seen: 44 to 63 s.
pub(crate) const SILENCED: Link = Link::unready(Unready::Unknown, 30, 65, 120);

/// How sure so many independent signals make one. One alone is never more than 0.8.
pub(crate) fn certainty(signals: usize) -> f64 {
    match signals {
        0 => 0.5,
        1 => 0.8,
        2 => 0.9,
        3 => 0.95,
        _ => 0.97,
    }
}

/// [`certainty`], less where the source of the finding can't be read any more: it may be over by now.
pub(crate) fn certainty_by(node: &NodeCase, collector: &str, signals: usize) -> f64 {
    if node.collector(collector).is_ok() { certainty(signals) } else { certainty(signals).min(0.7) }
}

/// This node's finding of this name that matters now: it holds, or it ended too late to be innocent of the loss of
/// Ready that lasts. One that is simply over does not matter.
pub(crate) fn standing<'a>(node: &'a NodeCase, name: &str) -> Option<&'a Finding> {
    let stages = node.unready();
    let newest = stages.last().map(|stage| stage.at);
    let first = stages.first().map(|stage| stage.at);
    let began_after =
        |finding: &Finding| newest.is_some_and(|lost| !within(lost, finding.began, Duration::ZERO));
    let found = node.findings.known().into_iter().flatten().filter(|finding| finding.finding == name);
    // What began before the loss explains it; what began after it does not, though it may hold now.
    found.filter(|finding| still_counts(finding, first)).min_by_key(|finding| {
        (began_after(finding), finding.ended.is_some(), finding.began, finding.id.clone())
    })
}

/// Whether a finding holds, or ended too late to be innocent of Ready's loss, which was at `lost` and lasts.
pub(crate) fn still_counts(finding: &Finding, lost: Option<Timestamp>) -> bool {
    match (finding.ended, lost) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(ended), Some(lost)) => lost.saturating_sub(STILL_COUNTS).is_ok_and(|from| ended >= from),
    }
}

/// Whether `time` is not later than `limit` and `slack`, give or take the clocks' grain.
pub(crate) fn within(limit: Timestamp, time: Timestamp, slack: Duration) -> bool {
    limit.saturating_add(slack.saturating_add(CLOCK_GRAIN)).is_ok_and(|latest| time <= latest)
}

/// Where a finding is cited from, as evidence names its sources.
pub(crate) fn source_of(finding: &Finding) -> String {
    format!("finding {} of the {} collector", finding.finding, finding.collector)
}

/// The finding as one line of evidence.
pub(crate) fn cited(finding: &Finding) -> Evidence {
    Evidence::new(finding.summary.clone(), source_of(finding)).with_time(finding.began)
}

/// The finding as evidence: its own line first, then what it stands on.
pub(crate) fn told(finding: &Finding) -> Vec<Evidence> {
    let mut because = vec![cited(finding)];
    because.extend(finding.evidence.iter().cloned());
    because
}

/// The finding as evidence against something else, in one line.
pub(crate) fn against(finding: &Finding, text: &str) -> Answer {
    let text = format!("{text}: {}", finding.summary);
    Answer::No { because: vec![Evidence::new(text, source_of(finding)).with_time(finding.began)] }
}

/// What speaks for "no" when a collector reads and has found nothing. Where it does not read, its silence is no
/// evidence.
pub(crate) fn clean(node: &NodeCase, collector: &str, text: &str) -> Answer {
    match silence(node, &[collector]) {
        Ok(()) => {
            let source = format!("{collector} collector: read, no such finding");
            Answer::No { because: vec![Evidence::new(text, source)] }
        }
        Err(missing) => Answer::CannotTell { missing },
    }
}

/// Whether the silence of these collectors is evidence; else what is missing.
pub(crate) fn silence(node: &NodeCase, collectors: &[&str]) -> Result<(), Vec<String>> {
    if let Some(why) = node.findings.why_missing() {
        return Err(vec![format!("the agent's findings: {why}")]);
    }
    let missing: Vec<String> = collectors.iter().filter_map(|name| node.collector(name).err()).collect();
    if missing.is_empty() { Ok(()) } else { Err(missing) }
}

/// The API's Ready=False in these words, as a signal of its own: said since then, for what was said before is about
/// something else.
pub(crate) fn ready_says(node: &NodeCase, words: &[&str], since: Timestamp) -> Option<Evidence> {
    let stages = node.unready();
    let stage = stages.iter().find(|stage| {
        stage.status == ConditionStatus::False
            && words.iter().any(|word| stage.message.contains(word))
            && within(stage.at, since, Duration::ZERO)
    })?;
    let text = format!("the kubelet says so too: {}", stage.message);
    Some(Evidence::new(text, &stage.source).with_time(stage.at))
}

/// The Lease, where it was not renewed since `since` although it is due each 10 s.
pub(crate) fn lease_stale_since(node: &NodeCase, since: Timestamp, now: Timestamp) -> Option<Evidence> {
    let (lease, _) = node.lease()?;
    let renewed = node.heartbeat()?;
    let due = Duration::from_secs(u64::from(lease.duration_seconds) / 4).saturating_add(CLOCK_GRAIN);
    let overdue = !within(renewed, now, due);
    (within(since, renewed, CLOCK_GRAIN) && overdue).then(|| {
        let seconds = now.duration_since(renewed).as_secs();
        let text = format!("the Lease was not renewed for {seconds} s");
        Evidence::new(text, format!("Lease {}", node.id.name)).with_time(renewed)
    })
}

/// The end of a process of this role about then.
pub(crate) fn exit_near(node: &NodeCase, role: Role, when: Timestamp) -> Option<(&Event, &ProcessChange)> {
    node.events.known()?.iter().rev().find_map(|event| match &event.body {
        EventBody::ProcessExited(change) if change.role == role && !is_shim(&change.name) => {
            (within(event.at, when, BESIDE) && within(when, event.at, BESIDE)).then_some((event, change))
        }
        _ => None,
    })
}

/// A shim's end costs its own pod, not the runtime.
pub(crate) fn is_shim(name: &str) -> bool {
    // The kernel cuts names at 15 bytes: containerd-shim-runc-v2 is "containerd-shim", conmon is CRI-O's.
    name.starts_with("containerd-shim") || name.starts_with("conmon")
}

/// The end of a process as evidence.
pub(crate) fn exit_told(event: &Event, change: &ProcessChange) -> Evidence {
    let mut text = format!("{} (pid {}) ended", change.name, change.pid);
    if !change.detail.is_empty() {
        text = format!("{text}: {}", change.detail);
    }
    Evidence::new(text, format!("event {}", event.id)).with_time(event.at)
}

/// Why the events can't be taken for all that happened: not asked, or with a hole.
pub(crate) fn events_incomplete(node: &NodeCase) -> Option<String> {
    match node.events.known() {
        None => node.events.why_missing().map(|why| format!("the agent's events: {why}")),
        Some(events) => events.iter().find_map(|event| match &event.body {
            EventBody::Gap(_) => Some(format!("the agent's events: some are missing before {}", event.at)),
            _ => None,
        }),
    }
}

/// Why the kernel's messages among the events can't be taken for all that the kernel said. An agent that was started
/// anew leaves a hole of unknown size, and fills it: it reads the kernel log from its start, as its collector's change
/// to `read` shows.
pub(crate) fn kernel_log_incomplete(node: &NodeCase) -> Option<String> {
    let missing = events_incomplete(node)?;
    let events = node.events.known().into_iter().flatten();
    let (mut restarts, mut newest_hole) = (true, None);
    for event in events.clone() {
        if let EventBody::Gap(gap) = &event.body {
            restarts &= gap.count.is_none();
            newest_hole = Some(event.at);
        }
    }
    let read_anew = events.clone().any(|event| {
        matches!(&event.body, EventBody::OutcomeChanged { collector, result } if collector == "oom" && result.is_read())
            && newest_hole.is_some_and(|hole| event.at <= hole)
    });
    if restarts && read_anew { None } else { Some(missing) }
}

/// An Event of the API server whose message contains this.
pub(crate) fn api_event(node: &NodeCase, reason: &str, part: &str) -> Option<Evidence> {
    node.facts.known()?.iter().find_map(|fact| match &fact.body {
        FactBody::Event { reason: said, message, reporter, .. }
            if said == reason && message.contains(part) =>
        {
            Some(Evidence::new(format!("{reason} by {reporter}: {message}"), &fact.source))
        }
        _ => None,
    })
}

/// `03:14:42`, in UTC.
pub(crate) fn clock_time(at: Timestamp) -> String {
    at.strftime("%H:%M:%S").to_string()
}

/// `61.2 GiB`, with a unit that keeps the figure readable.
pub(crate) fn bytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit after the point")]
    let mut left = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if left < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{left:.1} {unit}") };
        }
        left /= 1024.0;
    }
    format!("{left:.1} TiB")
}
