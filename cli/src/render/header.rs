//! The first line: which node, how it is and for how long, how sure the answer is.

use jiff::{SignedDuration, Timestamp};
use nodewhy_proto::{Conclusion, ConditionStatus, Incident, Verdict};

use super::page::{Page, Paint, Span, Style};
use super::text::{clean, width};
use super::time::{clock, lasted, seconds};
use super::why::{Answer, labelled};

/// A verdict older than this says when it was written.
const OLD_PAGE: SignedDuration = SignedDuration::from_secs(5);

/// Draws the first line, and the one that says when.
pub(super) fn first_line(page: &mut Page, answer: Answer<'_>, style: Style) {
    let node = clean(&answer.verdict.node).into_owned();
    let (state, detail, paint) = state(answer);
    // That times are UTC is said once.
    let zone = if detail.contains("UTC") { "" } else { " UTC" };
    let right = certainty(answer);
    let left = width(&node) + 3 + width(&state) + 3 + width(&detail);
    let node = Span::new(&node, Paint::Strong);
    let state = Span::new(&state, paint);
    let space = |columns: usize| Span::new(&" ".repeat(columns), Paint::Plain);
    if left + 3 + width(&right) <= style.width {
        let fill = style.width - left - width(&right);
        let detail = Span::new(&detail, Paint::Plain);
        page.line([node, space(3), state, space(3), detail, space(fill), Span::new(&right, Paint::Strong)]);
    } else {
        // Long names: one fact a line, nothing cut.
        page.hang(style.width, &[], &[], &node.text, Paint::Strong);
        let rest = if right.is_empty() { detail } else { format!("{detail}   {right}") };
        page.hang(style.width, &[space(2)], &[space(2)], &state.text, paint);
        page.hang(style.width, &[space(2)], &[space(2)], rest.trim(), Paint::Plain);
    }
    if let Some(text) = when(answer, zone) {
        page.gap();
        labelled(page, style, "WHEN", &text, Paint::Plain);
    }
}

/// How the node is, since when, and the paint that repeats it.
fn state(answer: Answer<'_>) -> (String, String, Paint) {
    let verdict = answer.verdict;
    let now = answer.now;
    let ended = answer.incident.and_then(|(incident, _)| incident.ended.map(|at| (incident, at)));
    if let Some((incident, ended)) = ended {
        let state = match incident.lost_ready {
            Some(lost) => format!("was NotReady {}", lasted(lost, ended)),
            None => format!("was sick {}", lasted(incident.began, ended)),
        };
        return (state, format!("well again since {} UTC", clock(ended, now)), Paint::WasSick);
    }
    let since =
        verdict.ready_since.map(|since| format!(" since {} UTC", clock(since, now))).unwrap_or_default();
    let sick_for = sick_since(answer).map(|since| format!(" {}", lasted(since, now))).unwrap_or_default();
    let well = verdict.conclusion == Conclusion::Healthy;
    if let Some(recovering) = answer.recovering {
        return ("recovering".to_owned(), recovering.to_owned(), Paint::WasSick);
    }
    match verdict.ready {
        Some(ConditionStatus::True) if well => ("well".to_owned(), format!("Ready{since}"), Paint::Well),
        Some(ConditionStatus::True) => {
            (format!("{}{sick_for}", unwell(verdict)), format!("still Ready{since}"), Paint::WasSick)
        }
        Some(status) => {
            let out = verdict.ready_since.map(|since| format!(" {}", lasted(since, now))).unwrap_or_default();
            let word = if status == ConditionStatus::False { "False" } else { "Unknown" };
            (format!("NotReady{out}"), format!("Ready {word}{since}"), Paint::Sick)
        }
        // A warning may hold without being the cause of anything: no more than this is known.
        None if well => ("no known cause holds".to_owned(), not_asked(), Paint::Well),
        None => (format!("{}{sick_for}", unwell(verdict)), not_asked(), Paint::Sick),
    }
}

/// Without a cause, and while the API server does not say otherwise, nobody knows that the node is sick.
fn unwell(verdict: &Verdict) -> &'static str {
    match verdict.conclusion {
        Conclusion::Explained | Conclusion::Deadlock => "sick",
        _ => "unclear",
    }
}

fn not_asked() -> String {
    "Ready not known: no API server asked".to_owned()
}

/// Since when this cause holds; of an incident without a cause, since it began.
fn sick_since(answer: Answer<'_>) -> Option<Timestamp> {
    let root = answer.verdict.roots.first().and_then(|root| root.since);
    let Some((incident, _)) = answer.incident else { return root };
    Some(later_cause(answer.verdict, incident).unwrap_or(incident.began))
}

/// When the root began, where that was after the incident did: one incident can hold one cause after another, and the
/// first one's times say nothing of the one that is told.
pub(crate) fn later_cause(verdict: &Verdict, incident: &Incident) -> Option<Timestamp> {
    let since = verdict.roots.first().and_then(|root| root.since)?;
    (since.duration_since(incident.began) > SignedDuration::from_secs(1)).then_some(since)
}

fn certainty(answer: Answer<'_>) -> String {
    let sure = certainty_word(answer.verdict);
    match answer.incident {
        Some((_, revision)) if sure.is_empty() => format!("rev {}", revision.revision),
        Some((_, revision)) => format!("{sure}, rev {}", revision.revision),
        None => sure,
    }
}

/// `sure 0.97`, `deadlock`, `no cause found`; empty where there is nothing to be sure of.
pub fn certainty_word(verdict: &Verdict) -> String {
    match verdict.conclusion {
        Conclusion::Explained => {
            verdict.roots.first().map(|root| format!("sure {:.2}", root.certainty)).unwrap_or_default()
        }
        Conclusion::Deadlock => "deadlock".to_owned(),
        Conclusion::NoCauseFound => "no cause found".to_owned(),
        Conclusion::Healthy | Conclusion::Unknown => String::new(),
    }
}

/// An incident's times, the first whole and the others by their distance from it. Without an incident, the instant
/// that is told of, where it is not now or the first line has no time.
fn when(answer: Answer<'_>, zone: &str) -> Option<String> {
    let Some((incident, revision)) = answer.incident else {
        if answer.again.is_some() {
            return Some(format!(
                "as of {} UTC, the recording's end",
                answer.now.strftime("%Y-%m-%d %H:%M:%S")
            ));
        }
        let since = answer.verdict.roots.first().and_then(|root| root.since).filter(|_| !zone.is_empty())?;
        return Some(format!("since {}{zone}", clock(since, answer.now)));
    };
    let began = incident.began;
    let mut parts = vec![
        format!("began {}{zone}", clock(began, answer.now)),
        format!("nodewhy knew {} later", seconds(incident.opened.duration_since(began))),
    ];
    if let Some(lost) = incident.lost_ready {
        parts.push(if lost >= began {
            format!("Ready lost {} later", seconds(lost.duration_since(began)))
        } else {
            format!("Ready lost {} before", seconds(began.duration_since(lost)))
        });
    }
    if let Some(since) = later_cause(answer.verdict, incident) {
        parts.push(format!("this cause since {}", clock(since, answer.now)));
    }
    // Its figures are as old as the revision.
    if incident.ended.is_none() && answer.now.duration_since(revision.at) > OLD_PAGE {
        parts.push(format!("figures of {}", clock(revision.at, answer.now)));
    }
    Some(parts.join(" · "))
}
