//! The answer to "why?": the first line answers, the second says why it may be believed, the third what to do.

use jiff::Timestamp;
use nodewhy_proto::{
    Conclusion, ConditionStatus, Evidence, Incident, Revision, RootCause, SubjectKind, Verdict,
};

use super::chain;
use super::circle;
use super::header;
use super::lists;
use super::page::{Page, Paint, Span, Style};
use super::text::width;

/// Everything that stands on the page.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The verdict.
    pub verdict: &'a Verdict,
    /// The incident that it belongs to, and which revision it is; `None` when it was concluded on the spot.
    pub incident: Option<(&'a Incident, &'a Revision)>,
    /// Now, by the asker's clock.
    pub now: Timestamp,
    /// The causes that are most easily taken for the root, by id: they come first under NOT.
    pub near: &'a [&'a str],
    /// The command that shows this page; `None`: `nodewhy why`, and the incident or the node.
    pub again: Option<&'a str>,
    /// Everything, not only the nearest and the first.
    pub all: bool,
    /// What is better by now, while the incident is still open.
    pub recovering: Option<&'a str>,
}

impl<'a> Answer<'a> {
    /// The answer of a verdict that belongs to no incident.
    pub fn of(verdict: &'a Verdict, now: Timestamp) -> Answer<'a> {
        Answer { verdict, incident: None, now, near: &[], again: None, all: false, recovering: None }
    }
}

/// The revision of an incident that is worth reading: the newest; of one that ended, the newest that still told
/// what was wrong.
pub fn telling(incident: &Incident) -> Option<&Revision> {
    let newest = incident.revisions.last();
    if incident.ended.is_none() {
        return newest;
    }
    incident
        .revisions
        .iter()
        .rev()
        .find(|revision| revision.verdict.conclusion != Conclusion::Healthy)
        .or(newest)
}

/// What is better by now, while the incident is still open: it is closed only after it has been well for a while, and
/// until then its verdict tells what was. `concluded` is the verdict of this instant.
pub fn recovering(concluded: &Verdict) -> Option<&'static str> {
    match (concluded.conclusion, concluded.ready) {
        (Conclusion::Healthy, Some(ConditionStatus::True)) => {
            Some("Ready, and no known cause holds any more")
        }
        (Conclusion::Healthy, None) => Some("no known cause holds any more"),
        _ => None,
    }
}

/// The whole page.
pub fn page(answer: Answer<'_>, style: Style) -> Page {
    let mut page = Page::new();
    header::first_line(&mut page, answer, style);
    page.gap();
    let verdict = answer.verdict;
    if !matches!(verdict.conclusion, Conclusion::Explained | Conclusion::Deadlock) {
        lists::unexplained(&mut page, answer, style);
    }
    match verdict.conclusion {
        Conclusion::Explained => explained(&mut page, answer, style),
        Conclusion::Deadlock => deadlock(&mut page, answer, style),
        Conclusion::Healthy => {
            lists::looked(&mut page, answer, style);
            if answer.all {
                lists::not(&mut page, answer, style);
                lists::cannot_tell(&mut page, answer, style);
            }
        }
        Conclusion::NoCauseFound => no_cause(&mut page, answer, style),
        Conclusion::Unknown => labelled(
            &mut page,
            style,
            "WHY",
            "This nodewhy does not know the aggregator's conclusion. It is older than the aggregator: update it, \
             or read the document with -o json.",
            Paint::Plain,
        ),
    }
    lists::blind(&mut page, answer, style);
    more(&mut page, answer, style);
    page
}

/// `LABEL text`, wrapped under the text.
pub(super) fn labelled(page: &mut Page, style: Style, label: &str, text: &str, paint: Paint) {
    let first = [Span::new(&format!("{:<5}", format!("{label} ").trim_start()), Paint::Strong)];
    page.hang(style.width, &first, &indent(), text, paint);
}

/// The five columns under a label.
pub(super) fn indent() -> [Span; 1] {
    [Span::new("     ", Paint::Plain)]
}

fn explained(page: &mut Page, answer: Answer<'_>, style: Style) {
    let verdict = answer.verdict;
    for (index, root) in verdict.roots.iter().enumerate() {
        page.gap();
        let said = root.title.starts_with("Not this node");
        let elsewhere = if is_elsewhere(root, verdict) && !said { "Not this node. " } else { "" };
        let label = if index == 0 { "WHY" } else { "ALSO" };
        let sure = if index == 0 { String::new() } else { format!(" (sure {:.2})", root.certainty) };
        labelled(page, style, label, &format!("{elsewhere}{}{sure}", sentence(&root.title)), Paint::Strong);
        if let Some(text) = reason(root) {
            page.hang(style.width, &indent(), &indent(), &text, Paint::Plain);
        }
        if !root.chain.is_empty() {
            page.gap();
            chain::draw(page, answer, root, second_line(root), style);
        }
        page.gap();
        remedy(page, style, &root.remedy);
    }
    besides(page, answer, style);
}

/// What holds too, and what was ruled out. Beside an answer the undecided causes are no more than names.
fn besides(page: &mut Page, answer: Answer<'_>, style: Style) {
    page.gap();
    lists::unexplained(page, answer, style);
    lists::with(page, answer, style);
    lists::not(page, answer, style);
    if answer.all {
        lists::cannot_tell(page, answer, style);
    } else {
        lists::undecided(page, answer, style);
    }
}

fn deadlock(page: &mut Page, answer: Answer<'_>, style: Style) {
    labelled(page, style, "WHY", "A circle: nothing in it can move by itself.", Paint::Strong);
    for cycle in &answer.verdict.cycles {
        page.gap();
        circle::draw(page, answer, cycle, style);
    }
    page.gap();
    let all: Vec<String> = answer.verdict.roots.iter().flat_map(|root| root.remedy.clone()).collect();
    if all.is_empty() {
        labelled(
            page,
            style,
            "DO",
            "Break the circle at one place: each step above names what it waits for.",
            Paint::Plain,
        );
    }
    remedy(page, style, &all);
    besides(page, answer, style);
}

fn no_cause(page: &mut Page, answer: Answer<'_>, style: Style) {
    lists::looked(page, answer, style);
    if !answer.verdict.ready_message.is_empty() {
        labelled(
            page,
            style,
            "SAYS",
            &format!("the Ready condition: {}", answer.verdict.ready_message),
            Paint::Plain,
        );
    }
    lists::with(page, answer, style);
    lists::cannot_tell(page, Answer { all: true, ..answer }, style);
    let next = if answer.incident.is_some_and(|(incident, _)| incident.ended.is_none()) {
        "nodewhy goes on looking and revises this as evidence arrives. Ask again."
    } else {
        "What is missing under CAN'T TELL and BLIND would decide more. Ask again when it is there."
    };
    labelled(page, style, "NEXT", next, Paint::Plain);
}

/// What to do, the first thing first.
fn remedy(page: &mut Page, style: Style, remedy: &[String]) {
    for (index, step) in remedy.iter().enumerate() {
        let label = if index == 0 { "DO" } else { "" };
        let paint = if index == 0 { Paint::Strong } else { Paint::Plain };
        labelled(page, style, label, step, paint);
    }
}

/// Only commands that this program has.
fn more(page: &mut Page, answer: Answer<'_>, style: Style) {
    let verdict = answer.verdict;
    let mut commands = Vec::new();
    if !answer.all && (verdict.conclusion != Conclusion::Healthy || !verdict.cannot_tell.is_empty()) {
        let again = match (answer.again, answer.incident) {
            (Some(again), _) => again.to_owned(),
            (None, Some((incident, _))) if incident.ended.is_some() => {
                format!("nodewhy why --incident {}", incident.id)
            }
            _ => format!("nodewhy why {}", verdict.node),
        };
        commands.push(format!("{again} --all"));
    }
    if let Some(root) = verdict.roots.first() {
        commands.push(format!("nodewhy causes {}", root.cause));
    }
    if answer.again.is_none() {
        commands.push("nodewhy incidents".to_owned());
    }
    // A command is copied whole: it never breaks at the line's end if a line can hold it.
    let mut lines: Vec<String> = Vec::new();
    for command in commands {
        match lines.last_mut() {
            Some(line) if width(line) + 3 + width(&command) + 5 <= style.width => {
                line.push_str(&format!(" · {command}"))
            }
            _ => lines.push(command),
        }
    }
    for (index, line) in lines.iter().enumerate() {
        labelled(page, style, if index == 0 { "MORE" } else { "" }, line, Paint::Plain);
    }
}

/// Why a root may be believed, as a sentence.
pub(crate) fn reason(root: &RootCause) -> Option<String> {
    second_line(root).map(|text| sentence(&capital(without_title(text, &root.title))))
}

/// What explains the title, unless the chain's steps already show it: the chain's first step, or the deciding
/// piece of evidence.
fn second_line(root: &RootCause) -> Option<&str> {
    let deciding = root.because.first().map(|evidence| evidence.text.as_str());
    let shown = |text: &str| root.chain.iter().any(|step| step.text == text || has(&step.evidence, text));
    let step = root.chain.first().map(|step| step.text.as_str());
    deciding.filter(|text| !shown(text)).or(step).or(deciding).filter(|text| *text != root.title)
}

/// A text that begins as its title does ("The runtime hangs: it …", "the runtime hangs: /run/… has not …") is told
/// without that beginning.
fn without_title<'a>(text: &'a str, title: &str) -> &'a str {
    let head = |text: &str| text.split(": ").next().unwrap_or(text).trim_end_matches('.').to_lowercase();
    match text.split_once(": ") {
        Some((_, rest)) if head(text) == head(title) => rest,
        _ => text,
    }
}

fn has(evidence: &[Evidence], text: &str) -> bool {
    evidence.iter().any(|piece| piece.text == text)
}

fn is_elsewhere(root: &RootCause, verdict: &Verdict) -> bool {
    root.node != verdict.node || root.subject.kind == SubjectKind::Cluster
}

/// Begins a text as a sentence begins, where it begins with a plain word: `containerd` and `payments/gateway` are
/// names, and stay.
fn capital(text: &str) -> String {
    const PLAIN: [&str; 9] = ["the", "no", "a", "an", "nobody", "nothing", "its", "it", "connects"];
    let word = text.split([' ', ',']).next().unwrap_or(text);
    let mut letters = text.chars();
    match letters.next().filter(|_| PLAIN.contains(&word)) {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => text.to_owned(),
    }
}

/// Ends a title as a sentence ends.
fn sentence(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() || text.ends_with(['.', '!', '?', ':']) { text.to_owned() } else { format!("{text}.") }
}
