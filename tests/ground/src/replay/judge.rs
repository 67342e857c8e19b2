//! Whether a verdict is true: the diagnosis of recorded evidence against what was done to the node. Pure.

use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use nodewhy_diagnosis::{Answer, CLOCK_GRAIN, Case, causes, explain};
use nodewhy_proto::{Conclusion, Severity, Verdict};

use super::{Moment, case, injected_at};
use crate::evidence::{Evidence, Way};
use crate::fault::{Expect, Fault};

/// How one agent's evidence was judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The verdict while the fault was in place, in a line.
    pub line: String,
    /// What is wrong with it. Empty: the diagnosis knows what may be known, and claims nothing else.
    pub wrong: Vec<String>,
}

/// Diagnoses what this agent told, before the fault and while it was in place, and holds it against the truth.
///
/// # Errors
/// The evidence cannot be diagnosed.
pub fn judge(fault: &Fault, evidence: &Evidence, way: Way) -> anyhow::Result<Judged> {
    let calm = case(evidence, way, Moment::BeforeFault)?;
    let broken = case(evidence, way, Moment::BeforeUndo)?;
    let served = evidence.agents.get(&way).context("this agent was not followed")?;
    let began = injected_at(&evidence.truth, served)?;
    let verdict = explain(&broken);
    let mut wrong = unwell(&calm);
    wrong.extend(untrue(fault, way, &broken, &verdict, began));
    Ok(Judged { line: line(&verdict), wrong })
}

/// The first root and how sure it is, or what was concluded; then what else holds.
pub(super) fn line(verdict: &Verdict) -> String {
    let mut line = match verdict.roots.first() {
        Some(root) => format!("{}, sure {:.2}", root.cause, root.certainty),
        None => match verdict.conclusion {
            Conclusion::Healthy if verdict.contributing.is_empty() => "no cause named".to_owned(),
            Conclusion::Healthy => "Ready is not at risk".to_owned(),
            Conclusion::NoCauseFound => "no cause found".to_owned(),
            Conclusion::Deadlock => "a deadlock".to_owned(),
            other => format!("{other:?}"),
        },
    };
    let roots = verdict.roots.iter().skip(1).map(|root| format!("{} (a root too)", root.cause));
    let held = verdict.contributing.iter().map(|held| held.cause.clone());
    let unexplained = verdict.unexplained.iter().map(|finding| format!("{} (unexplained)", finding.finding));
    let more: Vec<String> = roots.chain(held).chain(unexplained).collect();
    if !more.is_empty() {
        line = format!("{line}; also {}", more.join(", "));
    }
    line
}

/// What is found of a node that is well.
fn unwell(calm: &Case) -> Vec<String> {
    let verdict = explain(calm);
    let mut wrong = Vec::new();
    let findings = calm.asked().and_then(|node| node.findings.known());
    for finding in findings.into_iter().flatten() {
        if finding.severity == Severity::Critical && finding.is_active() {
            let (name, summary) = (&finding.finding, &finding.summary);
            wrong.push(format!("before the fault, {name} holds: {summary}"));
        }
    }
    // Healthy takes more than silence: an agent that was heard, and reads.
    if verdict.conclusion != Conclusion::Healthy || !verdict.unexplained.is_empty() {
        let (conclusion, line) = (verdict.conclusion, line(&verdict));
        let blind = verdict.blind.join("; ");
        wrong.push(format!("before the fault, the verdict is {conclusion:?}: {line}; blind: {blind}"));
    }
    wrong
}

/// What is claimed of a broken node that is not true, and what is not said of it that must be.
fn untrue(fault: &Fault, way: Way, broken: &Case, verdict: &Verdict, began: Timestamp) -> Vec<String> {
    let mut wrong = Vec::new();
    let expected = !matches!(fault.diagnosed, Expect::NotYet(_));
    for root in &verdict.roots {
        if !(fault.also.contains(&root.cause.as_str()) || expected && root.cause == fault.cause) {
            let told: Vec<&str> = root.because.iter().map(|evidence| evidence.text.as_str()).collect();
            wrong.push(format!("{} is named as a root: {}", root.cause, told.join("; ")));
        }
    }
    if verdict.conclusion == Conclusion::Deadlock {
        wrong.push("a deadlock is named".to_owned());
    }
    if !expected {
        return wrong;
    }
    let cause = fault.cause;
    let answer = match (causes::named(cause), broken.asked()) {
        (Some(known), Some(node)) => (known.check)(broken, node),
        _ => {
            wrong.push(format!("the catalogue has no cause {cause}: say NotYet"));
            return wrong;
        }
    };
    let holding = match answer {
        Answer::Yes(holding) => holding,
        // A sign that a container cannot see is no sign: then the cause is not known there. It is never denied.
        Answer::CannotTell { .. } if is_hidden(fault, way) => return wrong,
        Answer::CannotTell { missing } => {
            wrong.push(format!("whether {cause} holds is not known, for want of: {}", missing.join("; ")));
            return wrong;
        }
        Answer::No { because } => {
            let told: Vec<&str> = because.iter().map(|evidence| evidence.text.as_str()).collect();
            wrong.push(format!("{cause} is denied: {}", told.join("; ")));
            return wrong;
        }
    };
    if holding.subject.kind != fault.subject.0 {
        wrong.push(format!("{cause} is said of {:?}, and it is about {:?}", holding.subject, fault.subject));
    }
    if holding.since.is_some_and(|since| is_before(since, began, CLOCK_GRAIN)) {
        wrong.push(format!("{cause} is dated {:?}, before the fault ({began})", holding.since));
    }
    let first = verdict.roots.first().map(|root| root.cause.as_str());
    if matches!(fault.diagnosed, Expect::Root) && first != Some(cause) && !is_hidden(fault, way) {
        wrong.push(format!("{cause} holds, and is not the first root: {}", line(verdict)));
    }
    wrong
}

/// Whether an agent that ran so could not see all of the fault's signs.
fn is_hidden(fault: &Fault, way: Way) -> bool {
    way == Way::Pod && fault.sees.iter().any(|sign| sign.not_in_pod.is_some())
}

fn is_before(time: Timestamp, limit: Timestamp, grain: Duration) -> bool {
    time.checked_add(grain).is_ok_and(|time| time < limit)
}
