//! `nodewhy up` without a terminal: how the machine is, then one line for each change. Pure.

use jiff::{SignedDuration, Timestamp};
use nodewhy_proto::{Conclusion, Finding, Incident, NodeInfo, Outcome, Revision, State};

use crate::render::text::clean;
use crate::render::time::{age, clock, lasted, seconds};
use crate::render::{certainty_word, later_cause};
use crate::watch::Snapshot;

/// What is told at `now`: everything when there is no snapshot before, else what changed. Each line begins with
/// the time, is clean, and ends without a line break.
pub fn lines(before: Option<&Snapshot>, now: &Snapshot) -> Vec<String> {
    let mut told = match before {
        None => first(now),
        Some(before) => {
            let mut told = outcomes(before, now);
            told.extend(silences(before, now));
            told
        }
    };
    told.extend(findings(before, now));
    told.extend(verdicts(before, now));
    let time = clock(now.at, now.at);
    told.iter().map(|line| format!("{time} {}", clean(line))).collect()
}

fn first(now: &Snapshot) -> Vec<String> {
    let mut told = Vec::new();
    match &now.node {
        Ok(node) => told.push(machine(node)),
        Err(error) => told.push(format!("this machine: not known: {error}")),
    }
    match &now.state {
        Ok(state) => told.extend(sources(state)),
        Err(error) => told.push(format!("sources: {error}")),
    }
    if let Err(error) = &now.summary {
        told.push(format!("aggregator: {error}"));
    }
    if let (Ok(findings), Ok(_)) = (&now.findings, &now.state)
        && !findings.iter().any(Finding::is_active)
    {
        told.push(nothing_abnormal(now).to_owned());
    }
    told
}

/// "Nothing abnormal" is said of what was read, and of no more.
fn nothing_abnormal(now: &Snapshot) -> &'static str {
    let all_read = now
        .state
        .as_ref()
        .is_ok_and(|state| state.collectors.values().all(|source| source.outcome.is_read()));
    if all_read { "nothing abnormal" } else { "nothing abnormal in what could be read" }
}

/// `this machine: lab, Linux 6.1.192, Debian GNU/Linux 12, up 3h05m, no kubelet on this machine`.
fn machine(node: &NodeInfo) -> String {
    let kernel = node.kernel.as_ref().map(|kernel| format!("Linux {kernel}"));
    let cpus = node.cpus.map(|cpus| format!("{cpus} CPUs"));
    let up = SignedDuration::try_from_secs_f64(node.uptime_seconds).ok().map(|up| format!("up {}", age(up)));
    let runtime = node.runtime.as_deref().map_or("no runtime known", headline).to_owned();
    let kubelet = node.kubelet.as_deref().map_or("kubelet not known", headline).to_owned();
    let parts = [Some(node.id.name.clone()), kernel, node.os.clone(), cpus, up, Some(runtime), Some(kubelet)];
    format!("this machine: {}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

/// `no kubelet on this machine: no process is called …` without its reasons: the source's own line has them.
pub(crate) fn headline(text: &str) -> &str {
    text.split(": ").next().unwrap_or(text)
}

/// The sources that are read in one line, each of the others with its reason in a line of its own.
fn sources(state: &State) -> Vec<String> {
    let read: Vec<&str> = state
        .collectors
        .iter()
        .filter(|(_, source)| source.outcome.is_read())
        .map(|(name, _)| name.as_str())
        .collect();
    let mut told = Vec::new();
    if !read.is_empty() {
        told.push(format!("sources read: {}", read.join(", ")));
    }
    for (name, source) in state.collectors.iter().filter(|(_, source)| !source.outcome.is_read()) {
        told.push(format!("source {name}: {}", outcome(&source.outcome)));
    }
    told
}

/// `absent: no socket …`, `failed: …`.
fn outcome(outcome: &Outcome) -> String {
    match outcome.why() {
        Some(why) => format!("{}: {why}", outcome.word()),
        None => outcome.word().to_owned(),
    }
}

fn outcomes(before: &Snapshot, now: &Snapshot) -> Vec<String> {
    let (Ok(then), Ok(state)) = (&before.state, &now.state) else { return Vec::new() };
    let mut told = Vec::new();
    for (name, source) in &state.collectors {
        let was = then.collectors.get(name).map(|source| &source.outcome);
        if !was.is_some_and(|was| is_same(was, &source.outcome)) {
            let was = was.map(|was| format!(" (was {})", was.word())).unwrap_or_default();
            told.push(format!("source {name}: {}{was}", outcome(&source.outcome)));
        }
    }
    told
}

/// Whether there is nothing to tell. An absence's proof may name processes that come and go: its headline decides.
fn is_same(was: &Outcome, is: &Outcome) -> bool {
    match (was, is) {
        (Outcome::Absent { why: was }, Outcome::Absent { why: is }) => headline(was) == headline(is),
        _ => was == is,
    }
}

/// Agent and aggregator falling silent, and answering again.
fn silences(before: &Snapshot, now: &Snapshot) -> Vec<String> {
    let mut told = Vec::new();
    for (who, was, is) in [
        ("agent", before.node.as_ref().err(), now.node.as_ref().err()),
        ("aggregator", before.summary.as_ref().err(), now.summary.as_ref().err()),
    ] {
        match (was, is) {
            (None, Some(error)) => told.push(format!("{who} can't be asked: {error}")),
            (Some(_), None) => told.push(format!("{who} answers")),
            (Some(was), Some(is)) if was != is => told.push(format!("{who} can't be asked: {is}")),
            _ => {}
        }
    }
    told
}

fn findings(before: Option<&Snapshot>, now: &Snapshot) -> Vec<String> {
    let Ok(findings) = &now.findings else { return Vec::new() };
    let known: &[Finding] = match before.map(|before| &before.findings) {
        Some(Ok(known)) => known,
        _ => &[],
    };
    let mut told = Vec::new();
    for finding in findings {
        let was = known.iter().find(|other| other.id == finding.id);
        // What had ended before the first look is history, not a change.
        if was.is_none() && (before.is_some() || finding.is_active()) {
            told.push(began(finding, now.at));
        }
        let was_over = was.is_some_and(|was| was.ended.is_some());
        if let (Some(ended), false) = (finding.ended, was_over)
            && before.is_some()
        {
            let lasted = lasted(finding.began, ended);
            told.push(format!("well: {} ended {} after {lasted}", finding.finding, clock(ended, now.at)));
        }
    }
    let still_sick = findings.iter().any(Finding::is_active);
    let was_sick = known.iter().any(Finding::is_active);
    if was_sick && !still_sick {
        told.push(nothing_abnormal(now).to_owned());
    }
    told
}

fn began(finding: &Finding, now: Timestamp) -> String {
    let knew = seconds(finding.noticed.duration_since(finding.began));
    let began = clock(finding.began, now);
    format!("sick: {} since {began}, known {knew} later: {}", finding.finding, finding.summary)
}

fn verdicts(before: Option<&Snapshot>, now: &Snapshot) -> Vec<String> {
    let Ok(Some(incident)) = &now.incident else { return Vec::new() };
    let was =
        before.and_then(|before| before.incident.as_ref().ok()?.as_ref()).filter(|was| was.id == incident.id);
    let mut told = Vec::new();
    if before.is_none() && incident.ended.is_some() {
        return told;
    }
    let better = now.recovering().is_some();
    if better && before.is_none_or(|before| before.recovering().is_none()) {
        told.push(format!(
            "incident {}: no known cause holds any more; it ends when that lasts",
            incident.id
        ));
    }
    // One that was found open and is about to end is history.
    if before.is_none() && better {
        return told;
    }
    let number = |incident: &Incident| incident.revisions.last().map(|revision| revision.revision);
    if let Some(revision) = incident.revisions.last()
        && was.and_then(number) != Some(revision.revision)
    {
        told.extend(verdict(incident, revision));
    }
    if let (Some(ended), true) = (incident.ended, was.is_none_or(|was| was.ended.is_none())) {
        let ended_at = clock(ended, now.at);
        told.push(format!(
            "incident {} ended {ended_at} after {}",
            incident.id,
            lasted(incident.began, ended)
        ));
    }
    told
}

/// The verdict in a line, with the seconds that it took, and the first remedy.
fn verdict(incident: &Incident, revision: &Revision) -> Vec<String> {
    let verdict = &revision.verdict;
    let began = later_cause(verdict, incident).unwrap_or(incident.began);
    let took = seconds(revision.at.duration_since(began));
    let root = verdict.roots.first();
    let what = match (verdict.conclusion, root) {
        (Conclusion::Explained, Some(root)) => format!("{} ({})", root.title, root.cause),
        (Conclusion::Deadlock, _) => "a circle: nothing in it can move by itself".to_owned(),
        (Conclusion::Healthy, _) => "all is well".to_owned(),
        _ => "no cause found".to_owned(),
    };
    let sure = match verdict.conclusion {
        Conclusion::Explained => format!("{}, ", certainty_word(verdict)),
        _ => String::new(),
    };
    let by = &revision.changed_by;
    let mut told =
        vec![format!("why: {what}; {sure}rev {}, {took} after it began [{by}]", revision.revision)];
    if let Some(remedy) = root.and_then(|root| root.remedy.first()) {
        told.push(format!("do: {remedy}"));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_is_told_once_whatever_proves_it() {
        let absent = |why: &str| Outcome::Absent { why: why.to_owned() };
        let failed = |error: &str| Outcome::Failed { error: error.to_owned() };
        let (one, other) =
            (absent("no kubelet: process 7 is a node's"), absent("no kubelet: process 8 is a node's"));
        assert!(is_same(&one, &other));
        assert!(!is_same(&one, &absent("the kubelet's root is unreadable: EACCES")));
        assert!(!is_same(&one, &Outcome::Read));
        assert!(!is_same(&failed("read /proc/stat: EIO"), &failed("read /proc/stat: EACCES")));
    }
}
