//! The chain from root cause to loss of Ready, as times with a line through them.

use jiff::Timestamp;
use nodewhy_proto::{Evidence, Origin, RootCause, Step};

use super::page::{Page, Paint, Span, Style};
use super::text::{clean, pad, width};
use super::time::{clock, lasted};
use super::why::Answer;

/// How many pieces of evidence stand under a step, unless all are asked for.
const EVIDENCE_A_STEP: usize = 2;

/// Draws the chain of `root`. `told` is the text that the page already has above the chain.
pub(super) fn draw(page: &mut Page, answer: Answer<'_>, root: &RootCause, told: Option<&str>, style: Style) {
    let times: Vec<String> =
        root.chain.iter().map(|step| step.at.map(|at| clock(at, answer.now)).unwrap_or_default()).collect();
    let column = times.iter().map(|time| width(time)).max().unwrap_or(0);
    // A narrow screen has no columns to give away.
    let indent = if style.width < 60 { 0 } else { 5 };
    let last = root.chain.len().saturating_sub(1);
    for (index, (step, time)) in root.chain.iter().zip(&times).enumerate() {
        let place = Place::of(index, last);
        let (headline, used) = headline(step, answer, told);
        let lead = format!("{}{}", " ".repeat(indent), pad(time, column));
        let blank = " ".repeat(indent + column);
        let paint = if step.happened { Paint::Plain } else { Paint::WasSick };
        let first = [Span::new(&lead, Paint::Plain), Span::new(place.glyph(style), Paint::Faint)];
        let rest = [Span::new(&blank, Paint::Plain), Span::new(place.stem(style), Paint::Faint)];
        page.hang(style.width, &first, &rest, &headline, paint);
        let under = [rest[0].clone(), rest[1].clone(), Span::new("  ", Paint::Plain)];
        let further = [under[0].clone(), under[1].clone(), Span::new("    ", Paint::Plain)];
        // Where a piece of evidence is the headline, its source stands next to it.
        if let Some(piece) = step.evidence.iter().find(|piece| Some(piece.text.as_str()) == used) {
            page.hang(style.width, &under, &further, &source(piece), Paint::Faint);
        }
        let shown = if answer.all { usize::MAX } else { EVIDENCE_A_STEP };
        let untold = step
            .evidence
            .iter()
            .filter(|piece| answer.all || !(is_told(&piece.text, told) || piece.text == step.text));
        for piece in untold.filter(|piece| Some(piece.text.as_str()) != used).take(shown) {
            hang_evidence(page, &under, &further, piece, style);
        }
    }
}

/// Where a step stands in the chain.
#[derive(Clone, Copy)]
enum Place {
    Only,
    First,
    Middle,
    Last,
}

impl Place {
    fn of(index: usize, last: usize) -> Place {
        match (index, last) {
            (0, 0) => Place::Only,
            (0, _) => Place::First,
            (index, last) if index == last => Place::Last,
            _ => Place::Middle,
        }
    }

    fn glyph(self, style: Style) -> &'static str {
        match self {
            _ if !style.drawing => "  ",
            Place::Only => " ─ ",
            Place::First => " ┬ ",
            Place::Middle => " ├ ",
            Place::Last => " └ ",
        }
    }

    fn stem(self, style: Style) -> &'static str {
        match self {
            _ if !style.drawing => "  ",
            Place::Only | Place::Last => "   ",
            Place::First | Place::Middle => " │ ",
        }
    }
}

/// The step's line. Where the page has its text already, its deciding evidence stands instead, and is returned.
fn headline<'a>(step: &'a Step, answer: Answer<'_>, told: Option<&str>) -> (String, Option<&'a str>) {
    let elsewhere = if step.node == answer.verdict.node { String::new() } else { format!("{}: ", step.node) };
    if !step.happened {
        let expected = expected(step, answer.now);
        return (format!("{elsewhere}{expected} {}", step.text), None);
    }
    let other = step.evidence.iter().map(|piece| piece.text.as_str()).find(|text| !is_told(text, told));
    match other.filter(|_| told == Some(step.text.as_str())) {
        Some(text) => (format!("{elsewhere}{text}"), Some(text)),
        None => (format!("{elsewhere}{}", step.text), None),
    }
}

/// Whether the page has this text already, alone or within a longer one.
fn is_told(text: &str, told: Option<&str>) -> bool {
    told.is_some_and(|told| told.contains(text))
}

/// A step that the chain leads to next is told as such, and so is one that is overdue.
fn expected(step: &Step, now: Timestamp) -> String {
    match step.at {
        Some(at) if at > now && step.text.contains("expected") => format!("in {}:", lasted(now, at)),
        Some(at) if at > now => format!("expected in {}:", lasted(now, at)),
        Some(at) => format!("expected {} ago, not seen:", lasted(at, now)),
        None => "expected:".to_owned(),
    }
}

/// `text · source`, and whose judgement the limit is where it is nodewhy's own.
pub(super) fn hang_evidence(page: &mut Page, first: &[Span], rest: &[Span], piece: &Evidence, style: Style) {
    let source = source(piece);
    let prefix: usize = first.iter().map(|span| width(&span.text)).sum();
    let text = clean(&piece.text);
    if prefix + width(&text) + 3 + width(&clean(&source)) <= style.width {
        page.hang(style.width, first, rest, &format!("{text} · {source}"), Paint::Faint);
    } else {
        page.hang(style.width, first, rest, &text, Paint::Faint);
        page.hang(style.width, rest, rest, &source, Paint::Faint);
    }
}

fn source(piece: &Evidence) -> String {
    let ours = piece.threshold.as_ref().is_some_and(|limit| limit.origin == Origin::Heuristic);
    let judged = if ours { " (the limit is nodewhy's own judgement)" } else { "" };
    format!("{}{judged}", piece.source)
}
