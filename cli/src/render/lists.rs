//! What else holds, what was ruled out, what can't be told, what can't be seen.

use nodewhy_proto::RuledOut;

use super::page::{Page, Paint, Span, Style};
use super::text::{pad, width};
use super::time::clock;
use super::why::{Answer, indent, labelled};

/// How many stand on the page unless all are asked for.
const A_FEW: usize = 3;
/// The widest column of ids.
const WIDEST_ID: usize = 30;

/// What holds too and is no root.
pub(super) fn with(page: &mut Page, answer: Answer<'_>, style: Style) {
    let shown = if answer.all { usize::MAX } else { A_FEW };
    for (index, held) in answer.verdict.contributing.iter().take(shown).enumerate() {
        let label = if index == 0 { "WITH" } else { "" };
        let since =
            held.since.map(|since| format!(", since {}", clock(since, answer.now))).unwrap_or_default();
        let node = elsewhere(&held.node, answer);
        let because = held.because.first().map(|piece| format!(": {}", piece.text)).unwrap_or_default();
        labelled(page, style, label, &format!("{node}{}{since}{because}", held.title), Paint::Plain);
    }
    and_more(page, style, answer.verdict.contributing.len(), shown);
}

/// Critical findings that hold and that no known cause accounts for: what is seen is never hidden.
pub(super) fn unexplained(page: &mut Page, answer: Answer<'_>, style: Style) {
    for (index, finding) in answer.verdict.unexplained.iter().enumerate() {
        let label = if index == 0 { "SICK" } else { "" };
        let since = clock(finding.began, answer.now);
        let text = format!("{}, since {since}: {}", finding.finding, finding.summary);
        labelled(page, style, label, &text, Paint::Sick);
    }
    if !answer.verdict.unexplained.is_empty() {
        let text = "No cause that nodewhy knows accounts for it.";
        page.hang(style.width, &indent(), &indent(), text, Paint::Plain);
        page.gap();
    }
}

/// The look-alikes that were ruled out, each with what speaks against it.
pub(super) fn not(page: &mut Page, answer: Answer<'_>, style: Style) {
    let mut ruled: Vec<&RuledOut> = answer.verdict.ruled_out.iter().collect();
    // Stable: within one rank the diagnosis' own order stays.
    ruled.sort_by_key(|out| (out.node != answer.verdict.node, !answer.near.contains(&out.cause.as_str())));
    let shown = if answer.all { usize::MAX } else { A_FEW };
    let rows: Vec<(String, String)> = ruled
        .iter()
        .take(shown)
        .map(|out| {
            let texts = out.because.iter().take(shown).map(|piece| piece.text.as_str());
            let texts: Vec<&str> = if answer.all { texts.collect() } else { texts.take(1).collect() };
            (out.cause.clone(), format!("{}{}", elsewhere(&out.node, answer), texts.join("; ")))
        })
        .collect();
    table(page, style, "NOT", &rows);
    and_more(page, style, ruled.len(), shown);
}

/// What can be neither shown nor ruled out, and what is missing.
pub(super) fn cannot_tell(page: &mut Page, answer: Answer<'_>, style: Style) {
    let unknown = &answer.verdict.cannot_tell;
    if unknown.is_empty() {
        return;
    }
    let shown = if answer.all { usize::MAX } else { A_FEW };
    page.line([Span::new("CAN'T TELL", Paint::Strong)]);
    let rows: Vec<(String, String)> = unknown
        .iter()
        .take(shown)
        .map(|cause| {
            (cause.cause.clone(), format!("{}{}", elsewhere(&cause.node, answer), cause.missing.join("; ")))
        })
        .collect();
    table(page, style, "", &rows);
    and_more(page, style, unknown.len(), shown);
}

/// The same beside an answer: only what they are called.
pub(super) fn undecided(page: &mut Page, answer: Answer<'_>, style: Style) {
    let unknown: Vec<String> = answer
        .verdict
        .cannot_tell
        .iter()
        .map(|cause| format!("{}{}", elsewhere(&cause.node, answer), cause.cause))
        .collect();
    if !unknown.is_empty() {
        let text = format!("{} can't be told from here: {} (--all)", unknown.len(), unknown.join(", "));
        labelled(page, style, "OPEN", &text, Paint::Plain);
    }
}

/// What this node cannot see at all. What is missing for one and the same reason is told together.
pub(super) fn blind(page: &mut Page, answer: Answer<'_>, style: Style) {
    let mut reasons: Vec<(Vec<&str>, &str)> = Vec::new();
    for text in &answer.verdict.blind {
        let (what, why) = text.split_once(": ").unwrap_or((text, ""));
        match reasons.iter_mut().find(|(_, other)| *other == why && !why.is_empty()) {
            Some((whats, _)) => whats.push(what),
            None => reasons.push((vec![what], why)),
        }
    }
    let shown = if answer.all { usize::MAX } else { A_FEW };
    for (index, (whats, why)) in reasons.iter().take(shown).enumerate() {
        let why = if answer.all { (*why).to_owned() } else { brief(why) };
        let text = if why.is_empty() { whats.join(", ") } else { format!("{}: {why}", whats.join(", ")) };
        labelled(page, style, if index == 0 { "BLIND" } else { "" }, &text, Paint::Plain);
    }
    and_more(page, style, reasons.len(), shown);
}

/// `absent (no kubelet on this machine)` of `absent (no kubelet on this machine: no process is called …)`: a
/// collector's reason is a headline, and then the proof.
fn brief(why: &str) -> String {
    let Some((outcome, reason)) = why.strip_suffix(')').and_then(|why| why.split_once(" (")) else {
        return why.to_owned();
    };
    match reason.split_once(": ") {
        Some((headline, _)) => format!("{outcome} ({headline})"),
        None => why.to_owned(),
    }
}

/// How much of the catalogue was decided.
pub(super) fn looked(page: &mut Page, answer: Answer<'_>, style: Style) {
    let verdict = answer.verdict;
    let (ruled, unknown) = (verdict.ruled_out.len(), verdict.cannot_tell.len());
    let all = ruled + unknown + verdict.contributing.len() + verdict.roots.len();
    let rest = if unknown == 0 { String::new() } else { format!("; {unknown} can't be told from here") };
    labelled(page, style, "LOOKED", &format!("{ruled} of {all} causes ruled out{rest}"), Paint::Plain);
}

/// `LABEL id   text`, the ids in one column.
fn table(page: &mut Page, style: Style, label: &str, rows: &[(String, String)]) {
    let widest = rows.iter().map(|(id, _)| width(id)).max().unwrap_or(0).min(WIDEST_ID);
    for (index, (id, text)) in rows.iter().enumerate() {
        let label = Span::new(&format!("{:<5}", if index == 0 { label } else { "" }), Paint::Strong);
        // On a narrow screen two columns would leave no room: the text stands under its id.
        if style.width < widest + 30 {
            page.hang(style.width, &[label], &indent(), id, Paint::Plain);
            let under = [Span::new("       ", Paint::Plain)];
            page.hang(style.width, &under, &under, text, Paint::Plain);
            continue;
        }
        let first = [label, Span::new(&format!("{}  ", pad(id, widest)), Paint::Plain)];
        let rest = [Span::new(&" ".repeat(5 + widest + 2), Paint::Plain)];
        page.hang(style.width, &first, &rest, text, Paint::Plain);
    }
}

fn and_more(page: &mut Page, style: Style, all: usize, shown: usize) {
    if all > shown {
        page.hang(
            style.width,
            &indent(),
            &indent(),
            &format!("… and {} more (--all)", all - shown),
            Paint::Faint,
        );
    }
}

fn elsewhere(node: &str, answer: Answer<'_>) -> String {
    if node == answer.verdict.node { String::new() } else { format!("{node}: ") }
}
